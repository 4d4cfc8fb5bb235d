"""The differ, with the content store of Debian's containerd.

containerd 1.6 has no proxies for differs (1.7 does), so that the test calls ours as that would.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from lamina.archive.compression import Compression, compress
from lamina.drivers.base import Mount
from lamina.serve.containerd.api import content_pb2, descriptor_pb2, diff_pb2, mount_pb2
from lamina.serve.containerd.server import Options, running
from lamina.store.snapshots import Snapshots
from lamina.types import LayerId
from tests import daemons, support
from tests.mounting import mounted
from tests.oci.images import tar
from tests.serve.containerd.client import Client
from tests.serve.containerd.conftest import Ground

DIFF = "/containerd.services.diff.v1.Diff"
LAYER = "application/vnd.oci.image.layer.v1.tar"
NAMESPACE = (("containerd-namespace", "default"),)
FIRST = {"kept": b"first", "deleted": b"first", "replaced": b"first", "big": b"x" * 3_000_000}
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def containerd() -> Iterator[daemons.Containerd]:
    with daemons.containerd() as found:
        yield found


KEPT = {"containerd.io/gc.root": "now"}
"""What keeps content that no image names from containerd's garbage collection."""


@dataclass
class Differ:
    """Our differ, and the containerd that it reads from and writes to."""

    client: Client
    containerd: daemons.Containerd

    def put(self, data: bytes) -> descriptor_pb2.Descriptor:
        """Have containerd keep a blob."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        support.run(
            "ctr", "--address", self.containerd.socket, "content", "ingest",
            "--expected-digest", digest, f"ref-{digest}", input=data,
        )  # fmt: skip
        self.containerd("content", "label", digest, *(f"{k}={v}" for k, v in KEPT.items()))
        return descriptor_pb2.Descriptor(media_type=LAYER, digest=digest, size=len(data))

    def get(self, digest: str) -> bytes:
        done = support.run("ctr", "--address", self.containerd.socket, "content", "get", digest)
        return done.stdout

    def apply(self, blob: descriptor_pb2.Descriptor, mounts: list[Mount], **more: Any) -> Any:
        request = diff_pb2.ApplyRequest(diff=blob, mounts=messages(mounts), **more)
        return self._call("Apply", request, diff_pb2.ApplyResponse).applied

    def diff(self, left: list[Mount], right: list[Mount], **more: Any) -> Any:
        request = diff_pb2.DiffRequest(left=messages(left), right=messages(right), **more)
        return self._call("Diff", request, diff_pb2.DiffResponse).diff

    def _call(self, method: str, request: Any, answer: Any) -> Any:
        call = self.client.channel.unary_unary(
            f"{DIFF}/{method}", type(request).SerializeToString, answer.FromString
        )
        return call(request, metadata=NAMESPACE, timeout=60, wait_for_ready=True)


def messages(mounts: list[Mount]) -> list[mount_pb2.Mount]:
    return [mount_pb2.Mount(type=m.type, source=m.source, options=m.options) for m in mounts]


@pytest.fixture(params=["by path", "by service"])
def differ(
    request: pytest.FixtureRequest,
    ground: Ground,
    store: Snapshots,
    containerd: daemons.Containerd,
) -> Iterator[Differ]:
    content = containerd.content if request.param == "by path" else None
    options = Options(ground.socket, content_root=content, containerd=containerd.socket)
    with running(store, options):
        client = Client(ground.socket)
        try:
            yield Differ(client, containerd)
        finally:
            client.close()


def second() -> bytes:
    """A layer that deletes and replaces what the first has."""
    return tar({".wh.deleted": b"", "replaced": b"second", "dir/new": b"second"})


def code(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    assert isinstance(error.value, grpc.Call)
    found: grpc.StatusCode = error.value.code()
    return found


def seen(client: Client, name: str, at: Path) -> dict[str, bytes]:
    with mounted(client.view("looking", name), at) as root:
        found = {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }
    client.remove("looking")
    return found


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_layers_are_applied(differ: Differ, tmp_path: Path, compression: str) -> None:
    client, parent = differ.client, ""
    for number, plain in enumerate((tar(FIRST), second())):
        blob = differ.put(b"".join(compress([plain], Compression(compression))))
        if compression != "none":
            blob.media_type += f"+{compression}"
        applied = differ.apply(blob, client.prepare("extract", parent))
        assert applied.digest == f"sha256:{hashlib.sha256(plain).hexdigest()}"
        assert applied.size == len(plain)
        assert applied.media_type == LAYER
        client.commit(f"layer {number}", "extract")
        parent = f"layer {number}"
    assert seen(client, "layer 0", tmp_path / "a") == FIRST
    assert seen(client, parent, tmp_path / "b") == {
        "kept": FIRST["kept"], "big": FIRST["big"], "replaced": b"second", "dir/new": b"second",
    }  # fmt: skip
    assert client.usage("layer 0").size >= 3_000_000


@contextmanager
def written(differ: Differ, at: Path) -> Iterator[None]:
    """A snapshot ``box`` on the layer ``base``, with some changes, and a view of the base."""
    client = differ.client
    differ.apply(differ.put(tar(FIRST)), client.prepare("extract"))
    client.commit("base", "extract")
    with mounted(client.prepare("box", "base"), at) as root:
        (root / "deleted").unlink()
        (root / "replaced").write_bytes(b"box")
        (root / "new").write_bytes(b"box")
        yield


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_what_changed_becomes_a_blob(differ: Differ, tmp_path: Path, compression: str) -> None:
    client = differ.client
    with written(differ, tmp_path / "box"):
        pass
    told = differ.diff(
        client.view("base view", "base"), client.mounts("box"),
        media_type=f"{LAYER}+{compression}" if compression else LAYER,
        ref=f"my diff {compression} {tmp_path}", labels={"team": "blue"},
    )  # fmt: skip
    data = differ.get(told.digest)
    assert len(data) == told.size
    assert told.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    applied = differ.apply(told, client.prepare("again", "base"))
    listed = differ.containerd("content", "ls", f"digest=={told.digest}")
    assert "team=blue" in listed
    assert (f"containerd.io/uncompressed={applied.digest}" in listed) == bool(compression)
    client.commit("again committed", "again")
    assert seen(client, "again committed", tmp_path / "a") == {
        "kept": FIRST["kept"], "big": FIRST["big"], "replaced": b"box", "new": b"box",
    }  # fmt: skip


def test_a_diff_holds_what_changed_and_no_more(differ: Differ, tmp_path: Path) -> None:
    with written(differ, tmp_path / "box"):
        pass
    told = differ.diff(differ.client.view("v", "base"), differ.client.mounts("box"))
    assert told.media_type == f"{LAYER}+gzip"
    with tarfile.open(fileobj=io.BytesIO(differ.get(told.digest))) as archive:
        names = {m.name.strip("./") for m in archive if not m.isdir()}
    assert names == {"wh.deleted", "replaced", "new"}


def test_the_same_diff_twice_is_one_blob(differ: Differ, tmp_path: Path) -> None:
    with written(differ, tmp_path / "box"):
        pass
    left, right = differ.client.view("v", "base"), differ.client.mounts("box")
    assert differ.diff(left, right) == differ.diff(left, right)


def test_a_diff_against_nothing_is_everything(differ: Differ, tmp_path: Path) -> None:
    with written(differ, tmp_path / "box"):
        pass
    told = differ.diff(differ.client.view("nothing"), differ.client.view("v", "base"))
    with tarfile.open(fileobj=io.BytesIO(differ.get(told.digest))) as archive:
        assert {m.name.strip("./") for m in archive if not m.isdir()} == set(FIRST)


def test_a_diff_that_no_image_names_yet_is_not_collected(differ: Differ) -> None:
    client, ctr = differ.client, differ.containerd
    made = differ.diff([], client.prepare("box", ""))
    ctr("leases", "create", "--id", "other")
    ctr("leases", "rm", "--sync", "other")
    assert hashlib.sha256(differ.get(made.digest)).hexdigest() == made.digest.partition(":")[2]


@pytest.mark.allow_log("call failed")
@pytest.mark.parametrize("damage", ["cut", "changed", "size", "not there"])
def test_a_blob_that_is_not_what_it_should_be(differ: Differ, tmp_path: Path, damage: str) -> None:
    client = differ.client
    plain = tar({"a": b"a" * 100_000, "b": damage.encode()})
    packed = b"".join(compress([plain], Compression.GZIP))
    blob = differ.put(packed if damage != "cut" else packed[: len(packed) // 2])
    blob.media_type += "+gzip"
    if damage == "size":
        blob.size += 1
    if damage == "not there":
        blob.digest = f"sha256:{'0' * 64}"
    if damage == "changed":
        path = differ.containerd.content / "blobs/sha256" / blob.digest.removeprefix("sha256:")
        path.chmod(0o644)
        path.write_bytes(b"".join(compress([plain + bytes(512)], Compression.GZIP)))
    mounts = client.prepare("extract")
    with pytest.raises(grpc.RpcError) as error:
        differ.apply(blob, mounts)
    assert code(error) in (
        grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.NOT_FOUND,
    )  # fmt: skip
    with mounted(client.mounts("extract"), tmp_path / "m") as root:
        assert list(root.iterdir()) == []


def test_what_another_differ_is_to_do(differ: Differ, tmp_path: Path) -> None:
    blob = differ.put(tar(FIRST))
    ours = differ.client.prepare("extract")
    foreign = [Mount("bind", str(tmp_path), ("rbind", "rw"))]
    nearly = [ours[0]._replace(source=f"{ours[0].source}/../.."), *ours[1:]]
    odd = descriptor_pb2.Descriptor(media_type="application/x", digest=blob.digest, size=blob.size)
    calls: list[Callable[[], Any]] = [
        lambda: differ.apply(blob, foreign),
        lambda: differ.apply(blob, nearly),
        lambda: differ.apply(blob, []),
        lambda: differ.apply(odd, ours),
        lambda: differ.diff(foreign, ours),
        lambda: differ.diff([], foreign),
        lambda: differ.diff([], ours, media_type="application/x"),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert code(error) is grpc.StatusCode.UNIMPLEMENTED
    assert list(tmp_path.glob("kept")) == []


def test_a_snapshot_that_is_removed_meanwhile(differ: Differ, store: Snapshots) -> None:
    blob, mounts = differ.put(tar(FIRST)), differ.client.prepare("extract")
    store.driver.release_mounts(LayerId("1"))
    store.driver.remove(LayerId("1"))
    with pytest.raises(grpc.RpcError) as error:
        differ.apply(blob, mounts)
    assert code(error) is grpc.StatusCode.UNIMPLEMENTED


def test_a_view_is_not_written(differ: Differ) -> None:
    blob = differ.put(tar(FIRST))
    view = differ.client.view("view")
    with pytest.raises(grpc.RpcError) as error:
        differ.apply(blob, view)
    assert code(error) is grpc.StatusCode.FAILED_PRECONDITION


def test_what_fuse_overlayfs_shows_a_client_is_not_unpacked_into(
    differ: Differ, ground: Ground, tmp_path: Path
) -> None:
    if ground.driver != "aufs":
        pytest.skip("the driver does not know who has mounted what it tells")
    client, blob = differ.client, differ.put(tar(FIRST))
    client.prepare("base")
    client.commit("base layer", "base")
    mounts = client.prepare("extract", "base layer")
    with mounted(mounts, tmp_path / "m") as root:
        with pytest.raises(grpc.RpcError) as error:
            differ.apply(blob, mounts)
        assert code(error) is grpc.StatusCode.FAILED_PRECONDITION
        assert list(root.iterdir()) == []
    differ.apply(blob, mounts)


def test_what_another_writes_under_a_ref_is_left_alone(differ: Differ) -> None:
    mounts = differ.client.prepare("extract")
    data = b"another's"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    requests: SimpleQueue[content_pb2.WriteContentRequest | None] = SimpleQueue()
    with grpc.insecure_channel(f"unix:{differ.containerd.socket}") as channel:
        write = channel.stream_stream(
            "/containerd.services.content.v1.Content/Write",
            content_pb2.WriteContentRequest.SerializeToString,
            content_pb2.WriteContentResponse.FromString,
        )
        answers = write(iter(requests.get, None), metadata=NAMESPACE, timeout=60)
        requests.put(content_pb2.WriteContentRequest(action="WRITE", ref="taken", data=data))
        next(answers)
        with pytest.raises(grpc.RpcError) as error:
            differ.diff([], mounts, ref="taken")
        assert code(error) is grpc.StatusCode.UNAVAILABLE
        requests.put(
            content_pb2.WriteContentRequest(
                action="COMMIT", ref="taken", offset=len(data), expected=digest, labels=KEPT
            )
        )
        next(answers)
        requests.put(None)
    assert differ.get(digest) == data
    support.run("ctr", "--address", differ.containerd.socket, "content", "rm", digest)


def test_a_debian_root_is_what_gnu_tar_makes_of_it(
    differ: Differ, debian_root: Path, tmp_path: Path
) -> None:
    """A Debian root by our differ, and by GNU tar: the same files, owners and times."""
    blob = differ.put(debian_root.read_bytes())
    differ.apply(blob, differ.client.prepare("extract"))
    plain = tmp_path / "plain"
    plain.mkdir()
    support.run("tar", "-xpf", debian_root, "-C", plain, "--numeric-owner")
    with mounted(differ.client.mounts("extract"), tmp_path / "m") as root:
        script = "find . -printf '%p %y %m %U %G %l %T@\\n' | grep -v '^. d' | sort"
        assert (
            support.run("sh", "-c", script, cwd=root).stdout.decode().splitlines()
            == support.run("sh", "-c", script, cwd=plain).stdout.decode().splitlines()
        )
