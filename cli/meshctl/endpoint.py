"""``meshctl endpoint``: lists endpoints, finds one by its id or the start of it."""

from typing import Any

import click

from meshctl.client import Client
from meshctl.errors import Failed
from meshctl.group import Group
from meshctl.output import Invocation
from meshctl.params import WORD
from meshctl.table import pairs, table

HEAD = ("ID", "NETWORK", "HOST", "NAME", "IPS", "MAC", "IFNAME", "STATE", "PUBLISHED", "RUNTIME")
RUNTIME_ID = 12  # characters of a container's id, as runtimes show it
SHORT_ID = 8  # hex digits; `endpoint inspect` takes them too


@click.group(cls=Group)
def endpoint() -> None:
    """List and inspect endpoints."""


@endpoint.command("ls")
@click.option("--network", type=WORD, help="Only those on this network.")
@click.option("--host", type=WORD, help="Only those on this host.")
@click.pass_obj
def list_endpoints(invocation: Invocation, network: str | None, host: str | None) -> None:
    """List the endpoints of all hosts."""
    found = Client(invocation.socket).get("endpoints", network=network, host=host)
    invocation.emit(found, lambda: table(HEAD, map(_row, found)))


@endpoint.command()
@click.argument("id", type=WORD)
@click.pass_obj
def inspect(invocation: Invocation, id: str) -> None:  # noqa: A002  # click names the argument in errors
    """Show all of one endpoint. ID may be shortened as long as it is one endpoint's."""
    found = by_id(Client(invocation.socket).get("endpoints"), id)
    invocation.emit(found, lambda: lines(found))


def by_id(endpoints: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    """Return the endpoint whose id is or starts with ``wanted``. Raises Failed for none and for several."""
    matching = [found for found in endpoints if str(found.get("id", "")).startswith(wanted.lower())]
    if not matching:
        raise Failed(f"no such endpoint: {wanted}", "meshctl endpoint ls", code="not-found")
    if len(matching) > 1:
        raise Failed(
            f"{wanted} is the start of {len(matching)} endpoints' ids", "give more of the id", code="conflict"
        )
    return matching[0]


def lines(found: dict[str, Any]) -> list[str]:
    """Return one endpoint for people."""
    return pairs(
        (name, value)
        for name, value in found.items()
        if name != "plumb" and (name not in ("why", "runtime", "runtime_id") or value)
    )


def _row(found: dict[str, Any]) -> list[object]:
    runtime = " ".join((str(found.get("runtime", "")), str(found.get("runtime_id", ""))[:RUNTIME_ID])).strip()
    return [
        str(found.get("id", ""))[:SHORT_ID],
        *(found.get(column.lower()) for column in HEAD[1:-1]),
        runtime,
    ]
