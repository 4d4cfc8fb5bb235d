"""``lamina config``."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from lamina.cli import changing, completing, output
from lamina.cli.session import Session
from lamina.cli.settings import pairs

if TYPE_CHECKING:
    from lamina.oci import RunConfig

_CLEARABLE = {
    "entrypoint": "entrypoint",
    "cmd": "cmd",
    "env": "env",
    "label": "labels",
    "workdir": "working_dir",
    "user": "user",
    "stop-signal": "stop_signal",
    "volume": "volumes",
    "expose": "exposed_ports",
    "author": None,
    "history": None,
}
"""What ``--clear`` takes, and the field of a configuration that it means, if it is one's."""


@click.command()
@click.argument("image", shell_complete=completing.images)
@click.argument("newname", required=False)
@click.option("--clear", multiple=True, type=click.Choice(list(_CLEARABLE)),
              help="Forget that first; may be given several times.")  # fmt: skip
@click.option("--entrypoint", metavar="COMMAND", help='As in a Dockerfile: ["init", "-x"].')
@click.option("--cmd", metavar="COMMAND", help='As in a Dockerfile: ["sh"], or a shell\'s line.')
@click.option("-e", "--env", metavar="NAME=VALUE", multiple=True, help="Set a variable.")
@click.option("-l", "--label", metavar="NAME=VALUE", multiple=True, help="Set a label.")
@click.option("-w", "--workdir", metavar="DIR", help="Where the command begins.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Who runs it.")
@click.option("--stop-signal", metavar="SIGNAL", help="What ends it.")
@click.option("--volume", metavar="DIR", multiple=True, help="Let a directory be a volume.")
@click.option("--expose", metavar="PORT[/PROTO]", multiple=True, help="Expose a port.")
@changing.change_option
@click.option("-a", "--author", metavar="TEXT", help="Who made it.")
@click.option("-m", "--message", metavar="TEXT", default="", help="For the image's history.")
@click.pass_obj
def command(
    session: Session, /, image: str, newname: str | None, message: str, **changes: Any
) -> None:
    """Show how an image is run, or make one that is run otherwise.

    Without options it prints the configuration. With options it makes an image of the same layers,
    called NEWNAME, and prints its id. IMAGE stays as it is, unless NEWNAME is its own name.

    \b
    Examples:
      lamina config debian:12
      lamina config debian:12 web:1 --cmd '["python3", "-m", "http.server"]' -w /srv -u www-data
      lamina config mine:1 mine:1 --clear env -e LANG=C.UTF-8 -l org.example.team=blue
    """
    given = {name: value for name, value in changes.items() if value not in (None, ())}
    if not given and (newname or message):
        raise click.UsageError("nothing to change; 'lamina tag' gives another name")
    with session.store() as store:
        old = store.image(image)
        if not given:
            output.print_json(json.loads(old.show_config().data))
            return
        clear = given.get("clear", ())
        new = store.configure(
            old,
            newname,
            config=_changed(old.config.copy().config, given),
            author=given.get("author", "" if "author" in clear else None),
            message=message,
            created_by=_written(given),
            keep_history="history" not in clear,
        )
    print(new.id)
    if newname is None:
        session.remark(f"{new.short_id} has no name: give NEWNAME, or 'lamina tag' it")


def _changed(run: RunConfig | None, given: dict[str, Any]) -> RunConfig:
    """How an image is run, after the options."""
    from lamina.oci import RunConfig

    run = run or RunConfig()
    default = RunConfig()
    for field in filter(None, (_CLEARABLE[name] for name in given.get("clear", ()))):
        setattr(run, field, getattr(default, field))
    for name in ("entrypoint", "cmd"):
        if name in given:
            setattr(run, name, changing.command_words(given[name], f"--{name}"))
    for name, value in pairs(given.get("env", ()), "--env").items():
        run.set_env(name, value)
    if "label" in given:
        run.set_labels(pairs(given["label"], "--label"))
    if "workdir" in given:
        run.set_working_dir(given["workdir"])
    run.user = given.get("user", run.user)
    run.stop_signal = given.get("stop_signal", run.stop_signal)
    if "volume" in given:
        run.add_volumes(given["volume"])
    if "expose" in given:
        run.add_ports(map(_port, given["expose"]))
    changing.apply(run, given.get("changes", ()))
    return run


def _port(text: str) -> str:
    """A port as a configuration has it; a usage error for what is none."""
    number, slash, protocol = text.partition("/")
    first, dash, last = number.partition("-")
    numbers = [first, last] if dash else [first]
    known = protocol in ("tcp", "udp", "sctp") or not slash
    if not known or not all(n.isascii() and n.isdigit() and int(n) < 65536 for n in numbers):
        raise click.UsageError(f"--expose takes PORT[/tcp|udp|sctp], not '{text}'")
    return text


def _written(given: dict[str, Any]) -> str:
    """The options as on a command line, for the history."""
    words = []
    for name, value in given.items():
        option = "--change" if name == "changes" else f"--{name.replace('_', '-')}"
        for each in (value,) if isinstance(value, str) else value:
            words += [option, each]
    return f"lamina config {shlex.join(words)}"
