"""The CNI executable against real daemons, by the documented protocol; alone and in a chain with the reference plugins."""

import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cnitools import REFERENCE, CniError, Runtime
from labtools import Attach, Attached, NewNetwork, no_ping_is_lost
from test_lab_publish import LAN_V4, V4, asked, served

from meshctl import labnet
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for
from meshctl.ping import ping
from meshd.api.cniconfig import VERSIONS
from meshd.shell.runtimes import QUEUE

SETTLE_S = 20.0
NewRuntime = Callable[..., Runtime]


def endpoints(host: Host, network: str) -> list[dict[str, Any]]:
    return [e for e in host.json("endpoint", "ls", "--network", network) if e["host"] == host.name]


def devices(ns: str) -> set[str]:
    return {link["ifname"] for link in json.loads(labnet.ip("-j", "-n", ns, "link", "show"))}


def container(runtime: Runtime, result: dict[str, Any], ns: str) -> Attached:
    """An endpoint that CNI made, as a value that the lab's helpers take."""
    mac = next(one["mac"] for one in result["interfaces"] if one.get("sandbox"))
    (shown,) = [e for e in runtime.host.json("endpoint", "ls") if e["mac"] == mac]
    return Attached(runtime.host, ns, shown)


@pytest.fixture
def runtime(lab3: Lab, overlay: str) -> Iterator[Runtime]:
    """A runtime on the first host whose list is one plugin, on a dual-stack overlay."""
    made = Runtime(lab3.hosts[0], overlay)
    yield made
    for host in lab3.hosts:
        if not host.alive:
            host.start()
    for one, ifname in list(made.cache):
        made.delete(one, ifname)
    made.version = "1.1.0"
    made.gc()
    wait_for("all is detached", SETTLE_S, lambda: endpoints(made.host, overlay) == [])


def test_a_container_of_each_version_meets_one_that_was_attached_by_hand(
    lab3: Lab, runtime: Runtime, attach: Attach
) -> None:
    by_hand = attach(lab3.hosts[1], runtime.name)
    made: list[Attached] = []
    for number, version in enumerate(VERSIONS):
        runtime.version = version
        ns = lab3.container(f"v{number}")
        name = f"pod-{number}"
        result = runtime.add(f"c{number}", f"/run/netns/{ns}", args=f"IgnoreUnknown=1;K8S_POD_NAME={name}")
        assert result["cniVersion"] == version
        if version != "0.3.1":
            runtime.check(f"c{number}")
        made.append(container(runtime, result, ns))
        assert made[-1].name == name
        assert (made[-1].endpoint["runtime"], made[-1].endpoint["runtime_id"]) == ("cni", f"c{number}")
    by_hand.host.wait_rows(*(one.mac for one in made))
    no_ping_is_lost([(by_hand, one) for one in made] + [(made[0], by_hand), (made[0], made[1])])
    for number in range(len(VERSIONS)):
        runtime.delete(f"c{number}")
        runtime.delete(f"c{number}")
    assert endpoints(runtime.host, runtime.name) == []
    for one in made:
        wait_for("the interface goes", SETTLE_S, lambda one=one: devices(one.ns) == {"lo"})


def test_cni_sock_is_roots_alone(lab3: Lab) -> None:
    path = lab3.hosts[0].dir / "run" / "cni.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    script = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", script],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "PermissionError" in done.stderr


def test_two_adds_at_once_for_one_container_make_one_endpoint_that_works(lab3: Lab, runtime: Runtime) -> None:
    ns = lab3.container("twice")
    path = f"/run/netns/{ns}"
    results = runtime.at_once((runtime.add, "c1", path), (runtime.add, "c1", path))
    assert results[0] == results[1], results
    assert len(endpoints(runtime.host, runtime.name)) == 1
    runtime.check("c1")
    gateway = results[0]["ips"][0]["gateway"]
    assert ping(ns, gateway).lost == 0


def test_many_adds_and_dels_at_once_all_work_and_leave_nothing(lab3: Lab, runtime: Runtime) -> None:
    spaces = [f"/run/netns/{lab3.container(f'm{number}')}" for number in range(12)]
    results = runtime.at_once(*((runtime.add, f"c{n}", path) for n, path in enumerate(spaces)))
    assert [one for one in results if isinstance(one, CniError)] == []
    given = [one["address"] for result in results for one in result["ips"]]
    assert len(set(given)) == len(given) == 24
    assert runtime.at_once(*((runtime.delete, f"c{n}") for n in range(12))) == [None] * 12
    assert endpoints(runtime.host, runtime.name) == []


def test_a_del_and_an_add_for_the_same_interface_follow_each_other_at_once(
    lab3: Lab, runtime: Runtime
) -> None:
    path = f"/run/netns/{lab3.container('again')}"
    for _ in range(3):
        runtime.add("c1", path)
        runtime.delete("c1")
    runtime.add("c1", path)
    runtime.check("c1")


def test_a_del_while_the_daemon_is_down_is_done_when_it_is_back(lab3: Lab, runtime: Runtime) -> None:
    ns = lab3.container("down")
    runtime.add("c1", f"/run/netns/{ns}")
    runtime.add("c2", f"/run/netns/{lab3.container('stays')}")
    runtime.host.stop()
    for _ in range(2):
        runtime.delete("c1", CNI_NETNS="")
    with pytest.raises(CniError) as refused:
        runtime.add("c3", f"/run/netns/{ns}", ifname="eth1")
    assert refused.value.code == 11
    assert "eth0" in devices(ns)
    runtime.host.start()
    assert [e["runtime_id"] for e in endpoints(runtime.host, runtime.name)] == ["c2"]
    wait_for("the interface goes", SETTLE_S, lambda: devices(ns) == {"lo"})
    assert list((runtime.host.dir / "run" / QUEUE).iterdir()) == []
    runtime.check("c2")


def test_an_end_that_was_answered_is_kept_by_a_daemon_that_is_killed_at_once(
    lab3: Lab, runtime: Runtime
) -> None:
    ns = lab3.container("killed")
    runtime.add("c1", f"/run/netns/{ns}")
    runtime.delete("c1")
    runtime.host.kill()
    runtime.host.start()
    assert endpoints(runtime.host, runtime.name) == []
    runtime.host.wait_in_sync()
    wait_for("the interface goes", SETTLE_S, lambda: devices(ns) == {"lo"})
    runtime.add("c1", f"/run/netns/{ns}")
    runtime.check("c1")


def test_a_daemon_that_is_killed_leaves_containers_as_they_are_and_knows_them_again(
    lab3: Lab, runtime: Runtime
) -> None:
    ns = lab3.container("kept")
    result = runtime.add("c1", f"/run/netns/{ns}")
    runtime.host.kill()
    runtime.host.start()
    runtime.check("c1")
    assert runtime.add("c1", f"/run/netns/{ns}") == result
    assert ping(ns, result["ips"][0]["gateway"]).lost == 0


def test_what_the_kernel_refuses_is_rolled_back_whole(lab3: Lab, runtime: Runtime) -> None:
    ns = lab3.container("refused")
    runtime.become = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    with pytest.raises(CniError, match=r"eth0 cannot have the address .*: ") as refused:
        runtime.add("c1", f"/run/netns/{ns}")
    assert refused.value.code == 100
    wait_for("the interface goes", SETTLE_S, lambda: devices(ns) == {"lo"})
    assert endpoints(runtime.host, runtime.name) == []
    runtime.host.wait_in_sync()


def test_an_interface_that_is_there_is_an_error_and_left_alone(lab3: Lab, runtime: Runtime) -> None:
    ns = lab3.container("taken")
    labnet.ip("-n", ns, "link", "add", "eth0", "type", "bridge")
    with pytest.raises(CniError, match="has an interface eth0 already") as refused:
        runtime.add("c1", f"/run/netns/{ns}")
    assert refused.value.code == 101
    assert devices(ns) == {"lo", "eth0"}
    assert endpoints(runtime.host, runtime.name) == []


def test_ipv6_is_turned_on_for_the_interface_where_the_runtime_turned_it_off(
    lab3: Lab, runtime: Runtime
) -> None:
    ns = lab3.container("no6")
    labnet.set_sysctls(ns, {"ipv6/conf/default/disable_ipv6": "1", "ipv6/conf/all/disable_ipv6": "1"})
    result = runtime.add("c1", f"/run/netns/{ns}")
    assert ping(ns, result["ips"][1]["gateway"]).lost == 0


def test_a_container_without_network_gets_one_while_it_runs_and_then_a_second(
    lab3: Lab, runtime: Runtime, new_network: NewNetwork
) -> None:
    ns = lab3.container("none")
    with subprocess.Popen(["ip", "netns", "exec", ns, "sleep", "600"]) as process:
        try:
            path = f"/proc/{process.pid}/ns/net"
            wait_for(
                "it runs in its namespace",
                SETTLE_S,
                lambda: not os.path.samestat(os.stat(path), os.stat("/proc/self/ns/net")),
            )
            first = runtime.add("c1", path)
            other = Runtime(runtime.host, new_network("-d", "bridge"))
            second = other.add("c1", path, ifname="eth1")
            for result in (first, second):
                assert ping(ns, result["ips"][0]["gateway"]).lost == 0
            routes = json.loads(labnet.ip("-j", "-n", ns, "route", "show", "default"))
            assert {(route["dev"], route.get("metric", 0)) for route in routes} == {("eth0", 0), ("eth1", 1)}
            runtime.check("c1")
            other.check("c1", "eth1")
            runtime.delete("c1")
            wait_for(
                "its link is gone, behind DEL's answer",
                SETTLE_S,
                lambda: "eth0" not in labnet.ip("-n", ns, "link", "show"),
            )
            assert ping(ns, LAN_V4).lost == 0  # by the second, whose route takes over
            other.delete("c1", "eth1")
        finally:
            process.kill()


def test_gc_frees_what_the_runtime_has_forgotten_and_nothing_else(
    lab3: Lab, runtime: Runtime, attach: Attach
) -> None:
    attach(runtime.host, runtime.name, "--name", "by-hand")
    for number in range(3):
        runtime.add(f"c{number}", f"/run/netns/{lab3.container(f'gc{number}')}")
    runtime.version = "1.1.0"
    runtime.gc(("c1", "eth0"), ("unknown", "eth0"))
    assert {e["runtime_id"] for e in endpoints(runtime.host, runtime.name)} == {"", "c1"}
    runtime.gc(*((f"{number:064x}", "eth0") for number in range(9_000)), ("c1", "eth0"))
    assert len(endpoints(runtime.host, runtime.name)) == 2


def test_status_follows_the_daemon(lab3: Lab, runtime: Runtime) -> None:
    runtime.version = "1.1.0"
    assert runtime.ask("STATUS").returncode == 0
    assert json.loads(runtime.ask("STATUS", network="nowhere").stdout)["code"] == 50
    runtime.host.stop()
    assert json.loads(runtime.ask("STATUS").stdout)["code"] == 51
    runtime.host.begin()
    codes: list[int] = []

    def answers() -> bool:
        done = runtime.ask("STATUS")
        codes.append(json.loads(done.stdout)["code"] if done.returncode else 0)
        return done.returncode == 0

    wait_for("STATUS is a success", SETTLE_S, answers)
    assert set(codes) <= {0, 50, 51}
    assert runtime.host.status()["ready"]


# --- chains -----------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not (REFERENCE / "portmap").exists(), reason="needs containernetworking-plugins")
def test_the_reference_plugins_work_behind_ours(lab3: Lab, new_network: NewNetwork) -> None:
    runtime = Runtime(lab3.hosts[0], new_network())
    runtime.plugins = [
        {"type": "meshd"},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "firewall", "backend": "iptables"},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    ]
    ns = lab3.container("chain")
    result = runtime.add(
        "c1", f"/run/netns/{ns}",
        portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        bandwidth={"ingressRate": 800_000_000, "ingressBurst": 8_000_000, "egressRate": 800_000_000, "egressBurst": 8_000_000},
    )  # fmt: skip
    portmap = (
        runtime.plugins.pop()
    )  # whose CHECK (1.1.1) looks for v4 rules in ip6tables too, and fails always
    runtime.check("c1")
    runtime.plugins.append(portmap)
    web = container(runtime, result, ns)
    host_end = result["interfaces"][0]["name"]
    assert "tbf" in runtime.host.run("tc", "qdisc", "show", "dev", host_end).stdout
    somaxconn = subprocess.run(
        ["ip", "netns", "exec", ns, "cat", "/proc/sys/net/core/somaxconn"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert somaxconn.stdout.strip() == "500"
    with served(web):
        assert asked(lab3.lan, ("tcp", V4, 8080)) == [LAN_V4]
    runtime.delete("c1")
    runtime.delete("c1")
    assert "8080" not in runtime.host.run("iptables-save").stdout


def test_ours_publishes_and_limits_itself_and_passes_on_what_came_before(lab3: Lab, runtime: Runtime) -> None:
    runtime.plugins = [
        {"type": "meshd", "capabilities": {"portMappings": True, "bandwidth": True, "dns": True}}
    ]
    ns = lab3.container("own")
    result = runtime.add(
        "c1", f"/run/netns/{ns}",
        portMappings=[{"HostPort": 8081, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
        bandwidth={"IngressRate": 800_000_000, "IngressBurst": 8_000_000, "EgressRate": 400_000_000, "EgressBurst": 0},
        dns={"Servers": ["192.0.2.53"], "Searches": [], "Options": None},
    )  # fmt: skip
    assert result["dns"] == {"nameservers": ["192.0.2.53"]}
    web = container(runtime, result, ns)
    assert web.endpoint["published"] == ["8081:80/tcp"]
    host_end = result["interfaces"][0]["name"]
    assert "rate 800Mbit" in runtime.host.run("tc", "qdisc", "show", "dev", host_end).stdout
    inside = subprocess.run(
        ["tc", "-n", ns, "qdisc", "show", "dev", "eth0"], capture_output=True, text=True, check=True
    )
    assert "rate 400Mbit" in inside.stdout
    with served(web):
        assert asked(lab3.lan, ("tcp", V4, 8081)) == [LAN_V4]
        assert asked(runtime.host.ns, ("tcp", "127.0.0.1", 8081))[0] not in (
            "TimeoutError",
            "ConnectionRefusedError",
        )
    with pytest.raises(CniError, match="8081/tcp of this host is endpoint") as refused:
        runtime.add(
            "c2",
            f"/run/netns/{lab3.container('own2')}",
            portMappings=[{"hostPort": 8081, "containerPort": 80}],
        )
    assert refused.value.code == 101


@pytest.mark.skipif(not (REFERENCE / "ptp").exists(), reason="needs containernetworking-plugins")
def test_ours_works_behind_others(lab3: Lab, runtime: Runtime, tmp_path: Path) -> None:
    ipam = {"type": "host-local", "dataDir": str(tmp_path), "subnet": "172.30.9.0/24"}
    before = Runtime(runtime.host, "ptp", [{"type": "ptp", "ipam": ipam}])
    ns = lab3.container("behind")
    first = before.add("c1", f"/run/netns/{ns}", ifname="p0")
    try:
        done = runtime.run(
            "ADD", {"type": "meshd", "prevResult": first},
            CNI_CONTAINERID="c1", CNI_NETNS=f"/run/netns/{ns}", CNI_IFNAME="eth0",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        result = json.loads(done.stdout)
        assert result["interfaces"][: len(first["interfaces"])] == first["interfaces"]
        assert result["ips"][0] == first["ips"][0]
        ours = result["ips"][1]
        assert result["interfaces"][ours["interface"]]["name"] == "eth0"
        assert ping(ns, ours["gateway"]).lost == 0
        runtime.delete("c1")
    finally:
        before.delete("c1", "p0")
