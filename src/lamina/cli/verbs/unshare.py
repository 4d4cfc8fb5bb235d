"""``lamina unshare``."""

from __future__ import annotations

import os
import shutil

import click

from lamina.cli import rootless
from lamina.cli.session import Session
from lamina.errors import CommandNotFound, LaminaError


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("command", metavar="[COMMAND] [ARG]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def command(session: Session, command: tuple[str, ...]) -> None:
    """Open a shell in the user namespace of a rootless store.

    There an ordinary user is root over the store's files, and 'lamina mount' works. With a
    command, runs that instead.

    \b
    Examples:
      lamina unshare
      lamina unshare sh -c 'cat "$(lamina mount web)/etc/shadow"'
    """
    if not rootless.needed():
        raise LaminaError("unshare is for ordinary users; as root, just use the other verbs")
    settings = rootless.enter(session.settings, required=True)
    os.environ["LAMINA_ROOT"] = str(settings.root)
    os.environ["LAMINA_RUN_ROOT"] = str(settings.run_root)
    words = command[1:] if command[:1] == ("--",) else command
    argv = list(words) or [os.environ.get("SHELL") or "/bin/sh"]
    program = shutil.which(argv[0])
    if program is None:
        raise CommandNotFound(f"{argv[0]}: command not found")
    try:
        os.execv(program, argv)
    except OSError as error:
        raise CommandNotFound(f"{argv[0]}: {error.strerror}", 126) from error
