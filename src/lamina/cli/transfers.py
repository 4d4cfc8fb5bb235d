"""What the verbs that move images have in common: options, and what they say afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from lamina.cli.session import Session
    from lamina.oci.registry import Options
    from lamina.store import Packing, Saved

F = TypeVar("F", bound=Callable[..., Any])

platform_option = click.option(
    "--platform", metavar="OS/ARCH[/VARIANT]",
    help="Which image of several, as linux/arm64; by default this machine's.",
)  # fmt: skip
keep_blobs_option = click.option(
    "--keep-blobs", is_flag=True,
    help="Keep the compressed layers too, so that the image goes out with the same digests.",
)  # fmt: skip
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress bar.")


def packing_options(command: F) -> F:
    """How layers are compressed that have to be made anew: see :func:`packing`."""
    for option in (
        click.option("--threads", metavar="N", type=click.IntRange(1),
                     help="Threads that compress; by default as many as processors."),
        click.option("--level", metavar="N", type=int,
                     help="How hard: 1 to 9 for gzip (2), 1 to 19 for zstd (3)."),
        click.option("--compress", "compression", type=click.Choice(["gzip", "zstd", "none"]),
                     help="By default layers go as they came where that is kept, else by gzip."),
    ):  # fmt: skip
        command = option(command)
    return command


def packing(compression: str | None, level: int | None, threads: int | None) -> Packing | None:
    """What the options say; None if they say nothing."""
    if compression is None and level is None and threads is None:
        return None
    if level is not None and compression in (None, "none"):
        raise click.UsageError("--level goes with --compress gzip or zstd")
    from lamina.store import Packing

    try:
        return Packing(compression, level, threads)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def tell_changed(session: Session, name: str, saved: Saved, *, asked: bool) -> None:
    """Remark that layers went out with other compressed digests than they came with.

    ``asked``: a compression was asked for, so that this is no surprise.
    """
    if not saved.changed:
        return
    count = len(saved.changed)
    layers = "1 layer" if count == 1 else f"{count} layers"
    hint = "" if asked else "; loaded or pulled with --keep-blobs they stay the same"
    session.remark(f"{name}: {layers} compressed anew, with other digests than before{hint}")


def registry_options(command: F) -> F:
    """How a registry is spoken with: see :func:`registry`."""
    for option in (
        click.option("--creds", metavar="USER[:PASSWORD]",
                     help="Log in as this user for this once; asks for a password not given."),
        click.option("--insecure", is_flag=True,
                     help="Take any certificate, and plain HTTP where there is no TLS."),
    ):  # fmt: skip
        command = option(command)
    return command


def registry(insecure: bool, creds: str | None, option: str = "--creds") -> Options:
    """What the options say; ``option`` is where ``creds`` is from."""
    from lamina.oci.registry import Credentials, Options

    session: Session = click.get_current_context().obj
    options = Options(insecure=insecure, remark=session.remark)
    if creds is None:
        return options
    user, colon, password = creds.partition(":")
    if not user:
        raise click.UsageError(f"{option} takes USER[:PASSWORD]")
    if not colon:
        password = ask_password(user, f"{option} USER:PASSWORD")
    return replace(options, credentials=Credentials(user, password))


def ask_password(user: str, instead: str) -> str:
    """A password typed on the terminal, which does not show it; a usage error where there is none.

    ``instead`` says how else it can be given.
    """
    from getpass import getpass

    if not sys.stdin.isatty():
        raise click.UsageError(f"no terminal to ask for the password of {user} on: use {instead}")
    return getpass(f"Password of {user}: ")
