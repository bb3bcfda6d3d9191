"""A kernel without FDB nexthops (before 5.8), forced by the view: rows name their host's address themselves, and a
host's address change rewrites each. Planned by plan/, carried out by kernel/, on two real kernels' namespaces."""

import msgspec
import pytest
from layout import make_pair

from meshd.kernel.namespace import Namespace
from meshd.model import Attachment
from meshd.plan import elements, names
from meshd.plan.desired import desired
from meshd.plan.ops import DelElement, PutElement, PutFdb, PutNexthop
from meshd.plan.shadow import Shadow
from tests.plan_world import BLUE, MARK, OVERLAY, A, B, World, facts, id_of, ip4

ADDRESS = {A: "10.1.0.2", B: "10.1.0.66"}
ENDPOINT = {A: "web", B: "db"}
MORE = [f"more{n}" for n in range(10)]


class Host:
    """One host: its kernel, its shadow, and what the shell does between them."""

    def __init__(self, netns, me, world, container):
        self.netns, self.me, self.world, self.shadow = netns, me, world, Shadow()
        self.namespace = netns.call(Namespace)
        id_ = id_of(ENDPOINT[me])
        self.attachments = {id_: Attachment("boot", 7, "/ns", "eth0", names.veth(id_), names.peer(id_))}
        link = desired(self.view()).links[names.veth(id_)]
        unplugged = msgspec.structs.replace(link, master=None, port=None)
        mac = world.endpoints[id_].mac
        netns.call(make_pair, self.namespace, unplugged, names.peer(id_), mac, OVERLAY.mtu)
        netns.run("ip", "link", "set", names.peer(id_), "netns", container.name)
        container.run("ip", "link", "set", names.peer(id_), "name", "eth0", "up")
        container.run("ip", "addr", "add", f"{ADDRESS[me]}/20", "dev", "eth0")

    def view(self):
        return msgspec.structs.replace(self.world.view(), me=self.me, attachments=self.attachments)

    def compare(self):
        def go():
            found = self.namespace.dump(MARK).ours
            todo, _ = self.shadow.compare(self.view(), found, 0.0, deletions=True)
            refused = self.namespace.apply(todo)
            self.shadow.done(todo, refused)
            return todo, refused

        return self.netns.call(go)

    def change(self):
        def go():
            todo = self.shadow.change(self.view(), {BLUE}, {}, deletions=True)
            refused = self.namespace.apply(todo)
            self.shadow.done(todo, refused)
            return todo, refused

        return self.netns.call(go)


@pytest.fixture
def pair(make_netns):
    """Two hosts on a wire, with a container each."""
    spaces, containers = (make_netns(), make_netns()), (make_netns(), make_netns())
    spaces[0].run(
        "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", spaces[1].name
    )
    for n, space in enumerate(spaces):
        space.run("ip", "link", "set", "eth0", "up")
        space.run("ip", "addr", "add", f"192.0.2.{n + 1}/24", "dev", "eth0")
    world = World(nhid=False)
    world.networks[BLUE] = OVERLAY
    world.endpoint("web", BLUE, A, ADDRESS[A])
    world.endpoint("db", BLUE, B, ADDRESS[B])
    for n, name in enumerate(MORE):
        world.endpoint(name, BLUE, B, f"10.1.0.{100 + n}")
    made = [
        Host(*parts, world, c) for parts, c in zip(zip(spaces, (A, B), strict=True), containers, strict=True)
    ]
    for host in made:
        todo, refused = host.compare()
        assert refused == []
        assert not any(isinstance(op, PutNexthop) for op in todo)
        assert host.compare() == ([], [])
    yield world, made, containers[0]
    for host in made:
        host.namespace.close()


def reaches(container):
    return (
        ", 0% packet loss" in container.run("ping", "-nqc3", "-i0.05", "-W1", ADDRESS[B], check=False).stdout
    )


def targets(host):
    rows = host.netns.json("bridge", "-j", "fdb", "show", "dev", names.vxlan(BLUE))
    return {row["mac"]: row["dst"] for row in rows if "dst" in row}


def test_rows_that_name_an_address_carry_the_traffic_and_a_new_address_rewrites_each(pair):
    world, (here, there), container = pair
    assert here.netns.json("ip", "-j", "nexthop") == []
    assert set(targets(here).values()) == {"192.0.2.2"}
    assert reaches(container)

    there.netns.run("ip", "addr", "replace", "192.0.2.22/24", "dev", "eth0")
    there.netns.run("ip", "addr", "del", "192.0.2.2/24", "dev", "eth0")
    there.netns.run("ip", "addr", "replace", "192.0.2.22/24", "dev", "eth0")
    world.hosts[B] = facts(ip4("192.0.2.22"))
    todo, refused = here.change()
    assert refused == []
    members = {elements.element("members4", ip4(f"192.0.2.{n}")) for n in (2, 22)}
    of_tables = [op for op in todo if isinstance(op, (PutElement, DelElement))]
    assert {op.element for op in of_tables} == members
    assert [type(op) for op in todo if op not in of_tables] == [PutFdb] * (1 + len(MORE))
    todo, refused = there.change()
    assert refused == []
    assert {op.element for op in todo if isinstance(op, (PutElement, DelElement))} == members
    assert len(todo) == 1 + len(members)  # its device's own address
    assert set(targets(here).values()) == {"192.0.2.22"}
    assert reaches(container)
    for host in (here, there):
        assert host.compare() == ([], [])


def test_a_daemon_that_finds_the_other_sort_of_rows_turns_them_into_its_own(pair):
    world, (here, _), container = pair
    world.nhid = True
    _, refused = here.compare()
    assert refused == []
    assert targets(here) == {}
    assert reaches(container)
    assert here.compare() == ([], [])
    world.nhid = False
    _, refused = here.compare()
    assert refused == []
    assert set(targets(here).values()) == {"192.0.2.2"}
    assert here.netns.json("ip", "-j", "nexthop") == []
    assert reaches(container)
    assert here.compare() == ([], [])
