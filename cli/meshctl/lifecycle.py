"""The commands about a host's membership and its daemon's life: reload, drain, undrain, leave, forget.

They decide how an answer reads for people; JSON goes out as the daemon said it.
"""

from typing import Any

import click

from meshctl.client import Client
from meshctl.output import Invocation
from meshctl.params import WORD
from meshctl.table import printable


@click.command()
@click.pass_obj
def reload(invocation: Invocation) -> None:
    """Have the daemon read its configuration anew.

    What can be used at once is; the rest is named, and used after a restart. A file that is wrong changes nothing.
    """
    _, found = Client(invocation.socket).post("reload")
    invocation.emit(found, lambda: _reload_lines(found))


def _reload_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"changed: {_change(each)}" for each in found.get("changed") or []]
    lines += [f"needs a restart: {_change(each)}" for each in found.get("restart") or []]
    lines += [f"note: {printable(note)}" for note in found.get("notes") or []]
    return lines or ["nothing has changed"]


def _change(change: dict[str, Any]) -> str:
    before, after = (_value(change.get(key)) for key in ("before", "after"))
    return f"{change.get('key')}: {before} -> {after}"


def _value(value: object) -> str:
    return "(default)" if value is None else printable(value)


@click.command()
@click.pass_obj
def drain(invocation: Invocation) -> None:
    """Let this host take no new endpoints.

    Those it has stay, and it stays a member; a restart does not change that. `meshctl undrain` ends it.
    """
    _, found = Client(invocation.socket).post("drain")
    left = found.get("endpoints")
    invocation.emit(
        found, lambda: [f"this host takes no new endpoints; {left} still here (meshctl endpoint ls)"]
    )


@click.command()
@click.pass_obj
def undrain(invocation: Invocation) -> None:
    """Let this host take new endpoints again."""
    _, found = Client(invocation.socket).post("undrain")
    invocation.emit(found, lambda: ["this host takes new endpoints"])


@click.command()
@click.pass_obj
def leave(invocation: Invocation) -> None:
    """Take this host out of the cluster: its endpoints go, its addresses go to others, and its daemon stops."""
    _, found = Client(invocation.socket).post("leave")
    invocation.emit(found, lambda: _leave_lines(found))


def _leave_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"handed on: {_handed(each)}" for each in found.get("handed_on") or []]
    silent = found.get("unconfirmed") or []
    if silent:
        lines.append(f"not confirmed by {printable(silent)}: they learn of it from the others")
    return [
        *lines,
        "this host has left the cluster and its daemon stops",
        "where systemd starts it at boot: systemctl disable meshd",
    ]


def _handed(each: dict[str, Any]) -> str:
    return f"{printable(each.get('network'))}: {printable(each.get('block'))} to {printable(each.get('to'))}"


@click.command()
@click.argument("host", type=WORD)
@click.option("--fenced", is_flag=True, help="I have made sure that the host is off, and stays so.")
@click.pass_obj
def forget(invocation: Invocation, host: str, fenced: bool) -> None:
    """Give up HOST (a name, an id or the start of one), which is off for good.

    Its endpoints go and its addresses go to others, who use them at once: a host that still ran would have the same
    ones. It cannot come back as what it was; with an empty state_dir it joins as a new host.
    """
    _, found = Client(invocation.socket).post("forget", body={"host": host, "fenced": fenced})
    blocks = [f"goes on: {_handed(each)}" for each in found.get("blocks") or []]
    invocation.emit(found, lambda: [f"host {printable(found.get('name'))} is forgotten", *blocks])
