"""The firewall table: set whole through nft(8), and a way to tell cheaply whether it still is what we set.
It must not know what the rules mean.

After setting a text, the table is read back and sealed: an empty chain is added whose name holds a hash of
the text and a hash of the read-back listing. Intact means that the seal's second hash fits the listing as it
is now, so a flushed table, a deleted rule or an added element all show, also after a restart of the daemon.
The listing is read only when the kernel's ruleset generation (it counts every commit of anybody's) moved on.

Left out of the listing: handles, counters, and elements that packets or time change (sets with the flags
dynamic or timeout).
"""

import errno
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
from typing import Any

from meshd.config import NFT_TIMEOUT_S
from meshd.errors import KernelError
from meshd.kernel import frames, netlink
from meshd.kernel.echoes import Echoes

TABLE = "meshd"
UNKNOWN = "# table meshd, not as meshd set it"
"""Stands for the text of a table that was changed, or set from a text that this process has not seen."""

SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_NEWGEN, NFT_MSG_GETGEN = 0, 1, 15, 16
NFTA_TABLE_NAME, NFTA_GEN_ID = 1, 1
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}

_NFGENMSG = struct.Struct("=BBH")  # family, version, resource id
_BODY = frames.HEADER_BYTES + _NFGENMSG.size
_SBIN = "/usr/sbin:/sbin"
_TABLES = re.compile(rf"^\s*(?:add\s+)?table\s+(\w+)\s+{TABLE}\b", re.MULTILINE)
_SEAL = re.compile(r"seal_([0-9a-f]{16})_([0-9a-f]{16})\Z")
_VOLATILE_FLAGS = {"dynamic", "timeout"}


class Firewall:
    """The tables named meshd of one namespace, in every family. Blocking; one thread at a time."""

    def __init__(self, echoes: Echoes) -> None:
        self._echoes = echoes
        self._netlink: netlink.Netlink | None = None
        self._text = ""
        self._generation: int | None = None  # at which self._text was seen to be what the kernel has

    def close(self) -> None:
        """Close the socket."""
        if self._netlink is not None:
            self._netlink.close()

    def current(self, candidate: str = "") -> str:
        """Return the text that the table was set from, if it is intact and was set by this process or from
        ``candidate``; UNKNOWN if not; "" if there is no table. Raises KernelError."""
        generation = self._read_generation()
        if generation is not None and generation == self._generation:
            return self._text
        families = self._families()
        if not families:
            self._text = ""
        else:
            listing, seal = self._listing(families)
            texts = {_hash(text): text for text in (self._text, candidate) if text}
            if seal is None or seal[1] != listing or seal[0] not in texts:
                self._generation = None
                return UNKNOWN
            self._text = texts[seal[0]]
        self._generation = generation
        return self._text

    def set(self, text: str) -> None:
        """Replace the tables by ``text`` in one transaction and seal them; "" deletes them. Nothing is done
        if they are that already. Raises KernelError with the old tables in place."""
        if self.current(text) == text:
            return
        self._generation = None
        families = dict.fromkeys([*self._families(), *_TABLES.findall(text)])
        # Adding first makes the delete succeed where there is none; in one transaction nobody sees the gap.
        script = "".join(f"table {family} {TABLE}\ndelete table {family} {TABLE}\n" for family in families)
        self._nft(["-f", "-"], script + text)
        self._text = ""
        families = dict.fromkeys(self._families())
        if families:
            listing, _ = self._listing([*families])
            seal = f"seal_{_hash(text)}_{listing}"
            self._nft(["add", "chain", next(iter(families)), TABLE, seal])
        self._text = text
        self.current()

    def _socket(self) -> netlink.Netlink | None:
        """Open the nfnetlink socket on first use; None where the kernel has no nfnetlink."""
        if self._netlink is None:
            try:
                self._netlink = netlink.Netlink(netlink.NETLINK_NETFILTER)
            except OSError as error:
                if error.errno != errno.EPROTONOSUPPORT:
                    raise KernelError("nftables", errno=error.errno or 0, words=str(error)) from None
        return self._netlink

    def _read_generation(self) -> int | None:
        """Return the ruleset's generation, or None where the kernel has no nftables."""
        link = self._socket()
        if link is None:
            return None
        request = frames.request(SUBSYSTEM << 8 | NFT_MSG_GETGEN, 0, _NFGENMSG.pack(0, 0, 0))
        (answer,) = link.get([request])
        if isinstance(answer, KernelError):
            return None
        return int.from_bytes(frames.attributes(answer, _BODY, len(answer)).get(NFTA_GEN_ID, b""), "big")

    def _families(self) -> list[str]:
        """Return the families in which a table of ours exists."""
        link = self._socket()
        if link is None:
            return []
        request = frames.request(SUBSYSTEM << 8 | NFT_MSG_GETTABLE, 0, _NFGENMSG.pack(0, 0, 0))
        try:
            chunks = link.dump(request)
        except KernelError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return []  # no nf_tables in this kernel
            raise
        found: list[str] = []
        for chunk in chunks:
            for kind, _, start, end in frames.split(chunk):
                name = frames.attributes(chunk, start + _BODY, end).get(NFTA_TABLE_NAME, b"")
                if kind == SUBSYSTEM << 8 | NFT_MSG_NEWTABLE and name.rstrip(b"\0") == TABLE.encode():
                    found.append(FAMILIES.get(chunk[start + frames.HEADER_BYTES], "inet"))
        return sorted(found, key=lambda family: (family != "inet", family))

    def _listing(self, families: list[str]) -> tuple[str, tuple[str, str] | None]:
        """Return (hash of the tables as nft lists them, what the seal says or None)."""
        seal: tuple[str, str] | None = None
        kept: list[Any] = []
        for family in families:
            output = self._nft(["-j", "-s", "list", "table", family, TABLE])
            for item in json.loads(output)["nftables"]:
                ((kind, value),) = item.items()
                match = _SEAL.match(value.get("name", "")) if kind == "chain" else None
                if match:
                    seal = (match[1], match[2])
                elif kind != "metainfo":
                    kept.append((kind, _stable(kind, value)))
        return _hash(json.dumps(kept, sort_keys=True)), seal

    def _nft(self, arguments: list[str], script: str | None = None) -> str:
        """Run nft. Raises KernelError with its words."""
        program = shutil.which("nft", path=os.environ.get("PATH", os.defpath) + ":" + _SBIN)
        if program is None:
            raise KernelError(
                "the firewall", "install nftables", errno=errno.ENOENT, words="nft is not installed"
            )
        with subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            self._echoes.child(process.pid)
            try:
                output, words = process.communicate(script or "", NFT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise KernelError(
                    "the firewall", errno=errno.ETIMEDOUT, words=f"nft took over {NFT_TIMEOUT_S:.0f} s"
                ) from None
        if process.returncode:
            first = (words.strip() or f"nft exited {process.returncode}").splitlines()[0]
            code = errno.EPERM if "not permitted" in words else errno.EINVAL
            raise KernelError("the firewall was left as it was", errno=code, words=first)
        return output


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _stable(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    """Take off what changes without anybody changing the table."""
    kept = {key: part for key, part in value.items() if key != "handle"}
    flags = kept.get("flags", [])
    if kind in ("set", "map") and _VOLATILE_FLAGS & set([flags] if isinstance(flags, str) else flags):
        kept.pop("elem", None)
    if isinstance(kept.get("elem"), list):
        kept["elem"] = sorted(kept["elem"], key=lambda element: json.dumps(element, sort_keys=True))
    return kept
