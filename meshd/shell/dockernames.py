"""Container names for endpoints of Docker's, which tells a network driver none: read from the engine's own socket, in the
background, because dockerd waits for a driver's answer and a driver that waited for dockerd would wait for ever.

Decides when to look (at the start, when the stream of events begins anew, when an event tells of a container) and what
becomes an endpoint's name and aliases. Off unless [docker] names says so: whoever may use that socket is root.
"""

import errno
import re
from collections.abc import AsyncIterator
from typing import Any, TypeVar
from urllib.parse import quote

import h11
import msgspec
import structlog
import trio

from meshd.config import (
    API_READ_BYTES,
    DOCKER_ANSWER_S,
    DOCKER_BODY_MAX_BYTES,
    DOCKER_RETRY_S,
    ENDPOINT_ALIASES_MAX,
)
from meshd.errors import MeshdError
from meshd.model import EndpointId
from meshd.shell import amend
from meshd.shell.cluster import Cluster
from meshd.shell.docker import OWNER

log = structlog.get_logger("meshd.docker")

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
FILTERS = '{"type":["network","container"],"event":["connect","start","rename"]}'
ALARM = "docker-names"


class Plugged(msgspec.Struct, frozen=True):
    """One of a container's networks, as Docker shows it."""

    EndpointID: str = ""
    Aliases: list[str] | None = None
    DriverOpts: dict[str, str] | None = None


class Settings(msgspec.Struct, frozen=True):
    """A container's networks by name."""

    Networks: dict[str, Plugged] | None = None


class Container(msgspec.Struct, frozen=True):
    """GET /containers/ID/json; ``Name`` begins with a slash."""

    Name: str = ""
    NetworkSettings: Settings = Settings()


class Listed(msgspec.Struct, frozen=True):
    """A line of GET /containers/json."""

    Id: str


class Subject(msgspec.Struct, frozen=True):
    """Whom an event is about."""

    ID: str = ""
    Attributes: dict[str, str] = {}


class Event(msgspec.Struct, frozen=True):
    """A line of GET /events."""

    Type: str = ""
    Actor: Subject = Subject()

    @property
    def container(self) -> str:
        """The container's id."""
        return self.Actor.ID if self.Type == "container" else self.Actor.Attributes.get("container", "")


class Refused(Exception):
    """The engine does not answer as it should."""


class Names:
    """Follows one engine; ``run`` in a task of its own."""

    def __init__(self, cluster: Cluster, path: str) -> None:
        self._cluster = cluster
        self._path = path

    async def run(self) -> None:
        """Follow the engine for ever, also while it is away."""
        while True:
            try:
                await self._follow()
            except (
                OSError,
                Refused,
                h11.RemoteProtocolError,
                trio.BrokenResourceError,
                msgspec.DecodeError,
            ) as error:
                self._trouble(error)
            except trio.TooSlowError:
                self._trouble(Refused(f"no answer within {DOCKER_ANSWER_S:g} s"))
            except Exception as error:  # nothing else depends on names
                log.error("reading container names failed", exc_info=error)
            await trio.sleep(DOCKER_RETRY_S)

    def _trouble(self, error: Exception) -> None:
        """Say what an operator has to see to; an engine that is away comes back by itself."""
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
            self._cluster.alarm(
                ALARM,
                f"container names are not read: {self._path}: {error.strerror}; let the daemon's user be in that "
                "socket's group (systemctl edit meshd: SupplementaryGroups=docker), or set [docker] names = false",
            )
        else:
            log.info("container names are not read for now", socket=self._path, error=str(error))

    async def _follow(self) -> None:
        """Name what is there, then what comes, until the stream of events ends."""
        async with _Exchange(self._path) as events:
            await events.ask(f"/events?filters={quote(FILTERS)}")
            self._cluster.calm(ALARM)
            for listed in await self._get("/containers/json", list[Listed]):
                await self._look(listed.Id)
            async for line in events.lines():
                container = msgspec.json.decode(line, type=Event).container
                if container:
                    await self._look(container)

    async def _get(self, path: str, form: type[T]) -> T:
        with trio.fail_after(DOCKER_ANSWER_S):
            async with _Exchange(self._path) as exchange:
                await exchange.ask(path)
                return msgspec.json.decode(await exchange.body(), type=form)

    async def _look(self, container: str) -> None:
        """Give a container's endpoints its name; one that has gone meanwhile has none."""
        try:
            found = await self._get(f"/containers/{quote(container, safe='')}/json", Container)
        except Refused:
            return
        for plugged in (found.NetworkSettings.Networks or {}).values():
            endpoint_id = self._endpoint(plugged.EndpointID)
            if endpoint_id is not None:
                try:
                    await amend.rename(self._cluster, endpoint_id, *self._named(endpoint_id, found, plugged))
                except MeshdError as error:
                    log.info("container not named", container=found.Name, error=error.what)

    def _endpoint(self, docker_endpoint: str) -> EndpointId | None:
        if not docker_endpoint:
            return None
        for endpoint_id, attachment in self._cluster.attachments.items():
            runtime, _, rest = attachment.owner.partition("/")
            if (
                runtime == OWNER
                and rest.endswith(f"/{docker_endpoint}")
                and endpoint_id in self._cluster.endpoints
            ):
                return endpoint_id
        return None

    def _named(
        self, endpoint_id: EndpointId, container: Container, plugged: Plugged
    ) -> tuple[str, tuple[str, ...]]:
        """Decide name and aliases: the container's, unless --driver-opt said others; what cannot be a name is left out."""
        endpoint, options = self._cluster.endpoints[endpoint_id], plugged.DriverOpts or {}
        name = container.Name.removeprefix("/")
        if "name" in options or not NAME.fullmatch(name):
            name = endpoint.name
        told = [*options.get("alias", "").split(","), *(plugged.Aliases or [])]
        aliases = [alias for alias in dict.fromkeys(told) if NAME.fullmatch(alias) and alias != name]
        return name, tuple(aliases[:ENDPOINT_ALIASES_MAX])


class _Exchange:
    """One request to the engine over a connection of its own. Raises OSError, Refused, h11.RemoteProtocolError,
    trio.BrokenResourceError."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._http = h11.Connection(h11.CLIENT)

    async def __aenter__(self) -> "_Exchange":
        self._stream = await trio.open_unix_socket(self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self._stream)

    async def ask(self, path: str) -> None:
        """Send the request and read the head of the answer."""
        headers = [("Host", "docker"), ("Connection", "close")]
        request = self._http.send(h11.Request(method="GET", target=path, headers=headers))
        with trio.fail_after(DOCKER_ANSWER_S):
            await self._stream.send_all((request or b"") + (self._http.send(h11.EndOfMessage()) or b""))
            head = await self._event()
        if not isinstance(head, h11.Response) or head.status_code != 200:
            raise Refused(
                f"{path} answered {head.status_code if isinstance(head, h11.Response) else 'nothing'}"
            )

    async def body(self) -> bytes:
        """Read the whole answer."""
        found = bytearray()
        while isinstance(event := await self._event(), h11.Data):
            found += event.data
            if len(found) > DOCKER_BODY_MAX_BYTES:
                raise Refused(f"an answer of more than {DOCKER_BODY_MAX_BYTES} bytes")
        return bytes(found)

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the answer line by line as it comes."""
        rest = b""
        while isinstance(event := await self._event(), h11.Data):
            *whole, rest = (rest + bytes(event.data)).split(b"\n")
            if len(rest) > DOCKER_BODY_MAX_BYTES:
                raise Refused(f"an event of more than {DOCKER_BODY_MAX_BYTES} bytes")
            for line in whole:
                if line.strip():
                    yield line

    async def _event(self) -> Any:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(await self._stream.receive_some(API_READ_BYTES))
