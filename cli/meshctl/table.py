"""Aligned columns for people. Knows nothing of what it prints.

What peers and daemons send may hold control characters; a terminal must never obey them, so whatever is not
printable is shown as its escape.
"""

import time
from collections.abc import Iterable, Sequence

GAP = "  "


def printable(value: object) -> str:
    """Return one printable line: None as ``-``, booleans as yes and no, sequences joined by commas."""
    if value is None or value == "" or value == [] or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ",".join(printable(part) for part in value)
    if isinstance(value, dict):
        return ",".join(f"{printable(key)}={printable(part)}" for key, part in value.items())
    return escaped(str(value))


def escaped(text: str) -> str:
    """Return ``text`` with every character that is not printable as ``\\xNN`` or ``\\uNNNN``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def moment(unix_seconds: float | None) -> str:
    """Return UTC to the millisecond, e.g. 2026-01-31T12:00:00.250Z."""
    if unix_seconds is None:
        return "-"
    milliseconds = round(unix_seconds * 1000)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{whole}.{milliseconds % 1000:03d}Z"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a table: ``head`` first, then ``rows``; columns as wide as their widest cell.

    Widths count characters, not terminal cells: host and network names are ASCII.
    """
    cells = [list(head), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return [
        GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    ]


def pairs(rows: Iterable[tuple[str, object]]) -> list[str]:
    """Return ``name: value`` lines with the values aligned."""
    named = [(f"{name}:", printable(value)) for name, value in rows]
    width = max((len(name) for name, _ in named), default=0)
    return [f"{name.ljust(width)} {value}" for name, value in named]
