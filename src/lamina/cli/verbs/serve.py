"""``lamina serve``: a group, whose members are modules of :mod:`lamina.cli.servers`."""

from __future__ import annotations

import importlib

import click

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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The servers, none of them imported."""
        with formatter.section("Servers"):
            formatter.write_dl(list(_SERVERS.items()))


@click.group(cls=Servers, subcommand_metavar="SERVER ...")
def command() -> None:
    """Keep layers for containerd or Docker, as a server.

    A server runs in the foreground until SIGTERM, and says on stderr what it does.

    \b
    Examples:
      lamina serve containerd
      lamina serve containerd --address /run/lamina/containerd.sock --metrics 127.0.0.1:9323
      lamina serve docker --driver overlay
    """
