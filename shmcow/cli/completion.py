"""``shmcow completion``: the script that makes a shell complete commands, options, stores, versions and paths."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, get_completion_class

__all__ = ["command"]

_VARIABLE = "_SHMCOW_COMPLETE"  # how click calls it for a program of this name


class _Bash(BashComplete):
    """Bash's script, printed as it is: click's own starts bash to ask for its version."""

    @staticmethod
    def _check_version() -> None:
        """Leave it to whoever runs the script: it may be for another machine."""


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that makes a shell complete what you type after `shmcow`.

    Commands and options are completed, and names of stores, versions that can be opened, and keys of a value. It needs
    bash 4.4 or later, zsh, or fish. Nothing is written anywhere.

    \b
    Examples:
      eval "$(shmcow completion bash)"            # in ~/.bashrc
      eval "$(shmcow completion zsh)"             # in ~/.zshrc
      shmcow completion fish > ~/.config/fish/completions/shmcow.fish
    """
    script = _Bash if shell == "bash" else get_completion_class(shell)
    assert script is not None
    click.echo(script(click.Group(), {}, "shmcow", _VARIABLE).source())
