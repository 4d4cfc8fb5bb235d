"""``lamina info``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

import lamina
from lamina.cli import output
from lamina.cli.session import Session
from lamina.errors import LaminaError

if TYPE_CHECKING:
    from lamina.store import Store


@click.command()
@output.format_option
@click.pass_obj
def command(session: Session, form: str) -> None:
    """Show the store, and which drivers work here.

    \b
    Example:
      lamina info
    """
    with session.store() as store:
        found = _gather(store)
    if form == "json":
        output.print_json(found)
        return
    drivers = found.pop("drivers")
    status = found.pop("status")
    found["driver"] = f"{found['driver']} ({found.pop('driver_because')})"
    for label, value in found.items():
        _line(label.replace("_", " ").capitalize(), value)
    for label, value in status.items():
        _line(f"  {label}", value)
    output.write_line("Drivers:")
    for driver in drivers:
        works = "works" if driver["works"] else f"does not work: {driver['reason']}"
        output.write_line(f"  {driver['name']:<20} {works}")


def _line(label: str, value: object) -> None:
    shown = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
    output.write_line(f"{label + ':':<22} {shown}")


def _gather(store: Store) -> dict[str, Any]:
    from lamina.drivers import registry
    from lamina.kernel import filesystems, namespaces

    status: dict[str, str] = {}
    try:
        driver = store.driver.name
        status = dict(store.driver.status())
    except LaminaError as error:
        driver = str(error)
    return {
        "version": lamina.__version__,
        "kernel": os.uname().release,
        "rootless": namespaces.in_user_namespace() or os.geteuid() != 0,
        "root": str(store.root),
        "run_root": str(store.run),
        "backing_file_system": filesystems.name(filesystems.magic(store.root)),
        "images": sum(1 for _ in store.images),
        "containers": sum(1 for _ in store.containers),
        "layers": sum(1 for _ in store.layers),
        "driver": driver,
        "driver_because": store.driver_because,
        "status": status,
        "drivers": [
            {"name": found.name, "works": found.reason is None, "reason": found.reason}
            for found in registry.availability(store.root)
        ],
    }
