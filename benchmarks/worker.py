"""One piece of work in a process of its own, for its time and its memory.

``python -m benchmarks.worker WORK ARGUMENT...`` prints the seconds that the work took, without
the start of Python and the import of the driver, and the process's peak memory (VmHWM).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
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


def _store(root: str, run: str) -> Store:
    from lamina.store import Store

    return Store(root, run=run, driver="overlay")


def _load(root: str, run: str, path: str, name: str) -> Callable[[], object]:
    """An image from an archive into a store."""

    def work() -> None:
        with _store(root, run) as store:
            store.load(path, name=name)

    return work


def _pull(root: str, run: str, name: str) -> Callable[[], object]:
    """An image from a registry into a store."""

    def work() -> None:
        with _store(root, run) as store:
            store.pull(name)

    return work


def _save(root: str, run: str, name: str, target: str, level: str) -> Callable[[], object]:
    """An image from a store into an OCI archive."""
    from lamina.store import Packing

    def work() -> None:
        with _store(root, run) as store:
            packing = Packing("gzip", int(level))
            store.save([name], target, format="oci-archive", packing=packing)

    return work


def _check(root: str, run: str, name: str, proof: str) -> Callable[[], object]:
    """See that an image, mounted, has a file."""

    def work() -> None:
        with _store(root, run) as store, store.container(name) as box:
            assert (box.root / proof).is_file()

    return work


WORK: dict[str, Callable[..., Callable[[], object]]] = {
    "nothing": _nothing,
    "unpack": _unpack,
    "unpack-compressed": _unpack_compressed,
    "load": _load,
    "pull": _pull,
    "save": _save,
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
    work()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": peak_mib()}))


if __name__ == "__main__":
    main()
