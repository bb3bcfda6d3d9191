"""A network card that goes and comes back under endpoints on the LAN, as when its driver is reloaded."""

from collections.abc import Callable, Iterator

import pytest
from labtools import Attach, Attached, NewNetwork
from test_lab_lan import GATEWAY, YARD, links

from meshctl import labnet
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for
from meshctl.ping import ping

CARD = "nic0"
Plug = Callable[[bool], None]


@pytest.fixture
def card(lab3: Lab) -> Iterator[Plug]:
    """A second card of host1 on the LAN: ``card(False)`` pulls it, ``card(True)`` puts one of that name back."""
    host = lab3.hosts[0]

    def plug(there: bool) -> None:
        if not there:
            labnet.ip("-n", host.ns, "link", "del", CARD)
            return
        labnet.batch(lab3.lan, [
            f"link add pnic type veth peer name {CARD} netns {host.ns}",
            f"link set pnic master {labnet.LAN_BRIDGE} up",
        ])  # fmt: skip
        labnet.batch(host.ns, [f"link set {CARD} up"])

    plug(True)
    yield plug
    host.run("ip", "link", "del", CARD)


def shown(host: Host, one: Attached) -> dict[str, str]:
    return next(e for e in host.json("endpoint", "ls") if e["id"] == one.endpoint["id"])


def gone(host: Host, *words: str) -> Callable[[Attached], bool]:
    return lambda one: (e := shown(host, one))["state"] == "stale" and all(word in e["why"] for word in words)


def test_endpoints_of_a_card_that_went_are_kept_told_of_and_attached_again_with_what_they_had(
    lab3: Lab, new_network: NewNetwork, attach: Attach, card: Plug
) -> None:
    host = lab3.hosts[0]
    before = links(host)
    yard = new_network(*YARD, "--parent", CARD, "--host-access")
    first, ns = attach(host, yard), lab3.container("short")
    second = Attached(host, ns, host.json("attach", yard, "--netns", f"/run/netns/{ns}", "--name", "short"))
    shim = f"ms{first.devices}"
    assert ping(first.ns, GATEWAY).lost == 0
    card(False)
    wait_for("the endpoint is stale", 10, lambda: gone(host, CARD, "went away", "attach it again")(first))
    assert "eth0" not in labnet.ip("-n", first.ns, "link")
    said = host.meshctl("diff").stdout
    assert f"its parent {CARD} went away, and took the device in the container along" in said
    assert f"its parent {CARD} is not on this host; made again once it is back" in said
    wait_for(
        "status says so", 15, lambda: any(f"its parent {CARD}" in line for line in host.status()["health"])
    )
    assert {e["name"] for e in host.events() if e["kind"] == "endpoint-stale"} == {first.name, second.name}
    told = host.meshctl("attach", yard, "--netns", first.path, "--name", first.name)
    assert (told.returncode, told.stdout) == (1, "")
    assert f"parent {CARD} of network {yard} does not exist on this host" in told.stderr

    host.kill()
    host.start()
    assert gone(host, CARD)(first), "a restarted daemon knows it too"
    card(True)
    wait_for("the host's own device is back", 10, lambda: shim in links(host))
    wait_for("the reason is another", 10, lambda: gone(host, "and came back")(first))
    again = host.json("attach", yard, "--netns", first.path, "--name", first.name)
    assert [again[key] for key in ("id", "ips", "mac")] == [
        first.endpoint[key] for key in ("id", "ips", "mac")
    ]
    assert ping(first.ns, GATEWAY).lost == 0
    assert ping(host.ns, first.v4).lost == 0
    assert shown(host, first)["state"] == "up"
    assert shown(host, second)["state"] == "stale"

    labnet.ip("netns", "del", second.ns)
    wait_for("released with its namespace", 20, lambda: [
        e["id"] for e in host.json("endpoint", "ls", "--network", yard) if not e["ifname"].startswith("ms")
    ] == [first.endpoint["id"]])  # fmt: skip
    host.wait_in_sync()
    wait_for("status is calm", 15, lambda: host.status()["health"] == [])
    assert [e["name"] for e in host.events() if e["kind"] == "endpoint-up"] == [first.name]
    host.json("detach", yard, "--netns", first.path)
    wait_for("nothing is left", 10, lambda: links(host) == before)


def test_a_promiscuous_parent_is_warned_of_where_somebody_attaches(
    lab3: Lab, new_network: NewNetwork, card: Plug
) -> None:
    host = lab3.hosts[0]
    yard = new_network(*YARD, "--parent", CARD)
    ns = lab3.container("warned")
    host.run("ip", "link", "set", CARD, "promisc", "on")
    done = host.meshctl("attach", yard, "--netns", f"/run/netns/{ns}")
    assert done.returncode == 0
    assert f"warning: parent {CARD} is promiscuous" in done.stderr
    host.json("detach", yard, "--netns", f"/run/netns/{ns}")
