"""What is wanted and what the kernel is believed to hold, kept in step from one change to the next, so that a
change costs what it changes and not a dump.

Decides what each change requires, what may be deleted at once, and what counts as a repair. Must not know time,
threads or how an op is carried out: the shell tells it what became of the ops.

At once goes what only a record of this host's own explained, and only if this daemon saw that record: an empty
or older state after a restart deletes nothing. All else that is not wanted waits for ``deletions``.
"""

from collections.abc import Iterable, Mapping, Set

import msgspec

from meshd.errors import KernelError
from meshd.model import HOST_NETNS, Attachment, Endpoint, EndpointId, HostFacts, HostId, NetworkId
from meshd.plan import kernels, names, wording
from meshd.plan.desired import (
    desired_parts,
    devices,
    firewall_text,
    gates,
    host_end,
    member_elements,
    members_of_each,
    merged,
    network_part,
)
from meshd.plan.diff import diff, findings
from meshd.plan.elements import Elements
from meshd.plan.fight import Fights
from meshd.plan.objects import (
    ATTACHED_KINDS,
    GUEST_KINDS,
    Dump,
    FdbKey,
    Finding,
    Kernel,
    Link,
    NeighKey,
    made_by_attach,
)
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
    PutFdb,
    PutLink,
    PutNeigh,
    RenameLink,
    SetFirewall,
)
from meshd.plan.orphans import orphans
from meshd.plan.part import Part, add_local, add_remotes, has_rival, remote_rows, remove_local, remove_remote
from meshd.plan.view import View

_DELETIONS = (DelAddr, DelElement, DelFdb, DelLink, DelNeigh, DelNexthop, DelRoute, LeaveGate)


class Shadow:
    """``have``: what the kernel is believed to hold. ``failed``: what it refused since the last comparison.
    ``vanished``: local endpoints whose link is not there, and since when (monotonic seconds); ``orphans``: those of
    them whose parent took it along, and why in words. ``withheld``:
    something is there that is not wanted and may not be deleted yet. ``fights``: what another program undoes
    again and again."""

    def __init__(self) -> None:
        self.have = Kernel()
        self.failed: dict[Op, KernelError] = {}
        self.vanished: dict[EndpointId, float] = {}
        self.orphans: dict[EndpointId, str] = {}
        self.withheld = False
        self.fights = Fights()
        self._unwanted = Kernel()  # is there, as far as is known
        self._want: dict[NetworkId, Part] = {}
        self._gone = Kernel()
        self._of_port: dict[str, set[FdbKey]] = {}  # of ``have``: rows on endpoints' devices
        self._plugged: dict[EndpointId, Attachment] = {}
        self._ids: dict[HostId, int] = {}
        self._members: Elements = {}
        self._text = ""  # what the firewall's tables should have been set from
        self._hosts: dict[HostId, HostFacts] = {}

    def compare(
        self,
        view: View,
        found: Kernel,
        now: float,
        *,
        deletions: bool,
        devices: Mapping[int, str] | None = None,
    ) -> tuple[list[Op], list[Op]]:
        """Take in what a dump found to be ours, and all ``devices``: see objects.Dump. Returns everything to be done, and which of it repairs: what was
        right here and somebody else changed. All that is wanted is worked out anew; what failed is tried again,
        but for what somebody fights over: that counts as refused for the time being.
        """
        parts = desired_parts(view)
        for network_id in self._want.keys() | parts.keys():
            self._replace(view, network_id, parts.get(network_id, Part(network_id)), found)
        self._ids, self._hosts = names.nexthop_ids(view.hosts, view.vxlan_port), dict(view.hosts)
        whole = merged(view, self._want)
        whole.gates = gates(view, whole.firewall, found.gates)
        self._text, self._members = whole.firewall, member_elements(view) if whole.firewall else {}
        before, self.have, self.failed = self.have, found, {}
        self._note_vanished(view, whole, now)
        self._of_port, self._plugged = _by_port(found), dict(view.attachments)
        self.orphans = orphans(self.vanished, view.attachments, devices or {})
        self._gone = kernels.overlap(self._gone, found)
        self._unwanted = kernels.beyond(found, whole)
        self.withheld = not deletions and kernels.size(self._unwanted) > 0
        todo = diff(whole, found, deletions=deletions, gone=self._gone)
        held = self.fights.held(todo, found, now)
        self.failed = {op: _fought_over(wait) for op, wait in held.items()}
        todo = [op for op in todo if op not in held]
        repairs: list[Op] = []
        if todo and before != Kernel():  # at the start nothing is known to have been right
            whole.gates = gates(view, whole.firewall, before.gates)
            owed = set(diff(whole, before, deletions=True))
            repairs = [op for op in todo if op not in owed and not _adapts(op, before)]
        self.fights.note(repairs, found, now)
        kernels.let_go(before)
        return todo, repairs

    def lost(self, rows: Iterable[FdbKey | NeighKey], now: float) -> tuple[list[Op], bool]:
        """Take in that somebody deleted these rows. Returns what puts back those that were right until then, and
        whether that is all there is to do; else a comparison is due. What somebody fights over counts as refused."""
        todo: list[Op] = []
        clear = True
        for key in rows:
            op, have = self._wanted_row(key), self._had_row(key)
            if op is None and have is not None:
                self.done([DelFdb(key) if isinstance(key, FdbKey) else DelNeigh(key)], ())
            elif op is not None and op == have:
                todo.append(op)
            elif op is not None:
                clear = False
        held = self.fights.held(todo, self.have, now)
        self.failed.update({op: _fought_over(wait) for op, wait in held.items()})
        todo = [op for op in todo if op not in held]
        self.fights.note(todo, self.have, now)
        return todo, clear

    def _wanted_row(self, key: FdbKey | NeighKey) -> Op | None:
        for part in self._want.values():
            if isinstance(key, FdbKey) and key in part.kernel.fdb:
                return PutFdb(key, part.kernel.fdb[key])
            if isinstance(key, NeighKey) and key in part.kernel.neigh:
                return PutNeigh(key, part.kernel.neigh[key])
        return None

    def _had_row(self, key: FdbKey | NeighKey) -> Op | None:
        if isinstance(key, FdbKey):
            return PutFdb(key, self.have.fdb[key]) if key in self.have.fdb else None
        return PutNeigh(key, self.have.neigh[key]) if key in self.have.neigh else None

    def change(
        self,
        view: View,
        networks: Set[NetworkId],
        endpoints: Mapping[NetworkId, Set[EndpointId]],
        *,
        deletions: bool,
    ) -> list[Op]:
        """Return what changes require. ``networks``: of which anything may have changed; ``endpoints``: of each
        network, those that did, and if local whose link was just made. What the kernel has refused since the last
        comparison is left out.

        Remote endpoints alone cost their own rows, whatever there is besides: ``view`` may be narrow, and the
        firewall, which depends on networks, local endpoints and hosts, is not looked at."""
        wanted, touched, whole = Kernel(), Kernel(), set(networks)
        for network_id, some in endpoints.items():
            for id_ in some & view.attachments.keys():
                if self._attached(network_id, id_, view.attachments[id_]):
                    whole.add(network_id)
            for id_ in some & self._plugged.keys() - view.attachments.keys():
                self._detached(self._plugged.pop(id_))
        new_hosts = view.hosts != self._hosts
        if new_hosts:
            self._hosts = dict(view.hosts)
        if self._renumber(view):
            whole |= self._want.keys()
        for network_id, some in endpoints.items():
            if network_id not in whole and not self._change_endpoints(
                view, network_id, some, wanted, touched
            ):
                whole.add(network_id)
        if whole:
            view = view.whole()
            for network_id, members in members_of_each(view, whole).items():
                self._change_network(view, network_id, members, wanted, touched)
        kernels.join(touched, wanted)
        actual = kernels.overlap(self.have, touched)
        for number in actual.nexthops.keys() - wanted.nexthops.keys():
            if any(number in part.kernel.nexthops for part in self._want.values()):
                del actual.nexthops[number]  # another network's rows use it
        for element in actual.elements.keys() - wanted.elements.keys():
            if any(element in part.kernel.elements for part in self._want.values()):
                del actual.elements[element]  # two networks said the same of it
        if whole or new_hosts:
            self._firewall(view, wanted, actual)
        unwanted = kernels.beyond(actual, wanted)
        kernels.subtract(self._unwanted, wanted)
        kernels.join(self._unwanted, unwanted)
        self.withheld |= not deletions and kernels.size(unwanted) > 0
        todo = diff(wanted, actual, deletions=deletions, gone=self._gone)
        return [op for op in todo if op not in self.failed]

    def _firewall(self, view: View, wanted: Kernel, actual: Kernel) -> None:
        """Fill in what of the firewall no network's share says. Where the tables have to be made anew, that takes all
        their elements."""
        self._text = wanted.firewall = firewall_text(view, self._want)
        actual.firewall = self.have.firewall
        wanted.gates = gates(view, wanted.firewall, self.have.gates)
        actual.gates = dict(self.have.gates)
        before, self._members = self._members, member_elements(view) if wanted.firewall else {}
        if wanted.firewall != actual.firewall:
            wanted.elements = merged(view, self._want).elements
            actual.elements = dict(self.have.elements)
            return
        if before != self._members:
            wanted.elements.update(self._members)
            for element in before.keys() | self._members.keys():
                if element in self.have.elements:
                    actual.elements[element] = self.have.elements[element]

    def done(self, todo: Iterable[Op], refused: Iterable[tuple[Op, KernelError]]) -> None:
        """Take in what became of ops, in their order."""
        failures, gone = dict(refused), set[str]()
        for op in todo:
            error = failures.get(op) if failures else None
            if error is None and isinstance(op, DelLink):
                gone.add(op.name)
            elif error is None:
                kernels.carry_out(self.have, op)
                if isinstance(op, PutFdb):
                    if op.target.local:
                        self._of_port.setdefault(op.key.dev, set()).add(op.key)
                elif isinstance(op, RenameLink):
                    self._of_port = _by_port(self.have)
                    self.vanished = {
                        id_: at
                        for id_, at in self.vanished.items()
                        if op.new not in (names.veth(id_), names.guest(id_))
                    }
                if isinstance(op, _DELETIONS):
                    kernels.carry_out(self._unwanted, op)
                elif isinstance(op, SetFirewall):
                    self._unwanted.firewall, self._unwanted.elements = "", {}
            else:
                self.failed[op] = error
                if isinstance(op, PutLink) and op.link.kind in ATTACHED_KINDS:
                    self.have.links.pop(op.link.name, None)  # it was presumed
        self._deleted(gone)

    def _deleted(self, gone: Set[str]) -> None:
        """Take devices, and what was on them, for gone. Endpoints' come and go one by one, so theirs cost no walk."""
        for name in gone:
            link = self.have.links.get(name)
            if link is not None and link.kind not in ATTACHED_KINDS:
                kernels.drop_devices(self.have, gone)
                kernels.drop_devices(self._unwanted, gone)
                self._of_port = _by_port(self.have)
                return
        for kernel in (self.have, self._unwanted) if gone else ():
            kernel.addrs -= {addr for addr in kernel.addrs if addr.dev in gone}
            kernel.routes -= {route for route in kernel.routes if route.dev in gone}
        for name in gone:
            for kernel in (self.have, self._unwanted):
                kernel.links.pop(name, None)
                for key in self._of_port.get(name, ()):
                    kernel.fdb.pop(key, None)
            self._of_port.pop(name, None)

    def networks(self) -> set[NetworkId]:
        """Return the networks of which anything is wanted."""
        return set(self._want)

    def inspect(self, view: View, dump: Dump) -> dict[str, list[Finding]]:
        """Compare a fresh dump with what is wanted, for people (see diff.findings); endpoints that have no rows
        for lack of knowledge are missing too."""
        parts = desired_parts(view)
        for network_id, part in parts.items():
            if part.unknown:
                part.kernel = kernels.of_network(dump.ours, view.cluster, network_id)
        refused = {
            wording.of(op): f"the kernel refused: {error.words or error.what}" if error.errno else error.what
            for op, error in self.failed.items()
        }
        desired = merged(view, parts)
        desired.gates = gates(view, desired.firewall, dump.ours.gates)
        result = findings(desired, dump, refused)
        table = names.table(view.vxlan_port)
        for found in result.values() if table != names.MARK else ():
            found[:] = [
                msgspec.structs.replace(one, what=wording.in_table(one.what, table))
                if one.object == wording.NFT
                else one
                for one in found
            ]
        lost = orphans(view.attachments, view.attachments, dump.devices)
        why = {wording.link(view.attachments[id_].host_if): told for id_, told in lost.items()}
        result["missing"] = [
            Finding(one.object, one.what, why.get((one.object, one.what), one.why))
            for one in result["missing"]
        ]
        result["missing"] += [finding for part in parts.values() for finding in part.omitted.values()]
        for kernel in (dump.ours, *(part.kernel for part in parts.values())):
            kernels.let_go(kernel)
        return result

    def counts(self) -> dict[str, int]:
        """Return how many objects are ``missing`` and ``stale``, as far as is known without a dump."""
        omitted = sum(len(part.omitted) for part in self._want.values())
        missing = omitted + len(self.failed) + len(self.vanished)
        return {"missing": missing, "stale": kernels.size(self._unwanted)}

    def _renumber(self, view: View) -> bool:
        """Assign nexthop ids anew if the set of hosts changed; tell whether a known host's id moved."""
        if view.hosts.keys() == self._ids.keys():
            return False
        before, self._ids = self._ids, names.nexthop_ids(view.hosts, view.vxlan_port)
        return any(host in view.hosts and self._ids.get(host) != id_ for host, id_ in before.items())

    def _change_endpoints(
        self,
        view: View,
        network_id: NetworkId,
        endpoints: Iterable[EndpointId],
        wanted: Kernel,
        touched: Kernel,
    ) -> bool:
        """Work out just these endpoints' rows. False if that does not suffice and the network has to be worked
        out as a whole: then nothing is added to ``wanted``, for which of them gets rows may turn out otherwise."""
        part, rows = self._want.get(network_id), Kernel()
        if part is None and not any(_is_local(view, id_) for id_ in endpoints):
            return True  # not programmed here, and a remote endpoint changes nothing about that
        if part is None or part.unknown or not part.local:
            return False
        if network_id not in view.networks or view.me not in view.hosts:
            return False
        if (
            view.networks[network_id].driver in GUEST_KINDS
        ):  # remote endpoints are on the LAN: no row leads there
            return not any(id_ in part.local or _is_local(view, id_) for id_ in endpoints)
        local: dict[EndpointId, Endpoint | None] = {}
        for id_ in endpoints:
            endpoint = view.endpoints.get(id_)
            if endpoint is not None and endpoint.network != network_id:
                endpoint = None
            if has_rival(part, id_, endpoint):
                return False
            here = endpoint is not None and endpoint.host == view.me
            if here or id_ in part.local:
                local[id_] = endpoint if here else None
            kernels.join(touched, remove_remote(part, id_))
            if endpoint is not None and not here:
                add_remotes(part, view, [(id_, endpoint)], self._ids)
                kernels.join(rows, remote_rows(part, id_))
        if local and not self._change_local(view, part, local, rows, touched):
            return False
        kernels.join(wanted, rows)
        return True

    def _change_local(
        self,
        view: View,
        part: Part,
        endpoints: Mapping[EndpointId, Endpoint | None],
        wanted: Kernel,
        touched: Kernel,
    ) -> bool:
        """Work out what local endpoints that came, changed or went (None) have of their own, and the network's
        devices, which may depend on them. False where more than that may change."""
        if self.have.firewall != self._text or part.local.keys() <= {
            e for e in endpoints if endpoints[e] is None
        }:
            return False
        network, before, after = view.networks[part.id], Kernel(), Kernel()
        kernels.join(before, part.devices)
        for id_, endpoint in endpoints.items():
            kernels.join(before, part.ends.pop(id_, Kernel()))
            if id_ in part.local:
                remove_local(part, id_)
            if endpoint is not None:
                if has_rival(part, id_, endpoint):
                    return False  # one that came with it
                add_local(part, id_, endpoint)
                part.ends[id_] = host_end(view, id_, endpoint, network)
                kernels.join(after, part.ends[id_])
        opened = any(link.localnet for link in part.devices.links.values())
        part.devices = devices(view, part.id, network, part.local)
        kernels.join(after, part.devices)
        opens, host = any(link.localnet for link in part.devices.links.values()), names.host(part.id)
        if host in before.links.keys() | after.links.keys() or (
            host in part.kernel.links and opens != opened
        ):
            return False
        kernels.subtract(part.kernel, before)
        kernels.join(part.kernel, after)
        kernels.join(self._gone, _locally_gone(before, after))
        kernels.subtract(self._gone, after)
        kernels.join(touched, before)
        kernels.join(wanted, after)
        self._presume(view, after)
        return True

    def _attached(self, network_id: NetworkId, id_: EndpointId, attachment: Attachment) -> bool:
        """Take a local endpoint's link for there, and have what the kernel refused of its network tried again
        now: whoever attaches waits for the outcome. Tell whether there is any."""
        self.vanished.pop(id_, None)
        self.orphans.pop(id_, None)
        link = attachment.host_if
        if self._plugged.get(id_) is not attachment and attachment.netns_cookie != HOST_NETNS:
            self._plugged[id_] = attachment
            self._deleted({link} & self.have.links.keys())  # another of that name, which this one replaced
        concerned = {
            link,
            names.overlay_bridge(network_id),
            names.vxlan(network_id),
            names.bridge(network_id),
        }
        again = [op for op in self.failed if kernels.device(op) in concerned or isinstance(op, SetFirewall)]
        for op in again:
            del self.failed[op]
        return bool(again)

    def _detached(self, attachment: Attachment) -> None:
        """Forget what the kernel has refused of a local endpoint that went, or never came to be for that."""
        for op in [op for op in self.failed if kernels.device(op) == attachment.host_if]:
            del self.failed[op]

    def _change_network(
        self,
        view: View,
        network_id: NetworkId,
        members: Iterable[EndpointId],
        wanted: Kernel,
        touched: Kernel,
    ) -> None:
        """Work out all of a network."""
        if network_id in self._want:
            kernels.join(touched, self._want[network_id].kernel)
        part = network_part(view, network_id, self._ids, members)
        self._replace(view, network_id, part, self.have)
        kernels.join(wanted, part.kernel)
        self._presume(view, part.kernel)

    def _presume(self, view: View, share: Kernel) -> None:
        """Take local endpoints' links for there: attach makes them before it records the endpoint."""
        missing = {view.attachments[id_].host_if for id_ in self.vanished if id_ in view.attachments}
        for name, link in share.links.items():
            presumed = made_by_attach(link) and name not in self.have.links and name not in missing
            if presumed and PutLink(link) not in self.failed:
                unset = Link(name, "veth", alias="", mtu=0, up=False)
                self.have.links[name] = unset if link.kind == "veth" else link

    def _replace(self, view: View, network_id: NetworkId, part: Part, found: Kernel) -> None:
        """Put a network's new share in place of its old one, and note what may go at once."""
        if part.unknown:
            part.kernel = kernels.of_network(found, view.cluster, network_id)
        before = self._want.pop(network_id, Part(network_id))
        if part.kernel.links or part.omitted:
            self._want[network_id] = part
        kernels.join(self._gone, _locally_gone(before.kernel, part.kernel))
        kernels.subtract(self._gone, part.kernel)
        kernels.let_go(before.kernel)

    def _note_vanished(self, view: View, whole: Kernel, now: float) -> None:
        missing = {
            id_
            for id_, attachment in view.attachments.items()
            if attachment.netns_cookie != HOST_NETNS
            and attachment.host_if in whole.links
            and attachment.host_if not in self.have.links
        }
        self.vanished = {id_: self.vanished.get(id_, now) for id_ in missing}


def _adapts(op: Op, before: Kernel) -> bool:
    """Tell whether an op only follows another firewall, which has begun or ceased to drop what is forwarded."""
    return isinstance(op, LeaveGate) or (
        isinstance(op, OpenGate) and not (op.gate in before.gates and before.gates[op.gate].accepts)
    )


def _fought_over(wait: float) -> KernelError:
    return KernelError(f"{wording.FOUGHT_OVER}; tried again in {wait:.0f} s")


def _is_local(view: View, id_: EndpointId) -> bool:
    endpoint = view.endpoints.get(id_)
    return endpoint is not None and endpoint.host == view.me


def _by_port(kernel: Kernel) -> dict[str, set[FdbKey]]:
    """Return the rows on endpoints' devices, by device."""
    by_port: dict[str, set[FdbKey]] = {
        name: set() for name, link in kernel.links.items() if link.kind in ATTACHED_KINDS
    }
    for key in kernel.fdb:
        if key.dev in by_port:
            by_port[key.dev].add(key)
    return by_port


def _locally_gone(before: Kernel, after: Kernel) -> Kernel:
    """Return what of ``before`` only records of this host's own explained: all of a network that is no longer
    programmed here (nexthops apart: other networks' rows may use them), else local endpoints' links and rows."""
    if not after.links:
        return Kernel(
            links=before.links,
            addrs=before.addrs,
            routes=before.routes,
            fdb=before.fdb,
            neigh=before.neigh,
            elements=before.elements,
        )
    return Kernel(
        routes=before.routes - after.routes,
        addrs={addr for addr in before.addrs if addr.dev.startswith(names.SHIM) and addr not in after.addrs},
        elements={key: data for key, data in before.elements.items() if key not in after.elements},
        links={
            name: link
            for name, link in before.links.items()
            if link.kind in ATTACHED_KINDS and name not in after.links
        },
        fdb={key: target for key, target in before.fdb.items() if target.local and key not in after.fdb},
    )
