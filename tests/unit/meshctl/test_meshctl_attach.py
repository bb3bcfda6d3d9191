"""attach and detach against real namespaces and real veth pairs; ip(8) is the oracle for what became of them.

The daemon is a fake that answers what its half would have been: it made the pair, here `ip` did.
"""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from meshctl import plumb as plumbing
from meshctl.client import Client
from meshctl.errors import Failed

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes network namespaces"),
]

MAC = "02:11:22:33:44:55"
ENDPOINT = "ab" * 16
COOKIE = "import socket; print(int.from_bytes(socket.socket().getsockopt(1, 71, 8), 'little'))"


def ip(*args: str) -> Any:
    done = subprocess.run(["ip", "-j", *args], capture_output=True, text=True, check=True)
    return json.loads(done.stdout) if done.stdout.strip() else None


class Site:
    """A namespace, and a veth pair still in this one, as the daemon leaves it."""

    def __init__(self) -> None:
        suffix = secrets.token_hex(4)
        self.netns, self.host_end, self.link = f"t{suffix}", f"mh{suffix}", f"mp{suffix}"
        ip("netns", "add", self.netns)

    def make_pair(self) -> None:
        ip("link", "add", self.host_end, "up", "type", "veth", "peer", "name", self.link, "address", MAC)

    def remove(self) -> None:
        subprocess.run(["ip", "link", "del", self.host_end], capture_output=True, check=False)
        ip("netns", "del", self.netns)

    def plumb(self, **differs: object) -> dict[str, Any]:
        wanted = {
            "link": self.link, "ifname": "eth0", "mac": MAC, "mtu": 1400, "addresses": ["10.1.0.2/20"], "ipv6": False,
            "routes": [{"dst": "default", "via": "10.1.0.1"}], "existing": False,
        }  # fmt: skip
        return {**wanted, **differs}

    def endpoint(self, **differs: object) -> dict[str, Any]:
        return {"id": ENDPOINT, "network": "blue", "ips": ["10.1.0.2/20"], "plumb": self.plumb(**differs)}

    def inner(self, *args: str) -> Any:
        return ip("-n", self.netns, *args)

    def addresses(self, name: str = "eth0") -> set[str]:
        (link,) = self.inner("address", "show", "dev", name)
        return {f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"]}

    def configured(self) -> tuple[list[object], list[object]]:
        """All that was asked for inside; not what the kernel does of itself a while later (carrier, address detection)."""
        said = ("ifindex", "ifname", "address", "mtu")
        links = [
            (
                [link[key] for key in said],
                "UP" in link["flags"],
                sorted((a["local"], a["prefixlen"]) for a in link["addr_info"]),
            )
            for link in self.inner("address")
        ]
        routes = [*self.inner("route"), *self.inner("-6", "route")]
        return list(links), [
            {key: value for key, value in route.items() if key != "flags"}
            for route in routes
            if route["protocol"] != "kernel"
        ]

    def links(self) -> set[str]:
        return {link["ifname"] for link in self.inner("link")}


def on_this_host(name: str) -> bool:
    return any(link["ifname"] == name for link in ip("link"))


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.remove()


@pytest.fixture
def pair(site) -> Site:
    site.make_pair()
    return site


def test_attach_moves_names_and_configures_the_link(daemon, meshctl, pair):
    daemon.answers["POST /v1/endpoints"] = (201, pair.endpoint())
    result = meshctl("-o", "json", "attach", "blue", "--netns", pair.netns)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"id": ENDPOINT, "network": "blue", "ips": ["10.1.0.2/20"]}
    assert not on_this_host(pair.link)
    (link,) = pair.inner("link", "show", "dev", "eth0")
    assert (link["address"], link["mtu"]) == (MAC, 1400)
    assert {"UP", "LOWER_UP"} <= set(link["flags"])
    assert "UP" in pair.inner("link", "show", "dev", "lo")[0]["flags"]
    (route,) = pair.inner("route", "show", "default")
    assert (route["gateway"], route["dev"]) == ("10.1.0.1", "eth0")


def test_the_daemon_is_given_a_thread_in_the_namespace_where_the_link_is_born(daemon, meshctl, site):
    def make(request):
        pid = str(request.body["netns"]["pid"])
        ip(
            "link",
            "add",
            site.host_end,
            "up",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "address",
            MAC,
            "netns",
            pid,
        )
        return 201, site.endpoint()

    daemon.answers["POST /v1/endpoints"] = make
    result = meshctl("attach", "blue", "--netns", site.netns)
    assert (result.exit_code, result.stderr) == (0, "")
    assert site.addresses() == {"10.1.0.2/20"}
    assert {"UP", "LOWER_UP"} <= set(site.inner("link", "show", "dev", "eth0")[0]["flags"])


def test_a_daemon_that_knows_other_process_ids_is_given_none(daemon, meshctl, pair, monkeypatch):
    monkeypatch.setattr(Client, "has_our_pids", lambda _: False)
    daemon.answers["POST /v1/endpoints"] = (201, pair.endpoint())
    assert meshctl("attach", "blue", "--netns", pair.netns).exit_code == 0
    assert daemon.requests[0].body["netns"].keys() == {"cookie", "path"}
    assert pair.addresses() == {"10.1.0.2/20"}


@pytest.mark.parametrize("seen", [True, False])
def test_process_ids_are_the_daemons_where_both_are_in_one_pid_namespace(daemon, seen):
    command = [
        sys.executable,
        "-c",
        f"import meshctl.client as c; print(c.Client({str(daemon.path)!r}).has_our_pids())",
    ]
    apart = [] if seen else ["unshare", "--pid", "--fork", "--mount-proc"]
    done = subprocess.run([*apart, *command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(seen)


def test_without_ipv6_the_link_has_no_link_local_address(daemon, meshctl, pair):
    daemon.answers["POST /v1/endpoints"] = (201, pair.endpoint())
    assert meshctl("attach", "blue", "--netns", pair.netns).exit_code == 0
    assert pair.addresses() == {"10.1.0.2/20"}


def test_ipv6_addresses_are_usable_at_once(daemon, meshctl, pair):
    wanted = pair.endpoint(
        ipv6=True, addresses=["10.1.0.2/20", "fd00:1::2/64"],
        routes=[{"dst": "default", "via": "10.1.0.1"}, {"dst": "default", "via": "fd00:1::1"}, {"dst": "192.0.2.0/24"}],
    )  # fmt: skip
    daemon.answers["POST /v1/endpoints"] = (201, wanted)
    assert meshctl("attach", "blue", "--netns", pair.netns).exit_code == 0
    (link,) = pair.inner("address", "show", "dev", "eth0")
    (six,) = [a for a in link["addr_info"] if a["local"] == "fd00:1::2"]
    assert (six["prefixlen"], six.get("tentative"), six["nodad"]) == (64, None, True)
    assert {"10.1.0.2/20", "fd00:1::2/64"} < pair.addresses()  # and the link-local one
    assert [r["gateway"] for r in pair.inner("-6", "route", "show", "default")] == ["fd00:1::1"]
    assert [r["scope"] for r in pair.inner("route", "show", "192.0.2.0/24")] == ["link"]


def test_the_daemon_is_told_which_namespace_it_is_and_what_is_wanted(daemon, meshctl, pair):
    daemon.answers["POST /v1/endpoints"] = (201, pair.endpoint(ifname="net1"))
    path = f"/run/netns/{pair.netns}"
    flags = (
        "--name",
        "web",
        "--alias",
        "w",
        "--alias",
        "www",
        "--ip",
        "10.1.0.2",
        "--mac",
        MAC.upper(),
        "--ifname",
        "net1",
        "--publish",
        "8080:80",
        "--publish",
        "[2001:db8::1]:53:53/udp",
    )
    assert meshctl("attach", "blue", "--netns", path, *flags).exit_code == 0
    (asked,) = daemon.requests
    inside = subprocess.run(
        ["ip", "netns", "exec", pair.netns, sys.executable, "-c", COOKIE],
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.body == {
        "network": "blue", "name": "web", "aliases": ["w", "www"], "ips": ["10.1.0.2"], "mac": MAC, "ifname": "net1",
        "published": ["8080:80", "[2001:db8::1]:53:53/udp"],
        "netns": {"cookie": int(inside.stdout), "path": path, "pid": asked.body["netns"]["pid"]},
    }  # fmt: skip


def test_the_default_network_is_bridge_and_nothing_is_said_that_was_not_asked(daemon, meshctl, pair):
    daemon.answers["POST /v1/endpoints"] = (201, pair.endpoint())
    assert meshctl("attach", "--netns", pair.netns).exit_code == 0
    body = daemon.requests[0].body
    assert {key: value for key, value in body.items() if key != "netns"} == {
        "network": "bridge", "aliases": [], "ips": [], "ifname": "eth0", "published": []
    }  # fmt: skip


def test_a_process_s_namespace_is_found_by_its_id(daemon, meshctl, pair):
    daemon.answers["POST /v1/endpoints"] = (201, pair.endpoint())
    with subprocess.Popen(
        ["ip", "netns", "exec", pair.netns, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdin.write(b"!")
        other.stdin.flush()
        other.stdout.read1(1)  # it has entered the namespace
        result = meshctl("attach", "--pid", str(other.pid))
        other.stdin.close()
    assert (result.exit_code, pair.addresses()) == (0, {"10.1.0.2/20"})


def test_attaching_again_changes_nothing(daemon, meshctl, pair):
    daemon.answers["POST /v1/endpoints"] = (201, pair.endpoint())
    first = meshctl("-o", "json", "attach", "blue", "--netns", pair.netns)
    before = pair.configured()
    assert len(before[1]) == 1
    daemon.answers["POST /v1/endpoints"] = (200, pair.endpoint(existing=True))
    again = meshctl("-o", "json", "attach", "blue", "--netns", pair.netns)
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    assert pair.configured() == before


@pytest.mark.parametrize("reached", ["made", "moved", "renamed", "addressed"])
def test_an_attach_that_was_cut_off_is_completed_by_the_next(daemon, meshctl, pair, reached):
    if reached != "made":
        ip("link", "set", pair.link, "netns", pair.netns)
    if reached in ("renamed", "addressed"):
        pair.inner("link", "set", pair.link, "name", "eth0")
    if reached == "addressed":
        pair.inner("address", "add", "10.1.0.2/20", "dev", "eth0")
    daemon.answers["POST /v1/endpoints"] = (200, pair.endpoint(existing=True))
    result = meshctl("attach", "blue", "--netns", pair.netns)
    assert (result.exit_code, result.stderr) == (0, "")
    assert (pair.links(), pair.addresses()) == ({"lo", "eth0"}, {"10.1.0.2/20"})
    assert [route["gateway"] for route in pair.inner("route", "show", "default")] == ["10.1.0.1"]


def test_a_name_taken_in_the_namespace_is_refused_and_the_new_endpoint_removed(daemon, meshctl, pair):
    pair.inner("link", "add", "eth0", "type", "bridge")
    before = pair.inner("link")
    daemon.answers["POST /v1/endpoints"] = (201, pair.endpoint())
    daemon.answers[f"DELETE /v1/endpoints/{ENDPOINT}"] = (200, {"removed": True})
    result = meshctl("attach", "blue", "--netns", pair.netns)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        f"error: /run/netns/{pair.netns} has an interface eth0 already",
        "hint: --ifname names another",
    ]
    assert daemon.asked() == ["POST /v1/endpoints", f"DELETE /v1/endpoints/{ENDPOINT}"]
    assert on_this_host(pair.link)
    assert pair.inner("link") == before


REFUSED_BY_THE_KERNEL = [
    ({"mtu": 200000}, "error: eth0 cannot have an MTU of 200000: "),
    ({"addresses": ["fd00:1::2/64"], "mtu": 1000}, "error: eth0 cannot have the address fd00:1::2/64: "),
    (
        {"routes": [{"dst": "default", "via": "10.99.0.1"}]},
        "error: the route default via 10.99.0.1 cannot be added: ",
    ),
]


@pytest.mark.parametrize("differs, said", REFUSED_BY_THE_KERNEL)
def test_what_the_kernel_refuses_is_said_in_its_words_and_the_endpoint_removed(
    daemon, meshctl, pair, differs, said
):
    daemon.answers["POST /v1/endpoints"] = (201, pair.endpoint(**differs))
    daemon.answers[f"DELETE /v1/endpoints/{ENDPOINT}"] = (200, {"removed": True})
    result = meshctl("attach", "blue", "--netns", pair.netns)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(said)
    assert len(line) > len(said)
    assert daemon.asked()[-1] == f"DELETE /v1/endpoints/{ENDPOINT}"


def test_the_kernel_s_extended_words_are_shown(daemon, meshctl, pair):
    """ "Nexthop has invalid gateway" is the extended acknowledgement; the bare errno says "network is unreachable"."""
    daemon.answers["POST /v1/endpoints"] = (
        201,
        pair.endpoint(routes=[{"dst": "default", "via": "10.99.0.1"}]),
    )
    assert "exthop has invalid gateway" in meshctl("attach", "blue", "--netns", pair.netns).stderr


def test_an_endpoint_that_existed_is_not_removed_by_a_failure(daemon, meshctl, pair):
    daemon.answers["POST /v1/endpoints"] = (200, pair.endpoint(existing=True, mtu=200000))
    assert meshctl("attach", "blue", "--netns", pair.netns).exit_code == 1
    assert daemon.asked() == ["POST /v1/endpoints"]


def test_an_endpoint_that_cannot_be_removed_again_is_named_with_the_remedy(daemon, meshctl, pair):
    daemon.answers["POST /v1/endpoints"] = (201, pair.endpoint(mtu=200000))
    daemon.answers[f"DELETE /v1/endpoints/{ENDPOINT}"] = (503, {"error": "the disk is full", "hint": ""})
    hint = meshctl("attach", "blue", "--netns", pair.netns).stderr.splitlines()[1]
    assert hint == f"hint: the endpoint is left (the disk is full): meshctl detach blue --endpoint {ENDPOINT}"


def test_a_link_that_is_nowhere_is_said_so(daemon, meshctl, site):
    daemon.answers["POST /v1/endpoints"] = (200, site.endpoint(existing=True))
    result = meshctl("attach", "blue", "--netns", site.netns)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"error: the link {site.link} of this endpoint is gone: neither on this host nor in /run/netns/{site.netns}",
        "hint: detach the endpoint and attach again",
    ]


def test_the_network_attached_first_is_the_way_out_and_the_next_one_takes_over(daemon, meshctl, pair):
    daemon.answers["POST /v1/endpoints"] = (201, pair.endpoint())
    assert meshctl("attach", "blue", "--netns", pair.netns).exit_code == 0
    second = Site()
    try:
        second.make_pair()
        routes = [{"dst": "default", "via": "10.2.0.1"}]
        wanted = second.endpoint(ifname="eth1", addresses=["10.2.0.2/20"], routes=routes)
        daemon.answers["POST /v1/endpoints"] = (201, wanted)
        result = meshctl("attach", "green", "--netns", pair.netns, "--ifname", "eth1")
        assert (result.exit_code, result.stderr) == (0, "")
        assert pair.addresses("eth1") == {"10.2.0.2/20"}
        assert default_routes(pair) == [("eth0", 0), ("eth1", 1)]
        assert meshctl("attach", "green", "--netns", pair.netns, "--ifname", "eth1").exit_code == 0
        assert default_routes(pair) == [("eth0", 0), ("eth1", 1)], "the same again changes nothing"
        pair.inner("link", "del", "eth0")
        assert default_routes(pair) == [("eth1", 1)]
    finally:
        second.remove()


def default_routes(pair):
    found = pair.inner("route", "show", "default")
    return sorted((route["dev"], route.get("metric", 0)) for route in found)


def test_a_warning_of_the_daemon_is_said_and_changes_nothing_else(daemon, meshctl, pair):
    wanted = pair.endpoint()
    wanted["plumb"]["warnings"] = ["parent wlan0 is wireless"]
    daemon.answers["POST /v1/endpoints"] = (201, wanted)
    result = meshctl("attach", "blue", "--netns", pair.netns)
    assert (result.exit_code, result.stderr) == (0, "warning: parent wlan0 is wireless\n")


def test_a_link_that_the_kernel_moved_and_did_not_name_is_named_in_a_second_step(pair, monkeypatch):
    """Kernels move first and rename afterwards, and may fail in between: then the link is there under its old name."""
    move = plumbing.Netlink.move

    def move_alone(self, what, index, namespace_fd, name):
        move(self, what, index, namespace_fd, pair.link)
        raise plumbing.KernelRefused(what, 22, "")

    monkeypatch.setattr(plumbing.Netlink, "move", move_alone)
    with plumbing.netns.opened(f"/run/netns/{pair.netns}") as namespace:
        plumbing.plumb(pair.plumb(), namespace)
    assert pair.addresses() == {"10.1.0.2/20"}


def test_this_host_s_own_namespace_is_refused_before_the_daemon_is_asked(daemon, meshctl):
    result = meshctl("attach", "--pid", str(os.getpid()))
    assert (result.exit_code, daemon.asked()) == (1, [])
    assert result.stderr.splitlines()[0] == (
        f"error: /proc/{os.getpid()}/ns/net is this host's own namespace; nothing was changed"
    )


@pytest.fixture
def odd_paths(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    "name, said",
    [
        ("none", "no such network namespace: {}"),
        ("fifo", "{} is not a network namespace"),
        ("file", "{} is not a network namespace"),
        ("file/none", "{} cannot be opened: not a directory"),
        ("", "{} is not a network namespace"),
        ("/dev/zero", "{} is not a network namespace"),
        ("/proc/self/ns/mnt", "{} is a namespace of another kind, not a network namespace"),
        ("/proc/999999999/ns/net", "no process has the id 999999999"),
    ],
)
def test_what_is_no_network_namespace_is_one_line_and_the_daemon_is_not_asked(
    daemon, meshctl, odd_paths, name, said
):
    path = f"{odd_paths}/{name}" if not name.startswith("/") else name
    result = meshctl("attach", "--netns", path)
    assert (result.exit_code, daemon.asked()) == (1, [])
    assert result.stderr.splitlines()[0] == f"error: {said.format(path)}"


def test_a_name_without_a_namespace_is_looked_for_under_run_netns(meshctl):
    assert meshctl("attach", "--netns", "nosuch").stderr.splitlines()[0] == (
        "error: no such network namespace: /run/netns/nosuch"
    )


def test_without_root_it_is_one_line_that_says_so(site, meshctl, daemon):
    os.seteuid(65534)
    try:
        result = meshctl("attach", "--netns", site.netns)
    finally:
        os.seteuid(0)
    assert (result.exit_code, daemon.asked()) == (1, [])
    assert result.stderr.splitlines() == [
        f"error: /run/netns/{site.netns} cannot be entered: operation not permitted",
        "hint: run it as root",
    ]


def test_a_failure_inside_the_namespace_reaches_the_caller_as_it_is(site):
    def fail() -> None:
        raise Failed("as it is")

    with (
        plumbing.netns.opened(f"/run/netns/{site.netns}") as namespace,
        pytest.raises(Failed, match="as it is"),
    ):
        plumbing.netns.inside(namespace.fd, namespace.path, fail)


def test_opening_a_namespace_leaves_no_descriptor_behind(site):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for path in (f"/run/netns/{site.netns}", "/proc/self/ns/mnt", "/proc/self/ns/net", "/dev/null"):
        try:
            with plumbing.netns.opened(path):
                pass
        except Failed:
            pass
    assert descriptors() == before


# --- detach -------------------------------------------------------------------------------------------------------


def test_detach_removes_what_the_namespace_has_on_the_network(daemon, meshctl, site):
    daemon.answers["GET /v1/endpoints"] = (200, [{"id": ENDPOINT}, {"id": "cd" * 16}])
    daemon.answers[f"DELETE /v1/endpoints/{ENDPOINT}"] = (200, {"removed": True})
    result = meshctl("-o", "json", "detach", "blue", "--netns", site.netns)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {
        "removed": True,
        "endpoints": [ENDPOINT],
    }  # the other one was gone by then
    with plumbing.netns.opened(f"/run/netns/{site.netns}") as namespace:
        query = f"network=blue&netns_cookie={namespace.cookie}"
    assert daemon.asked()[0] == f"GET /v1/endpoints?{query}"


@pytest.mark.parametrize("where", [("--netns", "nosuch"), ("--pid", "999999999"), ("--endpoint", "ffff")])
def test_detaching_what_is_gone_succeeds(daemon, meshctl, where):
    daemon.answers["GET /v1/endpoints"] = (200, [])
    result = meshctl("-o", "json", "detach", "blue", *where)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"removed": False, "endpoints": []}


def test_detaching_from_a_network_that_is_gone_succeeds(daemon, meshctl, site):
    assert (
        meshctl("detach", "blue", "--netns", site.netns).stdout == "nothing to detach\n"
    )  # the fake says 404


def test_an_endpoint_is_detached_by_the_start_of_its_id(daemon, meshctl):
    daemon.answers["GET /v1/endpoints"] = (200, [{"id": ENDPOINT, "network": "blue"}])
    daemon.answers[f"DELETE /v1/endpoints/{ENDPOINT}"] = (200, {"removed": True})
    assert meshctl("detach", "blue", "--endpoint", "abab").stdout == f"{ENDPOINT}\n"


def test_an_endpoint_of_another_network_is_left_alone(daemon, meshctl):
    daemon.answers["GET /v1/endpoints"] = (200, [{"id": ENDPOINT, "network": "green"}])
    result = meshctl("detach", "blue", "--endpoint", ENDPOINT)
    assert (result.exit_code, daemon.asked()) == (1, ["GET /v1/endpoints"])
    assert (
        result.stderr.splitlines()[0]
        == f"error: endpoint {ENDPOINT} is on green, not on blue; nothing was changed"
    )


def test_a_detach_that_the_daemon_refuses_is_a_failure(daemon, meshctl, site):
    daemon.answers["GET /v1/endpoints"] = (503, {"error": "starting", "hint": "", "code": "unavailable"})
    assert meshctl("detach", "blue", "--netns", site.netns).exit_code == 1
