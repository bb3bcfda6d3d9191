"""Which changed settings are used at once and which at the next start. With a daemon: tests/lab/test_lab_unit.py."""

import msgspec
import pytest
import structlog

from meshd import log as logging
from meshd.config import LogSettings, Settings, parse
from meshd.shell.reload import LIVE, differences, using
from meshd.shell.usecase import Changed

EVERY_KEY = {
    f"{table.name}.{key.name}"
    for table in msgspec.structs.fields(Settings)
    for key in msgspec.structs.fields(table.type)
}


def test_every_live_key_exists():
    assert LIVE < EVERY_KEY


def test_settings_that_are_equal_do_not_differ():
    assert [*differences(Settings(), parse("", "f"))] == []


def test_differences_are_named_with_both_values_and_can_be_made_one_by_one():
    wanted = parse(
        '[gossip]\nport = 7000\nseeds = ["192.0.2.2:7947"]\n[pools]\nv4 = []\n[host]\nname = "a"', "f"
    )
    found = [*differences(Settings(), wanted)]
    assert [(each.key, each.before, each.after) for each in found] == [
        ("host.name", None, "a"),
        ("gossip.port", 7947, 7000),
        ("gossip.seeds", (), ("192.0.2.2:7947",)),
        ("pools.v4", ("10.128.0.0/9",), ()),
    ]
    assert using(Settings(), found) == wanted
    assert using(Settings(), found[1:2]) == parse("[gossip]\nport = 7000", "f")
    assert using(Settings(), []) == Settings()
    assert using(wanted, [Changed("host.name", "a", None)]).host.name is None


@pytest.fixture
def unconfigured():
    before = structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.configure(**before)


def test_a_logger_in_use_follows_level_and_format(unconfigured, capfd):
    logging.configure(LogSettings(level="warning", format="json"))
    logger = structlog.get_logger("meshd")

    def lines():
        for level in ("debug", "info", "warning", "error"):
            getattr(logger, level)("said", n=1)
        return capfd.readouterr().err.splitlines()

    first = lines()
    assert len(first) == 2
    assert all(line.startswith("{") for line in first)
    logging.configure(LogSettings(level="debug", format="console"))
    second = lines()
    assert len(second) == 4
    assert not any(line.startswith("{") for line in second)
    logging.configure(LogSettings(level="error", format="json"))
    assert len(lines()) == 1
