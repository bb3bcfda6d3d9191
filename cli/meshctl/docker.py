"""``meshctl docker``: makes Docker networks that are networks of the cluster. Decides the arguments of ``docker network
create``, which an operator could give as well; whatever is done, Docker does.
"""

import shlex
import subprocess
from typing import Any

import click

from meshctl.client import Client
from meshctl.errors import Failed
from meshctl.group import Group
from meshctl.output import Invocation
from meshctl.params import WORD

UNMANAGED = ("none", "host")
DOCKERS_OWN = ("bridge", "none", "host")
"""Names that every engine has networks of already."""


@click.group(cls=Group)
def docker() -> None:
    """Make Docker networks that are networks of this cluster."""


@docker.command()
@click.argument("network", type=WORD)
@click.option(
    "--host", type=WORD, metavar="URL", help="The engine, as docker --host has it: unix:///run/docker.sock."
)
@click.option("--name", type=WORD, help="What Docker is to call it.  [default: NETWORK]")
@click.pass_obj
def create(invocation: Invocation, network: str, host: str | None, name: str | None) -> None:
    """Make NETWORK known to the Docker engine of this host, with subnets and gateways as they are.

    Do this on each host whose containers are to be on NETWORK: docker run --network NETWORK.
    """
    found = Client(invocation.socket).get("networks", network)
    command = command_line(found, host, name)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Failed("docker is not installed here", f"where it is: {shlex.join(command)}") from None
    if done.returncode:
        raise Failed(_said(done.stderr) or f"docker ended with status {done.returncode}", _hint(done.stderr))
    made = {"network": found["name"], "id": done.stdout.strip(), "name": command[-1], "command": command}
    invocation.emit(made, lambda: [str(made["id"])])


def command_line(found: dict[str, Any], host: str | None, name: str | None) -> list[str]:
    """Write the ``docker network create`` that makes a network, as ``network inspect`` shows it, known to Docker. Raises
    Failed where Docker has such a network of its own."""
    network = str(found["name"])
    if network in UNMANAGED:
        raise Failed(
            f"network {network} is only a name: Docker has one of its own", f"docker run --network {network}"
        )
    if (name or network) in DOCKERS_OWN:
        raise Failed(
            f"Docker has a network {name or network} of its own; nothing was made",
            f"--name says what it is to call this one: --name meshd-{network}",
        )
    named = f"network={network}"
    command = ["docker", *(["--host", host] if host else []), "network", "create"]
    command += ["--driver", "meshd", "--ipam-driver", "meshd", "--ipam-opt", named, "--opt", named]
    for cidr, gateway in zip(found["subnets"], found["gateways"], strict=True):
        command += ["--subnet", cidr, "--gateway", gateway]
    if any(":" in cidr for cidr in found["subnets"]):
        command.append("--ipv6")
    if found["internal"]:
        command.append("--internal")
    return [*command, name or network]


def _said(words: str) -> str:
    """Return Docker's error as it fits into one of our lines."""
    text = " ".join(words.split())
    for prefix in ("Error response from daemon:", "remote:"):
        text = text.removeprefix(prefix).strip()
    return text[:1].lower() + text[1:]


def _hint(words: str) -> str:
    if "plugin" in words and "not found" in words:
        return "meshd's plugin socket is not served, or not where this engine looks: meshctl status says why"
    if "Cannot connect to the Docker daemon" in words:
        return "start Docker, or name its socket: --host unix:///run/docker.sock"
    return ""
