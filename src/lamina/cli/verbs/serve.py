"""``lamina serve``: a group, whose members are modules of :mod:`lamina.cli.servers`."""

from __future__ import annotations

import importlib

import click

from lamina.cli.messages import did_you_mean

_SERVERS = {
    "containerd": "Be a snapshotter, and a differ, of containerd",
    "docker": "Be a graph driver plugin of Docker, up to version 27",
}
"""What the overview says of each, without importing it."""


class Servers(click.Group):
    """A group whose members are modules of :mod:`lamina.cli.servers`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All servers."""
        return list(_SERVERS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the server's module."""
        if cmd_name not in _SERVERS:
            return None
        module = importlib.import_module(f"lamina.cli.servers.{cmd_name}")
        command: click.Command = module.command
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A server that does not exist is told together with the one that may be meant."""
        if args and args[0] not in _SERVERS and not ctx.resilient_parsing:
            meant = did_you_mean(args[0], _SERVERS) or f"; there are {' and '.join(_SERVERS)}"
            raise click.UsageError(f"there is no server '{args[0]}'{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The servers, none of them imported."""
        with formatter.section("Servers"):
            formatter.write_dl(list(_SERVERS.items()))


@click.group(cls=Servers, invoke_without_command=True, subcommand_metavar="SERVER ...")
@click.pass_context
def command(ctx: click.Context, /) -> None:
    """Keep layers for containerd or Docker, as a server.

    A server runs in the foreground until SIGTERM, and says on stderr what it does.

    It takes root, and the extra 'serve'; docs/serve.md says how all that is set up.

    \b
    Examples:
      lamina serve containerd
      lamina serve containerd --address /run/lamina/containerd.sock --metrics 127.0.0.1:9323
      lamina serve docker --driver overlay
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
