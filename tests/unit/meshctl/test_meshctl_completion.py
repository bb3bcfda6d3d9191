"""Completion, asked the way that a shell asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
ASK = """
source <(meshctl completion bash)
COMP_WORDS=({words}) COMP_CWORD={at}
_meshctl_completion meshctl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    "words, expected",
    [
        (["meshctl", "netw"], ["network"]),
        (["meshctl", "network", "cre"], ["create"]),
        (["meshctl", "network", "create", "-d", "mac"], ["macvlan"]),
        (["meshctl", "completion", "f"], ["fish"]),
    ],
)
def test_bash_completes(words: list[str], expected: list[str]) -> None:
    script = ASK.format(words=" ".join(words), at=len(words) - 1)
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout.split() == expected


@pytest.mark.parametrize(
    "shell, sign", [("zsh", "#compdef meshctl"), ("fish", "complete --no-files --command meshctl")]
)
def test_the_other_shells_get_theirs(shell: str, sign: str) -> None:
    done = subprocess.run([BIN / "meshctl", "completion", shell], capture_output=True, text=True, check=True)
    assert sign in done.stdout
