"""``lamina login``."""

from __future__ import annotations

import sys

import click

from lamina.cli import transfers
from lamina.cli.session import Session


@click.command()
@click.argument("registry", default="docker.io")
@click.option("-u", "--username", metavar="USER", help="Who to be; asked for if not given.")
@click.option("-p", "--password", metavar="PASSWORD",
              help="The password, for all to see who list processes.")  # fmt: skip
@click.option("--password-stdin", is_flag=True, help="Read the password from stdin.")
@click.option("--insecure", is_flag=True,
              help="Take any certificate, and plain HTTP where there is no TLS.")  # fmt: skip
@click.pass_obj
def command(
    session: Session,
    registry: str,
    username: str | None,
    password: str | None,
    password_stdin: bool,
    insecure: bool,
) -> None:
    """Log in to a registry.

    Keeps user and password, once the registry has taken them, where Docker does: in
    ~/.docker/config.json, or by the credential helper that is named there. REGISTRY is docker.io
    unless given.

    \b
    Examples:
      lamina login registry.example:5000
      pass registry | lamina login -u ann --password-stdin registry.example
    """
    if password_stdin and password is not None:
        raise click.UsageError("either --password or --password-stdin")
    if password_stdin and username is None:
        raise click.UsageError("--password-stdin goes with --username")
    user = username or _ask_user()
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif password is None:
        password = transfers.ask_password(user, "--password-stdin")
    from lamina.oci.registry import Options, login

    path = login(registry, user, password, Options(insecure=insecure))
    print("Login Succeeded")
    session.remark(f"the login is kept in {path}")


def _ask_user() -> str:
    if not sys.stdin.isatty():
        raise click.UsageError("no terminal to ask for a user on: use --username")
    answer: str = click.prompt("Username", err=True)
    return answer
