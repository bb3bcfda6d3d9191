"""What becomes of a configuration that was changed under the running daemon: which keys are used from now on, which at
the next start. A file that cannot be used changes nothing. Reads the files; knows nobody who asked.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import structlog

from meshd import config
from meshd import log as logging
from meshd.config import Settings
from meshd.model import Address
from meshd.shell import disk
from meshd.shell.cluster import Cluster
from meshd.shell.usecase import Changed, Reloaded
from meshd.wire import keys

log = structlog.get_logger()

LIVE = frozenset(
    {
        "firewall.open_forward",
        "gossip.failed_rows_age_h",
        "gossip.seeds",
        "log.format",
        "log.level",
        "pools.v4",
        "pools.v6",
    }
)
"""Keys that are read anew each time they matter, so that a change takes effect at once."""

RESTART = "restart-needed"


def differences(running: Settings, wanted: Settings) -> Iterator[Changed]:
    """Yield each key that differs."""
    before, after = msgspec.to_builtins(running), msgspec.to_builtins(wanted)
    for table in before:
        for key in before[table]:
            if before[table][key] != after[table][key]:
                yield Changed(f"{table}.{key}", before[table][key], after[table][key])


def using(running: Settings, changes: list[Changed]) -> Settings:
    """Return ``running`` with ``changes`` made."""
    built = msgspec.to_builtins(running)
    for change in changes:
        table, _, key = change.key.partition(".")
        built[table][key] = change.after
    return msgspec.convert(built, Settings)


def reload(cluster: Cluster, source: Path, seeds: Callable[[Settings], list[Address]]) -> Reloaded:
    """Read ``source`` and the keyring it names anew and use what can be used at once. Raises ConfigError (file, key,
    what is wrong) with nothing changed.
    """
    wanted = config.parse(disk.read_operators(source), str(source))
    notes = _keyring_notes(cluster, Path(wanted.gossip.keyring))
    found = [*differences(cluster.settings, wanted)]
    changed = [each for each in found if each.key in LIVE]
    restart = [each for each in found if each.key not in LIVE]
    settings = using(cluster.settings, changed)
    logging.configure(settings.log)
    cluster.node.use_seeds(seeds(settings))
    cluster.use(settings)
    if restart:
        text = ", ".join(
            f"{each.key} ({_said(each.before)} now, {_said(each.after)} then)" for each in restart
        )
        cluster.alarm(RESTART, f"{source} has settings that need a restart of meshd: {text}")
    else:
        cluster.calm(RESTART)
    log.info(
        "reloaded",
        config=str(source),
        changed={each.key: each.after for each in changed},
        restart_needed=[each.key for each in restart],
        notes=notes,
    )
    if changed:
        cluster.events.publish("reloaded", changed=[each.key for each in changed])
    return Reloaded(changed, restart, notes)


def _keyring_notes(cluster: Cluster, path: Path) -> list[str]:
    """Check the operator's keyring, where there is one, and say where it is not what the daemon uses."""
    if not path.exists():  # it is needed for the first start alone
        return []
    named = keys.parse_keyring(disk.read_operators(path), str(path))
    live = cluster.node.sealer.keyring
    if named == live:
        return []
    strange = [f"{key.id:04x}" for key in named.keys if live.get(key.id) != key]
    what = (
        f"has key {', '.join(strange)}, which this host does not use" if strange else "is not the ring in use"
    )
    return [
        f"{path} {what}: the live ring is kept in {cluster.settings.host.state_dir}, the file seeds it at a first start"
    ]


def _said(value: object) -> str:
    return "the default" if value is None else msgspec.json.encode(value).decode()
