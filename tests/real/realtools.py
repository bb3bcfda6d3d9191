"""What real runtimes need on a machine for tests: an image made here, and each runtime on a lab's host: in the host's
network namespace, with a mount namespace and folders of its own, so that nothing of this machine's is used or changed.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from meshctl.cni import build, put, source
from meshctl.labhost import Host, wait_for

NAME = "localhost/busybox:1"
BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static
TOOLS = ("sh", "sleep", "ip", "ping", "cat", "nc", "httpd", "wget")
START_S = 30.0
CAPABILITIES = {
    "portMappings": True,
    "ips": True,
    "mac": True,
    "aliases": True,
    "dns": True,
    "bandwidth": True,
}
TMPFS = ("/opt/cni", "/etc/cni", "/var/lib/cni", "/run/netns")
ENTER = """
for place in {places}; do mkdir -p "$place"; mount -t tmpfs own "$place"; done
mkdir -p /opt/cni/bin /etc/cni/net.d
cp /usr/lib/cni/* "$1"/bin/* /opt/cni/bin/
cp "$1"/net.d/* /etc/cni/net.d/
echo ready
exec sleep infinity
""".format(places=" ".join(TMPFS))


@dataclass(frozen=True)
class Image:
    """``archive``: what `docker save` writes; ``rootfs``: the same unpacked. It sleeps until it is ended."""

    archive: Path
    rootfs: Path

    @classmethod
    def make(cls, folder: Path) -> "Image":
        rootfs = folder / "rootfs"
        for name in ("bin", "proc", "sys", "dev", "etc", "tmp", "run"):
            (rootfs / name).mkdir(parents=True)
        shutil.copy2(BUSYBOX, rootfs / "bin" / "busybox")
        for tool in TOOLS:
            (rootfs / "bin" / tool).symlink_to("busybox")
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            tar.add(rootfs, "/")
        digest = hashlib.sha256(layer.getvalue()).hexdigest()
        config = json.dumps({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sleep", "600"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            "history": [{"created": "2026-01-01T00:00:00Z"}],
        }).encode()  # fmt: skip
        manifest = json.dumps(
            [{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]
        ).encode()
        archive = folder / "image.tar"
        with tarfile.open(archive, "w") as tar:
            for name, data in (
                ("layer.tar", layer.getvalue()),
                ("config.json", config),
                ("manifest.json", manifest),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return cls(archive, rootfs)


class Place:
    """Where a runtime lives: a host of the lab, a folder, and the CNI network that it has. A context manager. What the
    plugins behind ours are capable of is left to them."""

    def __init__(self, host: Host, folder: Path, network: str, *more_plugins: dict[str, Any]) -> None:
        self.host = host
        self.folder = folder
        for name in ("bin", "net.d"):
            (folder / name).mkdir(parents=True)
        put(build(source()), folder / "bin")
        others = {key for plugin in more_plugins for key in plugin.get("capabilities", {})}
        capabilities = {key: can for key, can in CAPABILITIES.items() if key not in others}
        ours = {"type": "meshd", "socket": str(host.dir / "run" / "cni.sock"), "capabilities": capabilities}
        plugins = [ours, *more_plugins]
        conflist = {"cniVersion": "1.0.0", "name": network, "plugins": plugins}
        (folder / "net.d" / "10-meshd.conflist").write_text(json.dumps(conflist))

    def __enter__(self) -> "Place":
        # nsenter and not ip-netns(8), whose fresh /sys hides the cgroups
        enter = [
            "nsenter",
            f"--net=/run/netns/{self.host.ns}",
            "unshare",
            "--mount",
            "--propagation",
            "private",
        ]
        command = [*enter, "sh", "-euc", ENTER, "sh", str(self.folder)]
        self._keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.kill()
        self._keeper.communicate()

    def argv(self, *command: str) -> list[str]:
        """Return what runs a command there; its mounts last as long as this place."""
        return ["nsenter", f"--target={self._keeper.pid}", "--mount", "--net", "--wd=/", *command]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end. Raises AssertionError with its words where it fails and should not."""
        done = subprocess.run(
            self.argv(*command),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done

    def endpoints(self, network: str) -> list[dict[str, Any]]:
        """Return this host's endpoints on a network."""
        every = self.host.json("endpoint", "ls", "--network", network)
        return [endpoint for endpoint in every if endpoint["host"] == self.host.name]

    def wait_no_endpoints(self, network: str) -> None:
        wait_for("every endpoint is gone", START_S, lambda: self.endpoints(network) == [])


@contextmanager
def background(argv: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[int]:
    """Run a daemon until the body ends; yield its pid."""
    with log.open("ab") as output:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        wait_for(f"{log.name} says that it is ready", START_S, ready)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Containerd:
    """containerd on a host; ``ctr`` as a person uses it, and CRI as kubelet does."""

    CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = "{image}"
disable_tcp_service = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"""

    def __init__(self, place: Place, image: Image) -> None:
        self.place = place
        self.image = image
        self.socket = place.folder / "c.sock"
        self.log = place.folder / "containerd.log"

    @contextmanager
    def running(self) -> Iterator["Containerd"]:
        """Run it; its shims go with it."""
        config = self.place.folder / "config.toml"
        config.write_text(self.CONFIG.format(folder=self.place.folder, socket=self.socket, image=NAME))
        try:
            with background(self.place.argv("containerd", "-c", str(config)), self.log, self._answers):
                yield self
        finally:
            for pid in self._shims():
                os.kill(pid, signal.SIGKILL)

    def _answers(self) -> bool:
        return self.ctr("version", check=False).returncode == 0

    def _shims(self) -> list[int]:
        """Return the processes that were started with this containerd's socket."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"containerd-shim" in words[0] and str(self.socket).encode() in words:
                found.append(int(entry.name))
        return found

    def ctr(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ctr."""
        return self.place.run("ctr", "-a", str(self.socket), *args, check=check)

    def cri(self, method: str, *fields: tuple[int, Any]) -> dict[int, list[Any]]:
        """Call runtime.v1's RuntimeService. Raises grpc.RpcError."""
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            call = channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
            return unpack(call(pack(*fields), timeout=60))


class Pod:
    """A sandbox by CRI."""

    def __init__(self, containerd: Containerd, name: str, **annotations: str) -> None:
        self.containerd = containerd
        metadata = ((1, name), (2, f"uid-{name}"), (3, "default"))
        mapping = ((1, 0), (2, 80), (3, 8090))
        config = ((1, metadata), (2, name), (3, str(containerd.place.folder)), (5, mapping), (7, annotations))
        self.id = containerd.cri("RunPodSandbox", (1, config))[1][0].decode()

    def stop(self) -> None:
        self.containerd.cri("StopPodSandbox", (1, self.id))

    def remove(self) -> None:
        self.containerd.cri("RemovePodSandbox", (1, self.id))

    def netns(self) -> str:
        """Its namespace's path, in the place's mounts."""
        status = self.containerd.cri("PodSandboxStatus", (1, self.id), (2, True))
        info = {unpack(each)[1][0]: unpack(each)[2][0] for each in status[2]}[b"info"]
        namespaces = json.loads(info)["runtimeSpec"]["linux"]["namespaces"]
        return str(next(each["path"] for each in namespaces if each["type"] == "network"))

    def ip(self) -> str:
        """What CRI tells kubelet."""
        status = unpack(self.containerd.cri("PodSandboxStatus", (1, self.id))[1][0])
        return str(unpack(status[5][0])[1][0].decode())


# --- the few bytes of protobuf that CRI takes: varints and length-delimited fields ------------------------------------
def pack(*fields: tuple[int, Any]) -> bytes:
    """Pack fields (number, value): int, text, bytes, a nested tuple of fields, or a dict of texts."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        elif isinstance(value, dict):
            out += b"".join(_delimited(number, pack((1, key), (2, text))) for key, text in value.items())
        else:
            body = (
                pack(*value)
                if isinstance(value, tuple)
                else value.encode()
                if isinstance(value, str)
                else value
            )
            out += _delimited(number, body)
    return out


def unpack(data: bytes) -> dict[int, list[Any]]:
    """Take a message apart: field number -> values, numbers or bytes."""
    found: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        key, at = _read(data, at)
        if key & 7 == 0:
            value, at = _read(data, at)
            found.setdefault(key >> 3, []).append(value)
        elif key & 7 == 2:
            length, at = _read(data, at)
            found.setdefault(key >> 3, []).append(data[at : at + length])
            at += length
        else:
            raise ValueError(f"wire type {key & 7}")
    return found


def _delimited(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
        shift += 7


class Podman:
    """podman with its CNI backend: no daemon."""

    CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "none"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin", "/usr/lib/cni"]
network_config_dir = "{folder}/net.d"
"""

    def __init__(self, place: Place, image: Image) -> None:
        self.place = place
        self.conf = place.folder / "containers.conf"
        self.conf.write_text(self.CONF.format(folder=place.folder))
        self.run("load", "-q", "-i", str(image.archive))

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run podman."""
        folder = self.place.folder
        own = [f"--root={folder}/storage", f"--runroot={folder}/runroot", f"--tmpdir={folder}/tmp"]
        return self.place.run(
            "env", f"CONTAINERS_CONF={self.conf}", "podman", "--storage-driver=vfs", *own, *args, check=check
        )
