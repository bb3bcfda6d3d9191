"""Runs nft(8). It decides how, and what its failure means; it must not know any table."""

import errno
import json
import os
import shutil
import subprocess
from typing import Any

from meshd.config import NFT_TIMEOUT_S
from meshd.errors import KernelError
from meshd.kernel.echoes import Echoes

_SBIN = "/usr/sbin:/sbin"


def run(
    echoes: Echoes, arguments: list[str], script: str = "", *, about: str = "the firewall was left as it was"
) -> str:
    """Return what nft printed. Raises KernelError with its words, about ``about``.

    What changes anything is given as ``script``: nft reads it once its process is noted, where a command among
    ``arguments`` may have been done, and its event seen, before that.
    """
    program = shutil.which("nft", path=os.environ.get("PATH", os.defpath) + ":" + _SBIN)
    if program is None:
        raise KernelError(
            "the firewall", "install nftables", errno=errno.ENOENT, words="nft is not installed"
        )
    try:
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:  # out of descriptors, processes or memory
        raise KernelError(
            about, errno=error.errno or 0, words=f"nft cannot be run: {error.strerror}"
        ) from None
    with process:
        echoes.child(process.pid)
        try:
            output, words = process.communicate(script, NFT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise KernelError(
                "the firewall", errno=errno.ETIMEDOUT, words=f"nft took over {NFT_TIMEOUT_S:.0f} s"
            ) from None
    if process.returncode:
        first = (words.strip() or f"nft exited {process.returncode}").splitlines()[0]
        code = errno.EPERM if "not permitted" in words else errno.EINVAL
        raise KernelError(about, errno=code, words=first)
    return output


def listed(output: str) -> list[dict[str, Any]]:
    """Read what nft -j printed. Raises ValueError: 1.0.6 prints rubbish for a table that a process owns."""
    return json.loads(output)["nftables"]  # type: ignore[no-any-return]
