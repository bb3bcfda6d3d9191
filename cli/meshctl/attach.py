"""attach and detach: one endpoint of one network for one namespace. Decides what is asked of the daemon, and that
nothing is left of an attach that failed.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import click

from meshctl import endpoint as endpoints
from meshctl.client import Client
from meshctl.errors import CommandError, Failed, WrongUsage
from meshctl.netlink import Netlink
from meshctl.netns import Namespace, inside, opened, path_of
from meshctl.output import Invocation
from meshctl.params import IFNAME, IP, MAC, PUBLICATION, WORD
from meshctl.plumb import plumb
from meshctl.process import signals_raised
from meshctl.report import warn

DEFAULT_NETWORK = "bridge"
CREATED = 201
F = TypeVar("F", bound=Callable[..., Any])


def endpoint_options(command: F) -> F:
    """Add the options that say what the endpoint is to be; attach and run have them."""
    for option in reversed(
        [
            click.option("--name", type=WORD, help="Name on the network.  [default: from the endpoint's id]"),
            click.option("--alias", "aliases", type=WORD, multiple=True, help="Further name."),
            click.option("--ip", "ips", type=IP, multiple=True, help="Address in the network's subnet."),
            click.option("--mac", type=MAC, help="Ethernet address."),
            click.option(
                "--ifname", type=IFNAME, default="eth0", show_default=True, help="Name in the namespace."
            ),
            click.option(
                "-p",
                "--publish",
                "published",
                type=PUBLICATION,
                multiple=True,
                metavar="[IP:]HOSTPORT:PORT[/PROTO]",
                help="Port, or range, of this host that leads here.",
            ),
        ]
    ):
        command = option(command)
    return command


def namespace_options(command: F) -> F:
    """Add --netns and --pid."""
    netns = click.option("--netns", type=WORD, help="A namespace: its path, or its name under /run/netns.")
    return netns(
        click.option("--pid", type=click.IntRange(min=1), help="The namespace of this process.")(command)
    )


@click.command()
@click.argument("network", type=WORD, default=DEFAULT_NETWORK)
@namespace_options
@endpoint_options
@click.pass_obj
def attach(
    invocation: Invocation, /, network: str, netns: str | None, pid: int | None, **wanted: Any
) -> None:
    """Give a network namespace an endpoint on NETWORK (default: bridge).

    Attaching what is attached already changes nothing and prints the same endpoint.
    """
    exactly_one("attach", netns=netns, pid=pid)
    with opened(path_of(netns, pid)) as namespace:
        made = put_in(Client(invocation.socket), namespace, network, wanted)
    invocation.emit(made, lambda: endpoints.lines(made))


@click.command()
@click.argument("network", type=WORD)
@namespace_options
@click.option(
    "--endpoint", "endpoint_id", type=WORD, metavar="ID", help="An endpoint's id, or the start of it."
)
@click.pass_obj
def detach(
    invocation: Invocation, network: str, netns: str | None, pid: int | None, endpoint_id: str | None
) -> None:
    """Take a namespace's endpoint on NETWORK away. What is gone already is no error."""
    exactly_one("detach", netns=netns, pid=pid, endpoint=endpoint_id)
    client = Client(invocation.socket)
    if endpoint_id is not None:
        found = _by_id(client, network, endpoint_id)
    else:
        found = _in_namespace(client, network, path_of(netns, pid))
    removed = [endpoint for endpoint in found if take_out(client, endpoint)]
    invocation.emit(
        {"removed": bool(removed), "endpoints": removed}, lambda: removed or ["nothing to detach"]
    )


def put_in(client: Client, namespace: Namespace, network: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Attach and plumb; return the endpoint. On failure, and on a signal that ends this process, an endpoint that
    was new is removed again.
    """
    body = {key: value for key, value in wanted.items() if value is not None}
    made: dict[str, Any] | None = None
    status = 0
    with signals_raised() as interrupts:
        try:
            with (
                interrupts.deferred()
            ):  # an answer lost to a signal would be an endpoint that nobody knows of
                status, made = _ask(client, namespace, {"network": network, **body})
            plumb(made["plumb"], namespace)
            for warning in made["plumb"].get("warnings", ()):
                warn(warning)
        except BaseException as error:
            if made is not None and status == CREATED:
                _undo(client, network, made["id"], error)
            raise
    return {key: value for key, value in made.items() if key != "plumb"}


def _ask(client: Client, namespace: Namespace, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Ask the daemon from within the namespace: the link's end is born where this thread waits. To move it there takes
    the kernel 8-15 ms, and is done where the daemon cannot know the thread, or the name is taken there."""

    def ask() -> tuple[int, dict[str, Any]]:
        where = {"cookie": namespace.cookie, "path": namespace.path}
        if client.has_our_pids():
            with Netlink() as there:
                if there.link(body["ifname"]) is None:
                    where["pid"] = threading.get_native_id()
        return client.post("endpoints", body={**body, "netns": where})

    return inside(namespace.fd, namespace.path, ask)


def take_out(client: Client, endpoint: str) -> bool:
    """Remove an endpoint by its id; say whether it was there."""
    try:
        return bool(client.delete("endpoints", endpoint).get("removed", True))
    except Failed as error:
        if is_gone(error):
            return False
        raise


def is_gone(error: Failed) -> bool:
    """Say whether a refusal means that what was named does not exist."""
    return error.code == "not-found" or error.status == 404


def exactly_one(command: str, **given: object) -> None:
    """Raise WrongUsage unless exactly one option was given."""
    names = [f"--{name}" for name in given]
    count = sum(value is not None for value in given.values())
    if count == 0:
        raise WrongUsage(f"missing option: {' or '.join(names)}", f"meshctl {command} --help")
    if count > 1:
        raise WrongUsage(f"{' and '.join(names)} exclude each other: give one", f"meshctl {command} --help")


def _undo(client: Client, network: str, endpoint: str, error: BaseException) -> None:
    try:
        take_out(client, endpoint)
    except CommandError as second:
        if isinstance(error, CommandError):
            error.hint = (
                f"the endpoint is left ({second.what}): meshctl detach {network} --endpoint {endpoint}"
            )


def _by_id(client: Client, network: str, wanted: str) -> list[str]:
    """Return the id of the endpoint in ``network``, or nothing. Raises Failed where it is another network's."""
    try:
        found = endpoints.by_id(client.get("endpoints"), wanted)
    except Failed as error:
        if is_gone(error):
            return []
        raise
    if found.get("network") != network:
        raise Failed(
            f"endpoint {wanted} is on {found.get('network')}, not on {network}; nothing was changed",
            f"meshctl detach {found.get('network')} --endpoint {wanted}",
        )
    return [str(found["id"])]


def _in_namespace(client: Client, network: str, path: str) -> list[str]:
    """Return the ids of the namespace's endpoints on ``network``; none where namespace or network are gone: the
    daemon releases by itself what was in a namespace that went away.
    """
    try:
        with opened(path) as space:
            where = client.get("endpoints", network=network, netns_cookie=space.cookie)
            return [str(found["id"]) for found in where]
    except Failed as error:
        if is_gone(error):
            return []
        raise
