"""``meshctl install`` and ``uninstall``: what systemd and the kernel read of meshd, for an installation by pip. The texts
are the repository's systemd/, which come with the package; the Debian package places the same itself.

Decides where they go, and which programs the unit runs. Starts nothing: ``init`` and ``join`` do.
"""

import re
import subprocess
import sysconfig
from pathlib import Path

import click

from meshctl import systemd
from meshctl.errors import CommandError, Failed, reason
from meshctl.labdaemon import reachable
from meshctl.output import Invocation
from meshctl.report import warn

PLACES = {
    "meshd.service": "systemd/system/meshd.service",
    "meshd.socket": "systemd/system/meshd.socket",
    "meshd-cni.socket": "systemd/system/meshd-cni.socket",
    "meshd-docker.socket": "systemd/system/meshd-docker.socket",
    "00-meshd.network": "systemd/network/00-meshd.network",
    "meshd.sysusers.conf": "sysusers.d/meshd.conf",
    "meshd.tmpfiles.conf": "tmpfiles.d/meshd.conf",
    "meshd.modules.conf": "modules-load.d/meshd.conf",
    "90-meshd.conf": "sysctl.d/90-meshd.conf",
}
"""A text's name -> its place below LIBRARY."""
ACCEPT_RA = "sysctl.d/89-meshd-accept-ra.conf"  # what the script accept-ra says of this host
LIBRARY = "usr/local/lib"
OF_A_PACKAGE = ("lib/systemd/system/meshd.service", "usr/lib/systemd/system/meshd.service")
HIDDEN = tuple(Path(path) for path in ("/home", "/root", "/run/user"))  # from the unit, by ProtectHome=
PROGRAM = re.compile(r"(?m)^(Exec[A-Za-z]*=)/opt/meshd/bin/")

AT = click.option(
    "--root",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=Path("/"),
    show_default=True,
    help="Below this directory, an image's root: files alone, of which its boot makes the rest.",
)


@click.command()
@AT
@click.pass_obj
def install(invocation: Invocation, root: Path) -> None:
    """Install units and settings for a meshd that pip installed.

    The daemon's user, its folders, sysctl and module settings too. Starts nothing; a second time it brings all up to date.
    """
    scripts = Path(sysconfig.get_path("scripts"))
    check(scripts, root)
    written = write(scripts, root)
    if root == Path("/"):
        settle()
    document = {"scripts": str(scripts), "written": [str(path) for path in written]}
    invocation.emit(
        document,
        lambda: [
            f"wrote {len(written)} files below /{LIBRARY}, for {scripts}/meshd",
            "next: meshctl init (first host) or meshctl join TOKEN; where meshd runs already: systemctl restart meshd",
        ],
    )


@click.command()
@AT
@click.pass_obj
def uninstall(invocation: Invocation, root: Path) -> None:
    """Take away what `meshctl install` wrote, and stop the daemon.

    Settings and state stay, and so does what is in the kernel: `meshctl leave` before, for a host that goes for good.
    """
    if root == Path("/") and systemd.runs():
        here = [unit for unit in systemd.UNITS if (root / LIBRARY / "systemd/system" / unit).exists()]
        if here:
            systemd.call("systemctl", "disable", "--now", *here, hint="nothing was removed; run as root")
    removed = []
    try:
        for place in (*PLACES.values(), ACCEPT_RA):
            path = root / LIBRARY / place
            if path.exists():
                path.unlink()
                removed.append(path)
    except OSError as error:
        raise Failed(f"{path} cannot be removed: {reason(error)}", "run as root, and once more") from None
    if root == Path("/") and systemd.runs():
        systemd.call("systemctl", "daemon-reload", hint="the files are removed")
    if root == Path("/") and (left := len(list(Path("/sys/class/net").glob("mh*")))):
        warn(
            f"{left} endpoint(s) on this host keep their traffic for now, but nothing keeps it right from here on"
        )
    invocation.emit(
        {"removed": [str(path) for path in removed]},
        lambda: [f"removed {len(removed)} files; /etc/meshd, /var/lib/meshd and the user meshd stay"],
    )


def texts() -> Path:
    """Return the folder of the texts: beside this module in an installed package, systemd/ in a checkout."""
    packed = Path(__file__).with_name("units")
    return packed if packed.is_dir() else Path(__file__).parents[2] / "systemd"


def check(scripts: Path, root: Path) -> None:
    """Raise Failed where the unit could not run meshd, or a package has units already."""
    for place in OF_A_PACKAGE:
        if (root / place).exists():
            raise Failed(
                f"{root / place} is there, from a package; nothing was changed",
                "remove the package first, or use its meshctl",
            )
    program = scripts / "meshd"
    if not program.is_file():
        raise Failed(
            f"there is no {program}; nothing was changed", "install the whole package meshd, with pip"
        )
    if root == Path("/") and (
        any(program.resolve().is_relative_to(hidden) for hidden in HIDDEN) or not reachable(program)
    ):
        raise Failed(
            f"the unit's user cannot run {program}; nothing was changed",
            "install it where all may read: python3 -m venv /opt/meshd; /opt/meshd/bin/pip install meshd",
        )


def write(scripts: Path, root: Path) -> list[Path]:
    """Write all texts, with the unit's programs in ``scripts``; return where. Raises Failed."""
    written = []
    path = root / LIBRARY
    try:
        for name, place in PLACES.items():
            path = root / LIBRARY / place
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.write_text(PROGRAM.sub(rf"\g<1>{scripts}/", (texts() / name).read_text()))
            path.chmod(0o644)
            written.append(path)
        if root == Path("/"):
            path = root / LIBRARY / ACCEPT_RA
            # a second run, maybe without the route, forgets no device
            said = {*(path.read_text().splitlines() if path.exists() else ()), *accept_ra()}
            path.write_text("".join(f"{line}\n" for line in sorted(said)))
            written.append(path)
    except OSError as error:
        raise Failed(f"{path} cannot be written: {reason(error)}", "run as root, and once more") from None
    return written


def accept_ra() -> list[str]:
    """Return the settings without which forwarding would cost this host its IPv6 default route."""
    script = texts() / "accept-ra"
    done = subprocess.run(["/bin/sh", str(script)], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def settle() -> None:
    """Have systemd read and do what was written. Raises Failed."""
    hint = "the files are written; once that is mended, run it again"
    systemd.call("systemd-sysusers", "meshd.conf", hint=hint)
    folders = [f"--prefix={path}" for path in ("/etc/meshd", "/var/lib/meshd", "/run/meshd")]
    systemd.call("systemd-tmpfiles", "--create", *folders, hint=hint)
    files = [f"/{LIBRARY}/{place}" for place in (ACCEPT_RA, PLACES["90-meshd.conf"])]
    try:
        systemd.call("/lib/systemd/systemd-sysctl", *files, hint=hint)
    except CommandError as error:
        warn(f"{error.what}; meshctl status says what this host lacks")
    if systemd.runs():
        systemd.call("systemctl", "daemon-reload", hint=hint)
        systemd.call("systemctl", "restart", "systemd-modules-load.service", hint=hint)
        networkd = ("systemctl", "try-reload-or-restart", "systemd-networkd.service")
        systemd.call(*networkd, hint=hint)
