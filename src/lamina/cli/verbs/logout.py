"""``lamina logout``."""

from __future__ import annotations

import click

from lamina.cli.session import Session


@click.command()
@click.argument("registry", required=False)
@click.option("--all", "all_", is_flag=True, help="Of all registries.")
@click.pass_obj
def command(session: Session, registry: str | None, all_: bool) -> None:
    """Forget the login to a registry.

    REGISTRY is docker.io unless given.

    \b
    Examples:
      lamina logout registry.example:5000
      lamina logout --all
    """
    if all_ and registry is not None:
        raise click.UsageError("either REGISTRY or --all")
    from lamina.oci.registry import logout, logout_all

    name = registry or "docker.io"
    names = logout_all() if all_ else [name] if logout(name) else []
    for name in names:
        print(f"Removed login credentials for {name}")
    if not names:
        session.remark("not logged in" if all_ else f"not logged in to {name}")
