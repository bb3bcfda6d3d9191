"""What passes between the HTTP server and the routes: one whole request, one answer. Decides nothing."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import msgspec

from meshd.api.errors import body_of, status_of
from meshd.api.peers import Peer
from meshd.errors import MeshdError

JSON = "application/json"
NDJSON = "application/x-ndjson"


class Request(NamedTuple):
    """One whole request: ``path`` starts with "/", is not yet unquoted; ``query`` has each name once."""

    peer: Peer
    method: str
    path: str
    query: dict[str, str]
    body: bytes


class Response(msgspec.Struct, frozen=True):
    """What to answer: ``body``, or chunks of ``stream`` until it ends or the server stops. ``done`` is
    called once when a stream is over, whoever ended it.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    stream: AsyncIterator[bytes] | None = None
    done: Callable[[], None] | None = None


Handler = Callable[[Request], Awaitable[Response]]


def error_response(error: MeshdError) -> Response:
    """Make the answer that tells of an error."""
    allowed: tuple[str, ...] = getattr(error, "allowed", ())
    headers = (("Allow", ", ".join(allowed)),) if allowed else ()
    return Response(status_of(error), body_of(error), headers=headers)
