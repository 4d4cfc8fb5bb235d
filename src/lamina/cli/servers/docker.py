"""``lamina serve docker``."""

from __future__ import annotations

from pathlib import Path

import click

from lamina.cli.servers.needs import requirements
from lamina.cli.session import Session

_ADDRESS = "/run/docker/plugins/lamina.sock"


@click.command()
@click.option("--address", metavar="SOCK", default=_ADDRESS, show_default=True,
              help="Where Docker finds the plugin; the file's name is the plugin's.")  # fmt: skip
@click.option("--driver", metavar="NAME",
              help="How new layers are kept; by default the best that works ('lamina info' "
              "lists the drivers).")  # fmt: skip
@click.option("--group", metavar="GROUP",
              help="Let this group connect too, not the socket's owner alone.")  # fmt: skip
@click.option("--metrics", metavar="HOST:PORT", help="Serve numbers for Prometheus there.")
@click.option("--debug", is_flag=True, help="Log every call.")
@click.pass_obj
def command(
    session: Session,
    address: str,
    driver: str | None,
    group: str | None,
    metrics: str | None,
    debug: bool,
) -> None:
    """Be a graph driver plugin of Docker, up to version 27.

    Docker says where the layers are to lie, and with which options; that is remembered, so that
    the server may be restarted while containers run. It has to share Docker's mount namespace.

    \b
    Examples:
      lamina serve docker
      lamina serve docker --driver aufs --metrics 127.0.0.1:9324
      dockerd --experimental --storage-driver lamina --storage-opt lamina.driver=overlay
    """
    with requirements():
        from lamina.serve.docker.serving import serve
    from lamina.serve import life
    from lamina.store.roots import default_root, default_run

    settings = session.settings
    root = settings.root or default_root()
    life.log_to_stderr(debug=debug or settings.debug)
    serve(
        Path(address).absolute(),
        state=root / "docker",
        run=(settings.run_root or default_run(root)) / "docker",
        driver=driver or settings.driver,
        options=settings.storage_options,
        group=group,
        metrics=metrics,
    )
