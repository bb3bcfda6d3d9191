"""init, token and join: how a host comes into a cluster. Decides what is written under /etc/meshd and when a
join has worked; the daemon does the rest.
"""

import ipaddress
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import click

from meshctl import systemd
from meshctl.client import Client
from meshctl.errors import Failed, Unreachable, WrongUsage
from meshctl.files import NewFile, write_new
from meshctl.output import Invocation
from meshctl.params import HOST, IP, PORT, Folder
from meshctl.token import Token, decode, encode, new_key

CONFIG_DIR = "/etc/meshd"
GOSSIP_PORT = 7947
CONFIG_MODE = 0o640
KEYRING_MODE = 0o600
SEEN_WITHIN_S = 30.0
LOOK_EVERY_S = 0.2
STARTING_STATUS = 503  # the daemon answers and is not ready yet
SHOW_ADDRESSES = "this host's addresses: ip -br address"
ELSEWHERE = ((socket.AF_INET, "203.0.113.1"), (socket.AF_INET6, "2001:db8::1"))
"""Documentation addresses (RFC 5737, RFC 3849): the source the kernel would use towards them is the default
route's. Connecting a UDP socket asks just that and sends nothing."""

config_dir = click.option(
    "--config-dir",
    type=Folder(path_type=Path),
    default=CONFIG_DIR,
    show_default=True,
    help="Where meshd.toml and the keyring are written.",
)
name_option = click.option("--name", type=HOST, help="This host's name.  [default: the hostname]")
bind_option = click.option(
    "--bind", type=IP, help="This host's underlay address.  [default: the default route's source]"
)


@click.command()
@name_option
@bind_option
@click.option("--port", type=PORT, default=GOSSIP_PORT, show_default=True, help="UDP and TCP port of gossip.")
@config_dir
@click.pass_obj
def init(invocation: Invocation, name: str | None, bind: str | None, port: int, config_dir: Path) -> None:
    """Make this host the first of a cluster.

    Writes meshd.toml and a keyring with a fresh key, starts the daemon where systemd runs, and prints what further
    hosts join with. Existing files are never replaced.
    """
    address = own_address(bind)
    seed = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    token = Token((seed,), new_key(os.urandom(34)), (ula(os.urandom(5)),))
    write_new(config_dir, files(config_dir, Token((), token.key, token.v6), name=name, bind=bind, port=port))
    started = start(config_dir)
    text = encode(token)
    document = {**described(config_dir, started), "token": text, "join": f"meshctl join {text}"}
    invocation.emit(
        document,
        lambda: [*told(config_dir, started), "on each further host, as root:", f"  {document['join']}"],
    )


@click.command()
@click.pass_obj
def token(invocation: Invocation) -> None:
    """Print what further hosts join with: this cluster's seeds and key. It is a secret."""
    answer = Client(invocation.socket).get("token")
    text = encode(Token(tuple(answer["seeds"]), answer["key"], tuple(answer.get("v6") or ())))
    document = {"token": text, "join": f"meshctl join {text}", "seeds": answer["seeds"]}
    invocation.emit(document, lambda: [text])


@click.command()
@click.argument("token")
@name_option
@bind_option
@config_dir
@click.pass_obj
def join(invocation: Invocation, token: str, name: str | None, bind: str | None, config_dir: Path) -> None:
    """Make this host a member of the cluster that TOKEN is of; "-" reads the token from standard input.

    Writes meshd.toml and the keyring, starts the daemon where systemd runs, and waits until another member is seen.
    """
    carried = decode(sys.stdin.readline() if token == "-" else token)  # noqa: S105
    if bind is not None:
        own_address(bind)
    write_new(config_dir, files(config_dir, carried, name=name, bind=bind, port=GOSSIP_PORT))
    started = start(config_dir)
    seen = wait_for_others(Client(invocation.socket), carried, started)
    document = {**described(config_dir, started), "members": seen}
    lines = [f"joined: this host sees {', '.join(seen)}"] if seen else []
    invocation.emit(document, lambda: [*told(config_dir, started), *lines])


def ula(entropy: bytes) -> str:
    """Return the unique local /48 (RFC 4193) whose 40 random bits are ``entropy``."""
    prefix = bytes([0xFD]) + entropy
    return str(ipaddress.IPv6Network((prefix.ljust(16, b"\0"), 48)))


def own_address(bind: str | None) -> str:
    """Return the address that others reach this host at. Raises Failed where there is none, or ``bind`` is not ours."""
    for family, elsewhere in ELSEWHERE if bind is None else ():
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((elsewhere, 9))
            except OSError:
                continue
            return str(probe.getsockname()[0])
    if bind is None:
        raise Failed("this host's address is not clear: it has no default route", "name it with --bind ADDR")
    _check_own(bind)
    return bind


def _check_own(bind: str) -> None:
    ip = ipaddress.ip_address(bind)
    if ip.is_unspecified or ip.is_multicast:  # the kernel would let a socket bind to both
        raise Failed(
            f"--bind {bind} is no address that others can reach; nothing was changed", SHOW_ADDRESSES
        )
    with socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((bind, 0))
        except OSError:
            what = f"--bind {bind} is not an address of this host; nothing was changed"
            raise Failed(what, SHOW_ADDRESSES) from None


def files(directory: Path, carried: Token, *, name: str | None, bind: str | None, port: int) -> list[NewFile]:
    """Return keyring and configuration. The key goes first: a configuration without one would start nothing."""
    if not str(directory.absolute()).isprintable():
        raise WrongUsage("--config-dir: a configuration file cannot name a directory with such characters")
    tables: dict[str, dict[str, Any]] = {
        "host": {"name": name},
        "gossip": {
            "bind": bind,
            "port": None if port == GOSSIP_PORT else port,
            "seeds": list(carried.seeds) or None,
            "keyring": str(directory.absolute() / "keyring"),
        },
        "pools": {"v6": list(carried.v6) or None},
    }
    return [
        NewFile("keyring", KEYRING_MODE, carried.key + "\n"),
        NewFile("meshd.toml", CONFIG_MODE, "\n".join(toml(tables)) + "\n"),
    ]


def toml(tables: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of a TOML file: strings, integers and lists of strings; None and empty tables are left out.

    JSON's strings are TOML's basic strings.
    """
    lines: list[str] = []
    for table, keys in tables.items():
        said = {key: value for key, value in keys.items() if value is not None}
        if said:
            lines += [
                f"[{table}]",
                *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in said.items()),
            ]
    return lines


def start(directory: Path) -> bool:
    """Start the unit where systemd runs and the unit reads ``directory``; say whether it was started."""
    if directory.absolute() != Path(CONFIG_DIR) or not systemd.runs():
        return False
    systemd.start()
    return True


def start_command(directory: Path) -> str:
    """Return what starts the daemon by hand."""
    return f"meshd --config {directory.absolute() / 'meshd.toml'}"


def described(directory: Path, started: bool) -> dict[str, Any]:
    """Return what init and join say of the files in JSON; ``start`` is null where the daemon was started."""
    return {
        "config": str(directory.absolute() / "meshd.toml"),
        "keyring": str(directory.absolute() / "keyring"),
        "started": started,
        "start": None if started else start_command(directory),
    }


def told(directory: Path, started: bool) -> list[str]:
    """Return the same for people."""
    next_step = ["started meshd"] if started else ["start the daemon:", f"  {start_command(directory)}"]
    return [f"wrote {directory.absolute() / 'meshd.toml'} and keyring", *next_step]


def wait_for_others(client: Client, carried: Token, started: bool) -> list[str]:
    """Return the names of other live members as soon as there is one; [] at once where no daemon was started and
    none answers. Raises Failed after SEEN_WITHIN_S.
    """
    until = time.monotonic() + SEEN_WITHIN_S
    while True:
        try:
            found = client.get("members")
        except Unreachable:
            if not started:
                return []
            found = []
        except Failed as error:
            if error.status != STARTING_STATUS:
                raise
            found = []
        if others := [str(m["name"]) for m in found if m.get("state") == "alive" and not m.get("self")]:
            return others
        if time.monotonic() >= until:
            seeds = ", ".join(carried.seeds)
            raise Failed(
                f"no other member was seen within {SEEN_WITHIN_S:.0f} s; the files are written and meshd keeps trying",
                f"check that UDP and TCP to {seeds} are open both ways and that the token is not of an older key",
            )
        time.sleep(LOOK_EVERY_S)
