"""Events lost for real: a small buffer and bursts that nobody reads in time. The reconciler looks again, once a second
at most, and what was deleted in the burst comes back."""

import itertools

import pytest
import trio
from layout import make_pair

from meshd.config import DUMP_AGAIN_S
from meshd.kernel.namespace import Namespace
from meshd.kernel.watch import Overrun, Watch
from meshd.plan import names
from meshd.plan.desired import desired
from meshd.plan.objects import Link
from meshd.shell.reconcile import Reconciler
from tests.plan_world import BLUE, MARK, blue_on_two_hosts, id_of

VXLAN = names.vxlan(BLUE)
BURSTS = 4


@pytest.fixture(autouse=True)
def inline_threads(monkeypatch):
    """A worker thread of another test may have been born in another namespace."""

    async def run_sync(function, *args, limiter):
        async with limiter:
            await trio.lowlevel.checkpoint()
            return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


class Counting:
    """A namespace that notes when it is read."""

    def __init__(self, namespace):
        self._namespace = namespace
        self.dumped = []

    def dump(self, mark):
        self.dumped.append(trio.current_time())
        return self._namespace.dump(mark)

    def apply(self, todo, births=None):
        return self._namespace.apply(todo, births)


class Tee:
    """A watch's events, with what was lost counted."""

    def __init__(self, watch):
        self._watch = watch
        self.overruns = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        event = await anext(self._watch)
        self.overruns += event == Overrun()
        return event


def test_bursts_that_overrun_the_buffer_cost_one_dump_a_second_and_nothing_stays_lost(netns):
    world = blue_on_two_hosts()
    veth = names.veth(id_of("web"))
    rows = [f"02:0a:00:00:{n // 256:02x}:{n % 256:02x} dev {VXLAN} self" for n in range(2000)]
    burst = "".join(f"fdb {verb} {row} dst 192.0.2.9\n" for verb in ("add", "del") for row in rows)
    lost = names.endpoint_mac(id_of("db")).hex(":")

    def there():
        told = netns.run("bridge", "fdb", "show", "dev", VXLAN).stdout.splitlines()
        return any(line.startswith(lost) and "self" in line for line in told)

    async def main(namespace):
        counting = Counting(namespace)
        make_pair(
            namespace,
            Link(veth, "veth", names.alias(MARK, BLUE, id_of("web")), 1450),
            "mp0",
            bytes([2] * 6),
            1450,
        )
        with Watch(namespace._echoes, receive_bytes=1 << 16) as watch:
            events = Tee(watch)
            reconciler = Reconciler(
                counting, events, world.view,
                deletions_allowed=lambda: True, on_repair=lambda ops: None, on_fight=lambda objects: None,
            )  # fmt: skip
            await reconciler.start()
            assert reconciler.failures() == {}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reconciler.run)
                for _ in range(BURSTS):
                    netns.run("bridge", "-batch", "-", input=burst)  # while nobody reads
                    netns.run("bridge", "fdb", "del", lost, "dev", VXLAN, "self")
                    with trio.fail_after(20):
                        while not there():  # noqa: ASYNC110
                            await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
        return counting.dumped, events.overruns

    with netns.call(Namespace) as namespace:
        dumped, overruns = netns.call(trio.run, main, namespace)
        assert namespace.dump(MARK).ours.fdb == desired(world.view()).fdb
    assert overruns >= BURSTS
    gaps = [later - earlier for earlier, later in itertools.pairwise(dumped)]
    assert min(gaps) >= 0.9 * DUMP_AGAIN_S  # seen a little after each was decided on
