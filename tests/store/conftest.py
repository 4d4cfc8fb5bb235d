"""A store of each driver, in a directory of its own."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lamina.store import Layer, Store
from tests import support

MakeStore = Callable[..., Store]
Files = dict[str, bytes | None]


@pytest.fixture(
    params=["vfs", *(pytest.param(name, marks=pytest.mark.root) for name in ("overlay", "erofs"))]
)
def driver(request: pytest.FixtureRequest) -> str:
    """The name of a driver that works here."""
    name: str = request.param
    if name != "vfs" and not support.is_root():
        support.missing("needs root (with the right to mount)")
    if name == "erofs":
        support.need_filesystem("erofs")
    return name


@pytest.fixture
def open_store(driver: str, tmp_path: Path) -> Iterator[MakeStore]:
    """Opens one and the same store as often as it is called."""
    opened: list[Store] = []

    def make(**options: Any) -> Store:
        options.setdefault("driver", driver)
        opened.append(Store(tmp_path / "root", run=tmp_path / "run", **options))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: MakeStore) -> Store:
    """An empty store."""
    return open_store()


def tar(files: Files) -> bytes:
    """A tar of files with these contents; None means a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


ROOT_FS: Files = {
    "bin": None,
    "bin/sh": b"#!/no\n",
    "etc": None,
    "etc/motd": b"welcome\n",
    "etc/hostname": b"image\n",
    "var": None,
    "var/data": bytes(200_000),
}


@pytest.fixture
def root_fs() -> bytes:
    """The tar of a small root file system."""
    return tar(ROOT_FS)


def damage(store: Store, layer: Layer, name: str) -> None:
    """Let a file of a layer have other bytes than it had, whichever driver keeps it."""
    facts = store.driver.metadata(layer.id)
    if "Tar" in facts:
        tar = Path(facts["Tar"])
        data = bytearray(tar.read_bytes())
        with tarfile.open(tar) as archive:
            (member,) = (m for m in archive if m.name.removeprefix("./") == name)
            data[member.offset_data] ^= 1
        tar.write_bytes(data)
        return
    path = Path(facts.get("UpperDir") or facts["Dir"], name)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
