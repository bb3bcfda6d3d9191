"""Who this host is: 128 random bits in state_dir/identity, bound to the machine they were made on.

The id is random, never derived from machine-id or DMI: those collide between images (weave #2427, kubeadm #31).
A hash of machine-id stands beside it, so that a copied disk is noticed and gets an identity of its own: its
state is set aside, since what the original owns must not be given away twice.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from meshd.errors import StateError
from meshd.model import ID_BYTES, HostId

_FORMAT = 1
_SET_ASIDE = ("journal", "journal.prev", "snapshot", "snapshot.prev", "identity")
"""In this order: as long as the identity stands, a start that was cut short is done again."""


class Identity(msgspec.Struct, frozen=True):
    """``host``: this host's id. ``secret``: keys the digest of the cluster's state, the same on all hosts.
    ``cloned``: the state in this folder belonged to another machine and was set aside. ``new``: made just now,
    so that nothing was given away under it yet."""

    host: HostId
    secret: bytes
    cloned: bool = False
    new: bool = False


def lock(state_dir: Path) -> int:
    """Make state_dir if need be and lock it for this process. Returns the descriptor that holds the lock.
    Raises StateError when it cannot be written or another daemon has it."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(
            f"{state_dir}: cannot be used as state_dir: {error.strerror}",
            "create it and give it to the daemon's user",
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise StateError(
            f"{state_dir}: another meshd runs on this state_dir; this one changed nothing",
            "stop it first, or give this one a state_dir and run_dir of its own",
        ) from None
    return fd


def load(state_dir: Path, secret: bytes, entropy: Callable[[int], bytes], machine_id: str) -> Identity:
    """Read the identity, or make one. ``secret`` is kept at the first start and never changes afterwards.
    Raises StateError for a file that does not read as one."""
    path = state_dir / "identity"
    machine = hashlib.sha256(b"meshd/1 machine" + machine_id.encode()).hexdigest()[:32]
    cloned = False
    if path.exists():
        try:
            data = json.loads(path.read_text())
            found = Identity(host=bytes.fromhex(data["host"]), secret=bytes.fromhex(data["secret"]))
            bound = data["machine"]
            if len(found.host) != ID_BYTES:
                raise ValueError("host")
        except (ValueError, KeyError, TypeError):
            raise StateError(
                f"{path}: does not read as an identity; nothing was changed",
                "restore it from a backup; without it, move the whole state_dir aside: the host joins as a new one",
            ) from None
        if bound == machine:
            return found
        cloned, secret = True, found.secret  # a clone's cluster is the original's
        _set_aside(state_dir)
    made = Identity(host=entropy(ID_BYTES), secret=secret, cloned=cloned, new=True)
    text = json.dumps(
        {"format": _FORMAT, "host": made.host.hex(), "secret": made.secret.hex(), "machine": machine},
        indent=1,
    )
    temporary = path.with_suffix(".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return made


def _set_aside(state_dir: Path) -> None:
    """Move another machine's state into a folder of its own; nothing is deleted."""
    number = 1
    while (aside := state_dir / f"cloned-{number}").exists():
        number += 1
    aside.mkdir(mode=0o700)
    for name in _SET_ASIDE:
        if (state_dir / name).exists():
            (state_dir / name).replace(aside / name)
