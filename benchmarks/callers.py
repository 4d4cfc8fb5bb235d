"""Clients of a snapshots service, each in a process of its own, that stay and are told what to do.

``python -m benchmarks.callers`` is one: it reads tasks, one a line of JSON, and answers in lines.
The same code calls any server: ours, and containerd's own service.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc

from lamina.serve.containerd.api import descriptor_pb2, diff_pb2, snapshots_pb2

SERVICE = "/containerd.services.snapshots.v1.Snapshots"
METADATA = (("containerd-namespace", "default"),)
KEPT = {"containerd.io/gc.root": "now"}
"""Keeps a snapshot that nothing names from containerd's garbage collection."""


@dataclass(frozen=True)
class Target:
    """Where calls go, and what snapshots are to stand on."""

    socket: str
    snapshotter: str
    """One of those that containerd has; of no meaning to ours."""
    parent: str


class Client:
    """The calls that are measured, over one connection."""

    def __init__(self, target: Target) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channel = grpc.insecure_channel(f"unix:{target.socket}", options=options)
        self._target = target
        methods = ("Prepare", "Mounts", "Remove", "Commit")
        self._calls = {name: self._channel.unary_unary(f"{SERVICE}/{name}") for name in methods}

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def cycle(self, key: str) -> None:
        """Prepare, Mounts and Remove of a snapshot."""
        self.prepare(key)
        named = {"snapshotter": self._target.snapshotter, "key": key}
        self._call("Mounts", snapshots_pb2.MountsRequest(**named).SerializeToString())
        self._call("Remove", snapshots_pb2.RemoveSnapshotRequest(**named).SerializeToString())

    def prepare(self, key: str) -> bytes:
        """A new active snapshot on the target's parent; the answer."""
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=self._target.snapshotter, key=key, parent=self._target.parent, labels=KEPT
        )
        return self._call("Prepare", request.SerializeToString())

    def unpack(self, blob: descriptor_pb2.Descriptor, name: str) -> None:
        """Make a committed snapshot of a blob, by the differ, on the target's parent."""
        mounts = snapshots_pb2.PrepareSnapshotResponse.FromString(self.prepare(f"{name} new"))
        apply = self._channel.unary_unary("/containerd.services.diff.v1.Diff/Apply")
        request = diff_pb2.ApplyRequest(diff=blob, mounts=mounts.mounts)
        apply(request.SerializeToString(), metadata=METADATA, timeout=60)
        commit = snapshots_pb2.CommitSnapshotRequest(key=f"{name} new", name=name, labels=KEPT)
        self._call("Commit", commit.SerializeToString())

    def _call(self, method: str, request: bytes) -> bytes:
        answer: bytes = self._calls[method](
            request, metadata=METADATA, timeout=60, wait_for_ready=True
        )
        return answer


class Callers:
    """Clients in their processes."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes
        self._serial = 0

    def run(self, target: Target, cycles: int, *, keep: bool = False) -> float:
        """Let all of them at once do ``cycles`` cycles each, or prepares alone; the seconds."""
        self._serial += 1
        for number, process in enumerate(self._processes):
            key = f"run {self._serial} client {number}"
            task = {**asdict(target), "cycles": cycles, "key": key, "keep": keep}
            _say(process, json.dumps(task))
        for process in self._processes:
            _hear(process)  # connected
        start = time.perf_counter()
        for process in self._processes:
            _say(process, "go")
        for process in self._processes:
            _hear(process)
        return time.perf_counter() - start


@contextmanager
def callers(count: int) -> Iterator[Callers]:
    """Some clients; they end with the block."""
    argv = [sys.executable, "-m", "benchmarks.callers"]
    with ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            stack.callback(process.wait)
            assert process.stdin
            stack.callback(process.stdin.close)  # which ends it
            processes.append(process)
        yield Callers(processes)


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin
    process.stdin.write(f"{line}\n")


def _hear(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    if not process.stdout.readline():
        raise SystemExit("a client has failed")


def main() -> None:
    """Do what is told, until nothing is."""
    for line in sys.stdin:
        task = json.loads(line)
        key, cycles, keep = (task.pop(name) for name in ("key", "cycles", "keep"))
        client = Client(Target(**task))
        client.cycle(f"{key} first")
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(cycles):
            (client.prepare if keep else client.cycle)(f"{key} {number}")
        print("done", flush=True)
        client.close()


def layout_blobs(layout: Path) -> list[descriptor_pb2.Descriptor]:
    """The layers of the one image in an OCI image layout, bottom first."""

    def read(digest: str) -> dict[str, list[dict[str, str]]]:
        found: dict[str, list[dict[str, str]]] = json.loads(
            (layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_text()
        )
        return found

    index = json.loads((layout / "index.json").read_text())
    layers = read(index["manifests"][0]["digest"])["layers"]
    return [
        descriptor_pb2.Descriptor(
            media_type=layer["mediaType"], digest=layer["digest"], size=int(layer["size"])
        )
        for layer in layers
    ]


if __name__ == "__main__":
    main()
