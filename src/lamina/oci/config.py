"""The image configuration (OCI image-spec, config.md); see also :mod:`lamina.oci.defaults`.

What the specification names is a field; whatever else a document has is kept in ``extra``
and written again, so that reading and writing loses nothing.
"""

from __future__ import annotations

import datetime
import os
from typing import Any, Self

import msgspec

from lamina.errors import StoreError
from lamina.types import DiffId

_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "i686": "386",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
    "loongarch64": "loong64",
}


_EXTRA = "(other members)"  # the name of no member that a document would have


class _Open(msgspec.Struct, kw_only=True):
    """A JSON object whose unknown members are kept."""

    extra: dict[str, Any] = msgspec.field(default_factory=dict, name=_EXTRA)


class RunConfig(_Open, rename="pascal"):
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


class RootFs(_Open):
    """The layers, bottom first."""

    type: str = "layers"
    diff_ids: list[DiffId] = []


class History(_Open):
    """How one layer came to be, or, with ``empty_layer``, one step that made none."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool | None = None


class ImageConfig(_Open):
    """An image: platform, layers, history and how to run it."""

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
        """A configuration without layers for the architecture this runs on, made now."""
        machine = os.uname().machine
        return cls(
            created=timestamp(), architecture=_ARCHITECTURES.get(machine, machine), os="linux"
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a configuration's JSON; :class:`StoreError` if it is none."""
        try:
            document = msgspec.json.decode(data, type=dict[str, Any])
            image = msgspec.convert(document, cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StoreError(f"not an image configuration: {error}") from error
        _keep_unknown(image, document)
        return image

    def encode(self) -> bytes:
        """Compact JSON, members in a fixed order: the same configuration, the same bytes."""
        return msgspec.json.encode(_to_document(self))

    def copy(self) -> Self:
        """An independent copy, all the way down."""
        return type(self).decode(self.encode())


def timestamp() -> str:
    """Now as RFC 3339 in UTC, or the moment that ``SOURCE_DATE_EPOCH`` names."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    utc = datetime.UTC
    now = datetime.datetime.fromtimestamp(int(epoch), utc) if epoch else datetime.datetime.now(utc)
    return now.isoformat(timespec="auto").replace("+00:00", "Z")


def _members(struct: _Open) -> dict[str, str]:
    """JSON member names to field names, without ``extra``."""
    names = zip(struct.__struct_encode_fields__, struct.__struct_fields__, strict=True)
    return {member: field for member, field in names if member != _EXTRA}


def _keep_unknown(struct: _Open, document: dict[str, Any]) -> None:
    known = _members(struct)
    struct.extra = {key: value for key, value in document.items() if key not in known}
    for key, field in known.items():
        value = getattr(struct, field)
        if isinstance(value, _Open) and key in document:
            _keep_unknown(value, document[key])
        elif isinstance(value, list) and value and isinstance(value[0], _Open):
            for item, part in zip(value, document[key], strict=True):
                _keep_unknown(item, part)


def _to_document(value: Any) -> Any:
    """Plain JSON values: None left out, the unknown members after the known."""
    if isinstance(value, list):
        return [_to_document(item) for item in value]
    if not isinstance(value, _Open):
        return value
    document = {
        key: _to_document(member)
        for key, field in _members(value).items()
        if (member := getattr(value, field)) not in (None, "")
    }
    return document | value.extra
