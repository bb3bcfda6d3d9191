"""A kernel in memory for unit tests of the plan and the reconciler: strict about order (nothing can be put on or
point to what is not there) and about what the kernel throws away by itself. The real one is in tests/kernel and in
the lab; this file is written from kernel behaviour, independent of meshd.plan.kernels."""

import copy
import errno

import msgspec

from meshd.errors import KernelError
from meshd.plan import ops
from meshd.plan.objects import Dump, Kernel, Link


class FakeKernel:
    """``state`` is the namespace; ``log`` what was applied, call by call; ``refuse`` maps ops to errors."""

    def __init__(self, state=None):
        self.state = state or Kernel()
        self.log = []
        self.dumps = 0
        self.refuse = {}
        self.foreign = []
        self.devices = {}

    def dump(self, cluster_mark):
        self.dumps += 1
        return Dump(copy.deepcopy(self.state), list(self.foreign), dict(self.devices))

    def apply(self, todo, births=None):
        self.log.append(list(todo))
        births = births or {}
        failures = []
        for op in todo:
            try:
                if op in self.refuse:
                    raise self.refuse[op]
                if isinstance(op, ops.PutLink) and op.link.name in births.keys() - self.state.links.keys():
                    self.plug(op.link.name)
                self._do(op)
            except KernelError as error:
                failures.append((op, error))
        return failures

    def plug(self, name, alias="", mtu=1500):
        """Make a veth's host end, as attach does."""
        self.state.links[name] = Link(name, "veth", alias, mtu, up=False)

    def rename(self, old, new):
        """Give a device another name, as anybody may."""
        s = self.state
        self._need(old)
        if new in s.links:
            raise refused(errno.EEXIST)

        def called(value):
            changed = {
                field: new for field in ("dev", "name", "master") if getattr(value, field, None) == old
            }
            return msgspec.structs.replace(value, **changed)

        s.links = {link.name: link for link in map(called, s.links.values())}
        s.addrs = set(map(called, s.addrs))
        s.fdb = {called(key): target for key, target in s.fdb.items()}
        s.neigh = {called(key): mac for key, mac in s.neigh.items()}

    def _do(self, op):
        s = self.state
        match op:
            case ops.PutLink(link):
                have = s.links.get(link.name)
                if link.master is not None:
                    self._need(link.master)
                if have is None:
                    if link.kind == "veth" and not (link.peer and link.master):
                        raise refused(errno.ENODEV)
                    if link.peer:
                        s.links[link.peer] = Link(
                            link.peer, "veth", link.alias, link.mtu, up=False, peer=link.name
                        )
                elif _fixed(have) != _fixed(link):
                    raise refused(errno.EEXIST)
                else:
                    if have.master != link.master:
                        self._leave_bridge({link.name})
                    if have.mac != link.mac and link.mac is not None:
                        s.neigh = {key: mac for key, mac in s.neigh.items() if key.dev != link.name}
                    if link.mac is None:
                        link = msgspec.structs.replace(link, mac=have.mac)
                s.links[link.name] = link
            case ops.RenameLink(old, new):
                self.rename(old, new)
            case ops.RemakeLink(link):
                assert link.kind != "veth"
                self._unplug(link.name)
                s.links[link.name] = link
            case ops.DelLink(name):
                link = s.links.get(name)
                if link is not None:  # else it went with its other end
                    self._unplug(name)
                    if link.peer in s.links:
                        self._unplug(link.peer)
            case ops.PutAddr(addr):
                self._need(addr.dev)
                s.addrs.add(addr)
            case ops.DelAddr(addr):
                s.addrs.remove(addr)
            case ops.PutRoute(route):
                self._need(route.dev)
                if not any(addr.ip == route.source for addr in s.addrs):
                    raise refused(errno.EINVAL)
                s.routes.add(route)
            case ops.DelRoute(route):
                s.routes.remove(route)
            case ops.PutNexthop(nexthop):
                if any(member not in s.nexthops for member in nexthop.group):
                    raise refused(errno.EINVAL)
                s.nexthops[nexthop.id] = nexthop
            case ops.DelNexthop(id_):
                del s.nexthops[id_]
                s.fdb = {key: target for key, target in s.fdb.items() if target.nhid != id_}
                for group in [n for n in s.nexthops.values() if id_ in n.group]:
                    left = tuple(member for member in group.group if member != id_)
                    s.nexthops[group.id] = msgspec.structs.replace(group, group=left)
            case ops.PutFdb(key, target):
                self._need(key.dev)
                if key.where == "master" and s.links[key.dev].master is None:
                    raise refused(errno.EINVAL)
                if target.nhid is not None and target.nhid not in s.nexthops:
                    raise refused(errno.EINVAL)
                have = s.fdb.get(key)
                if have is not None and (have.nhid is None) != (target.nhid is None):
                    raise refused(errno.EOPNOTSUPP)
                s.fdb[key] = target
            case ops.DelFdb(key):
                del s.fdb[key]
            case ops.PutNeigh(key, mac):
                self._need(key.dev)
                s.neigh[key] = mac
            case ops.DelNeigh(key):
                del s.neigh[key]
            case ops.SetFirewall(text, elements):
                s.firewall, s.elements = text, dict(elements)
            case ops.PutElement(element, data):
                if not s.firewall:
                    raise refused(errno.ENOENT)
                s.elements[element] = data
            case ops.DelElement(element):
                del s.elements[element]
            case ops.OpenGate(gate):
                s.gates[gate] = msgspec.structs.replace(s.gates[gate], accepts=2)
            case ops.LeaveGate(gate):
                s.gates[gate] = msgspec.structs.replace(s.gates[gate], accepts=0)

    def _need(self, dev):
        if dev not in self.state.links:
            raise refused(errno.ENODEV)

    def _leave_bridge(self, names):
        s = self.state
        s.fdb = {k: t for k, t in s.fdb.items() if not (k.where == "master" and k.dev in names)}

    def _unplug(self, name):
        s = self.state
        del s.links[name]
        ports = {link.name for link in s.links.values() if link.master == name}
        self._leave_bridge(ports)
        for port in ports:
            s.links[port] = msgspec.structs.replace(s.links[port], master=None)
        s.addrs = {addr for addr in s.addrs if addr.dev != name}
        s.routes = {route for route in s.routes if route.dev != name}
        s.fdb = {key: target for key, target in s.fdb.items() if key.dev != name}
        s.neigh = {key: mac for key, mac in s.neigh.items() if key.dev != name}


def refused(number):
    return KernelError("the kernel refused", errno=number, words=errno.errorcode[number])


def _fixed(link):
    """What no device changes while it lives; a vxlan device's own address may, within its family."""
    vxlan = link.vxlan
    return link.kind, link.parent, link.mode, vxlan and (vxlan.vni, vxlan.port, len(vxlan.local))
