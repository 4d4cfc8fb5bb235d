"""``lamina completion``."""

from __future__ import annotations

import click

from lamina.cli.app import COMPLETION_VARIABLE, lamina


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a shell's completion script.

    Names of verbs, options, images, containers and snapshots are completed.

    \b
    Examples:
      lamina completion bash > /etc/bash_completion.d/lamina
      lamina completion zsh > "${fpath[1]}/_lamina"
      lamina completion fish > ~/.config/fish/completions/lamina.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(lamina, {}, "lamina", COMPLETION_VARIABLE).source())
