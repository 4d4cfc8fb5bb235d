"""A driver behind the socket, as far as the protocol reaches, for the conformance suite."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import pytest

from lamina.archive.changes import Change, Kind
from lamina.drivers import Driver, FileGetter, driver_class
from lamina.drivers.base import NO_OPTIONS, Staged
from lamina.errors import (
    InvalidArchive,
    InvalidName,
    LaminaError,
    LayerExists,
    LayerInUse,
    LayerNotFound,
    MountError,
    OptionUnsupported,
    UnmappedId,
)
from lamina.kernel.idmap import IdMap
from lamina.types import LayerId
from tests.serve.docker.plugin import Answer, Client, Refused

if TYPE_CHECKING:
    from lamina.archive.pack import PackOptions
    from lamina.archive.tar import Observer
    from lamina.archive.unpack import Unpacked, UnpackOptions

_INVALID = re.compile(r"invalid archive(?: at entry '(?P<entry>.*)')?: (?P<why>.*)")
_KINDS = (Kind.MODIFIED, Kind.ADDED, Kind.DELETED)
_BLOCK = 32 << 10  # bytes: Go's io.Copy


class Remote(Driver):
    """The contract by HTTP calls. What the protocol can't say skips the test."""

    def __init__(
        self, client: Client, name: str, home: Path, run: Path, idmap: IdMap = IdMap()
    ) -> None:
        super().__init__(home, run, idmap=idmap)
        self.name = name  # type: ignore[misc]
        self.layer_options = driver_class(name).layer_options
        self._client = client
        self._named: set[str] = set()
        uids, gids = (
            [{"container_id": r.container, "host_id": r.host, "size": r.size} for r in ranges]
            for ranges in idmap
        )
        options = [f"lamina.driver={name}"]
        self("GraphDriver.Init", Home=str(home), Opts=options, UIDMaps=uids, GIDMaps=gids)

    @classmethod
    def probe(cls, home: Path, *, idmap: IdMap = IdMap()) -> None:
        raise AssertionError("asked of the driver itself")

    def __call__(self, method: str, **fields: Any) -> Answer:
        with self._errors(fields.get("ID", "")):
            return self._client(method, **fields)

    def _errors(self, id: str) -> _Errors:
        self._named.add(id)
        return _Errors(id)

    # -- life ---------------------------------------------------------------------------

    def create(
        self, id: LayerId, parent: LayerId | None = None, *, options: Mapping[str, str] = NO_OPTIONS
    ) -> None:
        self("GraphDriver.Create", **_layer(id, parent), StorageOpt=dict(options))

    def create_read_write(
        self,
        id: LayerId,
        parent: LayerId | None = None,
        *,
        mount_label: str = "",
        options: Mapping[str, str] = NO_OPTIONS,
    ) -> None:
        if "base" in options:
            pytest.skip("no call may name a directory: the plugin has no base option")
        fields = {**_layer(id, parent), "MountLabel": mount_label, "StorageOpt": dict(options)}
        self("GraphDriver.CreateReadWrite", **fields)

    def remove(self, id: LayerId, *, pins: bool = False) -> None:
        self("GraphDriver.Remove", ID=id)

    def exists(self, id: LayerId) -> bool:
        return bool(self("GraphDriver.Exists", ID=id)["Exists"])

    def ids(self) -> Iterator[LayerId]:
        """Those of the ids named so far that are there: the protocol has no list."""
        for id in sorted(self._named):
            try:
                if self.exists(LayerId(id)):
                    yield LayerId(id)
            except InvalidName:
                pass

    def parent(self, id: LayerId) -> LayerId | None:
        _beyond("tell parents")

    # -- mounts -------------------------------------------------------------------------

    def get(self, id: LayerId, mount_label: str = "") -> Path:
        return Path(self("GraphDriver.Get", ID=id, MountLabel=mount_label)["Dir"])

    def put(self, id: LayerId) -> None:
        self("GraphDriver.Put", ID=id)

    def pin(self, id: LayerId, mount_label: str = "", *, here: bool = False) -> Path:
        return self.get(id, mount_label)  # all of its references are pins

    def unpin(self, id: LayerId) -> bool:
        _beyond("say whether there was a reference")

    def cleanup(self, *, pins: bool = False) -> None:
        self("GraphDriver.Cleanup")

    def close(self) -> None:
        pass

    # -- what is known ------------------------------------------------------------------

    def status(self) -> list[tuple[str, str]]:
        return [(key, value) for key, value in self("GraphDriver.Status")["Status"]]

    def metadata(self, id: LayerId) -> dict[str, str]:
        found: dict[str, str] = self("GraphDriver.GetMetadata", ID=id)["Metadata"]
        return found

    # -- differences --------------------------------------------------------------------

    def diff(
        self, id: LayerId, parent: LayerId | None = None, *, options: PackOptions | None = None
    ) -> BinaryIO:
        if options is not None:
            _beyond("choose how to pack")
        with self._errors(id):
            return self._client.diff(id, parent or "")

    def apply(
        self,
        id: LayerId,
        parent: LayerId | None,
        stream: BinaryIO,
        *,
        observer: Observer | None = None,
        options: UnpackOptions | None = None,
    ) -> Unpacked:
        _beyond("choose how to unpack, and tell more than a size")

    def apply_diff(self, id: LayerId, parent: LayerId | None, stream: BinaryIO) -> int:
        with self._errors(id):
            return self._client.apply(id, parent or "", _blocks(stream))

    def stage(
        self,
        stream: BinaryIO,
        below: Callable[[], Staged | LayerId | None],
        *,
        observer: Observer | None = None,
        options: UnpackOptions | None = None,
    ) -> AbstractContextManager[Staged]:
        _beyond("unpack layers side by side")

    def place(self, id: LayerId, parent: LayerId | None, staged: Staged) -> None:
        _beyond("unpack layers side by side")

    def changes(self, id: LayerId, parent: LayerId | None = None) -> list[Change]:
        rows = self("GraphDriver.Changes", **_layer(id, parent))["Changes"]
        return [Change(row["Path"].encode(), _KINDS[row["Kind"]]) for row in rows]

    def diff_size(self, id: LayerId, parent: LayerId | None = None) -> int:
        size = self("GraphDriver.DiffSize", **_layer(id, parent))["Size"]
        assert isinstance(size, int)
        return size

    def diff_getter(self, id: LayerId) -> FileGetter:
        _beyond("read single files")

    def copy_in(self, *_args: Any, **_options: Any) -> int:
        _beyond("copy layers of others")


class _Errors:
    """Turns the text of an error back into the error, as far as the text is a promise."""

    def __init__(self, id: str) -> None:
        self._id = id

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, Refused):
            return
        text = str(error)
        if text.startswith("no such layer: "):
            raise LayerNotFound(text.removeprefix("no such layer: ")) from error
        if text.startswith("layer already exists: "):
            raise LayerExists(text.removeprefix("layer already exists: ")) from error
        if " is in use: " in text:
            raise LayerInUse(self._id, text.partition(" is in use: ")[2]) from error
        archive = _INVALID.fullmatch(text)
        if archive:
            entry: str | None = archive["entry"]
            name = None if entry is None else entry.encode()
            raise InvalidArchive(archive["why"], name) from error
        if "storage option" in text or text.startswith("size: "):
            raise OptionUnsupported(text) from error
        if "in this id map" in text:
            raise UnmappedId(text) from error
        if "too many lower directories" in text:
            raise MountError(0, text, self._id) from error
        if error.status == 400:
            raise InvalidName(text) from error
        raise LaminaError(text) from error


def _layer(id: LayerId, parent: LayerId | None) -> dict[str, str]:
    return {"ID": id, **({} if parent is None else {"Parent": parent})}


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    buffer = bytearray(_BLOCK)
    while count := stream.readinto(buffer):  # type: ignore[attr-defined]
        yield bytes(buffer[:count])


def _beyond(what: str) -> NoReturn:
    pytest.skip(f"the protocol can't {what}")
