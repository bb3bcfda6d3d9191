"""A real systemd-networkd in a namespace of its own: it leaves meshd's devices alone, its state files are read right,
and the lines that an operator is told to write have it make the bridge."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from meshd.plan import managers
from meshd.plan.bridges import Card
from meshd.shell import managers as files

ROOT = Path(__file__).resolve().parents[2]
NETWORKD = Path("/usr/lib/systemd/systemd-networkd")
FOLDERS = (Path("/run/systemd"), Path("/etc/systemd/network"))
STATES_S = 20.0

# Its own /run and configuration; without a writable /sys it does not wait for udev.
ALONE = """
for folder in /run/systemd /etc/systemd/network; do mount -t tmpfs -o mode=755 tmpfs $folder; done
mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
chown -R systemd-network /run/systemd/netif
mount -o remount,ro /sys
install -m 0644 "$1" /etc/systemd/network/
printf '[Match]\\nName=*\\n\\n[Network]\\nAddress=192.0.2.33/24\\nLinkLocalAddressing=no\\n' >/etc/systemd/network/50-all.network
while read -r line; do sh -euc "$line" && echo done; done
"""


class Alone:
    """A shell in the namespace, with mounts of its own; ``root``: what it sees as /."""

    def __init__(self, netns):
        self.netns = netns
        self._shell = subprocess.Popen(
            ["ip", "netns", "exec", netns.name, "unshare", "--mount", "sh", "-euc", ALONE, "sh",
             str(ROOT / "systemd" / "00-meshd.network")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._daemon = 0
        self.run("true")
        self.root = Path(f"/proc/{self._shell.pid}/root")

    def run(self, line):
        self._shell.stdin.write(line + "\n")
        self._shell.stdin.flush()
        assert self._shell.stdout.readline() == "done\n", line

    def start(self):
        """Start networkd, or start it anew: reload needs a bus."""
        if self._daemon:
            # until it is gone: it writes its state files once more when it ends
            gone = f"kill -0 {self._daemon} 2>/dev/null || break; sleep 0.05"
            self.run(f"kill {self._daemon}; for i in $(seq 200); do {gone}; done")
        self.run(f"{NETWORKD} >/dev/null 2>&1 & echo $! >/run/systemd/netif/pid")
        self._daemon = int((self.root / "run/systemd/netif/pid").read_text())

    def state(self, index):
        try:
            text = (self.root / f"run/systemd/netif/links/{index}").read_text()
        except OSError:
            return ""
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line).get("ADMIN_STATE", "")

    def end(self):
        if self._daemon:
            self.run(f"kill {self._daemon}")
        self._shell.stdin.close()
        self._shell.wait(timeout=10)
        self._shell.stdout.close()


@pytest.fixture
def alone(netns):
    if not NETWORKD.exists() or not all(map(Path.is_dir, FOLDERS)) or shutil.which("unshare") is None:
        pytest.skip("systemd-networkd")
    made = Alone(netns)
    yield made
    made.end()


def wait(holds):
    until = time.monotonic() + STATES_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def addresses(netns, device):
    shown = netns.json("ip", "-j", "addr", "show", "dev", device)
    return [address["local"] for address in shown[0]["addr_info"] if ":" not in address["local"]]


def test_networkd_leaves_our_devices_alone_and_makes_a_bridge_as_told(netns, alone):
    ours = ["mo01234567", "mox01234567", "mh01234567", "mp89abcdef", "ms01234567"]
    for name in (*ours, "mobile0", "mo0123456"):
        netns.run("ip", "link", "add", name, "type", "bridge")
    netns.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    netns.run("ip", "link", "set", "far0", "up")
    index = {link["ifname"]: link["ifindex"] for link in netns.json("ip", "-j", "link")}
    mac = netns.json("ip", "-j", "link", "show", "dev", "eth0")[0]["address"]
    alone.start()
    wait(lambda: all(alone.state(index[name]) == "unmanaged" for name in ours))
    wait(lambda: alone.state(index["eth0"]) == "configured")
    wait(lambda: all(alone.state(index[name]).startswith("config") for name in ("mobile0", "mo0123456")))
    assert all(addresses(netns, name) == [] for name in ours)
    assert files.owner(Card("mo01234567", index=index["mo01234567"]), alone.root) is None
    owner = files.owner(Card("eth0", index=index["eth0"]), alone.root)
    assert owner == managers.Owner(managers.NETWORKD, "/etc/systemd/network/50-all.network")

    assert alone.state(index["mobile0"]).startswith("config")
    for command in managers.keep_off(owner, "mobile0")[:-1]:
        alone.run(command)
    _, *commands, reload = managers.have_it_make(owner, "br0", "eth0", mac)
    assert reload == "networkctl reload"
    for command in commands:
        alone.run(command)
    assert files.maker("br0", alone.root) == managers.Owner(
        managers.NETWORKD, "/etc/systemd/network/10-br0.netdev"
    )
    alone.start()

    def made():
        links = {link["ifname"]: link for link in json.loads(netns.run("ip", "-j", "link").stdout)}
        return (
            "br0" in links
            and links["eth0"].get("master") == "br0"
            and addresses(netns, "br0") == ["192.0.2.33"]
        )

    wait(made)
    wait(lambda: alone.state(index["mobile0"]) == "unmanaged")
    assert netns.json("ip", "-j", "link", "show", "dev", "br0")[0]["address"] == mac
