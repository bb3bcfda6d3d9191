"""containerd 1.6: `ctr run --cni`, and CRI the way kubelet drives it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from realtools import Containerd, Image, Place, Pod

from meshctl.labcluster import Lab
from meshctl.labhost import wait_for
from meshctl.ping import ping

NETWORK = "blue"


@pytest.fixture(scope="module")
def containerd(lab: Lab, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    host = lab.hosts[0]
    host.json("network", "create", NETWORK, "--ipv6")
    lab.hosts[1].wait_network(NETWORK)
    with (
        Place(host, tmp_path_factory.mktemp("ctd"), NETWORK) as place,
        Containerd(place, image).running() as made,
    ):
        made.ctr("-n", "k8s.io", "images", "import", str(image.archive))
        yield made


@pytest.fixture(scope="module")
def peer(lab: Lab, containerd: Containerd) -> Iterator[dict[str, Any]]:
    """A process's namespace on the other host, attached by hand."""
    host, ns = lab.hosts[1], lab.container("peer")
    yield {"ns": ns, **host.json("attach", NETWORK, "--netns", f"/run/netns/{ns}", "--name", "peer")}
    host.json("detach", NETWORK, "--netns", f"/run/netns/{ns}")


def v4(endpoint: dict[str, Any]) -> str:
    return str(endpoint["ips"][0]).partition("/")[0]


@pytest.mark.conforms("ctr", "run")
@pytest.mark.conforms("ctr", "end")
def test_ctr_run_reaches_another_host_and_leaves_nothing(
    containerd: Containerd, peer: dict[str, Any]
) -> None:
    rootfs = str(containerd.image.rootfs)
    done = containerd.ctr(
        "run",
        "--cni",
        "--rm",
        "--rootfs",
        rootfs,
        "web",
        "/bin/ping",
        "-c",
        "3",
        "-i",
        "0.1",
        "-W",
        "2",
        v4(peer),
    )
    assert " 0% packet loss" in done.stdout
    containerd.place.wait_no_endpoints(NETWORK)


@pytest.mark.long
@pytest.mark.conforms("ctr", "kill")
def test_ctr_kill_detaches(containerd: Containerd, peer: dict[str, Any]) -> None:
    argv = containerd.place.argv(
        "ctr", "-a", str(containerd.socket), "run", "--cni", "--rm", "--rootfs", str(containerd.image.rootfs), "web",
        "/bin/sleep", "600",
    )  # fmt: skip
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ):
        wait_for("it is attached", 30.0, lambda: len(containerd.place.endpoints(NETWORK)) == 1)
        (endpoint,) = containerd.place.endpoints(NETWORK)
        assert (endpoint["runtime"], endpoint["runtime_id"]) == ("cni", "default-web")
        assert ping(peer["ns"], v4(endpoint)).lost == 0
        wait_for("it runs", 30.0, lambda: "RUNNING" in containerd.ctr("tasks", "ls").stdout)
        containerd.ctr("tasks", "kill", "-s", "SIGKILL", "web")
    containerd.place.wait_no_endpoints(NETWORK)


@pytest.mark.conforms("CRI", "run")
@pytest.mark.conforms("CRI", "end")
def test_a_pod_is_run_stopped_and_removed(containerd: Containerd, peer: dict[str, Any]) -> None:
    pod = Pod(containerd, "web-0")
    try:
        (endpoint,) = containerd.place.endpoints(NETWORK)
        assert endpoint["name"] == "web-0"
        assert endpoint["runtime_id"] == pod.id
        assert endpoint["published"] == ["8090:80/tcp"]
        assert pod.ip() == v4(endpoint)
        assert ping(peer["ns"], v4(endpoint)).lost == 0
        pod.stop()
        assert containerd.place.endpoints(NETWORK) == []
        pod.stop()
    finally:
        pod.stop()
        pod.remove()
        pod.remove()


@pytest.mark.long
@pytest.mark.conforms("CRI", "bandwidth")
def test_a_pods_bandwidth_annotation_is_a_limit(containerd: Containerd) -> None:
    limits = {"kubernetes.io/ingress-bandwidth": "80M", "kubernetes.io/egress-bandwidth": "80M"}
    metadata = ((1, "slow"), (2, "uid-slow"), (3, "default"))
    config = ((1, metadata), (3, str(containerd.place.folder)), (7, limits))
    pod = containerd.cri("RunPodSandbox", (1, config))[1][0].decode()
    try:
        shown = containerd.place.host.run("tc", "qdisc", "show").stdout
        assert "tbf" in shown
        assert "rate 80Mbit" in shown
    finally:
        containerd.cri("StopPodSandbox", (1, pod))
        containerd.cri("RemovePodSandbox", (1, pod))


@pytest.mark.long
@pytest.mark.conforms("CRI", "chained portmap, bandwidth")
def test_the_reference_plugins_work_for_a_pod_behind_ours(
    containerd: Containerd, lab: Lab, image: Image, tmp_path: Path
) -> None:
    host = lab.hosts[1]
    chained = (
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    )
    serve = "import socket; s = socket.create_server(('', 80))\nwhile True: s.accept()[0].sendall(b'hello')"
    ask = f"import socket; print(socket.create_connection(('{host.address}', 8090), 5).recv(9).decode())"
    with (
        Place(host, tmp_path / "chain", NETWORK, *chained) as place,
        Containerd(place, image).running() as other,
    ):
        other.ctr("-n", "k8s.io", "images", "import", str(image.archive))
        pod = Pod(other, "chained", **{"kubernetes.io/ingress-bandwidth": "80M"})
        server = subprocess.Popen(place.argv("nsenter", f"--net={pod.netns()}", sys.executable, "-c", serve))
        try:
            (endpoint,) = [each for each in place.endpoints(NETWORK) if each["runtime_id"] == pod.id]
            assert endpoint["published"] == []
            assert f"{v4(endpoint)}:80" in host.run("iptables-save").stdout
            assert "rate 80Mbit" in host.run("tc", "qdisc", "show").stdout
            wait_for(
                "the port answers",
                30.0,
                lambda: "hello" in lab.hosts[0].run(sys.executable, "-c", ask).stdout,
            )
        finally:
            server.kill()
            server.wait()
            pod.stop()
            pod.remove()
        assert "8090" not in host.run("iptables-save").stdout
        assert all(each["runtime_id"] != pod.id for each in place.endpoints(NETWORK))


@pytest.mark.long
@pytest.mark.conforms("CRI", "daemon down: run refused")
@pytest.mark.conforms("CRI", "daemon down: end, done later")
def test_pods_while_meshd_is_down(containerd: Containerd) -> None:
    host = containerd.place.host
    pod = Pod(containerd, "before")
    host.stop()
    with pytest.raises(grpc.RpcError) as refused:
        Pod(containerd, "meanwhile")
    assert "meshd is not reachable" in str(refused.value)
    pod.stop()
    pod.remove()
    host.start()
    containerd.place.wait_no_endpoints(NETWORK)
    after = Pod(containerd, "after")
    after.stop()
    after.remove()


@pytest.mark.long
@pytest.mark.conforms("CRI", "daemon killed: pods live on")
def test_a_pod_lives_through_meshds_death(containerd: Containerd, peer: dict[str, Any]) -> None:
    pod = Pod(containerd, "lasting")
    try:
        (endpoint,) = containerd.place.endpoints(NETWORK)
        containerd.place.host.kill()
        assert ping(peer["ns"], v4(endpoint), count=20).lost == 0
        containerd.place.host.start()
        assert ping(peer["ns"], v4(endpoint)).lost == 0
        assert len(containerd.place.endpoints(NETWORK)) == 1
    finally:
        pod.stop()
        pod.remove()
    containerd.place.wait_no_endpoints(NETWORK)


@pytest.mark.long
@pytest.mark.conforms("CRI", "bad configuration: a sentence")
def test_an_unknown_network_is_a_sentence_for_kubelet(
    containerd: Containerd, lab: Lab, image: Image, tmp_path: Path
) -> None:
    with (
        Place(lab.hosts[0], tmp_path / "other", "nowhere") as place,
        Containerd(place, image).running() as other,
    ):
        other.ctr("-n", "k8s.io", "images", "import", str(image.archive))
        with pytest.raises(grpc.RpcError) as refused:
            Pod(other, "web-0")
    assert "nowhere" in str(refused.value)
