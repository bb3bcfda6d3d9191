"""The disk under state_dir fills up, or breaks, while the daemon runs: what exists goes on, what would need the disk is
refused by name, and all is well again when it is."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from labtools import Attached, pings_between, undisturbed

from meshctl import labdaemon
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for

DISK_MIB = 8


@pytest.fixture
def small(lab3: Lab, tmp_path: Path) -> Iterator[Host]:
    """The second host, its state on a small ext4 of its own."""
    host = lab3.hosts[1]
    disk, place = tmp_path / "disk", labdaemon.ROOT / f"disk-{lab3.id}"
    state = host.dir / "state"
    host.stop()
    with disk.open("wb") as file:
        file.truncate(DISK_MIB * 1024 * 1024)
    run("mkfs.ext4", "-q", "-m", "0", disk)
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-o", "loop", disk, place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        place.rmdir()
        host.start()
        pytest.skip(f"this machine has no loop devices: {mounted.stderr.strip()}")
    try:
        shutil.copytree(state, place / "state")
        labdaemon.give(place)
        host.configure(host={"state_dir": str(place / "state")})
        host.start()
        yield host
        to_its_own_disk(lab3, host)
        host.wait_in_sync()
    finally:
        run("umount", place)
        place.rmdir()


def to_its_own_disk(lab: Lab, host: Host) -> None:
    """Move the state to where it was before, as an operator replaces a disk."""
    state = host.dir / "state"
    host.stop()
    if str(state_of(host)) in (host.dir / "etc" / "meshd.toml").read_text():
        shutil.rmtree(state)
        shutil.move(shutil.copytree(state_of(host), state.with_name("moving")), state)
    labdaemon.give(state)
    host.configure(host={"state_dir": str(lab.view.of(host.dir, host.name) / "state")})
    host.start()


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def state_of(host: Host) -> Path:
    return labdaemon.ROOT / f"disk-{host.lab.id}" / "state"  # type: ignore[attr-defined]


def ids(host: Host, network: str) -> set[str]:
    return {e["id"] for e in host.json("endpoint", "ls", "--network", network)}


def refused(host: Host, network: str, path: str, why: str) -> None:
    done = host.meshctl("attach", network, "--netns", path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"error: the state could not be written to disk: {why}; nothing was changed\n"
    )
    assert f"file system of {state_of(host)}" in done.stderr


def test_a_disk_that_fills_up_takes_releases_and_no_new_endpoint_and_loses_nothing(
    lab3: Lab, small: Host, overlay: str, trio_of_endpoints: list[Attached]
) -> None:
    first = lab3.hosts[0]
    late = f"/run/netns/{lab3.container('late')}"
    going = small.json("attach", overlay, "--netns", f"/run/netns/{lab3.container('going')}")
    with pings_between(*trio_of_endpoints):
        ballast = state_of(small).parent / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            for _ in range(DISK_MIB * 1024):
                file.write(bytes(1024))
        fill_the_last_block(small, overlay, late)
        refused(small, overlay, late, "No space left on device")
        wait_for(
            "status says so", 20, lambda: any("No space left" in line for line in small.status()["health"])
        )
        first.json("network", "create", "made-meanwhile")
        small.wait_network("made-meanwhile")
        assert small.json("detach", overlay, "--endpoint", going["id"])["removed"] is True
        wait_for("host1 sees it go", 10, lambda: going["id"] not in ids(first, overlay))
        small.kill()  # what was released on a full disk stays so
        small.start()
        for host in lab3.hosts:
            host.wait_alive(3)
        assert going["id"] not in ids(small, overlay)
        refused(small, overlay, late, "No space left on device")

        ballast.unlink()
        wait_for("all is well again", 20, lambda: small.status()["health"] == [])
        small.json("attach", overlay, "--netns", late)
        small.json("detach", overlay, "--netns", late)
        first.json("network", "rm", "made-meanwhile")
        wait_for("all agree", 20, lambda: len({host.status()["digest"] for host in lab3.hosts}) == 1)


def fill_the_last_block(host: Host, network: str, path: str) -> None:
    """Attach until the journal has no room left in the block that it had begun."""
    for _ in range(200):
        if host.meshctl("attach", network, "--netns", path).returncode:
            return
        host.json("detach", network, "--netns", path)
    raise AssertionError("the disk never was full")


def test_a_disk_that_breaks_stops_what_needs_it_and_nothing_else(
    lab3: Lab, small: Host, trio_of_endpoints: list[Attached]
) -> None:
    first = lab3.hosts[0]
    with undisturbed(lab3.hosts, *trio_of_endpoints):
        run(
            "mount", "-o", "remount,abort", state_of(small).parent
        )  # as ext4 does itself on an error: read-only
        wait_for(
            "an attach is refused",
            20,
            lambda: small.meshctl("network", "create", "not-made").returncode == 1,
        )
        done = small.meshctl("network", "create", "not-made")
        assert "the state could not be written to disk" in done.stderr
        assert "nothing was changed" in done.stderr
        wait_for(
            "status says so",
            20,
            lambda: any("cannot be written" in line for line in small.status()["health"]),
        )
        first.json("network", "create", "made-meanwhile")
        small.wait_network("made-meanwhile")
        first.json("network", "rm", "made-meanwhile")
        assert first.meshctl("network", "inspect", "not-made").returncode == 1
        for host in lab3.hosts:
            host.wait_alive(3)
            host.wait_in_sync()
    to_its_own_disk(lab3, small)
    wait_for("all is well again", 20, lambda: small.status()["health"] == [])
    small.wait_in_sync()
