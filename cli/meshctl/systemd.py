"""Starts the daemon's unit where systemd runs this machine. Decides nothing else."""

import subprocess
from pathlib import Path

from meshctl.errors import Failed, reason

UNIT = "meshd"
BOOTED = Path("/run/systemd/system")  # sd_booted(3): exists just where systemd is the init system
START_S = 120.0  # a unit's default start timeout is 90 s


def runs() -> bool:
    """Say whether systemd runs this machine."""
    return BOOTED.is_dir()


def start() -> None:
    """Enable and start the unit. Raises Failed with systemctl's own words."""
    command = ["systemctl", "enable", "--now", UNIT]
    hint = f"the files are written; look with: journalctl -u {UNIT} -n 20"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(command)} did not end within {START_S:.0f} s", hint) from None
    except OSError as error:
        raise Failed(f"systemctl cannot be run: {reason(error)}", hint) from None
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Failed(f"{' '.join(command)}: {'; '.join(words)}", hint)
