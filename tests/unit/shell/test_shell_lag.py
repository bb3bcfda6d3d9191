"""The lag gauge, on a clock that jumps."""

import pytest
import trio

from meshd.config import LAG_PERIOD_S, LAG_WINDOW_S
from meshd.shell.lag import Lag


def test_the_worst_is_of_the_window_alone():
    lag = Lag()
    for now, late in [(0.0, 0.5), (10.0, 0.2), (20.0, 0.3), (30.0, 0.1)]:
        lag.note(now, late)
    assert lag.last_s == 0.1
    assert lag.worst_s(LAG_WINDOW_S) == 0.5
    assert lag.worst_s(LAG_WINDOW_S + 1) == 0.3
    assert lag.worst_s(LAG_WINDOW_S + 21) == 0.1
    assert lag.worst_s(1e9) == 0.0


async def test_it_measures_what_holds_the_loop_up(mock_clock, nursery):
    lag = Lag()
    nursery.start_soon(lag.run)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(LAG_PERIOD_S)
    await trio.testing.wait_all_tasks_blocked()
    assert lag.worst_s(trio.current_time()) == pytest.approx(0.0)
    mock_clock.jump(LAG_PERIOD_S + 1.5)  # something ran that long without a checkpoint
    await trio.testing.wait_all_tasks_blocked()
    assert lag.last_s == pytest.approx(1.5)
    mock_clock.jump(LAG_PERIOD_S)
    await trio.testing.wait_all_tasks_blocked()
    assert lag.last_s == pytest.approx(0.0)
    assert lag.worst_s(trio.current_time()) == pytest.approx(1.5)
