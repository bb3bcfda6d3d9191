#!/usr/bin/python3 -IS
# The CNI plugin meshd: hands what the runtime says to the daemon and does in the container's namespace, which the
# daemon never enters, what the daemon answers. Decides nothing else: what is right or wrong, what comes out and every
# netlink message are the daemon's (meshd/api/cni.py, whose other half of the records this file is).
#
# It runs once for each ADD and DEL, and most of that time is Python's start: so it imports modules written in C only,
# and none from a path that others could write to (-I -S).
"""The CNI executable; ``main`` runs it."""

import _json  # json without its Python half takes a tenth of the time
import _socket
import fcntl
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Record = tuple[bytes, bytes]

SOCKET = "/run/meshd/cni.sock"
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
PROTOCOL = b"1"  # of the records; meshd/api/cnirecords.py
INPUT_MAX_BYTES = 4 << 20  # a GC that lists 10,000 containers twice is 2 MB
ANSWER_S = 60.0
QUEUE = "cni-del"  # beside the socket: what could not be told to the daemon

INCOMPATIBLE, UNKNOWN_CONTAINER, ENVIRONMENT, IO, DECODING, AGAIN, LIMITED, KERNEL = (
    1,
    3,
    4,
    5,
    6,
    11,
    51,
    100,
)
CLONE_NEWNET, SO_NETNS_COOKIE, SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 0x40000000, 71, 270, 10, 11
EEXIST = 17
RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, IFLA_IFNAME = 18, 22, 26, 3


class Fail(Exception):
    """What the runtime is told: ``code`` of the specification, a sentence, and what to do."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        self.code, self.msg, self.details = code, msg, details


class Silent(Exception):
    """The daemon is not there, or (args[1]) took the request and gave no answer."""


class Reading:
    """What _json.make_scanner wants to know of a decoder."""

    strict, object_hook, object_pairs_hook = True, None, None
    memo: dict[str, str] = {}  # noqa: RUF012
    parse_float, parse_int, parse_constant = float, int, float


def main() -> int:
    """Do what CNI_COMMAND says; return the exit status."""
    config, output, status = {}, b"", 0
    try:
        raw = read_input()
        config = parse(raw)
        command = posix.environ.get(b"CNI_COMMAND", b"").decode(errors="replace")
        if command not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise Fail(ENVIRONMENT, f"CNI_COMMAND: {command!r} is not one of {known}")
        output = COMMANDS[command](config, raw)
    except Fail as error:
        status, output = 1, told(config, error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status, output = 1, told(config, Fail(IO, f"{where}{error.strerror or error}"))
    while output:
        output = output[posix.write(1, output) :]
    return status


def read_input() -> bytes:
    """Read the network configuration. Raises Fail where it is too large."""
    found = b""
    while len(found) <= INPUT_MAX_BYTES:
        piece = posix.read(0, 1 << 16)
        if not piece:
            return found
        found += piece
    raise Fail(IO, f"the network configuration on standard input is larger than {INPUT_MAX_BYTES} bytes")


def parse(raw: bytes) -> "dict[str, Any]":
    """Read the configuration. Raises Fail."""
    try:
        text = raw.decode().strip(" \t\r\n")
        found, end = _json.make_scanner(Reading)(text, 0)  # type: ignore[arg-type]
        if end == len(text) and type(found) is dict:
            return found
    except (ValueError, StopIteration, RecursionError, SystemError):
        pass  # SystemError: the scanner wants to raise what the half of json that is not loaded has
    raise Fail(DECODING, "the network configuration on standard input is not a JSON object", short(raw))


def told(config: "dict[str, Any]", error: Fail) -> bytes:
    """Make the error result (specification, section 5)."""
    version, quote = config.get("cniVersion"), _json.encode_basestring_ascii
    said = f'"cniVersion":{quote(version if version in VERSIONS else VERSIONS[-1])},"code":{error.code}'
    said += f',"msg":{quote(error.msg)}' + (f',"details":{quote(error.details)}' if error.details else "")
    return f"{{{said}}}\n".encode()


def short(raw: bytes) -> str:
    """Say what text this was."""
    return "it begins with " + repr(raw[:60].decode(errors="replace")) if raw else "it is empty"


# --- operations -----------------------------------------------------------------------------------------------
def version(config: "dict[str, Any]", _raw: bytes) -> bytes:
    """Say which versions there are; needs no daemon."""
    quote = _json.encode_basestring_ascii
    asked = config.get("cniVersion", VERSIONS[-1])
    if type(asked) is not str:
        raise Fail(DECODING, "cniVersion: not a text")
    return (
        f'{{"cniVersion":{quote(asked)},"supportedVersions":[{",".join(map(quote, VERSIONS))}]}}\n'.encode()
    )


def add(config: "dict[str, Any]", raw: bytes) -> bytes:
    """Attach, and plumb. What is on its way out of the namespace is waited for, and the namespace looked at again."""
    path = socket_of(config)
    here = netlink()
    namespace, there, cookie = enter()
    fcntl.flock(namespace, fcntl.LOCK_EX)  # an ADD after the other in one container; until this process ends
    turn, own = b"1", b""
    for _ in range(3):
        try:
            wanted = ask(path, [*request(raw), (b"T", turn), (b"K", cookie), (b"S", own), *look(there)])
        except Silent as error:
            if error.args[1]:
                undo(path, raw)
            raise Fail(AGAIN, error.args[0], "start it: systemctl start meshd") from None
        if wanted[0][0] == b"a":
            turn = b"2"
        elif wanted[0][0] == b"s":
            own = own_sockets(wanted[0][1])
        else:
            break
    refused = plumb(wanted, here, there, namespace)
    if not refused:
        return output_of(wanted)
    if wanted[0][0] == b"n":
        raise Fail(KERNEL, refused, "the endpoint was there before this attempt, and still is")
    undo(path, raw)
    raise Fail(KERNEL, refused, "nothing is left of this attempt")


def own_sockets(asked: bytes) -> bytes:
    """Say which of these sockets (inodes, by commas) are held by a process that was started for this container and has
    its id among its arguments: podman's conmon keeps the container's ports on the host so."""
    container, found = posix.environ.get(b"CNI_CONTAINERID", b""), set()
    for process in posix.listdir(b"/proc"):
        if not process.isdigit():
            continue
        try:
            file = posix.open(b"/proc/" + process + b"/cmdline", posix.O_RDONLY | posix.O_CLOEXEC)
            words = posix.read(file, 1 << 16).split(b"\0")
            posix.close(file)
            if container in words:
                for each in posix.listdir(b"/proc/" + process + b"/fd"):
                    found.add(posix.readlink(b"/proc/" + process + b"/fd/" + each)[8:-1])  # socket:[INODE]
        except OSError:
            pass  # it has ended
    return b",".join(one for one in asked.split(b",") if one in found) or b"-"


def plumb(wanted: "list[Record]", here: _socket.socket, there: _socket.socket, namespace: int) -> str:
    """Send the daemon's messages; return what was refused, or ""."""
    index = 0
    for tag, said in wanted:
        if tag not in b"hitd":  # in the host's namespace, inside, inside and no matter if it is refused, IPv6
            continue
        words, message = step(said, namespace, index)
        try:
            if tag == b"d":
                turn_ipv6_on()
            else:
                index = say(here if tag == b"h" else there, message) or index
        except OSError as error:
            if tag in b"hd" or (tag == b"i" and error.errno != EEXIST):
                return f"{words}: {error.strerror}"
    return ""


def check(config: "dict[str, Any]", raw: bytes) -> bytes:
    """Have the daemon compare what there is with what it knows."""
    path = socket_of(config)
    _, there, cookie = enter()
    return plain(path, [*request(raw), (b"K", cookie), *look(there)], AGAIN)


def delete(config: "dict[str, Any]", raw: bytes) -> bytes:
    """Detach: always a success, for what the daemon does not hear now it does later."""
    path = socket_of(config)
    try:
        return output_of(ask(path, request(raw)))
    except Silent:
        queue(path, pack(request(raw)))
        return b""


def gc(config: "dict[str, Any]", raw: bytes) -> bytes:
    """Have all that is not listed detached."""
    return plain(socket_of(config), request(raw), AGAIN)


def ready(config: "dict[str, Any]", raw: bytes) -> bytes:
    """Ask whether an ADD could succeed."""
    return plain(socket_of(config), request(raw), LIMITED)


def plain(path: str, records: "list[Record]", silent: int) -> bytes:
    """Ask the daemon, whose answer is all there is to do. ``silent``: the code where there is no daemon."""
    try:
        return output_of(ask(path, records))
    except Silent as error:
        raise Fail(silent, error.args[0], "start it: systemctl start meshd") from None


COMMANDS = {"ADD": add, "DEL": delete, "CHECK": check, "GC": gc, "STATUS": ready, "VERSION": version}


def undo(path: str, raw: bytes) -> None:
    """Take back an ADD, now or later."""
    request_ = request(raw, b"DEL")
    try:
        ask(path, request_)
    except Silent:
        queue(path, pack(request_))


def queue(path: str, body: bytes) -> None:
    """Leave a request where the daemon finds it. Root writes into a folder of the daemon's user here: nothing follows a
    link that that user could have put there."""
    import time

    folder = path.rpartition("/")[0]
    for each in (folder, f"{folder}/{QUEUE}"):
        try:
            posix.mkdir(each, 0o755)
            above = posix.stat(folder)
            posix.chown(each, above.st_uid, above.st_gid, follow_symlinks=False)
        except FileExistsError:
            pass
    inside = posix.open(
        f"{folder}/{QUEUE}", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
    )
    owner = posix.fstat(inside)
    name = f"{time.time_ns():020}-{posix.getpid()}"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
    file = posix.open("." + name, flags, 0o600, dir_fd=inside)
    while body:
        body = body[posix.write(file, body) :]
    posix.fchown(file, owner.st_uid, owner.st_gid)
    posix.fsync(file)
    posix.rename("." + name, name, src_dir_fd=inside, dst_dir_fd=inside)
    posix.fsync(inside)


# --- the daemon -----------------------------------------------------------------------------------------------
def socket_of(config: "dict[str, Any]") -> str:
    """Return the daemon's socket. Raises Fail."""
    path = config.get("socket", SOCKET)
    if type(path) is not str or path[:1] != "/" or "\0" in path:
        raise Fail(7, f"socket: {path!r} is not an absolute path", f"leave it out for {SOCKET}")
    return path


def request(raw: bytes, command: bytes = b"") -> "list[Record]":
    """Make the records that every request has."""
    said = {k: v for k, v in posix.environ.items() if k[:4] == b"CNI_" and k != b"CNI_PATH"}
    if command:
        said[b"CNI_COMMAND"] = command
    return [(b"V", PROTOCOL), (b"E", b"\0".join(k + b"=" + v for k, v in said.items())), (b"C", raw)]


def pack(records: "list[Record]") -> bytes:
    """Frame records: a byte that says what, four for the length (big-endian), and the value."""
    return b"".join(tag + len(said).to_bytes(4, "big") + said for tag, said in records)


def ask(path: str, records: "list[Record]") -> "list[Record]":
    """Return the answer's records. Raises Silent: there is no daemon, or (args[1]) none any more."""
    body = pack(records)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    sent = False
    try:
        sock.settimeout(ANSWER_S)
        sock.connect(path)
        sent = True
        line = (
            f"POST /cni HTTP/1.1\r\nHost: meshd\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        sock.sendall(line.encode() + body)
        answer = b""
        while piece := sock.recv(1 << 16):
            answer += piece
    except OSError as error:
        raise Silent(f"meshd is not reachable at {path}: {error.strerror or error}", sent) from None
    head, _, body = answer.partition(b"\r\n\r\n")
    found = unpack(body)
    if head[9:12] != b"200" or not found or found[-1][0] != b".":
        status = head[9:12].decode(errors="replace")
        raise Silent(f"meshd at {path} gave no whole answer, status {status}", True)
    return found


def unpack(body: bytes) -> "list[Record]":
    """Take records apart; the last one of a whole answer is "."."""
    found = []
    while len(body) >= 5:
        end = 5 + int.from_bytes(body[1:5], "big")
        found.append((body[:1], body[5:end]))
        body = body[end:]
    return found


def output_of(records: "list[Record]") -> bytes:
    """Return what goes to standard output. Raises Fail where the daemon refused."""
    for tag, said in records:
        if tag == b"F":
            code, msg, details = said.decode().split("\0")
            raise Fail(int(code), msg, details)
        if tag == b"O":
            return said
    return b""


# --- the namespace --------------------------------------------------------------------------------------------
def enter() -> tuple[int, _socket.socket, bytes]:
    """Enter the container's namespace for good. Return it, a netlink socket in it, and its cookie. Raises Fail."""
    path = posix.environ.get(b"CNI_NETNS", b"")
    if not path:
        raise Fail(ENVIRONMENT, "CNI_NETNS: not set", "it is the path of the container's network namespace")
    shown = path.decode(errors="replace")
    try:
        looked = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)  # a device or FIFO is not opened
        seen, own = posix.fstat(looked), posix.stat("/proc/self/ns/net")
        if seen.st_dev != own.st_dev:
            raise Fail(ENVIRONMENT, f"CNI_NETNS: {shown} is not a network namespace")
        if seen.st_ino == own.st_ino:
            raise Fail(ENVIRONMENT, f"CNI_NETNS: {shown} is this host's own network namespace")
        namespace = posix.open(f"/proc/self/fd/{looked}", posix.O_RDONLY | posix.O_CLOEXEC)
        setns(namespace, shown)
        there = netlink()
        return namespace, there, there.getsockopt(_socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        raise Fail(UNKNOWN_CONTAINER, f"CNI_NETNS: there is no {shown}", "the container has ended") from None
    except OSError as error:
        raise Fail(ENVIRONMENT, f"CNI_NETNS: {shown}: {error.strerror}") from None


def setns(namespace: int, shown: str) -> None:
    """Enter a network namespace; Python has it from 3.12 on."""
    if hasattr(posix, "setns"):  # Python 3.12
        posix.setns(namespace, CLONE_NEWNET)
        return
    import _ctypes

    process = _ctypes.dlopen(None, 2)  # type: ignore[arg-type]
    function = _ctypes.dlsym(process, "setns")
    if _ctypes.call_function(function, (namespace, CLONE_NEWNET)) != 0:
        raise Fail(ENVIRONMENT, f"CNI_NETNS: {shown} is not a network namespace, or this is not root")


def netlink() -> _socket.socket:
    """Open a socket that speaks for the namespace this process is in."""
    sock = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
    sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
    sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
    return sock


def number(value: int, size: int = 4) -> bytes:
    """Pack a number as the kernel does."""
    return value.to_bytes(size, sys.byteorder)


def message(kind: int, flags: int, body: bytes) -> bytes:
    """Pack a netlink message: linux/netlink.h."""
    return number(16 + len(body)) + number(kind, 2) + number(flags, 2) + bytes(8) + body


def look(there: _socket.socket) -> "Iterator[Record]":
    """Yield what there is in the namespace in the kernel's words: the interface or nothing, addresses, routes."""
    name = posix.environ.get(b"CNI_IFNAME", b"")
    named = number(5 + len(name), 2) + number(IFLA_IFNAME, 2) + name + bytes(4 - len(name) % 4)
    there.send(message(RTM_GETLINK, 1, bytes(16) + named))
    found = there.recv(1 << 16)
    yield b"L", found if number(16, 2) == found[4:6] else b""
    for tag, kind, length in ((b"A", RTM_GETADDR, 8), (b"R", RTM_GETROUTE, 12)):
        there.send(message(kind, 0x301, bytes(length)))
        said = b""
        while True:
            piece = there.recv(1 << 16)
            said += piece
            kinds = set()
            while len(piece) >= 16:
                kinds.add(int.from_bytes(piece[4:6], sys.byteorder))
                piece = piece[(int.from_bytes(piece[:4], sys.byteorder) + 3) & ~3 or 16 :]
            if kinds & {2, 3}:  # NLMSG_ERROR, NLMSG_DONE
                break
        yield tag, said


def step(said: bytes, namespace: int, index: int) -> tuple[str, bytes]:
    """Complete a message of the daemon's with the interface's and the namespace's number; return what it is for, and it."""
    words_end = 6 + int.from_bytes(said[4:6], "big")
    words, packed = said[6:words_end].decode(), said[words_end:]
    for place, value in ((said[:2], index), (said[2:4], namespace)):
        at = int.from_bytes(place, "big")
        if at:
            packed = packed[:at] + number(value) + packed[at + 4 :]
    return words, packed


def turn_ipv6_on() -> None:
    """Let the interface have IPv6 addresses. /proc/sys/net shows the namespace that this process is in."""
    name = posix.environ[b"CNI_IFNAME"]
    file = posix.open(b"/proc/sys/net/ipv6/conf/" + name + b"/disable_ipv6", posix.O_WRONLY | posix.O_CLOEXEC)
    posix.write(file, b"0")
    posix.close(file)


def say(sock: _socket.socket, packed: bytes) -> int:
    """Send a message; return the number of the interface that the answer is about, or 0. Raises OSError."""
    sock.send(packed)
    answer = sock.recv(1 << 16)
    if int.from_bytes(answer[4:6], sys.byteorder) != 2:
        return int.from_bytes(answer[20:24], sys.byteorder)
    code = -int.from_bytes(answer[16:20], sys.byteorder, signed=True)
    if code:
        words = answer[40:].rstrip(b"\0").decode(errors="replace") if answer[38:40] == number(1, 2) else ""
        raise OSError(code, words or posix.strerror(code))
    return 0


if __name__ == "__main__":
    posix._exit(main())
