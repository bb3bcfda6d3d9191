import trio

from meshd import config
from meshd.shell.events import EventBus


def bus():
    return EventBus(lambda: 1234.5)


async def test_the_last_events_are_kept_in_order_with_time_and_kind():
    events = bus()
    for number in range(config.EVENTS_KEPT + 10):
        events.publish("tick", number=number)
    kept = events.kept()
    assert len(kept) == config.EVENTS_KEPT
    assert kept[0] == {"time": 1234.5, "kind": "tick", "number": 10}
    assert kept[-1]["number"] == config.EVENTS_KEPT + 9


async def test_a_watcher_gets_history_then_what_follows_without_a_gap():
    events = bus()
    events.publish("a")
    with events.subscribe(history=True) as watcher:
        events.publish("b")
        seen = [(await anext(watcher))["kind"] for _ in range(2)]
    assert seen == ["a", "b"]


async def test_a_watcher_without_history_starts_now_and_waits():
    events = bus()
    events.publish("a")
    seen = []
    with events.subscribe() as watcher:
        async with trio.open_nursery() as nursery:

            async def watch():
                async for event in watcher:
                    seen.append(event["kind"])
                    if len(seen) == 2:
                        return

            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            events.publish("b")
            await trio.testing.wait_all_tasks_blocked()
            events.publish("c")
    assert seen == ["b", "c"]


async def test_a_slow_watcher_is_told_to_look_anew_and_holds_up_nobody():
    events = bus()
    with events.subscribe() as slow, events.subscribe() as quick:
        for number in range(10 * config.EVENTS_KEPT):
            events.publish("tick", number=number)
            assert (await anext(quick))["number"] == number
        first = await anext(slow)
        assert first["kind"] == "resync"
        last = first
        for _ in range(len(slow._queue)):
            last = await anext(slow)
        assert last["number"] == 10 * config.EVENTS_KEPT - 1


async def test_what_nobody_watches_any_more_is_let_go():
    events = bus()
    with events.subscribe():
        pass
    assert not events._watchers
