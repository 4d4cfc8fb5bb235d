"""``lamina manifest``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from lamina.cli import completing, output, transfers
from lamina.cli.session import Session
from lamina.errors import ImageNotFound, LaminaError

if TYPE_CHECKING:
    from lamina.oci.descriptor import Descriptor
    from lamina.oci.manifest import Index, Manifest
    from lamina.oci.platform import Spec
    from lamina.oci.registry import Options
    from lamina.oci.showing import Shown


@click.command()
@click.argument("source", shell_complete=completing.images)
@click.option("--raw", is_flag=True, help="Print the exact bytes.")
@click.option("--config", "of_config", is_flag=True, help="Show the image's configuration.")
@transfers.platform_option
@output.no_trunc_option
@output.format_option
@transfers.registry_options
@click.pass_obj
def command(
    session: Session,
    source: str,
    raw: bool,
    of_config: bool,
    platform: str | None,
    no_trunc: bool,
    form: str,
    insecure: bool,
    creds: str | None,
) -> None:
    """Show an image's manifest, index or configuration.

    SOURCE is an image in the store; if that has none of this name, or with docker://, one in a
    registry; or oci:DIR[:TAG], oci-archive:FILE[:NAME] or docker-archive:FILE[:NAME]. Of an index
    the images for all platforms are listed, unless --platform chooses one. On a terminal the list
    has the first digits of digests.

    \b
    Examples:
      lamina manifest docker://debian:12
      lamina manifest --raw oci:layout:12 | sha256sum
      lamina manifest --config --platform arm64 docker://debian:12 | jq .config
    """
    from lamina.oci.platform import parse

    wanted = None if platform is None else parse(platform)
    options = transfers.registry(insecure, creds)
    found = _in_store(session, source, of_config, wanted)
    found = found or _elsewhere(source, of_config, wanted, options)
    if raw:
        sys.stdout.flush()
        sys.stdout.buffer.write(found.data)
    elif of_config or form == "json":
        output.print_json(json.loads(found.data))
    else:
        _print(found, whole=no_trunc or not sys.stdout.isatty())


def _in_store(session: Session, source: str, of_config: bool, wanted: Spec | None) -> Shown | None:
    """An image of the store; None if it has none of this name, or one elsewhere is meant."""
    from lamina.oci.copying import check_config
    from lamina.oci.transports import is_place

    if is_place(source):
        return None
    with session.store() as store:
        try:
            image = store.image(source)
        except ImageNotFound:
            return None
        if wanted is not None:
            check_config(image.config, wanted)
        return image.show_config() if of_config else image.show_manifest()


def _elsewhere(text: str, of_config: bool, wanted: Spec | None, options: Options) -> Shown:
    from lamina.oci.showing import show_config, show_manifest
    from lamina.oci.transports import Place, is_place, open_source

    try:
        with open_source(Place.parse(text), options) as (source, name):
            return (show_config if of_config else show_manifest)(source, name, wanted)
    except LaminaError as error:
        if not is_place(text):
            error.add_note("nor is it in the store")
        raise


def _print(found: Shown, *, whole: bool) -> None:
    from lamina.oci.manifest import Index, decode_manifest

    output.write_line(f"Digest:       {found.descriptor.digest}")
    output.write_line(f"Media type:   {found.descriptor.media_type}")
    document = decode_manifest(found.data, found.descriptor.media_type)
    if isinstance(document, Index):
        output.print_table(["PLATFORM", "DIGEST", "SIZE"], _entries(document, whole))
    else:
        output.print_table(["BLOB", "DIGEST", "SIZE", "MEDIA TYPE"], _blobs(document, whole))


def _entries(index: Index, whole: bool) -> list[list[str]]:
    return [
        [_platform(entry), output.short(entry.digest, whole=whole), output.size(entry.size)]
        for entry in index.manifests
    ]


def _platform(entry: Descriptor) -> str:
    from lamina.oci import platform

    if not platform.is_image(entry):
        return entry.artifact_type or "(no image)"
    return "" if entry.platform is None else str(platform.of(entry.platform))


def _blobs(manifest: Manifest, whole: bool) -> list[list[str]]:
    named = [("config", manifest.config), *(("layer", layer) for layer in manifest.layers)]
    return [
        [kind, output.short(d.digest, whole=whole), output.size(d.size), d.media_type]
        for kind, d in named
    ]
