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
from meshd.shell import disk

_FORMAT = 1
_STATE = ("journal", "journal.prev", "snapshot", "snapshot.prev")
_SECRET_BYTES = 32  # wire/keys.py, cluster_secret


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
    with disk.refusals(state_dir):
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
    Raises StateError for a file that does not read as one, and for a journal whose identity is gone: run under
    another id, this host would be two hosts to its peers, the old one at its own address."""
    path = state_dir / "identity"
    machine = hashlib.sha256(b"meshd/1 machine" + machine_id.encode()).hexdigest()[:32]
    cloned = False
    text = disk.read(path)
    if text is not None:
        found, bound = _parse(path, text)
        if bound == machine:
            return found
        cloned, secret = True, found.secret  # a clone's cluster is the original's
        _set_aside(state_dir)
    elif left := [name for name in _STATE if (state_dir / name).exists()]:
        raise StateError(f"{path}: missing, but {left[0]} is there; nothing was changed", RESTORE)
    made = Identity(host=entropy(ID_BYTES), secret=secret, cloned=cloned, new=True)
    document = {"format": _FORMAT, "host": made.host.hex(), "secret": made.secret.hex(), "machine": machine}
    disk.write(path, json.dumps(document, indent=1) + "\n")
    return made


RESTORE = "restore it from a backup; without it, move the whole state_dir aside: the host joins as a new one"


def _parse(path: Path, text: bytes) -> tuple[Identity, str]:
    """Read an identity and the hash of the machine it is bound to. Raises StateError."""
    try:
        data = json.loads(text)
        version = data["format"]
        if version == _FORMAT:
            found = Identity(host=bytes.fromhex(data["host"]), secret=bytes.fromhex(data["secret"]))
            if (len(found.host), len(found.secret)) == (ID_BYTES, _SECRET_BYTES):
                return found, str(data["machine"])
    except (ValueError, KeyError, TypeError, RecursionError):
        version = _FORMAT
    if version != _FORMAT:
        what = f"{path}: written in format {version!r}, this version reads {_FORMAT}; nothing was changed"
        raise StateError(what, "run the version of meshd that wrote it, or a later one")
    raise StateError(f"{path}: does not read as an identity; nothing was changed", RESTORE)


def _set_aside(state_dir: Path) -> None:
    """Move another machine's state into a folder of its own; nothing is deleted. The identity goes last: after a
    crash half way it is still found to be another machine's."""
    number = 1
    while (aside := state_dir / f"cloned-{number}").exists():
        number += 1
    with disk.refusals(aside):
        aside.mkdir(mode=0o700)
        for name in (*_STATE, "identity"):
            if (state_dir / name).exists():
                (state_dir / name).replace(aside / name)
