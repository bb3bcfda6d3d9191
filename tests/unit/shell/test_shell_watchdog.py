"""The watchdog's rule on a clock that jumps, and that each loop says that it goes round: with nothing to
do as well, and not while it waits for what does not come."""

import re
import socket
import threading
from pathlib import Path

import pytest
import trio

from meshd.api.http import Server
from meshd.api.server import DockerServer
from meshd.config import NETLINK_REPLY_S, NFT_TIMEOUT_S, WATCHDOG_FEED_SHARE, WATCHDOG_PATIENCE
from meshd.errors import ConfigError
from meshd.shell.gossip import Gossip
from meshd.shell.reconcile import Reconciler
from meshd.shell.watchdog import Loop, Watchdog, period_of
from tests.fake_kernel import FakeKernel
from tests.plan_world import blue_on_two_hosts

PERIOD_S = 30.0
UNIT = Path(__file__).parents[3] / "systemd" / "meshd.service"


class Fed:
    def __init__(self):
        self.times = []

    def __call__(self, food):
        assert food == "WATCHDOG=1"
        self.times.append(trio.current_time())


@pytest.mark.parametrize("stalled", WATCHDOG_PATIENCE)
async def test_one_loop_that_stalls_stops_the_feeding_until_it_goes_round_again(
    stalled, autojump_clock, nursery
):
    watchdog, fed, going = Watchdog(PERIOD_S), Fed(), set(WATCHDOG_PATIENCE)

    async def loop(name):
        while True:
            if name in going:
                watchdog.loop(name).goes_round()
            await trio.sleep(watchdog.loop(name).every_s)

    for name in WATCHDOG_PATIENCE:
        nursery.start_soon(loop, name)
    nursery.start_soon(watchdog.run, fed, "WATCHDOG=1")
    await trio.sleep(10 * PERIOD_S)
    gaps = [b - a for a, b in zip(fed.times, fed.times[1:], strict=False)]
    assert set(gaps) == {PERIOD_S * WATCHDOG_FEED_SHARE}

    going.remove(stalled)
    stopped = trio.current_time()
    await trio.sleep(10 * PERIOD_S)
    last = fed.times[-1]
    patience = WATCHDOG_PATIENCE[stalled] * PERIOD_S
    assert stopped + patience - PERIOD_S / 2 <= last <= stopped + patience
    going.add(stalled)
    await trio.sleep(PERIOD_S)
    assert fed.times[-1] > last


async def test_a_loop_that_nobody_asked_for_is_not_waited_for(autojump_clock, nursery):
    watchdog, fed = Watchdog(PERIOD_S), Fed()
    nursery.start_soon(watchdog.run, fed, "WATCHDOG=1")
    await trio.sleep(10 * PERIOD_S - 1)
    assert watchdog.stalled(trio.current_time()) == []
    assert len(fed.times) == 10 / WATCHDOG_FEED_SHARE


async def test_where_nobody_watches_nothing_is_fed_and_no_loop_is_woken(autojump_clock):
    fed = Fed()
    with trio.fail_after(1):
        await Watchdog().run(fed, "WATCHDOG=1")
    assert fed.times == []
    assert Watchdog().loop("gossip").every_s == Loop().every_s == float("inf")


def test_the_period_is_the_managers_for_this_process():
    assert period_of({"WATCHDOG_USEC": "30000000"}, 7) == 30.0
    assert period_of({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 7) == 30.0
    assert period_of({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, 7) == float("inf")
    assert period_of({}, 7) == float("inf")
    for nonsense in ("0", "-1", "soon", "1.5"):
        with pytest.raises(ConfigError, match="WATCHDOG_USEC"):
            period_of({"WATCHDOG_USEC": nonsense}, 7)


def test_the_units_period_leaves_the_kernel_the_time_that_it_may_take():
    (text,) = re.findall(r"(?m)^WatchdogSec=(\d+)s$", UNIT.read_text())
    assert int(text) == PERIOD_S
    assert PERIOD_S * WATCHDOG_PATIENCE["netlink"] > NFT_TIMEOUT_S + 2 * NETLINK_REPLY_S


class IdleNode:
    """A node with nothing to do, ever. A real one has the next probe; that is what this must not rest on."""

    def deadline(self):
        return float("inf")

    def tick(self, now):
        pass

    def take_datagrams(self):
        return []

    take_events = take_probes = take_datagrams


async def rounds(loop, times, clock):
    """Let so many of the loop's periods pass and count in how many it went round."""
    count = 0
    for _ in range(times):
        await trio.testing.wait_all_tasks_blocked(0.01)
        before = loop.last
        clock.jump(loop.every_s)
        await trio.testing.wait_all_tasks_blocked(0.01)
        count += loop.last > before
    return count


async def test_the_gossip_loop_goes_round_with_nothing_to_do(mock_clock, nursery):
    loop = Loop(every_s=5.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        nursery.start_soon(Gossip(IdleNode(), sock, print, loop).run)
        assert await rounds(loop, 3, mock_clock) == 3
        nursery.cancel_scope.cancel()


async def test_the_api_loop_goes_round_without_clients_and_ends_at_once(tmp_path, mock_clock, nursery):
    loop = Loop(every_s=5.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        sock.setblocking(False)
        server = Server(None, lambda _: True, loop=loop)
        await nursery.start(server.serve, [sock])
        assert await rounds(loop, 3, mock_clock) == 3
        server.stop()


async def test_dockers_loop_goes_round_while_there_is_no_docker(tmp_path, mock_clock, nursery):
    loop = Loop(every_s=5.0)
    plugin = DockerServer(None, str(tmp_path / "none" / "meshd.sock"), [], print, loop)
    await nursery.start(plugin.run)
    assert await rounds(loop, 3, mock_clock) == 3
    await plugin.stop()


async def test_the_netlink_loop_goes_round_unless_a_kernel_call_does_not_return(mock_clock, nursery):
    loop, kernel = Loop(every_s=5.0), FakeKernel()
    returns, real = threading.Event(), kernel.dump
    _send, receive = trio.open_memory_channel(1)
    reconciler = Reconciler(
        kernel, receive, lambda: blue_on_two_hosts().view(), deletions_allowed=lambda: True,
        on_repair=print, on_fight=print, loop=loop,
    )  # fmt: skip
    await reconciler.start()
    nursery.start_soon(reconciler.run)
    assert await rounds(loop, 3, mock_clock) == 3

    def dump(mark):
        returns.wait()
        return real(mark)

    kernel.dump = dump
    try:
        mock_clock.jump(1000)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await rounds(loop, 3, mock_clock) == 0
    finally:
        returns.set()
    await reconciler.diff()
    assert await rounds(loop, 3, mock_clock) == 3
    nursery.cancel_scope.cancel()
