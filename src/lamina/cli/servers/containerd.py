"""``lamina serve containerd``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lamina.cli.servers.needs import requirements
from lamina.cli.session import Session


@click.command()
@click.option("--address", metavar="SOCK", default="/run/lamina/containerd.sock",
              show_default=True, help="The unix socket to serve at.")  # fmt: skip
@click.option("--driver", metavar="NAME",
              help="How layers are kept, for good once begun; by default the best that works "
              "('lamina info' lists the drivers).")  # fmt: skip
@click.option("--root", metavar="DIR", help="Where they are kept.  "
              "[default: /var/lib/lamina/containerd]")  # fmt: skip
@click.option("--group", metavar="GROUP", help="Let a group connect, not root alone.")
@click.option("--containerd", metavar="SOCK",
              help="containerd's socket: the differ reads and writes blobs there.")  # fmt: skip
@click.option("--content", metavar="DIR",
              help="containerd's content store: the differ reads blobs there, which is faster; "
              "mostly /var/lib/containerd/io.containerd.content.v1.content.")  # fmt: skip
@click.option("--metrics", metavar="HOST:PORT", help="Serve numbers for Prometheus there.")
@click.option("--no-sync", is_flag=True, help="Let a power cut have what was committed lately.")
@click.option("--debug", is_flag=True, help="Log every call.")
@click.pass_obj
def command(
    session: Session,
    address: str,
    driver: str | None,
    root: str | None,
    group: str | None,
    containerd: str | None,
    content: str | None,
    metrics: str | None,
    no_sync: bool,
    debug: bool,
) -> None:
    """Be a snapshotter, and a differ, of containerd.

    \b
    In containerd's configuration:
      [proxy_plugins.lamina]
        type = "snapshot"
        address = "/run/lamina/containerd.sock"

    \b
    Examples:
      lamina serve containerd
      lamina serve containerd --driver overlay --metrics 127.0.0.1:9323
      ctr images pull --snapshotter lamina docker.io/library/debian:12
    """
    settings = session.settings
    with requirements():
        from lamina.serve.containerd.server import Options, serve
    from lamina.serve.life import log_to_stderr
    from lamina.store.policy import SyncPolicy
    from lamina.store.snapshots import Snapshots
    from lamina.store.snapshots.home import default_home

    log_to_stderr(debug=debug or settings.debug)
    with Snapshots(
        _path(root) or default_home(settings.root),
        run=settings.run_root,
        driver=driver or settings.driver,
        options=settings.storage_options,
        sync=SyncPolicy.NONE if no_sync else SyncPolicy.LAYER,
    ) as snapshots:
        serve(
            snapshots,
            Options(Path(address).absolute(), group, metrics, _path(content), _path(containerd)),
        )
    sys.stderr.flush()


def _path(text: str | None) -> Path | None:
    return Path(text).absolute() if text else None
