"""Calls systemd's own commands where systemd runs this machine. Decides nothing else."""

import subprocess
from pathlib import Path

from meshctl.errors import Failed, reason

UNIT = "meshd"
UNITS = ("meshd.service", "meshd.socket", "meshd-cni.socket", "meshd-docker.socket")
BOOTED = Path("/run/systemd/system")  # sd_booted(3): exists just where systemd is the init system
CALL_S = 120.0  # a unit's default start timeout is 90 s


def runs() -> bool:
    """Say whether systemd runs this machine."""
    return BOOTED.is_dir()


def start() -> None:
    """Enable and start the unit. Raises Failed with systemctl's own words."""
    hint = f"the files are written; look with: journalctl -u {UNIT} -n 20"
    call("systemctl", "enable", "--now", UNIT, hint=hint)


def call(*command: str, hint: str) -> None:
    """Run a command. Raises Failed with its own words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(command)} did not end within {CALL_S:.0f} s", hint) from None
    except OSError as error:
        raise Failed(f"{Path(command[0]).name} cannot be run: {reason(error)}", hint) from None
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Failed(f"{' '.join(command)}: {'; '.join(words)}", hint)
