"""Namespaces for the kernel tests: fresh ones, with random names, gone afterwards whatever happened."""

import concurrent.futures
import ctypes
import json
import os
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.kernel


def pytest_collection_modifyitems(items):
    """Everything in this folder needs a kernel to talk to."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kernel)


class Netns:
    """A network namespace. ``call`` runs a function on a thread that lives in it; ``run`` a command."""

    def __init__(self):
        self.name = "mt-" + secrets.token_hex(4)
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, initializer=self._enter)
        self.run("ip", "link", "set", "lo", "up")

    def _enter(self):
        fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(fd)

    def call(self, function, *args):
        return self._thread.submit(function, *args).result()

    def run(self, *command, check=True, **more):
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *command], capture_output=True, text=True, check=False, **more
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def json(self, *command):
        """The independent reader: what iproute2 says."""
        return json.loads(self.run(*command).stdout or "[]")

    def close(self):
        self._thread.shutdown()
        for pid in subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False
        ).stdout.split():
            os.kill(int(pid), 9)
        subprocess.run(["ip", "netns", "del", self.name], check=False)


@pytest.fixture
def make_netns():
    """Return a function that makes namespaces."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for program in ("ip", "bridge"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (iproute2)")
    made = []

    def make():
        made.append(Netns())
        return made[-1]

    yield make
    for netns in made:
        netns.close()


@pytest.fixture
def netns(make_netns):
    return make_netns()


@pytest.fixture
def vxlan_bridge(netns):
    """A bridge br0 with the ports vx0 (vxlan) and v0 (veth), made by iproute2, not by us."""
    script = """
        link add br0 type bridge
        link set br0 up
        link add vx0 type vxlan id 5 dstport 4789 local 127.0.0.1 nolearning
        link set vx0 master br0 up
        link add v0 type veth peer name v1
        link set v0 master br0 up
    """
    done = netns.run("ip", "-batch", "-", input=script, check=False)
    if done.returncode:
        pytest.skip("vxlan, bridge or veth")
    return netns


@pytest.fixture
def unprivileged(opened):
    """Make a command of our Python as nobody with CAP_NET_ADMIN alone: ``unprivileged(*args)``."""
    caps = "-all,+net_admin"
    become = [
        *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"),
        *("--inh-caps=" + caps, "--ambient-caps=" + caps, "--bounding-set=" + caps),
    ]
    return lambda *args: opened.argv(become, *args)
