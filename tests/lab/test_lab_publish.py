"""Published ports, reached from everywhere with the source address kept, beside other firewalls and after a flush."""

import contextlib
import ipaddress
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from labtools import Attach, Attached, NewNetwork

from meshctl import labnet
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for

SERVER = """
import selectors, socket, sys
select = selectors.DefaultSelector()
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 80))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    select.register(sock, selectors.EVENT_READ, kind)
print("ready", flush=True)
def said(peer):
    return peer[0].removeprefix("::ffff:").encode()
while True:
    for key, _ in select.select():
        if key.data == socket.SOCK_STREAM:
            connection, peer = key.fileobj.accept()
            select.register(connection, selectors.EVENT_READ, peer)
        elif key.data == socket.SOCK_DGRAM:
            data, peer = key.fileobj.recvfrom(100)
            key.fileobj.sendto(said(peer), peer)
        elif key.fileobj.recv(100):
            key.fileobj.send(said(key.data))
        else:
            select.unregister(key.fileobj)
            key.fileobj.close()
"""
"""Answers with the address that it is asked from."""

CLIENT = """
import json, socket, sys
TRIES = {"tcp": 1, "udp": 3}  # a datagram may be lost
def ask(kind, host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", FROM_PORT))
        try:
            sock.connect((host, port))
            for left in reversed(range(TRIES[kind])):
                sock.send(b"who am I")
                try:
                    return sock.recv(100).decode()
                except TimeoutError:
                    if not left:
                        raise
        except OSError as error:
            return type(error).__name__
print(json.dumps([ask(*one) for one in json.loads(sys.argv[1])]))
"""
NOTHING = ("TimeoutError", "ConnectionRefusedError")
LAN_V4, LAN_V6 = labnet.address(labnet.GATEWAY_NUMBER), labnet.address(labnet.GATEWAY_NUMBER, 6)
V4, V6 = labnet.address(1), labnet.address(1, 6)
BOTH = ("tcp", "udp")


def asked(ns: str, *questions: tuple[str, str, int], seconds: float = 5.0, from_port: int = 0) -> list[str]:
    """Ask servers from a namespace; return who they say is asking, or the error's name."""
    code = CLIENT.replace("SECONDS", str(seconds)).replace("FROM_PORT", str(from_port))
    done = subprocess.run(
        ["ip", "netns", "exec", ns, sys.executable, "-c", code, json.dumps(questions)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return list(json.loads(done.stdout))


@contextlib.contextmanager
def explained(host: Host) -> Iterator[None]:
    """Where the body fails, show what the host's kernel remembers and counted before anything is taken away."""
    try:
        yield
    except BaseException:
        for command in ("cat /proc/net/nf_conntrack", "nft list ruleset", "ip -s link", "cat /proc/net/softnet_stat",
                        "nstat -az IcmpOutRateLimitHost IcmpOutRateLimitGlobal IpInDiscards"):  # fmt: skip
            print(f"--- {command} on {host.name}\n{host.run(*command.split()).stdout}")
        raise


def served(endpoint: Attached) -> contextlib.AbstractContextManager[None]:
    """Run the server in an endpoint's namespace."""
    return server_in(endpoint.ns, SERVER)


def served_on_loopback(host: Host) -> contextlib.AbstractContextManager[None]:
    """Run it on a host, on 127.0.0.1 alone."""
    return server_in(host.ns, SERVER.replace('"::"', '"::ffff:127.0.0.1"'))


@contextlib.contextmanager
def server_in(ns: str, code: str) -> Iterator[None]:
    """Run a server in a namespace."""
    command = ["ip", "netns", "exec", ns, sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.kill()


PUBLISH = ("--publish", "8080:80", "--publish", "8080:80/udp", "--publish", "9000-9001:80-81")


@pytest.mark.parametrize("driver", ["bridge", "overlay"])
def test_a_published_port_is_reached_from_everywhere_and_hears_who_asks(
    lab3: Lab, attach: Attach, new_network: NewNetwork, driver: str
) -> None:
    host, other = lab3.hosts[:2]
    network = new_network("-d", driver, "--ipv6")
    web, neighbour = attach(host, network, *PUBLISH), attach(host, network)
    stranger = attach(host, new_network("-d", "bridge"))
    assert web.endpoint["published"] == ["8080:80/tcp", "8080:80/udp", "9000-9001:80-81/tcp"]
    shown = (
        next(e for e in other.json("endpoint", "ls") if e["id"] == web.endpoint["id"])
        if driver == "overlay"
        else web.endpoint
    )
    assert shown["published"] == web.endpoint["published"]
    with served(web):
        outside = [(kind, where, 8080) for kind in BOTH for where in (V4, V6)]
        assert asked(lab3.lan, *outside) == [LAN_V4, LAN_V6] * 2
        assert asked(lab3.lan, ("tcp", V4, 9000)) == [LAN_V4]
        assert asked(other.ns, *outside) == [labnet.address(2), labnet.address(2, 6)] * 2
        assert asked(host.ns, *outside) == [V4, V6] * 2
        gateway = host.json("network", "inspect", network)["gateways"][0]
        assert asked(host.ns, *((kind, "127.0.0.1", 8080) for kind in BOTH)) == [gateway] * 2
        assert asked(stranger.ns, *((kind, V4, 8080) for kind in BOTH)) == [stranger.v4] * 2
        # on one bridge the answer has to come back the way the question went
        with bridge_calls_iptables(host, on=False):
            gateways = host.json("network", "inspect", network)["gateways"]
            for ns in (neighbour.ns, web.ns):
                assert asked(ns, *outside) == gateways * 2
        if BRIDGE_KNOB.exists():
            with bridge_calls_iptables(host, on=True):
                assert asked(neighbour.ns, *outside) == [neighbour.v4, neighbour.v6] * 2
                assert asked(web.ns, *outside) == gateways * 2
        # what is not published is not reached, by whatever way
        assert asked(lab3.lan, ("tcp", V4, 80), seconds=1.0)[0] in NOTHING
        assert asked(stranger.ns, ("tcp", web.v4, 80), seconds=1.0)[0] in NOTHING
        labnet.ip("-n", lab3.lan, "route", "add", web.v4, "via", V4)
        try:
            assert asked(lab3.lan, ("tcp", web.v4, 80), seconds=1.0)[0] in NOTHING
        finally:
            labnet.ip("-n", lab3.lan, "route", "del", web.v4)
    assert "published" not in json.dumps(host.json("diff")["missing"])


@pytest.mark.parametrize("filtered", [False, True], ids=["routed", "br_netfilter"])
def test_a_port_published_on_an_overlay_with_host_access_is_reached_from_everywhere(
    lab3: Lab, attach: Attach, new_network: NewNetwork, filtered: bool
) -> None:
    """What the host sends there goes by its own port on the bridge, where br_netfilter would track it once more."""
    host, other = lab3.hosts[:2]
    network = new_network("--ipv6", "--host-access")
    web, neighbour, far = attach(host, network, *PUBLISH), attach(host, network), attach(other, network)
    elsewhere = attach(other, new_network("-d", "bridge", "--ipv6", host=other))
    (own,) = (
        e for e in host.json("endpoint", "ls", "--network", network, "--host", host.name)
        if e["ifname"].startswith("mox")
    )  # fmt: skip
    host.wait_rows(far.mac)
    other.wait_rows(web.mac, own["mac"])
    outside = [(kind, where, 8080) for kind in BOTH for where in (V4, V6)]
    direct = [(kind, ip, 80) for kind in BOTH for ip in web.ips]
    with (
        bridge_calls_iptables(host, filtered),
        bridge_calls_iptables(other, filtered),
        served(web),
        explained(host),
    ):
        assert asked(lab3.lan, *outside) == [LAN_V4, LAN_V6] * 2
        assert asked(other.ns, *outside) == [labnet.address(2), labnet.address(2, 6)] * 2
        assert asked(host.ns, *outside) == [V4, V6] * 2
        assert asked(host.ns, *direct) == [ip.partition("/")[0] for ip in own["ips"]] * 2
        assert asked(far.ns, *direct) == far.ips * 2
        assert asked(far.ns, *outside) == [labnet.address(2), labnet.address(2, 6)] * 2
        assert asked(elsewhere.ns, *outside) == [labnet.address(2), labnet.address(2, 6)] * 2
        assert not set(asked(neighbour.ns, *outside)) & {*NOTHING, "OSError"}
        assert not set(asked(host.ns, *((kind, "127.0.0.1", 8080) for kind in BOTH))) & {*NOTHING, "OSError"}


@pytest.mark.parametrize("kind", ["bridge", "overlay", "overlay --host-access"])
def test_a_caller_on_the_lan_reaches_over_v6_whom_the_host_has_not_spoken_with(
    lab3: Lab, attach: Attach, new_network: NewNetwork, kind: str
) -> None:
    """Who is asked for on behalf of others is asked for from a link-local address, so the bridge has one."""
    host = lab3.hosts[0]
    web = attach(host, new_network("-d", *kind.split(), "--ipv6"), "--publish", "8080:80")
    device = f"mo{'x' if 'access' in kind else ''}{web.devices}"
    question = ("tcp", V6, 8080)

    def link_local() -> list[str]:
        shown = host.run("ip", "-o", "-6", "addr", "show", "dev", device, "scope", "link").stdout
        return [line.split()[3] for line in shown.splitlines()]

    def forget() -> None:
        host.run("ip", "-6", "neigh", "flush", "dev", device)
        assert web.v6 not in host.run("ip", "-6", "neigh", "show", "dev", device).stdout

    (address,) = link_local()
    with served(web), explained(host):
        forget()
        assert asked(lab3.lan, question) == [LAN_V6]
        if kind == "bridge":  # that this is what it takes
            host.kill()
            host.run("ip", "addr", "del", address, "dev", device)
            forget()
            assert asked(lab3.lan, question, seconds=1.0)[0] in (*NOTHING, "OSError")
            host.start()
            host.wait_in_sync()
            assert link_local() == [address]
            forget()  # or whoever came meanwhile is told that nobody is there
            assert asked(lab3.lan, question) == [LAN_V6]
    lab3.hosts[1].wait_alive(len(lab3.hosts))


def test_a_client_that_keeps_its_port_follows_a_publication_to_another_endpoint(
    lab3: Lab, attach: Attach
) -> None:
    """The kernel remembers where a client's packets go for as long as he goes on; a name server's clients do."""
    host = lab3.hosts[0]

    def answer(seconds: float = 2.0) -> list[str]:
        return asked(lab3.lan, *((kind, V4, 5300) for kind in BOTH), seconds=seconds, from_port=5301)

    publish = ("--publish", "5300:80", "--publish", "5300:80/udp")
    with explained(host):
        for _ in range(2):
            assert set(answer(seconds=0.2)) <= {*NOTHING, "OSError"}  # remembered too: as for the host itself
            web = attach(host, "bridge", *publish)
            with served(web):
                assert answer() == [LAN_V4] * 2
            host.json("detach", "bridge", "--netns", web.path)
            remembered = host.run("cat", "/proc/net/nf_conntrack").stdout
            assert f"={web.v4} " not in remembered


def test_a_named_address_is_the_only_one(lab3: Lab, attach: Attach) -> None:
    host = lab3.hosts[0]
    web = attach(host, "bridge", "--publish", "127.0.0.1:8080:80", "--publish", f"{V4}:8081:80")
    with served(web):
        assert asked(host.ns, ("tcp", "127.0.0.1", 8080))[0] not in NOTHING
        assert asked(host.ns, ("tcp", V4, 8080), seconds=1.0)[0] in NOTHING
        assert asked(lab3.lan, ("tcp", V4, 8080), seconds=1.0)[0] in NOTHING
        assert asked(lab3.lan, ("tcp", V4, 8081)) == [LAN_V4]
        assert asked(host.ns, ("tcp", "127.0.0.1", 8081), seconds=1.0)[0] in NOTHING
        # route_localnet is on now, and still no container comes to what listens on the host's loopback
        knob = f"/proc/sys/net/ipv4/conf/mo{web.devices}/route_localnet"
        assert host.run("cat", knob).stdout.strip() == "1"
        gateway = host.json("network", "inspect", "bridge")["gateways"][0]
        labnet.ip("-n", web.ns, "addr", "del", "127.0.0.1/8", "dev", "lo")
        labnet.ip("-n", web.ns, "route", "add", "127.0.0.0/8", "via", gateway)
        labnet.ip("netns", "exec", web.ns, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet")
        with served_on_loopback(host):
            assert asked(host.ns, ("tcp", "127.0.0.1", 80)) == ["127.0.0.1"]
            assert asked(web.ns, ("tcp", "127.0.0.1", 80), seconds=1.0)[0] in (*NOTHING, "OSError")


def test_a_port_that_is_taken_is_refused_at_once_in_one_line(lab3: Lab, attach: Attach) -> None:
    host = lab3.hosts[0]
    web = attach(host, "bridge", "--publish", "8080:80")
    ns = lab3.container("late")

    def refused(port: str) -> str:
        done = host.meshctl("attach", "bridge", "--netns", f"/run/netns/{ns}", "--publish", f"{port}:80")
        assert done.returncode == 1
        error, hint = done.stderr.splitlines()
        assert hint.startswith("hint: ")
        return error

    assert f"port 8080/tcp of this host is endpoint {web.name}'s already" in refused("8080")
    assert "port 7947/tcp of this host is taken by a socket of uid" in refused("7947")
    assert "192.0.2.77 is not an address of this host" in refused("192.0.2.77:8081")
    assert host.meshctl("attach", "bridge", "--netns", f"/run/netns/{ns}", "--publish", "80").returncode == 2
    labnet.ip("netns", "del", ns)


def test_a_flushed_ruleset_comes_back_while_traffic_flows(lab3: Lab, attach: Attach) -> None:
    host = lab3.hosts[0]
    web = attach(host, "bridge", *PUBLISH)
    held = f"""
import socket, sys
sock = socket.create_connection(("{V4}", 8080), 5)
for line in sys.stdin:
    sock.send(b"still there?")
    print(sock.recv(100).decode(), flush=True)
"""
    repaired = len([e for e in host.events() if e["kind"] == "kernel-repaired"])
    with served(web), subprocess.Popen(
        ["ip", "netns", "exec", lab3.lan, sys.executable, "-c", held],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as flow:  # fmt: skip
        assert flow.stdin is not None
        assert flow.stdout is not None
        for command in (
            "true",
            "nft flush ruleset",
            "nft flush chain inet meshd published",
            "nft delete table bridge meshd",
        ):
            host.run("sh", "-c", f"nft add table inet theirs; {command}")
            host.wait_in_sync()
            print("?", file=flow.stdin, flush=True)
            assert flow.stdout.readline().strip() == LAN_V4
            assert asked(lab3.lan, ("tcp", V4, 8080), ("udp", V4, 8080)) == [LAN_V4] * 2
        flow.stdin.close()
    assert "theirs" in host.run("nft", "list", "tables").stdout
    host.run("nft", "delete", "table", "inet", "theirs")
    assert len([e for e in host.events() if e["kind"] == "kernel-repaired"]) >= repaired + 3


def test_endpoints_that_are_kept_apart_reach_each_others_published_ports_and_no_others(
    lab3: Lab, attach: Attach, new_network: NewNetwork
) -> None:
    host = lab3.hosts[0]
    network = new_network("-d", "bridge", "--ipv6", "--opt", "isolate-ports=yes")
    web, neighbour = attach(host, network, *PUBLISH), attach(host, network)
    gateways = host.json("network", "inspect", network)["gateways"]
    with served(web), bridge_calls_iptables(host, on=False):
        outside = [(kind, where, 8080) for kind in BOTH for where in (V4, V6)]
        assert asked(lab3.lan, *outside) == [LAN_V4, LAN_V6] * 2
        assert asked(neighbour.ns, *outside) == gateways * 2
        beside = [("udp", ip, 80) for ip in web.ips]
        assert all(said in (*NOTHING, "OSError") for said in asked(neighbour.ns, *beside, seconds=0.5))


SCTP = """
import socket, struct, sys
POLYNOMIAL = 0x82F63B78  # CRC32c, RFC 9260 appendix A

def crc(data):
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ POLYNOMIAL * (value & 1)
    return value ^ 0xFFFFFFFF

def packet(sport, dport, tag, kind):
    head = struct.pack(">HHI", sport, dport, tag)
    chunk = struct.pack(">BBHIIHHI", kind, 0, 20, 7, 65535, 1, 1, 1)
    return head + struct.pack("<I", crc(head + bytes(4) + chunk)) + chunk

def read(sock):
    while True:
        data, (peer, _) = sock.recvfrom(2048)
        data = data[(data[0] & 15) * 4:]
        sport, dport, _, checksum, kind = struct.unpack_from(">HHI4sB", data)
        if kind == WANTED:
            assert struct.pack("<I", crc(data[:8] + bytes(4) + data[12:])) == checksum, "a wrong checksum"
            return peer, sport, dport

INIT, INIT_ACK = 1, 2
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
sock.settimeout(5)
"""
SCTP_SERVER = (
    SCTP
    + """
WANTED = INIT
print("ready", flush=True)
peer, sport, dport = read(sock)
sock.sendto(packet(dport, sport, 7, INIT_ACK), (peer, 0))
print(peer, dport, flush=True)
"""
)
SCTP_CLIENT = (
    SCTP
    + """
WANTED = INIT_ACK
sock.sendto(packet(5000, int(sys.argv[2]), 0, INIT), (sys.argv[1], 0))
print(*read(sock))
"""
)


def test_an_sctp_port_is_published_with_the_source_kept_and_the_answer_from_where_it_was_asked(
    lab3: Lab, attach: Attach
) -> None:
    """This kernel has no SCTP sockets: an association's first two packets are made by hand, their checksums too."""
    host = lab3.hosts[0]
    web = attach(host, "bridge", "--publish", "9900-9901:99-100/sctp")
    argv = ["ip", "netns", "exec", web.ns, sys.executable, "-c", SCTP_SERVER]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        asks = ["ip", "netns", "exec", lab3.lan, sys.executable, "-c", SCTP_CLIENT, V4, "9901"]
        answer = subprocess.run(asks, capture_output=True, text=True, check=False)
        assert answer.stdout.split() == [V4, "9901", "5000"], answer.stderr
        assert server.stdout.readline().split() == [LAN_V4, "100"]


# --- beside other firewalls ---------------------------------------------------------------------------------------
DOCKER = """
table ip filter {
    chain DOCKER-USER { counter return
    }
    chain FORWARD { type filter hook forward priority filter; policy drop;
        counter jump DOCKER-USER
        oifname "docker0" ct state related,established counter accept
    }
}
"""
UFW = """
table ip filter {
    chain ufw-reject-forward { counter reject
    }
    chain FORWARD { type filter hook forward priority filter; policy drop;
        iifname "lo" counter accept
        counter jump ufw-reject-forward
    }
}
"""
FIREWALLD = """
table inet firewalld {
    chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
        iifname "lo" accept
        ct state invalid drop
        reject with icmpx type admin-prohibited
    }
}
"""
OTHERS = {
    "docker": (DOCKER, "ip filter DOCKER-USER"),
    "ufw": (UFW, "ip filter FORWARD"),
    "firewalld": (FIREWALLD, "inet firewalld filter_FORWARD"),
}
BRIDGE_KNOB = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
BRIDGE_KNOBS = (BRIDGE_KNOB, BRIDGE_KNOB.with_name("bridge-nf-call-ip6tables"))


def accepts(host: Host, chain: str) -> int:
    return host.run("nft", "list", "chain", *chain.split()).stdout.count('"mo*"')


@contextlib.contextmanager
def other_firewall(host: Host, ruleset: str) -> Iterator[None]:
    path = host.dir / "other.nft"
    path.write_text(ruleset)
    assert host.run("nft", "-f", str(path)).stderr == ""
    try:
        with explained(host):
            yield
    finally:
        for table in ruleset.split("table ")[1:]:
            host.run("nft", "delete", "table", *table.split()[:2])


@contextlib.contextmanager
def bridge_calls_iptables(host: Host, on: bool) -> Iterator[None]:
    def turn(values: list[str]) -> None:
        for path, value in zip(BRIDGE_KNOBS, values, strict=True):
            done = host.run("sh", "-c", f"echo {value} > {path}")
            assert done.returncode == 0, done.stderr

    if BRIDGE_KNOB.exists():
        before = host.run("cat", *map(str, BRIDGE_KNOBS)).stdout.split()
        turn([str(int(on))] * 2)
        try:
            yield
        finally:
            turn(before)
    elif on:
        pytest.skip("br_netfilter is not in this kernel")
    else:
        yield


@pytest.mark.parametrize("filtered", [False, True], ids=["routed", "br_netfilter"])
@pytest.mark.parametrize("other", OTHERS)
def test_where_another_forward_chain_drops_one_pair_of_accepts_lets_us_through(
    lab3: Lab, attach: Attach, other: str, filtered: bool
) -> None:
    host = lab3.hosts[0]
    ruleset, chain = OTHERS[other]
    web, neighbour = attach(host, "bridge", *PUBLISH), attach(host, "bridge")
    before = host.events()
    with bridge_calls_iptables(host, filtered), other_firewall(host, ruleset), served(web):
        wait_for("the pair is there", 10.0, lambda: accepts(host, chain) == 2)
        host.wait_in_sync()
        told = [event for event in host.events() if event not in before]
        assert [e["chain"] for e in told if e["kind"] == "forward-opened"] == [chain]
        assert "kernel-repaired" not in {e["kind"] for e in told}
        assert asked(lab3.lan, ("tcp", V4, 8080), ("udp", V4, 8080)) == [LAN_V4] * 2
        assert asked(neighbour.ns, ("tcp", web.v4, 80)) == [neighbour.v4]
        (gateway,) = host.json("network", "inspect", "bridge")["gateways"]
        assert asked(neighbour.ns, ("tcp", V4, 8080)) == [neighbour.v4 if filtered else gateway]
        assert asked(web.ns, ("tcp", V4, 8080)) == [gateway]
        policy = host.run("nft", "list", "ruleset").stdout
        assert ("policy drop" in policy) == ("policy drop" in ruleset)
        host.run("nft", "flush", "chain", *chain.split())
        wait_for("the pair is back", 10.0, lambda: accepts(host, chain) == 2 or other == "firewalld")
    host.wait_in_sync()


def test_a_pair_goes_when_it_is_not_needed_and_is_never_there_when_that_is_turned_off(
    lab3: Lab, attach: Attach
) -> None:
    host = lab3.hosts[0]
    web = attach(host, "bridge", *PUBLISH)
    with other_firewall(host, UFW), served(web):
        wait_for("the pair is there", 10.0, lambda: accepts(host, "ip filter FORWARD") == 2)
        host.configure(firewall={"open_forward": False})
        host.json("reload")
        wait_for("the pair is gone", 10.0, lambda: accepts(host, "ip filter FORWARD") == 0)
        host.wait_in_sync()
        assert asked(lab3.lan, ("tcp", V4, 8080), seconds=1.0)[0] in (*NOTHING, "OSError")
        host.stop()
        host.configure(firewall={"open_forward": True})
        host.start()
        wait_for("the pair is back", 10.0, lambda: accepts(host, "ip filter FORWARD") == 2)
        assert asked(lab3.lan, ("tcp", V4, 8080)) == [LAN_V4]
        host.run("nft", "chain", "ip", "filter", "FORWARD", "{ policy accept; }")
        host.run("nft", "flush", "chain", "ip", "filter", "ufw-reject-forward")
        wait_for("the pair is gone", 10.0, lambda: accepts(host, "ip filter FORWARD") == 0)
    for one in lab3.hosts:
        one.wait_alive(len(lab3.hosts))


# --- where the kernel refuses -------------------------------------------------------------------------------------
@contextlib.contextmanager
def table_is_taken(host: Host) -> Iterator[None]:
    """Have another program own a table of our name, which the kernel then lets nobody else change (5.12)."""
    with subprocess.Popen(
        host.argv("stdbuf", "-oL", "nft", "-i"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as theirs:
        assert theirs.stdin is not None
        line = "delete table bridge meshd; add table bridge meshd { flags owner; }\n"
        theirs.stdin.write(line)
        theirs.stdin.flush()
        wait_for(
            "it is theirs",
            10.0,
            lambda: "owner" in host.run("nft", "list", "table", "bridge", "meshd").stdout,
        )
        try:
            yield
        finally:
            theirs.stdin.close()


def test_an_endpoint_that_the_kernel_gives_no_guard_is_not_attached(
    lab3: Lab, attach: Attach, new_network: NewNetwork
) -> None:
    host = lab3.hosts[0]
    network = new_network("--host-access")
    first = attach(host, network)
    ns = lab3.container("unguarded")
    subnet = ipaddress.ip_network(host.json("network", "inspect", network)["subnets"][0])
    own = next(e for e in host.json("endpoint", "ls", "--network", network) if e["ifname"].startswith("mox"))
    used = {first.v4, *(ip.partition("/")[0] for ip in own["ips"])}
    wanted = next(str(ip) for ip in list(subnet.hosts())[1:] if str(ip) not in used)
    flags = (network, "--netns", f"/run/netns/{ns}", "--ip", wanted, "--publish", "8080:80")

    def state() -> tuple[set[str], str, str]:
        links = {line.split()[0] for line in host.run("ip", "-br", "link").stdout.splitlines()}
        inside = subprocess.run(["ip", "-n", ns, "-br", "link"], capture_output=True, text=True, check=True)
        return links, inside.stdout, json.dumps(host.json("endpoint", "ls", "--network", network))

    before = state()
    with table_is_taken(host):
        wait_for("it is seen", 10.0, lambda: "not permitted" in host.meshctl("diff").stdout)
        for _ in range(2):
            refused = host.meshctl("attach", *flags)
            assert refused.returncode == 1
            assert "not permitted" in refused.stderr
            assert len(refused.stderr.splitlines()) <= 2
            assert state() == before
    host.wait_in_sync()
    assert host.json("attach", *flags)["ips"][0].partition("/")[0] == wanted
    host.json("detach", network, "--netns", f"/run/netns/{ns}")
    labnet.ip("netns", "del", ns)
