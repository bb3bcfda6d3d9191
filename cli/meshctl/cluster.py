"""The commands that ask one question and print the answer: status, members, diff, events, metrics, version.

They decide how an answer reads for people and, for ``diff``, the exit status; JSON goes out as the daemon said it.
"""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import click

from meshctl import __version__
from meshctl.client import Client
from meshctl.errors import EXIT_FAILED, Unreachable
from meshctl.output import Invocation
from meshctl.table import escaped, moment, pairs, printable, table

SHORT_ID = 8  # hex digits of an id that tables show
NOTES = ("self", "degraded", "restarting", "draining", "forgotten")
FINDINGS = ("missing", "stale", "foreign")
COUNTED = ("missing", "stale")
"""Findings that make ``diff`` fail; foreign objects are listed and do not count."""


@click.command()
@click.pass_obj
def members(invocation: Invocation) -> None:
    """List the cluster's hosts as this one sees them."""
    found = Client(invocation.socket).get("members")
    invocation.emit(found, lambda: table(MEMBER_HEAD, map(_member_row, found)))


MEMBER_HEAD = ("NAME", "ID", "ADDRESS", "STATE", "RTT", "SEEN", "VERSION", "NOTES")


def _member_row(member: dict[str, Any]) -> list[object]:
    notes = [note for note in NOTES if member.get(note)]
    return [
        member.get("name"),
        str(member.get("id", ""))[:SHORT_ID],
        socket_address(member.get("address"), member.get("port")),
        member.get("state"),
        _measure(member.get("rtt_ms"), ".1f", "ms"),
        _measure(member.get("last_seen_s"), ".1f", "s"),
        member.get("version"),
        notes,
    ]


def _measure(value: float | None, precision: str, unit: str) -> str | None:
    return None if value is None else f"{value:{precision}} {unit}"


def socket_address(host: str | None, port: int | None) -> str | None:
    """Return ``host:port``, with an IPv6 host in brackets."""
    if not host or port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@click.command()
@click.pass_obj
def status(invocation: Invocation) -> None:
    """Show this host, the cluster and the kernel in short."""
    found = Client(invocation.socket).get("status")
    invocation.emit(found, lambda: _status_lines(found))


def _status_lines(found: dict[str, Any]) -> list[str]:
    host, cluster, kernel = (found.get(part) or {} for part in ("host", "cluster", "kernel"))
    counts = [f"{cluster.get(state, 0)} {state}" for state in ("alive", "suspect", "failed", "left")]
    drift = (
        "in sync"
        if kernel.get("in_sync")
        else f"{kernel.get('missing')} missing, {kernel.get('stale')} stale"
    )
    return pairs(
        [
            ("ready", found.get("ready")),
            ("host", f"{host.get('name')} ({host.get('address')}), id {host.get('id')}"),
            *([("draining", "takes no new endpoints until meshctl undrain")] if host.get("draining") else []),
            ("cluster", f"{', '.join(counts)}; id {cluster.get('id')}"),
            ("digest", found.get("digest")),
            ("networks", found.get("networks")),
            ("endpoints", found.get("endpoints")),
            ("kernel", drift),
            ("loop", _lag(found.get("loop") or {})),
            *(("checksums", _offload(device)) for device in found.get("offload") or []),
            ("primary key", (found.get("keys") or {}).get("primary")),
            *(("health", finding) for finding in found.get("health") or []),
        ]
    )


def _offload(device: dict[str, Any]) -> str:
    driver = f" ({device['driver']})" if device.get("driver") else ""
    return f"{device.get('result')}: {device.get('device')}{driver}, computed by the {device.get('computes')}; {device.get('detail')}"


def _lag(loop: dict[str, Any]) -> str:
    last, worst = (_measure(loop.get(key), ".1f", "ms") or "-" for key in ("lag_ms", "lag_worst_ms"))
    return f"woke {last} late, at worst {worst} within a minute"


@click.command()
@click.pass_context
def diff(ctx: click.Context) -> None:
    """Compare desired against kernel state.

    Exits 0 when they are equal, 1 when something is missing or stale. Foreign objects do not count.
    """
    invocation: Invocation = ctx.obj
    found = Client(invocation.socket).get("diff")
    invocation.emit(found, lambda: _diff_lines(found))
    if any(found.get(kind) for kind in COUNTED):
        ctx.exit(EXIT_FAILED)


def _diff_lines(found: dict[str, Any]) -> list[str]:
    rows = [_finding_row(kind, finding) for kind in FINDINGS for finding in found.get(kind) or []]
    return table(("STATE", "OBJECT", "WHAT", "WHY"), rows) if rows else ["in sync"]


def _finding_row(kind: str, finding: object) -> list[object]:
    if isinstance(finding, dict):
        return [kind, *(finding.get(column) for column in ("object", "what", "why"))]
    return [kind, None, finding, None]


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens from now on.")
@click.pass_obj
def events(invocation: Invocation, follow: bool) -> None:
    """Show what happened lately, one event a line."""
    for event in Client(invocation.socket).lines("events", follow=int(follow)):
        invocation.emit(event, partial(_event_line, event))
    if follow:
        raise Unreachable(
            f"meshd at {invocation.socket} ended the event stream", "it was stopped or restarted"
        )


def _event_line(event: dict[str, Any]) -> Iterator[str]:
    rest = " ".join(
        f"{escaped(key)}={printable(value)}" for key, value in event.items() if key not in ("time", "kind")
    )
    yield f"{moment(event.get('time'))}  {printable(event.get('kind'))}  {rest}".rstrip()


@click.command()
@click.pass_obj
def metrics(invocation: Invocation) -> None:
    """Show the daemon's counters in Prometheus' text format, as GET /metrics on its socket does.

    With -o json: a list of {"name","labels","value"}.
    """
    text = Client(invocation.socket).text("/metrics")
    invocation.emit(list(map(_sample, _samples(text))), text.splitlines)


SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def _samples(text: str) -> list[re.Match[str]]:
    """Return the lines that hold a value."""
    return [found for line in text.splitlines() if (found := SAMPLE.fullmatch(line))]


def _sample(found: re.Match[str]) -> dict[str, Any]:
    labels = dict(LABEL.findall(found["labels"] or ""))
    return {"name": found["name"], "labels": labels, "value": float(found["value"])}


@click.command()
@click.pass_obj
def version(invocation: Invocation) -> None:
    """Show the versions of meshctl and of the daemon; a daemon that is not reachable has none."""
    try:
        daemon = Client(invocation.socket).get("version").get("version")
    except Unreachable:
        daemon = None
    found = {"version": __version__, "daemon": daemon}
    invocation.emit(found, lambda: pairs([("meshctl", __version__), ("meshd", daemon or "not reachable")]))
