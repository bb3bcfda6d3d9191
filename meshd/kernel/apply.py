"""Carries out ops, in order. It decides how they are batched and what counts as success; which ops are
needed, and their order, is plan/diff.py's.

Consecutive ops on rows, nexthops and addresses travel together, NETLINK_BATCH in a send. Deleting what is
gone is a success. One op's failure does not hold up the rest: the caller gets each with the kernel's words.
"""

import errno
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, ClassVar, TypeVar

from meshd.errors import KernelError
from meshd.kernel import addresses, hostroutes, netlink, nexthops, rows
from meshd.kernel.conntrack import Conntrack
from meshd.kernel.echoes import Echoes, RowNote
from meshd.kernel.gates import Gates
from meshd.kernel.links import Birth, Links
from meshd.kernel.nft import Firewall
from meshd.model import text_ip, text_mac
from meshd.plan import elements
from meshd.plan.elements import Elements
from meshd.plan.ops import (
    DelAddr,
    DelElement,
    DelFdb,
    DelLink,
    DelNeigh,
    DelNexthop,
    DelRoute,
    LeaveGate,
    Op,
    OpenGate,
    PutAddr,
    PutElement,
    PutFdb,
    PutLink,
    PutNeigh,
    PutNexthop,
    PutRoute,
    RemakeLink,
    RenameLink,
    SetFirewall,
)
from meshd.plan.tracked import doubt

O = TypeVar("O")  # noqa: E741
Failures = list[tuple[Op, KernelError]]
Groups = list[tuple[type, list[Op]]]
Index = Mapping[str, int]

_GONE = {errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL}

_ENCODE: dict[type, Callable[[Sequence[Any], Index], list[bytes]]] = {
    PutNexthop: lambda ops, _: [nexthops.put(op.nexthop) for op in ops],
    DelNexthop: lambda ops, _: [nexthops.delete(op.id) for op in ops],
    PutFdb: lambda ops, index: rows.put_fdb(
        zip([op.key for op in ops], [op.target for op in ops], strict=True), index
    ),
    DelFdb: lambda ops, index: rows.del_fdb([op.key for op in ops], index),
    PutNeigh: lambda ops, index: rows.put_neigh(
        zip([op.key for op in ops], [op.mac for op in ops], strict=True), index
    ),
    DelNeigh: lambda ops, index: rows.del_neigh([op.key for op in ops], index),
    PutAddr: lambda ops, index: addresses.put([op.addr for op in ops], index),
    DelAddr: lambda ops, index: addresses.delete([op.addr for op in ops], index),
    PutRoute: lambda ops, index: hostroutes.put([op.route for op in ops], index),
    DelRoute: lambda ops, index: hostroutes.delete([op.route for op in ops], index),
}
"""How ops become messages, one each. These are batched; an op that is not here goes alone."""

_DEVICES: dict[type, Callable[[Sequence[Any]], Sequence[str]]] = {
    PutFdb: lambda ops: [op.key.dev for op in ops],
    DelFdb: lambda ops: [op.key.dev for op in ops],
    PutNeigh: lambda ops: [op.key.dev for op in ops],
    DelNeigh: lambda ops: [op.key.dev for op in ops],
    PutAddr: lambda ops: [op.addr.dev for op in ops],
    DelAddr: lambda ops: [op.addr.dev for op in ops],
    PutRoute: lambda ops: [op.route.dev for op in ops],
    DelRoute: lambda ops: [op.route.dev for op in ops],
}
"""The devices that ops of a kind are on, in their order."""

_NOTES: dict[type, Callable[[Sequence[Any], Index], Iterable[RowNote]]] = {
    PutFdb: lambda ops, index: (
        (op.key.where, True, index[op.key.dev], op.key.mac, op.target.nhid or op.target.dst) for op in ops
    ),
    DelFdb: lambda ops, index: ((op.key.where, False, index[op.key.dev], op.key.mac, None) for op in ops),
    DelNeigh: lambda ops, index: (("neigh", False, index[op.key.dev], op.key.ip, None) for op in ops),
    PutAddr: lambda ops, index: (
        ("addr", True, index[op.addr.dev], op.addr.ip, op.addr.prefix) for op in ops
    ),
    DelAddr: lambda ops, index: (
        ("addr", False, index[op.addr.dev], op.addr.ip, op.addr.prefix) for op in ops
    ),
}
"""Which events the echoes are to expect; of the other kinds netlink says by itself who caused them."""

_DELETES = (DelAddr, DelFdb, DelLink, DelNeigh, DelNexthop, DelRoute)


def describe(op: Op) -> str:
    """Name what an op is about, for an error message."""
    match op:
        case PutLink(link) | RemakeLink(link):
            return f"device {link.name}"
        case DelLink(name) | RenameLink(_, name):
            return f"device {name}"
        case PutAddr(addr) | DelAddr(addr):
            return f"address {text_ip(addr.ip)}/{addr.prefix} on {addr.dev}"
        case PutRoute(route) | DelRoute(route):
            return f"route to {text_ip(route.ip)} by {route.dev}"
        case PutNexthop(nexthop):
            return f"nexthop {nexthop.id}"
        case DelNexthop(number):
            return f"nexthop {number}"
        case PutFdb(key) | DelFdb(key):
            return f"fdb row {text_mac(key.mac)} dev {key.dev} {key.where}"
        case PutNeigh(key) | DelNeigh(key):
            return f"neighbour {text_ip(key.ip)} dev {key.dev}"
        case SetFirewall():
            return "firewall tables"
        case PutElement(element) | DelElement(element):
            return f"firewall element {element.set} {{ {elements.text(element)} }}"
        case OpenGate(gate) | LeaveGate(gate):
            return f"accepts in chain {gate.family} {gate.table} {gate.chain}"


class Applier:
    """Applies ops in one namespace. Blocking; one thread at a time."""

    def __init__(
        self, link: netlink.Netlink, links: Links, firewall: Firewall, gates: Gates, echoes: Echoes
    ) -> None:
        self._netlink = link
        self._gates = gates
        self._links = links
        self._firewall = firewall
        self._echoes = echoes
        self._conntrack = Conntrack()

    def close(self) -> None:
        """Close what was opened here."""
        self._conntrack.close()

    def apply(self, ops: Sequence[Op], births: Mapping[str, Birth] | None = None) -> Failures:
        """Carry out ops in order; return those that failed, with the reason. ``births``: see Links.ensure."""
        failures: Failures = []
        together: Groups = []
        # Devices that the kernel did not delete: who may send by them is still to be said.
        kept: set[str] = set()
        for kind, group in itertools.groupby(ops, type):
            same = list(group)
            if kind in _ENCODE:
                together.append((kind, same))
                continue
            self._rows(together, failures)
            together = []
            if kept:
                guards = [op for op in same if _guards(op, kept)]
                failures += [
                    (op, KernelError(describe(op), words="what it guards is still there")) for op in guards
                ]
                same = [op for op in same if op not in guards]
            for op, error in zip(same, self._alone(kind, same, births), strict=True):
                if error is not None:
                    failures.append((op, error))
                    if isinstance(op, DelLink):
                        kept.add(op.name)
        self._rows(together, failures)
        return failures

    def _alone(
        self, kind: type, ops: Sequence[Any], births: Mapping[str, Birth] | None
    ) -> list[KernelError | None]:
        """Carry out ops of one kind that are not batched as rows."""
        if kind is PutLink:
            return self._links.ensure([op.link for op in ops], births)
        if kind is DelLink:
            return self._links.delete([op.name for op in ops])
        if kind is RenameLink:
            return [self._links.rename(op.old, op.new) for op in ops]
        if kind is RemakeLink:
            outcome = self._links.delete([op.link.name for op in ops])
            clear = [i for i, error in enumerate(outcome) if error is None]
            for i, error in zip(clear, self._links.ensure([ops[i].link for i in clear]), strict=True):
                outcome[i] = error
            return outcome
        if kind in (PutElement, DelElement):
            return self._elements(kind, ops)
        answers: list[KernelError | None] = []
        for op in ops:
            try:
                self._ALONE[kind](self, op)
                answers.append(None)
            except KernelError as error:
                answers.append(error)
        return answers

    _ALONE: ClassVar[dict[type, Callable[["Applier", Any], None]]] = {
        SetFirewall: lambda self, op: self._set_firewall(op.text, dict(op.elements)),
        OpenGate: lambda self, op: self._gates.open(op.gate),
        LeaveGate: lambda self, op: self._gates.leave(op.gate),
    }
    """Ops that go one by one."""

    def _elements(self, kind: type, ops: Sequence[Any]) -> list[KernelError | None]:
        """Carry out ops on elements in one transaction; they fail together."""
        try:
            if kind is PutElement:
                puts = {op.element: op.data for op in ops}
                self._firewall.change(puts, {})
                self._forget(puts)
            else:
                gone = {op.element: b"" for op in ops}
                self._firewall.change({}, gone)
                self._forget({}, gone)
        except KernelError as error:
            return [error] * len(ops)
        return [None] * len(ops)

    def _set_firewall(self, text: str, whole: Elements) -> None:
        if self._firewall.set(text, whole):
            self._forget(whole)  # what came while there were no tables went past every publication

    def _forget(self, puts: Elements, gone: Iterable[elements.Element] = ()) -> None:
        """Have the kernel forget connections that are not true any more, now that the rules say otherwise."""
        self._conntrack.forget(doubt(puts, gone, self._firewall.elements), self._local_addresses)

    def _local_addresses(self) -> set[bytes]:
        return {seen.ip for seen in addresses.parse(self._netlink.dump(addresses.dump_request()))}

    def _rows(self, groups: Groups, failures: Failures) -> None:
        """Carry out groups of ops that are one message each."""
        if not groups:
            return
        devices = [_DEVICES[kind](group) if kind in _DEVICES else () for kind, group in groups]
        index = self._links.indices([*set().union(*devices)])
        messages: list[bytes] = []
        sent: list[Op] = []
        for (kind, group), on in zip(groups, devices, strict=True):
            known = group if index.keys() >= set(on) else _on_devices(group, on, index, failures)
            if kind in _NOTES:
                self._echoes.rows(_NOTES[kind](known, index))
            messages += _ENCODE[kind](known, index)
            sent += known
        taken: list[PutFdb] = []
        answers = self._netlink.transact(messages)
        if answers.count(None) == len(sent):
            return
        for op, error in zip(sent, answers, strict=True):
            if error is None:
                continue
            if error.errno == errno.EEXIST and isinstance(op, PutFdb):
                taken.append(op)
            elif not _is_gone(op, error):
                failures.append((op, _about(op, error)))
        if taken:
            self._replace(taken, index, failures)

    def _replace(self, ops: list[PutFdb], index: Index, failures: Failures) -> None:
        """Write ``self`` rows over existing ones. vxlan replaces like by like without a gap; another kind of
        row, or one that is not marked as ours, has to go first (rows.put_fdb says why)."""
        messages: list[bytes] = []
        owner: list[int] = []
        for i, (op, answer) in enumerate(
            zip(ops, self._netlink.get(rows.get_fdb([op.key for op in ops], index)), strict=True)
        ):
            row = next(rows.parse(answer), None) if isinstance(answer, bytes) else None
            alike = row is not None and row.flags & rows.NTF_EXT_LEARNED
            if row is None or not alike or (row.nhid is None) != (op.target.nhid is None):
                messages += rows.del_fdb([op.key], index)
                owner.append(i)
                self._echoes.row(("self", False, index[op.key.dev], op.key.mac, None))
            messages += rows.put_fdb([(op.key, op.target)], index, replace=True)
            owner.append(i)
        answers = zip(owner, self._netlink.transact(messages), strict=True)
        refused = {i: error for i, error in answers if error is not None and error.errno != errno.ENOENT}
        failures += [(ops[i], _about(ops[i], error)) for i, error in refused.items()]


def _on_devices(ops: list[Op], on: Sequence[str], index: Index, failures: Failures) -> list[Op]:
    """Leave out ops on devices that do not exist: nothing to delete, nowhere to put."""
    known: list[Op] = []
    for op, device in zip(ops, on, strict=True):
        if device in index:
            known.append(op)
        elif not isinstance(op, _DELETES):
            missing = KernelError("", errno=errno.ENODEV, words=f"device {device} does not exist")
            failures.append((op, _about(op, missing)))
    return known


def _guards(op: Op, devices: Set[str]) -> bool:
    """Tell whether an op takes away what says who may send by one of these devices."""
    if isinstance(op, DelElement):
        return elements.device(op.element) in devices
    return isinstance(op, SetFirewall) and not op.text


def _is_gone(op: Op, error: KernelError) -> bool:
    """Tell whether a failed delete found nothing to delete. A device that left its bridge took the bridge's
    rows along, and then answers that it has no such thing."""
    if not isinstance(op, _DELETES):
        return False
    left = isinstance(op, DelFdb) and op.key.where == "master"
    return error.errno in _GONE or (left and error.errno == errno.EOPNOTSUPP)


def _about(op: Op, error: KernelError) -> KernelError:
    return KernelError(describe(op), error.hint, errno=error.errno, words=error.words)
