"""The command group: global options, and verbs that are imported when they are used."""

from __future__ import annotations

import importlib
import keyword
from typing import NamedTuple

import click

from lamina import __version__
from lamina.cli.messages import did_you_mean
from lamina.cli.session import Session
from lamina.cli.settings import Settings, load

COMPLETION_VARIABLE = "_LAMINA_COMPLETE"


class Verb(NamedTuple):
    """What the overview says of a verb, without importing it."""

    topic: str
    summary: str
    passes_status: bool = False
    """Whether its exit status is a command's; then 125 says that Lamina itself failed."""


VERBS = {
    "try": Verb("Sandbox", "Run a command on a fork of this machine, then keep or undo", True),
    "run": Verb("Containers", "Run a command in a new container", True),
    "create": Verb("Containers", "Make a container without starting it"),
    "start": Verb("Containers", "Run the command of a container, in the foreground", True),
    "ps": Verb("Containers", "List containers"),
    "mount": Verb("Containers", "Mount a container's files, or list what is mounted"),
    "umount": Verb("Containers", "Undo 'lamina mount'"),
    "rm": Verb("Containers", "Remove containers"),
    "diff": Verb("Changes", "Show what a container changed"),
    "commit": Verb("Changes", "Make an image of a container's changes"),
    "export": Verb("Changes", "Write a container's file system as a tar archive"),
    "fork": Verb("Changes", "Begin a second container where one is now"),
    "snapshot": Verb("Changes", "Remember a container's state under a name"),
    "rollback": Verb("Changes", "Take a container back to a snapshot"),
    "pull": Verb("Images", "Fetch an image from a registry"),
    "push": Verb("Images", "Send an image to a registry"),
    "load": Verb("Images", "Load images from an archive or an image layout"),
    "save": Verb("Images", "Write images to an archive or an image layout"),
    "import": Verb("Images", "Make an image of a tar archive or a directory"),
    "images": Verb("Images", "List images"),
    "bundle": Verb("Images", "Write an OCI runtime bundle of an image"),
    "adopt": Verb("Images", "Take over images and containers that Docker left on AUFS"),
    "config": Verb("Images", "Show how an image is run, or make one that is run otherwise"),
    "tag": Verb("Images", "Give an image another name"),
    "rmi": Verb("Images", "Remove images"),
    "copy": Verb("Registries", "Copy an image from one place to another, byte for byte"),
    "manifest": Verb("Registries", "Show an image's manifest, index or configuration"),
    "login": Verb("Registries", "Log in to a registry"),
    "logout": Verb("Registries", "Forget the login to a registry"),
    "info": Verb("Store", "Show the store, and which drivers work here"),
    "inspect": Verb("Store", "Show all about images or containers, as JSON"),
    "du": Verb("Store", "Show how much disk what takes"),
    "dedup": Verb("Store", "Let equal files in the layers of images share blocks of the disk"),
    "convert": Verb("Store", "Move images to another driver of the store"),
    "prune": Verb("Store", "Remove what nobody needs any more"),
    "check": Verb("Store", "Compare what the store says with what lies on disk"),
    "serve": Verb("Store", "Keep layers for containerd or Docker, as a server"),
    "unshare": Verb("Store", "Open a shell in the user namespace of a rootless store"),
    "completion": Verb("Store", "Print a shell's completion script"),
}
"""In the order of the overview."""

_ELSEWHERE = {
    "build": "'lamina run' and 'lamina commit' make images",
    "container": "'lamina ps -a' lists containers; verbs have no groups here",
    "cp": "'lamina mount' shows a container's files, or 'lamina run -v' this machine's in it",
    "exec": "'lamina start' runs a container's command, 'lamina mount' shows its files",
    "help": "'lamina --help' and 'lamina VERB --help' print it",
    "history": "'lamina inspect' shows it",
    "image": "'lamina images' lists images; verbs have no groups here",
    "kill": "a container runs in the foreground, until its command ends",
    "list": "'lamina ps -a' lists containers, 'lamina images' images",
    "logs": "a container runs in the foreground, and its output is not kept",
    "ls": "'lamina ps -a' lists containers, 'lamina images' images",
    "rename": "'lamina create --name' and 'lamina fork' name containers, 'lamina tag' images",
    "search": "the registry's web site lists what there is",
    "stop": "a container runs in the foreground, until its command ends",
    "system": "'lamina du' shows the disk, 'lamina prune' frees it, 'lamina info' tells the rest",
    "version": "'lamina --version' prints it",
}
"""Where those who come from Docker or Podman find what they look for."""

_WIDTH = max(map(len, VERBS))

_EXAMPLES = """\
lamina try -- make install          what would that change? then keep or undo
lamina import debian.tar debian:12
lamina run -it debian:12 bash
lamina diff quiet_gneiss            what did it change?
lamina commit quiet_gneiss mine:1"""


class Verbs(click.Group):
    """A group whose members are modules of :mod:`lamina.cli.verbs`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the overview."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module."""
        if cmd_name not in VERBS:
            return None
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command: click.Command = importlib.import_module(f"lamina.cli.verbs.{name}").command
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A verb that does not exist is told together with the one that may be meant."""
        if args and args[0] not in VERBS and not ctx.resilient_parsing:
            meant = did_you_mean(args[0], VERBS)
            if args[0] in _ELSEWHERE:
                meant = f": {_ELSEWHERE[args[0]]}"
            raise click.UsageError(f"there is no verb '{args[0]}'{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs by topic."""
        for topic in dict.fromkeys(verb.topic for verb in VERBS.values()):
            rows = [
                (name.ljust(_WIDTH), verb.summary)
                for name, verb in VERBS.items()
                if verb.topic == topic
            ]
            with formatter.section(topic):
                formatter.write_dl(rows)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Verbs first, then the options: what a newcomer looks for comes first."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, and where to read on."""
        with formatter.section("Examples"):
            formatter.write("".join(f"  {line}\n" for line in _EXAMPLES.splitlines()))
        formatter.write_paragraph()
        formatter.write("'lamina VERB --help' says more about a verb.\n")


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--root", metavar="DIR", envvar="LAMINA_ROOT", show_envvar=True,
              help="Where the store is.")  # fmt: skip
@click.option("--run-root", metavar="DIR", envvar="LAMINA_RUN_ROOT", show_envvar=True,
              help="Where its locks and mounts are, until the next boot.")  # fmt: skip
@click.option("--driver", metavar="NAME", envvar="LAMINA_DRIVER", show_envvar=True,
              help="How layers are kept ('lamina info' lists the drivers).")  # fmt: skip
@click.option("--storage-opt", metavar="KEY=VALUE", multiple=True,
              help="An option of the driver; may be given several times.")  # fmt: skip
@click.option("--config", metavar="FILE", envvar="LAMINA_CONFIG", show_envvar=True,
              help="Read defaults of these options from this TOML file instead of "
              "/etc/lamina/config.toml and ~/.config/lamina/config.toml.")  # fmt: skip
@click.option("--debug", is_flag=True, envvar="LAMINA_DEBUG", help="Show tracebacks of errors.")
@click.option("--quiet", "-q", is_flag=True, envvar="LAMINA_QUIET",
              help="No progress bars and no remarks.")  # fmt: skip
@click.version_option(__version__, message="lamina %(version)s")
@click.pass_context
def lamina(ctx: click.Context, /, **given: object) -> None:
    """Container file systems as stacks of layers: run, compare, keep, undo.

    Options here come before the verb.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        return
    settings: Settings = load(given)
    ctx.params["debug"] = settings.debug
    ctx.obj = Session(settings)
