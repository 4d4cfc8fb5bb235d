"""One piece of work in a process of its own, for its time and its memory.

``python -m benchmarks.worker WORK ARGUMENT...`` prints the seconds that the work took, without
the start of Python and the import of the driver, and the process's peak memory (VmHWM). What the
work returns, if it can be called, cleans up after it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ground import output
from lamina.types import LayerId

if TYPE_CHECKING:
    from lamina.drivers import Driver
    from lamina.store import Store


def _nothing() -> Callable[[], object]:
    return lambda: None


def _driver(name: str, home: str, run: str) -> Driver:
    from lamina.drivers import driver_class

    factory: Any = driver_class(name)
    driver: Driver = factory(Path(home), Path(run))
    return driver


def _unpack(driver: str, home: str, run: str, tar: str) -> Callable[[], object]:
    """A plain tar into a new layer, as a driver's caller does it."""
    made, layer = _driver(driver, home, run), LayerId("layer")

    def work() -> None:
        made.create(layer)
        with open(tar, "rb") as stream:
            made.apply_diff(layer, None, stream)

    return work


def _unpack_compressed(
    driver: str, home: str, run: str, path: str, digest: str, diff_id: str
) -> Callable[[], object]:
    """A compressed tar into a new layer, both digests checked."""
    from lamina.archive.compression import open_stream

    made, layer = _driver(driver, home, run), LayerId("layer")

    def work() -> None:
        made.create(layer)
        with open_stream(path) as stream:
            made.apply_diff(layer, None, stream)
            if (stream.digest, stream.diff_id) != (digest, diff_id):
                raise SystemExit("the digests are not what they should be")

    return work


def _mount(driver: str, home: str, run: str, proof: str, *what: str) -> Callable[[], object]:
    """The same, of a plain tar (PATH) or a compressed one (PATH DIGEST DIFF_ID), till a file of it
    can be read."""
    import lamina.archive.erofs  # noqa: F401

    layer = LayerId("layer")
    unpack = (_unpack if len(what) == 1 else _unpack_compressed)(driver, home, run, *what)
    made = _driver(driver, home, run)

    def work() -> Callable[[], object]:
        unpack()
        assert (made.get(layer) / proof).read_bytes()
        return lambda: made.put(layer)

    return work


def _index(tar: str, target: str) -> Callable[[], object]:
    """The index of a tar that is there."""
    from lamina.archive.erofs import build_index

    def work() -> None:
        with open(target, "xb") as out:
            build_index(tar, out.fileno(), identity="sha256:0")

    return work


def _index_stream(tar: str, target: str) -> Callable[[], object]:
    """The same, of what can only be read: so nothing of the tar counts as this process's memory."""
    from lamina.archive.erofs import IndexBuilder
    from lamina.archive.tar import TarReader

    class Stream:
        def __init__(self, file: FileIO) -> None:
            self.read, self.readinto = file.read, file.readinto

    def work() -> None:
        builder = IndexBuilder()
        with open(tar, "rb", buffering=0) as file, open(target, "xb") as out:
            builder.read(TarReader(Stream(file)))
            builder.finish(out.fileno(), identity="sha256:0", tar_size=file.tell())

    return work


def _list(tar: str) -> Callable[[], object]:
    """All entries of a tar, by Python's own module."""
    import tarfile

    def work() -> None:
        with tarfile.open(tar) as file:
            for _ in file:
                pass

    return work


def _inflate(path: str) -> Callable[[], object]:
    """Decompress a gzipped file, and no more."""
    from lamina.archive.compression.formats import Compression, decode

    def work() -> None:
        with open(path, "rb", buffering=0) as file:
            for _ in decode(Compression.GZIP, file.read):
                pass

    return work


def _hash(path: str) -> Callable[[], object]:
    """The sha256 of a file, and no more."""
    from benchmarks.inputs import sha256

    return lambda: sha256(Path(path))


def _write(path: str, target: str) -> Callable[[], object]:
    """A file read and written, and no more."""
    from lamina.kernel.memory import page_aligned

    buffer = memoryview(page_aligned(256 << 10))

    def work() -> None:
        with open(path, "rb", buffering=0) as file, open(target, "xb", buffering=0) as out:
            while count := file.readinto(buffer):
                out.write(buffer[:count])

    return work


def _store(driver: str, root: str, run: str) -> Store:
    from lamina.store import Store

    return Store(root, run=run, driver=driver)


def _load(driver: str, root: str, run: str, path: str, name: str) -> Callable[[], object]:
    """An image from an archive into a store."""

    def work() -> None:
        with _store(driver, root, run) as store:
            store.load(path, name=name)

    return work


def _pull(driver: str, root: str, run: str, name: str) -> Callable[[], object]:
    """An image from a registry into a store."""

    def work() -> None:
        with _store(driver, root, run) as store:
            store.pull(name)

    return work


def _save(
    driver: str, root: str, run: str, name: str, target: str, level: str
) -> Callable[[], object]:
    """An image from a store into an OCI archive."""
    from lamina.store import Packing

    def work() -> None:
        with _store(driver, root, run) as store:
            packing = Packing("gzip", int(level))
            store.save([name], target, format="oci-archive", packing=packing)

    return work


def _save_plain(driver: str, root: str, run: str, name: str, target: str) -> Callable[[], object]:
    """An image from a store into an archive that is not compressed."""

    def work() -> None:
        with _store(driver, root, run) as store:
            store.save([name], target)

    return work


def _check(driver: str, root: str, run: str, name: str, proof: str) -> Callable[[], object]:
    """See that an image, mounted, has a file."""

    def work() -> None:
        with _store(driver, root, run) as store, store.container(name) as box:
            assert (box.root / proof).is_file()

    return work


WORK: dict[str, Callable[..., Callable[[], object]]] = {
    "nothing": _nothing,
    "unpack": _unpack,
    "unpack-compressed": _unpack_compressed,
    "mount": _mount,
    "index": _index,
    "index-stream": _index_stream,
    "list": _list,
    "inflate": _inflate,
    "hash": _hash,
    "write": _write,
    "load": _load,
    "pull": _pull,
    "save": _save,
    "save-plain": _save_plain,
    "check": _check,
}


def peak_mib() -> float:
    """The most memory that this process had resident, since its exec(2)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def run(work: str, *arguments: str | Path) -> tuple[float, float]:
    """Do ``work`` in a new process: seconds, MiB."""
    argv = [sys.executable, "-m", "benchmarks.worker", work, *arguments]
    result = json.loads(output(*argv))
    return result["seconds"], result["peak"]


def main() -> None:
    """Do what the command line says."""
    name, *arguments = sys.argv[1:]
    work = WORK[name](*arguments)
    start = time.perf_counter()
    clean_up = work()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": peak_mib()}))
    if callable(clean_up):
        clean_up()


if __name__ == "__main__":
    main()
