"""The Debian root as an image of several layers: an OCI image layout, made once and cached."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import inputs
from benchmarks.inputs import Layer

LAYERS = 12


def layers(root: inputs.Root) -> list[Layer]:
    """Its files in the order of the tar, in layers of about the same size, each gzipped.

    Each layer has the directories of its files, as a layer that a build made has them, and the
    links to its files.
    """
    home = root.tar.with_name(f"{root.tar.name}.{LAYERS}-layers")
    if not home.exists():
        part = home.with_name(f"{home.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        _split(root.tar, part)
        part.rename(home)
    return [_layer(path) for path in sorted(home.iterdir())]


def _split(whole: Path, into: Path) -> None:
    size = whole.stat().st_size
    directories: dict[str, tarfile.TarInfo] = {}
    chosen: list[list[tarfile.TarInfo]] = [[] for _ in range(LAYERS)]
    where: dict[str, int] = {}
    with tarfile.open(whole) as tar:
        for entry in tar:
            name = entry.name
            if entry.isdir():
                directories[name] = entry
            where[name] = where[entry.linkname] if entry.islnk() else entry.offset * LAYERS // size
            chosen[where[name]].append(entry)
        for number, entries in enumerate(chosen):
            with gzip.GzipFile(into / f"{number:02}.tar.gz", "wb", 6, mtime=0) as sink:
                _write(tar, _with_directories(entries, directories), sink)


def _with_directories(
    entries: list[tarfile.TarInfo], directories: dict[str, tarfile.TarInfo]
) -> Iterator[tarfile.TarInfo]:
    there = set()
    for entry in entries:
        above = [str(path) for path in reversed(Path(entry.name).parents)]
        for name in (name for name in above if name in directories):
            if name not in there:
                there.add(name)
                yield directories[name]
        if entry.name not in there:
            there.add(entry.name)
            yield entry


def _write(tar: tarfile.TarFile, entries: Iterator[tarfile.TarInfo], sink: gzip.GzipFile) -> None:
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as layer:
        for entry in entries:
            layer.addfile(entry, tar.extractfile(entry) if entry.isreg() else None)


def _layer(path: Path) -> Layer:
    digest = hashlib.sha256()
    with gzip.open(path) as stream:
        while data := stream.read(1 << 20):
            digest.update(data)
    return Layer(path, inputs.sha256(path), f"sha256:{digest.hexdigest()}")
