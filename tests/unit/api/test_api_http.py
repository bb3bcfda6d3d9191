"""The server against real unix sockets. Raw clients run in the same trio loop with a clock that jumps when all
wait, so deadlines are tested without waiting; curl and http.client run for real."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from meshd import config
from meshd.api.exchange import NDJSON, Request, Response
from meshd.api.http import Server
from meshd.api.listen import listen, remove
from meshd.api.peers import Peer, credentials
from meshd.errors import Conflict, NotFound


class Log:
    def __init__(self):
        self.lines = []

    def info(self, event, **fields):
        self.lines.append((event, fields))

    warning = error = info


class Endless:
    """A stream that says one line, then waits."""

    def __init__(self):
        self.said = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.said:
            self.said = True
            return b'{"kind":"hello"}\n'
        return await trio.sleep_forever()


class Flood:
    def __aiter__(self):
        return self

    async def __anext__(self):
        await trio.lowlevel.checkpoint()
        return b"x" * 65536


class Site:
    """A server, what it was asked, and ways to ask it."""

    def __init__(self, path, server, log):
        self.path = path
        self.server = server
        self.log = log
        self.ended = 0

    async def connect(self):
        return await trio.open_unix_socket(self.path)

    async def say(self, data: bytes) -> bytes:
        """Send bytes and read until the server closes, or all is answered that was asked with close."""
        async with await self.connect() as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, client, data)
                answer = b""
                while chunk := await client.receive_some(65536):
                    answer += chunk
                nursery.cancel_scope.cancel()
            return answer

    async def _send(self, client, data):
        try:
            await client.send_all(data)
        except trio.BrokenResourceError:
            return


@asynccontextmanager
async def serving(tmp_path, handle=None, *, admits=lambda peer: True, peer_of=credentials):
    log = Log()
    path = str(tmp_path / "api.sock")
    site = None

    async def echo(request: Request) -> Response:
        if request.path == "/missing":
            raise NotFound("no such thing", "look elsewhere")
        if request.path == "/bug":
            raise ZeroDivisionError
        if request.path == "/endless":
            return Response(stream=Endless(), content_type=NDJSON, done=ended)
        if request.path == "/flood":
            return Response(stream=Flood(), content_type=NDJSON, done=ended)
        if request.path == "/sleep":
            await trio.sleep(0.5)
        body = {
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "body": request.body.decode(),
        }
        return Response(body=json.dumps(body).encode())

    def ended():
        site.ended += 1

    server = Server(handle or echo, admits, peer_of=peer_of, log=log)
    site = Site(path, server, log)
    sock = listen(path, 0o600)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, [sock])
            yield site
            server.stop()
    finally:
        remove(path, sock)


def parse(answer: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Split a byte string of answers with Content-Length into (status, headers, body): an independent parser."""
    answers = []
    while answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        length = int(headers.get("content-length", "0"))
        answers.append((int(lines[0].split()[1]), headers, rest[:length]))
        answer = rest[length:]
    return answers


GET = b"GET /%s HTTP/1.1\r\nHost: meshd\r\n\r\n"
LAST = b"GET /%s HTTP/1.1\r\nHost: meshd\r\nConnection: close\r\n\r\n"


# --- what a well-behaved client sees --------------------------------------------------------------------------
async def test_a_request_reaches_the_handler_whole(tmp_path, autojump_clock):
    async with serving(tmp_path) as site:
        request = (
            b"POST /v1/x?a=1&b=%20 HTTP/1.1\r\nHost: m\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
        )
        [(status, headers, body)] = parse(await site.say(request))
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {
        "method": "POST",
        "path": "/v1/x",
        "query": {"a": "1", "b": " "},
        "body": "hello",
    }


async def test_pipelined_requests_are_answered_in_order(tmp_path, autojump_clock):
    async with serving(tmp_path) as site:
        answers = parse(await site.say(b"".join(GET % str(n).encode() for n in range(20)) + LAST % b"end"))
    assert [json.loads(body)["path"] for _, _, body in answers] == [f"/{n}" for n in range(20)] + ["/end"]


async def test_chunked_bodies_are_joined(tmp_path, autojump_clock):
    async with serving(tmp_path) as site:
        request = b"POST /x HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        [(_, _, body)] = parse(await site.say(request + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"))
    assert json.loads(body)["body"] == "hello"


async def test_errors_are_json_and_the_connection_goes_on(tmp_path, autojump_clock):
    async with serving(tmp_path) as site:
        missing, bug, fine = parse(await site.say(GET % b"missing" + GET % b"bug" + LAST % b"fine"))
    assert missing[0] == 404
    assert json.loads(missing[2]) == {"error": "no such thing", "hint": "look elsewhere", "code": "not-found"}
    assert bug[0] == 500
    assert "ZeroDivision" not in bug[2].decode()
    assert any(isinstance(fields.get("exc_info"), ZeroDivisionError) for _, fields in site.log.lines)
    assert fine[0] == 200


async def test_the_answer_to_head_has_no_body(tmp_path, autojump_clock):
    async with serving(tmp_path) as site:
        answer = await site.say(b"HEAD /missing HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"\r\n\r\n")


async def test_a_client_that_waits_for_100_continue_gets_it(tmp_path, autojump_clock):
    async with serving(tmp_path) as site, await site.connect() as client:
        await client.send_all(
            b"POST /x HTTP/1.1\r\nHost: m\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert (await client.receive_some(4096)).startswith(b"HTTP/1.1 100 ")
        await client.send_all(b"ok")
        assert (await client.receive_some(4096)).startswith(b"HTTP/1.1 200 ")


async def test_http_client_and_curl_understand_the_server(tmp_path):
    def with_http_client(path):
        connection = http.client.HTTPConnection("meshd")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(path)
        seen = []
        for number in range(3):
            connection.request("POST", f"/{number}", body=b"b")
            answer = connection.getresponse()
            seen.append((answer.status, json.loads(answer.read())["path"]))
        connection.close()
        return seen

    async with serving(tmp_path) as site:
        assert await trio.to_thread.run_sync(with_http_client, site.path) == [
            (200, "/0"),
            (200, "/1"),
            (200, "/2"),
        ]
        if shutil.which("curl"):
            done = await trio.run_process(
                ["curl", "-sS", "--unix-socket", site.path, "http://localhost/v1/members"],
                capture_stdout=True,
            )
            assert json.loads(done.stdout)["path"] == "/v1/members"


# --- what is refused ------------------------------------------------------------------------------------------
HEAD = b"POST /x HTTP/1.1\r\nHost: m\r\n"
REFUSED = {
    "no HTTP at all": (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
    "two lengths": (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "length and chunked": (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "unknown transfer coding": (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 400),
    "negative length": (HEAD + b"Content-Length: -1\r\n\r\n", 400),
    "a zero byte in a header": (HEAD + b"A: b\0\r\n\r\n", 400),
    "space before the colon": (HEAD + b"Content-Length : 1\r\n\r\na", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "absolute target": (b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "asterisk target": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a name twice in the query": (b"GET /?a=1&a=2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no query at all": (b"GET /?&&& HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "too many query fields": (b"GET /?" + b"a=&" * 100 + b"a= HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "header too large": (HEAD + b"A: " + b"x" * 100_000, 413),
    "body announced too large": (HEAD + b"Content-Length: 65537\r\n\r\n", 413),
    "body sent too large": (HEAD + b"Content-Length: 1000000\r\n\r\n" + b"x" * 1_000_000, 413),
    "chunks too large": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"ffff\r\n" + b"x" * 65535 + b"\r\n2\r\nxx\r\n",
        413,
    ),
    "length beyond all reason": (HEAD + b"Content-Length: " + b"9" * 10_000 + b"\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_not_a_plain_bounded_request_is_refused_whole(name, tmp_path, autojump_clock):
    data, status = REFUSED[name]
    asked = []

    async def handle(request):
        asked.append(request)
        return Response()

    async with serving(tmp_path, handle) as site:
        answers = parse(await site.say(data + LAST % b"smuggled"))
    assert [answer[0] for answer in answers] == [status]
    assert set(json.loads(answers[0][2])) == {"error", "hint", "code"}
    assert asked == []
    assert [fields["verb"] for event, fields in site.log.lines if event == "audit"] == ["request"]


async def test_a_body_of_exactly_the_limit_is_taken(tmp_path, autojump_clock):
    limit = config.API_BODY_MAX_BYTES
    async with serving(tmp_path) as site:
        request = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % limit + b"x" * limit
        [(status, _, body)] = parse(await site.say(request))
    assert (status, len(json.loads(body)["body"])) == (200, limit)


async def test_who_is_not_admitted_gets_403_before_the_body_is_read(tmp_path, autojump_clock):
    async with serving(tmp_path, admits=lambda peer: False) as site:
        [(status, _, body)] = parse(await site.say(HEAD + b"Content-Length: 10\r\n\r\n"))
    assert status == 403
    assert json.loads(body)["code"] == "forbidden"


# --- slow and silent clients ----------------------------------------------------------------------------------
async def test_a_header_that_never_ends_is_given_up(tmp_path, autojump_clock):
    async with serving(tmp_path) as site, await site.connect() as client:
        await client.send_all(b"GET / HTTP/1.1\r\n")

        async def trickle():
            while True:
                await trio.sleep(config.API_HEADER_S / 10)
                await client.send_all(b"a: b\r\n")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            answer = await client.receive_some(4096)
            nursery.cancel_scope.cancel()
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_never_ends_is_given_up(tmp_path, autojump_clock):
    async with serving(tmp_path) as site, await site.connect() as client:
        await client.send_all(HEAD + b"Content-Length: 10\r\n\r\nabc")
        assert (await client.receive_some(4096)).startswith(b"HTTP/1.1 408 ")


async def test_a_silent_connection_is_closed_without_a_word(tmp_path, autojump_clock):
    async with serving(tmp_path) as site:
        assert await site.say(b"") == b""


async def test_a_client_that_reads_nothing_is_cut_off_and_frees_its_place(tmp_path, autojump_clock):
    async with serving(tmp_path) as site, await site.connect() as client:
        await client.send_all(GET % b"flood")
        await trio.sleep(10 * config.API_WRITE_S)
        assert site.ended == 1
        assert not site.server._taken


async def test_slow_clients_delay_nobody(tmp_path, autojump_clock):
    async with serving(tmp_path) as site:
        slow = [await site.connect() for _ in range(10)]
        for number, client in enumerate(slow):
            await client.send_all(
                (b"GET / HT", HEAD + b"Content-Length: 9\r\n\r\n", GET % b"sleep")[number % 3]
            )
        started = trio.current_time()
        [(status, _, _)] = parse(await site.say(LAST % b"quick"))
        assert status == 200
        assert trio.current_time() == started  # by the jumping clock: nobody was waited for
        for client in slow:
            await client.aclose()


# --- many clients ---------------------------------------------------------------------------------------------
async def test_a_thousand_connections_are_bounded_and_root_still_gets_in(tmp_path, autojump_clock):
    uids = iter([*(1000 + number for number in range(1000)), 0])
    async with serving(tmp_path, peer_of=lambda sock: Peer(next(uids), 1, 1)) as site:
        clients = []
        for _ in range(1000):
            clients.append(await site.connect())
            await trio.testing.wait_all_tasks_blocked()
        assert sum(site.server._taken.values()) == config.API_CONNECTIONS - config.API_CONNECTIONS_FOR_ROOT
        refused = await clients[-1].receive_some(4096)
        [(status, _, body)] = parse(refused)
        assert (status, json.loads(body)["code"]) == (503, "busy")
        [(status, _, _)] = parse(await site.say(LAST % b"root"))
        assert status == 200
        for client in clients:
            await client.aclose()


async def test_one_user_cannot_take_all_places(tmp_path, autojump_clock):
    uids = iter([1000] * 40 + [1001])
    async with serving(tmp_path, peer_of=lambda sock: Peer(next(uids), 1, 1)) as site:
        clients = []
        for _ in range(40):
            clients.append(await site.connect())
            await trio.testing.wait_all_tasks_blocked()
        assert site.server._taken == {1000: config.API_CONNECTIONS_PER_UID}
        [(status, _, _)] = parse(await site.say(LAST % b"other"))
        assert status == 200
        for client in clients:
            await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert site.server._taken == {}


@pytest.mark.parametrize(
    ("uid", "silent", "newcomer", "served"),
    [(0, config.API_CONNECTIONS, 0, True), (1000, config.API_CONNECTIONS_PER_UID, 1000, True),
     (1000, config.API_CONNECTIONS_PER_UID, 1001, True), (0, config.API_CONNECTIONS, 1000, False)],
)  # fmt: skip
async def test_who_is_silent_for_long_gives_way_to_roots_and_the_same_users_next_connection(
    uid, silent, newcomer, served, tmp_path, autojump_clock
):
    uids = iter([uid] * silent + [newcomer] * 2)
    async with serving(tmp_path, peer_of=lambda sock: Peer(next(uids), 1, 1)) as site:
        clients = [await site.connect() for _ in range(silent)]
        await trio.testing.wait_all_tasks_blocked()
        at_once = parse(await site.say(LAST % b"at-once"))[0][0]
        assert at_once == (200 if newcomer == 1001 else 503)
        await trio.sleep(config.API_HEADER_S)
        assert parse(await site.say(LAST % b"later"))[0][0] == (200 if served else 503)
        await trio.testing.wait_all_tasks_blocked()
        ended = 1 if newcomer == uid else 0
        assert site.server._taken == {uid: silent - ended}
        for client in clients[:ended]:
            assert await client.receive_some(1) == b""  # the oldest
        for client in clients:
            await client.aclose()


# --- streams --------------------------------------------------------------------------------------------------
async def test_a_stream_ends_with_a_proper_last_chunk_when_the_server_stops(tmp_path, autojump_clock):
    async with serving(tmp_path) as site:
        client = await site.connect()
        await client.send_all(GET % b"endless")
        answer = await client.receive_some(4096)
        while b"hello" not in answer:
            answer += await client.receive_some(4096)
        site.server.stop()
        while chunk := await client.receive_some(4096):
            answer += chunk
        await client.aclose()
    assert answer.partition(b"\r\n\r\n")[2] == b'11\r\n{"kind":"hello"}\n\r\n0\r\n\r\n'
    assert site.ended == 1


async def test_a_watcher_that_hangs_up_frees_its_place(tmp_path, autojump_clock):
    async with serving(tmp_path) as site:
        async with await site.connect() as client:
            await client.send_all(GET % b"endless")
            await client.receive_some(4096)
        await trio.sleep(10)
        assert site.ended == 1
        assert not site.server._taken


async def test_a_watcher_that_only_stops_sending_still_receives(tmp_path, autojump_clock):
    async with serving(tmp_path) as site, await site.connect() as client:
        await client.send_all(GET % b"endless")
        await client.send_eof()
        await trio.sleep(10)
        assert site.ended == 0
        await client.aclose()
        await trio.sleep(10)
        assert site.ended == 1


async def test_a_request_under_way_is_answered_although_the_server_stops(tmp_path, autojump_clock):
    async with serving(tmp_path) as site, await site.connect() as client:
        await client.send_all(GET % b"sleep")
        await trio.testing.wait_all_tasks_blocked()
        site.server.stop()
        [(status, headers, _)] = parse(await client.receive_some(4096))
        assert (status, headers["connection"]) == (200, "close")
        assert await client.receive_some(1) == b""


# --- the socket -----------------------------------------------------------------------------------------------
def test_the_socket_stands_with_its_mode_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "api.sock"
    sock = listen(str(path), 0o660)
    assert path.stat().st_mode & 0o777 == 0o660
    assert os.listdir(tmp_path) == ["api.sock"]
    remove(str(path), sock)
    assert os.listdir(tmp_path) == []


def test_a_stale_socket_is_replaced_a_served_one_and_a_file_are_not(tmp_path):
    path = str(tmp_path / "api.sock")
    dead = listen(path, 0o600)
    dead.close()
    alive = listen(path, 0o600)
    with pytest.raises(Conflict, match="another process answers"):
        listen(path, 0o600)
    remove(path, alive)
    (tmp_path / "api.sock").write_text("precious")
    with pytest.raises(Conflict, match="not a socket"):
        listen(path, 0o600)
    assert (tmp_path / "api.sock").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to connect as somebody else")
def test_credentials_are_those_of_who_connected(tmp_path):
    path = str(tmp_path / "api.sock")
    sock = listen(path, 0o666)
    for parent in (tmp_path, *tmp_path.parents):
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    code = (
        "import os, socket; os.setgroups([4242, 4243]); os.setgid(4241); os.setuid(4240);"
        f"s = socket.socket(socket.AF_UNIX); s.connect({path!r}); s.recv(1)"
    )
    child = subprocess.Popen(["python3", "-c", code])
    try:
        sock.setblocking(True)
        sock.settimeout(30)
        conn, _ = sock.accept()
        with conn:
            peer = credentials(conn)
    finally:
        child.wait(30)
        sock.close()
    assert peer == Peer(4240, 4241, child.pid, (4241, 4242, 4243))
