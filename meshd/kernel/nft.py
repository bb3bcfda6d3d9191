"""The firewall's tables: made whole through nft(8), their elements one by one by netlink, and a way to tell cheaply
whether they still are what we set. It must not know what the rules mean.

After setting a text, the tables are read back without their elements and sealed: an empty chain is added whose name
holds a hash of the text and a hash of the read-back listing. The rules are intact if the seal's second hash fits the
listing as it is now, so a flushed table, a deleted rule or a new chain all show, also after a restart of the daemon.
Elements are compared one by one. All of it is read only when the kernel's ruleset generation (it counts every commit
of anybody's) moved on by more than our own commits.

Left out of the listing: handles and counters.
"""

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from meshd.errors import KernelError
from meshd.kernel import frames, netlink, nftelements, nfttool
from meshd.kernel.echoes import Echoes
from meshd.plan import names
from meshd.plan.elements import SETS, Element, Elements, key_fields
from meshd.plan.firewall import script

__all__ = ["NFT_MSG_NEWGEN", "SUBSYSTEM", "UNKNOWN", "Firewall"]

UNKNOWN = "# our tables, not as meshd set them"
"""Stands for the text of tables that were changed, or set from a text that this process has not seen."""

SUBSYSTEM = nftelements.SUBSYSTEM
NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_NEWGEN, NFT_MSG_GETGEN = 0, 1, 15, 16
NFTA_TABLE_NAME, NFTA_GEN_ID = 1, 1

_NAMES = {number: name for name, number in nftelements.FAMILIES.items()}
_SEAL = re.compile(r"seal_([0-9a-f]{16})_([0-9a-f]{16})\Z")
_NEVER_ASKED = (errno.EINVAL, errno.EOPNOTSUPP)  # no nf_tables in this kernel


class Elsewhere(NamedTuple):
    """A port of this host that another cluster's daemon here publishes, by its ``table``. ``protocol``: IP's number;
    ``address``: packed, None for every one of ``families``."""

    table: str
    protocol: int
    families: tuple[int, ...]
    address: bytes | None
    port: int


_ANOTHERS = re.compile(rf"{names.MARK}(-\d+)?\Z")
_PUBLISHED = (("publish4", 4), ("publish6", 6), ("everywhere4", 4), ("everywhere6", 6))


class Firewall:
    """The tables named ``table`` of one namespace, in every family. Blocking; one thread at a time."""

    def __init__(self, echoes: Echoes, table: str = names.MARK) -> None:
        self._echoes = echoes
        self._table = table
        self._declared = re.compile(rf"^\s*(?:add\s+)?table\s+(\w+)\s+{table}(?=\s)", re.MULTILINE)
        self._netlink: netlink.Netlink | None = None
        self._text = ""
        self._elements: Elements = {}
        self._generation: int | None = None  # at which text and elements were seen to be what the kernel has

    def close(self) -> None:
        """Close the socket."""
        if self._netlink is not None:
            self._netlink.close()

    def current(self, candidate: str = "") -> tuple[str, Elements]:
        """Return the text that the tables were set from and their elements.

        The text is UNKNOWN unless the rules are intact and were set by this process or from ``candidate``; "" if
        there is no table. Raises KernelError.
        """
        generation = self.generation()
        if generation is not None and generation == self._generation:
            return self._text, dict(self._elements)
        families = self._families()
        if not families:
            self._text, self._elements = "", {}
        else:
            listing, seal, sets = self._listing(families)
            texts = {_hash(text): text for text in (self._text, candidate) if text}
            if seal is None or seal[1] != listing or seal[0] not in texts:
                self._generation = None
                return UNKNOWN, {}
            self._text, self._elements = texts[seal[0]], self._read_elements(sets)
        # What was read belongs together only if nobody committed meanwhile.
        self._generation = generation if self.generation() == generation else None
        return self._text, dict(self._elements)

    def set(self, text: str, elements: Mapping[Element, bytes] | None = None) -> bool:
        """Replace the tables by ``text`` with ``elements`` in one transaction and seal them; "" deletes them. Nothing
        is done, and False returned, if they are that already. Raises KernelError with the old tables in place."""
        elements = dict(elements or {})
        if self.current(text) == (text, elements):
            return False
        self._replace(text, elements)
        return True

    @property
    def elements(self) -> Mapping[Element, bytes]:
        """What the sets hold, as far as is known without asking."""
        return self._elements

    def change(self, puts: Mapping[Element, bytes], deletes: Mapping[Element, bytes]) -> None:
        """Add and delete elements in one transaction, at a cost that does not depend on how many there are.

        Where the kernel refuses, because the tables are not what they were, they are made anew. Raises KernelError
        if that fails too.
        """
        have = self._elements
        gone = {key: b"" for key in deletes if key in have}
        gone |= {key: b"" for key, data in puts.items() if have.get(key, data) != data}
        new = {key: data for key, data in puts.items() if have.get(key) != data}
        messages = [*nftelements.delete(self._table, gone), *nftelements.put(self._table, new)]
        link = self._socket()
        if not messages or link is None:
            return
        before, known = self.generation(), self._generation
        refused = link.atomically(messages, nftelements.begin(), nftelements.end())
        for key in gone:
            del have[key]
        have.update(new)
        if refused and not self._text:  # seen to be gone: the comparison that this leads to makes them anew
            raise KernelError("the firewall's tables are gone", errno=errno.ENOENT, words=refused[0].words)
        if refused:
            self._replace(self._text, have)
        else:
            self._note_generation(before if before == known else None, commits=1)

    def _note_generation(self, before: int | None, *, commits: int) -> None:
        """Take the tables for known if nobody but us has committed anything since generation ``before``."""
        now = self.generation()
        alone = before is not None and now is not None and (now - before) % (1 << 32) == commits
        self._generation = now if alone else None

    def generation(self) -> int | None:
        """Return the ruleset's generation, or None where the kernel has no nftables."""
        link = self._socket()
        if link is None:
            return None
        request = frames.request(SUBSYSTEM << 8 | NFT_MSG_GETGEN, 0, nftelements.head())
        (answer,) = link.get([request])
        if isinstance(answer, KernelError):
            return None
        said = frames.attributes(answer, nftelements.BODY_BYTES, len(answer))
        return int.from_bytes(said.get(NFTA_GEN_ID, b""), "big")

    def _replace(self, text: str, elements: Elements) -> None:
        before, self._generation = self.generation(), None
        families = dict.fromkeys([*self._families(), *self._declared.findall(text)])
        # Adding first makes the delete succeed where there is none; in one transaction nobody sees the gap.
        clear = "".join(
            f"table {family} {self._table}\ndelete table {family} {self._table}\n" for family in families
        )
        nfttool.run(self._echoes, ["-f", "-"], clear + script(text, elements, self._table))
        self._text, self._elements = "", {}
        families = dict.fromkeys(self._families())
        if families:
            listing, _, _ = self._listing([*families])
            seal = f"seal_{_hash(text)}_{listing}"
            nfttool.run(self._echoes, ["-f", "-"], f"add chain {next(iter(families))} {self._table} {seal}\n")
        self._text, self._elements = text, elements
        self._note_generation(before, commits=2 if families else 1)

    def _socket(self) -> netlink.Netlink | None:
        """Open the nfnetlink socket on first use; None where the kernel has no nfnetlink."""
        if self._netlink is None:
            try:
                self._netlink = netlink.Netlink(netlink.NETLINK_NETFILTER)
            except OSError as error:
                if error.errno != errno.EPROTONOSUPPORT:
                    raise KernelError("nftables", errno=error.errno or 0, words=str(error)) from None
            else:
                self._echoes.port(self._netlink.port_id)
        return self._netlink

    def elsewhere(self) -> list[Elsewhere]:
        """Return what other clusters' daemons publish on this host. Raises KernelError."""
        link = self._socket()
        found: list[Elsewhere] = []
        others = {name for name, family in self._tables() if family == "inet" and _ANOTHERS.match(name)}
        for table in sorted(others - {self._table}) if link is not None else ():
            for name, family in _PUBLISHED:
                try:
                    chunks = link.dump(nftelements.dump_request(table, name))  # type: ignore[union-attr]
                except KernelError as error:
                    if error.errno != errno.ENOENT:  # goes just now, or an older version's
                        raise
                    continue
                for of, _ in (each for chunk in chunks for each in nftelements.parse(name, chunk)):
                    *address, protocol, port = key_fields(of)
                    at = address[0] if address else None
                    found.append(Elsewhere(table, protocol[0], (family,), at, int.from_bytes(port, "big")))
        return found

    def _families(self) -> list[str]:
        """Return the families in which a table of ours exists."""
        found = [family for name, family in self._tables() if name == self._table]
        return sorted(found, key=lambda family: (family != "inet", family))

    def _tables(self) -> list[tuple[str, str]]:
        """Return every table there is: name, family."""
        link = self._socket()
        if link is None:
            return []
        request = frames.request(SUBSYSTEM << 8 | NFT_MSG_GETTABLE, 0, nftelements.head())
        try:
            chunks = link.dump(request)
        except KernelError as error:
            if error.errno in _NEVER_ASKED:
                return []
            raise
        found: list[tuple[str, str]] = []
        for chunk in chunks:
            for kind, _, start, end in frames.split(chunk):
                name = frames.attributes(chunk, start + nftelements.BODY_BYTES, end).get(NFTA_TABLE_NAME, b"")
                if kind == SUBSYSTEM << 8 | NFT_MSG_NEWTABLE:
                    family = _NAMES.get(chunk[start + frames.HEADER_BYTES], "")
                    found.append((name.rstrip(b"\0").decode(errors="replace"), family))
        return found

    def _listing(self, families: list[str]) -> tuple[str, tuple[str, str] | None, list[str]]:
        """Return (hash of the tables without elements as nft lists them, what the seal says or None, the sets)."""
        seal: tuple[str, str] | None = None
        kept: list[Any] = []
        sets: list[str] = []
        for family in families:
            output = nfttool.run(self._echoes, ["-j", "-s", "-t", "list", "table", family, self._table])
            try:
                items = nfttool.listed(output)
            except ValueError:
                return _hash(output), None, []  # not ours as we set it, whatever it is
            for item in items:
                ((kind, value),) = item.items()
                match = _SEAL.match(value.get("name", "")) if kind == "chain" else None
                if match and seal is None:
                    seal = (match[1], match[2])
                elif kind != "metainfo":
                    kept.append(
                        (kind, {key: part for key, part in value.items() if key not in ("handle", "elem")})
                    )
                    spec = SETS.get(value["name"]) if kind in ("set", "map") else None
                    if spec is not None and spec.family == family:
                        sets.append(value["name"])
        return _hash(json.dumps(kept, sort_keys=True)), seal, sets

    def _read_elements(self, sets: list[str]) -> Elements:
        """Return what the sets hold."""
        link = self._socket()
        found: Elements = {}
        for name in sets if link is not None else ():
            for chunk in link.dump(nftelements.dump_request(self._table, name)):  # type: ignore[union-attr]
                found.update(nftelements.parse(name, chunk))
        return found


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
