"""One blocking AF_NETLINK socket: batches of requests out, the kernel's answers back, matched by sequence
number. It decides how to talk to the kernel and must not know what is said.

A netlink socket stays in the namespace it was opened in for good. The kernel works while sendmsg() runs
(deleting a link takes 20-40 ms), so every call here belongs in one worker thread (stack.md, A1, pitfall 4).
Layouts: linux/netlink.h; extended acknowledgements: Documentation/userspace-api/netlink/intro.rst.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence

from meshd.config import (
    NETLINK_BATCH,
    NETLINK_BATCH_BYTES,
    NETLINK_COMMAND_RCVBUF_BYTES,
    NETLINK_DUMP_TRIES,
    NETLINK_REPLY_S,
)
from meshd.errors import KernelError
from meshd.kernel.frames import (
    ACK,
    ACK_TLVS,
    CAPPED,
    DUMP,
    DUMP_INTR,
    HEADER,
    HEADER_BYTES,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSGERR_ATTR_MSG,
    attributes,
    split,
)

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 1, 10, 11, 12
SO_RCVBUFFORCE, SO_RCVTIMEO = 33, 20

_SEQUENCE = struct.Struct("=I")
_SIGNED = struct.Struct("=i")
_RECEIVE_BYTES = 1 << 17  # four times the largest dump buffer the kernel fills (32 KiB)


def open_socket(protocol: int, receive_bytes: int) -> socket.socket:
    """Open and bind a netlink socket in the current namespace, its receive buffer beyond rmem_max where the
    process may (CAP_NET_ADMIN). Raises OSError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_bytes)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.bind((0, 0))
    except BaseException:
        sock.close()
        raise
    return sock


class Netlink:
    """A request socket. Not thread-safe: one thread uses it at a time.

    ``port_id``: what the kernel puts into notifications that our requests caused. ``strict``: whether the
    kernel filters dumps as asked (>= 4.20); before, it ignores filters and answers with everything.
    """

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._sock = open_socket(protocol, NETLINK_COMMAND_RCVBUF_BYTES)
        self._sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)  # errors without a copy of the request
        seconds, micros = divmod(int(NETLINK_REPLY_S * 1_000_000), 1_000_000)
        self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVTIMEO, struct.pack("@ll", seconds, micros))
        self.strict = True
        try:
            self._sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except OSError:
            self.strict = False
        self.port_id: int = self._sock.getsockname()[0]
        self._next = 1
        self._buffer = bytearray(_RECEIVE_BYTES)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def transact(self, messages: Sequence[bytes]) -> list[KernelError | None]:
        """Send requests; return per request None or why the kernel refused it. Later ones run all the same.

        Only the last of a batch asks for an acknowledgement, since errors come in any case: that is 1.5-2
        times as fast (perf.md, 3).
        """
        answers: list[KernelError | None] = [None] * len(messages)
        for start, batch in _batches(messages):
            for index, error in self._exchange(batch)[0].items():
                answers[start + index] = error
        return answers

    def atomically(self, messages: Sequence[bytes], begin: bytes, end: bytes) -> list[KernelError]:
        """Send requests to nf_tables as one transaction between ``begin`` and ``end``; return why it was refused, if
        it was: nothing is done then. More than NETLINK_BATCH_BYTES are several transactions, up to a refused one.

        Only the last request asks for an acknowledgement, not ``end``: kernels before 6.10 never give one for that.
        """
        for batch in _by_bytes(messages):
            first = self._number(len(batch) + 2)
            data, offset = bytearray(b"".join([begin, *batch, end])), 0
            for number, message in enumerate([begin, *batch, end], first):
                _SEQUENCE.pack_into(data, offset + 8, number)
                offset += len(message)
            data[offset - len(end) - len(batch[-1]) + 6] |= ACK
            last = first + len(batch)
            errors: dict[int, KernelError] = {}
            try:
                self._send(data)
                while not self._sort(self._receive(), first, last, errors, {}) and 0 not in errors:
                    pass
            except OSError as error:
                self._drain(first, last, errors, {})
                errors.setdefault(0, _failed(error))
            if errors:
                return list(errors.values())
        return []

    def get(self, messages: Sequence[bytes]) -> list[bytes | KernelError]:
        """Send requests that are answered by one message each; return the answers, header included."""
        answers: list[bytes | KernelError] = []
        for _, batch in _batches(messages):
            errors, replies = self._exchange(batch)
            for index in range(len(batch)):
                answer = errors.get(index) or replies.get(index)
                answers.append(answer or KernelError("netlink", errno=errno.ENODATA, words="no answer"))
        return answers

    def dump(self, message: bytes) -> list[bytes]:
        """Send a dump request; return the received buffers, each of whole messages (see ``split``).

        A dump that a change interrupted may lack entries, so it is repeated. Raises KernelError.
        """
        for _ in range(NETLINK_DUMP_TRIES):
            chunks = self._dump_once(message)
            if chunks is not None:
                return chunks
        raise KernelError(
            "reading the kernel's state", errno=errno.EINTR, words="interrupted by changes each time"
        )

    def _dump_once(self, message: bytes) -> list[bytes] | None:
        """Return the buffers, or None if the dump has to be repeated."""
        number = self._number(1)
        data = bytearray(message)
        kind, flags = struct.unpack_from("=HH", data, 4)
        HEADER.pack_into(data, 0, len(data), kind, flags | DUMP, number, 0)
        self._send(data)
        chunks: list[bytes] = []
        whole = True
        while True:
            try:
                chunk = self._receive()
            except OSError as error:
                self._drain(1, 0, {}, {})
                raise _failed(error) from None
            if chunk is None:
                whole = False
                continue
            if _SEQUENCE.unpack_from(chunk, 8)[0] != number:
                continue  # what an earlier, broken off exchange left behind
            for kind, flags, start, end in split(chunk):
                if flags & DUMP_INTR:
                    whole = False
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    code = _SIGNED.unpack_from(chunk, start + HEADER_BYTES)[0] if end - start >= 20 else 0
                    if code < 0:
                        raise _refusal(chunk, start, end, flags)
                    if start:
                        chunks.append(chunk[:start])
                    return chunks if whole else None
            chunks.append(chunk)

    def _exchange(self, batch: Sequence[bytes]) -> tuple[dict[int, KernelError], dict[int, bytes]]:
        """Send one batch and read up to the last request's acknowledgement: errors and replies by index."""
        first = self._number(len(batch))
        data = bytearray(b"".join(batch))
        offset = number = 0
        for number, message in enumerate(batch, first):
            _SEQUENCE.pack_into(data, offset + 8, number)
            offset += len(message)
        flags_at = offset - len(batch[-1]) + 6
        data[flags_at] |= ACK
        errors: dict[int, KernelError] = {}
        replies: dict[int, bytes] = {}
        try:
            self._send(data)
            while not self._sort(self._receive(), first, number, errors, replies):
                pass
        except OSError as error:
            # Acknowledgements were lost (ENOBUFS) or nothing was sent: what has no answer counts as failed,
            # and the next compare of desired and actual says what is true.
            lost = _failed(error)
            self._drain(first, number, errors, replies)
            errors = {index: errors.get(index, lost) for index in range(len(batch)) if index not in replies}
        return errors, replies

    def _sort(
        self,
        chunk: bytes | None,
        first: int,
        last: int,
        errors: dict[int, KernelError],
        replies: dict[int, bytes],
    ) -> bool:
        """Sort a received buffer by the requests ``first`` to ``last``; tell whether the last is answered."""
        if chunk is None:
            raise OSError(errno.EMSGSIZE, "answer larger than the receive buffer")
        for kind, flags, start, end in split(chunk):
            answered = _SEQUENCE.unpack_from(chunk, start + 8)[0]
            if not first <= answered <= last:
                continue
            if kind != NLMSG_ERROR:
                replies[answered - first] = chunk[start:end]
                continue
            if _SIGNED.unpack_from(chunk, start + HEADER_BYTES)[0]:
                errors[answered - first] = _refusal(chunk, start, end, flags)
            if answered == last:
                return True
        return False

    def _drain(
        self, first: int, last: int, errors: dict[int, KernelError], replies: dict[int, bytes]
    ) -> None:
        """Take what is still queued: after an overflow the kernel drops everything until the queue is empty
        (net/netlink/af_netlink.c, NETLINK_S_CONGESTED), so the next request would wait in vain."""
        while True:
            try:
                self._sort(self._receive(socket.MSG_DONTWAIT), first, last, errors, replies)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.EMSGSIZE):
                    return

    def _number(self, count: int) -> int:
        """Take ``count`` sequence numbers; return the first."""
        if self._next + count >= 1 << 32:
            self._next = 1
        first = self._next
        self._next += count
        return first

    def _send(self, data: bytearray) -> None:
        self._sock.sendto(data, (0, 0))

    def _receive(self, flags: int = 0) -> bytes | None:
        """Receive one buffer; None if it did not fit, after making room for the next."""
        size = self._sock.recv_into(self._buffer, 0, flags | socket.MSG_TRUNC)
        if size > len(self._buffer):
            self._buffer = bytearray(size * 2)
            return None
        return bytes(memoryview(self._buffer)[:size])


def _batches(messages: Sequence[bytes]) -> Iterator[tuple[int, Sequence[bytes]]]:
    """Cut requests into (index of the first, batch), bounded by number and by bytes."""
    start = 0
    while start < len(messages):
        batch = messages[start : start + NETLINK_BATCH]
        while len(batch) > 1 and sum(map(len, batch)) > NETLINK_BATCH_BYTES:
            batch = batch[: len(batch) // 2]
        yield start, batch
        start += len(batch)


def _by_bytes(messages: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Cut requests into runs that NETLINK_BATCH_BYTES bounds, of at least one request each."""
    run: list[bytes] = []
    for message in messages:
        if run and sum(map(len, run)) + len(message) > NETLINK_BATCH_BYTES:
            yield run
            run = []
        run.append(message)
    if run:
        yield run


def _refusal(chunk: bytes, start: int, end: int, flags: int) -> KernelError:
    """Make an error of NLMSG_ERROR (or a failed NLMSG_DONE): errno and the kernel's words."""
    code = -_SIGNED.unpack_from(chunk, start + HEADER_BYTES)[0]
    words = os.strerror(code)
    if flags & ACK_TLVS:
        where = start + HEADER_BYTES + 4
        if struct.unpack_from("=H", chunk, start + 4)[0] == NLMSG_ERROR:
            (original,) = _SEQUENCE.unpack_from(chunk, where)
            where += HEADER_BYTES if flags & CAPPED else (original + 3) & ~3
        text = attributes(chunk, where, end).get(NLMSGERR_ATTR_MSG)
        if text:
            words = text.rstrip(b"\0").decode(errors="replace")
    return KernelError("the kernel refused", errno=code, words=words)


def _failed(error: OSError) -> KernelError:
    """Make an error of a socket call that failed."""
    code = error.errno or errno.EIO
    return KernelError("talking to the kernel", errno=code, words=os.strerror(code))
