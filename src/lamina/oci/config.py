"""The image configuration (OCI image-spec, config.md); see also :mod:`lamina.oci.defaults`.

Reading and writing loses nothing (:mod:`lamina.oci.document`).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import msgspec

from lamina.oci.document import Document
from lamina.oci.epoch import source_date_epoch
from lamina.types import DiffId

CONFIG_LIMIT = 8 << 20
"""Bytes that a configuration may have."""


class RunConfig(Document, rename="pascal"):
    """How a container of the image is run: the ``config`` member. All are defaults."""

    user: str = ""
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    exposed_ports: dict[str, dict[str, Any]] | None = None
    volumes: dict[str, dict[str, Any]] | None = None
    stop_signal: str = ""

    def set_env(self, name: str, value: str) -> None:
        """Give a variable a value, the only one it has."""
        others = [item for item in self.env or () if item.partition("=")[0] != name]
        self.env = [*others, f"{name}={value}"]

    def set_labels(self, labels: Mapping[str, str]) -> None:
        """Set these labels, beside those that are there."""
        self.labels = {**(self.labels or {}), **labels}

    def add_ports(self, ports: Iterable[str]) -> None:
        """Expose ports beside those that are: ``53/udp``; ``80`` is ``80/tcp``."""
        full = (port if "/" in port else f"{port}/tcp" for port in ports)
        self.exposed_ports = {**(self.exposed_ports or {}), **{port: {} for port in full}}

    def add_volumes(self, paths: Iterable[str]) -> None:
        """Let these paths be volumes, beside those that are."""
        self.volumes = {**(self.volumes or {}), **{path: {} for path in paths}}

    def set_working_dir(self, path: str) -> None:
        """Set the directory; a relative path goes on from the one that is set."""
        absolute = path.startswith("/")
        self.working_dir = path if absolute else f"{self.working_dir.rstrip('/')}/{path}"


class RootFs(Document):
    """The layers, bottom first."""

    type: str = "layers"
    diff_ids: list[DiffId] = msgspec.field(default_factory=list)


class History(Document):
    """How one layer came to be, or, with ``empty_layer``, one step that made none."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool | None = None


class ImageConfig(Document):
    """An image: platform, layers, history and how to run it."""

    KIND: ClassVar[str] = "an image configuration"

    created: str | None = None
    author: str | None = None
    architecture: str = ""
    os: str = ""
    variant: str | None = None
    config: RunConfig | None = None
    rootfs: RootFs = msgspec.field(default_factory=RootFs)
    history: list[History] | None = None

    @classmethod
    def for_this_machine(cls) -> Self:
        """A configuration without layers for the platform this runs on, made now."""
        from lamina.oci.platform import this_machine

        here = this_machine()
        return cls(
            created=timestamp(),
            architecture=here.architecture,
            os=here.os,
            variant=here.variant or None,
        )


def timestamp() -> str:
    """Now as RFC 3339 in UTC, or the moment that ``SOURCE_DATE_EPOCH`` names.

    Raises LaminaError where that is none.
    """
    epoch = source_date_epoch()
    utc = datetime.UTC
    if epoch is None:
        now = datetime.datetime.now(utc)
    else:
        now = datetime.datetime.fromtimestamp(epoch, utc)
    return now.isoformat(timespec="auto").replace("+00:00", "Z")
