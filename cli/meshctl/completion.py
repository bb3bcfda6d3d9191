"""completion: prints what a shell reads to complete meshctl's command lines. The scripts are click's own."""

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from meshctl.output import Invocation

VARIABLE = (
    "_MESHCTL_COMPLETE"  # click's script asks the command itself, by this variable, at each press of Tab
)
SHELLS = {kind.name: kind for kind in (BashComplete, ZshComplete, FishComplete)}


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_obj
@click.pass_context
def completion(ctx: click.Context, invocation: Invocation, shell: str) -> None:
    """Print the completion script for a shell.

    For this session: source <(meshctl completion bash). The Debian package brings all three for everyone.
    """
    kind = SHELLS[shell](ctx.find_root().command, {}, "meshctl", VARIABLE)
    # not kind.source(): for bash, that runs bash to look at its version
    script = kind.source_template % kind.source_vars()
    invocation.emit({"shell": shell, "script": script}, lambda: [script])
