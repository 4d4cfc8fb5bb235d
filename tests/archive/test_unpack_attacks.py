"""Unpacking while another process changes the tree, as a user, on full and other file systems."""

from __future__ import annotations

import io
import os
import resource
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamina.archive.fold import fold
from lamina.archive.owners import Inner, Root, Single
from lamina.archive.tar import Entry, TarReader
from lamina.archive.unpack import UnpackOptions, unpack
from lamina.archive.whiteout import OVERLAY, OVERLAY_USER
from lamina.errors import InvalidArchive
from lamina.kernel.idmap import IdMap
from lamina.kernel.rename import RENAME_EXCHANGE, renameat2
from tests import support
from tests.archive.tars import (
    archive,
    device,
    directory,
    fifo,
    file,
    hardlink,
    symlink,
    unpacked,
)
from tests.archive.trees import describe, differences
from tests.users import User

# --- races


@contextmanager
def meanwhile(action: Any) -> Iterator[None]:
    """Another process that does ``action()`` again and again."""
    pid = os.fork()
    if pid == 0:
        while True:
            try:
                action()
            except OSError:
                pass
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def remove(path: Path) -> None:
    """``rm -rf``, again while a swap that was under way still changes what it removes."""
    for _ in range(20):
        subprocess.run(["rm", "-rf", path], check=False, capture_output=True)
        if not os.path.lexists(path):
            return
    raise AssertionError(f"{path} can't be removed")


@pytest.mark.root
@pytest.mark.parametrize("swapped", ["d", "d/e", "d/e/f"])
def test_a_directory_swapped_for_a_link_leads_nowhere(tmp_path: Path, swapped: str) -> None:
    """A directory of the layer and a link to the outside trade places all the time."""
    outside = tmp_path / "outside"
    (outside / "e/f").mkdir(parents=True)
    for level in (outside, outside / "e", outside / "e/f"):
        (level / "victim").write_text("mine")
        (level / "f").mkdir(exist_ok=True)
    before = describe(outside)
    entries = [directory("d"), directory("d/e"), directory("d/e/f")]
    for number in range(40):
        for place in ("d", "d/e", "d/e/f"):
            entries += [
                file(f"{place}/new{number}", b"yours", mode=0o4777, uid=1),
                file(f"{place}/victim", b"yours", mode=0o777, uid=1),
                symlink(f"{place}/link{number}", "victim", uid=1),
                hardlink(f"{place}/hard{number}", f"{place}/victim"),
                fifo(f"{place}/fifo{number}", mode=0o7777),
                directory(f"{place}/sub{number}", 0o777, uid=1, xattrs={"user.x": b"y"}),
                file(f"{place}/.wh.gone{number}"),
                file(f"{place}/f", b"instead of a directory"),
                directory(place, 0o777, uid=1),
            ]
        entries.append(directory(f"elsewhere{number}"))
    data = archive(*entries)
    link = tmp_path / "link"
    link.symlink_to(outside / swapped[2:])
    root = tmp_path / "root"
    swap = root / swapped
    outcomes = set()
    end = time.monotonic() + 3
    with meanwhile(lambda: renameat2(swap, link, RENAME_EXCHANGE)):
        while time.monotonic() < end:
            root.mkdir()
            try:
                unpack(io.BytesIO(data), root, fmt=OVERLAY)
                outcomes.add("unpacked")
            except (InvalidArchive, OSError):
                outcomes.add("refused")
            os.rename(root, tmp_path / "done")  # in one step: the other process loses it
            remove(tmp_path / "done")
            if not link.is_symlink():
                remove(link)
                link.symlink_to(outside / swapped[2:])
            assert differences(describe(outside), before) == []
    assert "refused" in outcomes  # else nothing was raced


@pytest.mark.root
def test_folding_is_as_safe(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "e").mkdir(parents=True)
    (outside / "victim").write_text("mine")
    (outside / "e/victim").write_text("mine")
    before = describe(outside)
    layer = tmp_path / "layer"
    names = [f"d/{place}{n}" for n in range(50) for place in ("", "e/")]
    unpacked(
        layer,
        directory("d", 0o777, uid=1),
        directory("d/e", 0o777, uid=1),
        *(file(name, b"x") for name in names),
        file("d/.wh.victim"),
        file("d/e/.wh.victim"),
    )
    link, tree = tmp_path / "link", tmp_path / "tree"
    link.symlink_to(outside)
    end = time.monotonic() + 3
    with meanwhile(lambda: renameat2(tree / "d", link, RENAME_EXCHANGE)):
        while time.monotonic() < end:
            try:
                (tree / "d/e").mkdir(parents=True)
                fold([layer], OVERLAY, tree)
            except OSError:
                pass
            os.rename(tree, tmp_path / "done")
            remove(tmp_path / "done")
            if not link.is_symlink():
                remove(link)
                link.symlink_to(outside)
            assert differences(describe(outside), before) == []


# --- who is not root

CAPABILITY = b"\1\0\0\2" + bytes(16)
USER_ENTRIES = [
    directory(".", 0o755),
    directory("closed", 0o555, uid=0),
    file("closed/file", b"x", mode=0o4444, uid=1000, gid=7),
    directory("closed/none", 0),
    file("closed/none/file", b"x", mode=0),
    file("closed/none/file", b"again", mode=0),
    file("closed/.wh.gone"),
    device("null", 1, 3),
    fifo("fifo"),
    symlink("link", "closed", uid=5),
    file(
        "xattr", b"x", xattrs={"user.a": b"1", "trusted.b": b"2", "security.capability": CAPABILITY}
    ),
]


def unpack_as_user() -> None:
    warnings: list[str] = []
    told: list[bytes] = []
    root = Path("layer").absolute()
    unpacked(
        root,
        *USER_ENTRIES,
        fmt=OVERLAY_USER,
        warn=warnings.append,
        on_superseded=lambda name, fd: told.append(name + b"=" + os.read(fd, 9)),
    )
    modes = {name: stat.S_IMODE((root / name).lstat().st_mode) for name in ("closed", "xattr")}
    assert modes == {"closed": 0o555, "xattr": 0o644}
    assert told == [b"closed/none/file=x"]
    (root / "closed").chmod(0o755)
    assert stat.S_IMODE((root / "closed/file").stat().st_mode) == 0o4444
    assert stat.S_IMODE((root / "closed/none").stat().st_mode) == 0
    (root / "closed/none").chmod(0o755)
    (root / "closed/none/file").chmod(0o644)
    tree = describe(root)
    assert sorted(tree) == [
        b"", b"closed", b"closed/file", b"closed/gone", b"closed/none", b"closed/none/file",
        b"fifo", b"link", b"xattr",
    ]  # fmt: skip
    assert {about["owner"] for about in tree.values()} == {(os.getuid(), os.getgid())}
    assert tree[b"xattr"]["xattrs"] == {"user.a": b"1"}
    assert tree[b"closed/none/file"]["content"][1] == 5
    kinds = sorted(warning.split(" is left")[0].split(" are left")[0] for warning in warnings)
    assert kinds == ["attribute security.capability", "attribute trusted.b", "devices"]


def test_an_ordinary_user_unpacks_what_it_can(ordinary_user: User) -> None:
    ordinary_user.call(unpack_as_user)


def test_so_does_root_of_a_namespace_with_one_id(ordinary_user: User) -> None:
    program = "from tests.archive.test_unpack_attacks import unpack_in_namespace as it; it()"
    done = ordinary_user.run(
        ["unshare", "--user", "--map-root-user", ordinary_user.python, "-c", program]
    )
    assert done.returncode == 0, done.stderr.decode()


def unpack_in_namespace() -> None:
    from lamina.archive import owners

    assert type(owners.for_process(IdMap())) is owners.Single
    warnings: list[str] = []
    root = Path("layer").absolute()
    unpacked(root, *USER_ENTRIES[:-1], fmt=OVERLAY_USER, warn=warnings.append)
    assert (root / "closed/none/file").read_bytes() == b"again"
    assert {about["owner"] for about in describe(root).values()} == {(0, 0)}
    (root / "closed").chmod(0o755)
    (root / "closed/none").chmod(0o755)


@pytest.mark.root
def test_the_policy_fits_the_process(ordinary_user: User) -> None:
    from lamina.archive import owners

    assert type(owners.for_process(IdMap())) is Root
    assert ordinary_user.call(lambda: type(owners.for_process(IdMap())).__name__) == Single.__name__
    assert issubclass(Inner, owners.Owners)


# --- full disks and odd file systems


@pytest.mark.root
def test_no_inodes_left_is_an_oserror_with_the_entry(tmpfs_small: Path) -> None:
    with pytest.raises(OSError, match="'d/f") as caught:
        unpacked(tmpfs_small / "l", *(file(f"d/f{n}") for n in range(2000)))
    assert caught.value.errno == 28


@pytest.mark.root
def test_a_read_only_file_system_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "l").mkdir()
    support.run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path / "l")
    try:
        with pytest.raises(OSError) as caught:
            unpack(io.BytesIO(archive(file("f", b"x"))), tmp_path / "l", fmt=OVERLAY)
        assert caught.value.errno == 30
    finally:
        support.run("umount", tmp_path / "l")


@pytest.mark.root
@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_every_file_system_gets_the_same(
    filesystem: str, request: pytest.FixtureRequest, debian_root: Path, ext4: Path
) -> None:
    place: Path = request.getfixturevalue(filesystem)
    (place / "ours").mkdir()
    (ext4 / "theirs").mkdir(exist_ok=True)
    with debian_root.open("rb") as stream:
        unpack(stream, place / "ours", fmt=OVERLAY)
    support.run("tar", "--xattrs", "--xattrs-include=*", "-C", ext4 / "theirs", "-xf", debian_root)
    assert differences(describe(place / "ours"), describe(ext4 / "theirs")) == []


# --- size of things


@pytest.mark.root
def test_memory_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    def peak(count: int, root: Path) -> int:
        """Peak memory, in KiB, that ``count`` directories of one file each need."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                reader, writer = os.pipe()
                if os.fork() == 0:
                    os.close(reader)
                    with os.fdopen(writer, "wb") as pipe:
                        for number in range(count):
                            name = f"d{number % 50}/directory-{number}"
                            pipe.write(archive(directory(name), file(f"{name}/f", b"x"))[:-1024])
                        pipe.write(bytes(1024))
                    os._exit(0)
                os.close(writer)
                root.mkdir()
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                with os.fdopen(reader, "rb") as pipe:
                    unpack(pipe, root, fmt=OVERLAY)
                os.wait()
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                (root.parent / f"{root.name}.peak").write_text(str(grown))
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        return int((root.parent / f"{root.name}.peak").read_text())

    few, many = peak(200, tmp_path / "few"), peak(8000, tmp_path / "many")
    assert many < few + 1500


@pytest.mark.root
def test_descriptors_do_not_grow_with_the_archive(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        entries = [file(f"a/{n}/b/{n}/f", b"x") for n in range(300)]
        unpacked(tmp_path / "l", *entries, file("a", b"instead"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir(tmp_path / "l") == ["a"]


# --- anything at all

NAMES = st.sampled_from(
    [
        "a",
        "b",
        "a/a",
        "a/b",
        "b/a",
        "a/b/a",
        "./a",
        "/b",
        "a/../b",
        ".",
        "a/",
        "c/../../x",
        "link/a",
    ]
)
MARKS = st.sampled_from([".wh.a", "a/.wh.b", "b/.wh..wh..opq", ".wh..wh..opq", ".wh.b", "a/.wh."])
TARGETS = st.sampled_from(["a", "b", "a/b", "/", "..", "../outside", "/etc/passwd", "."])
ENTRIES = st.one_of(
    st.builds(file, NAMES, st.binary(max_size=20), mode=st.integers(0, 0o7777)),
    st.builds(directory, NAMES, st.integers(0, 0o7777)),
    st.builds(symlink, st.one_of(NAMES, st.just("link")), TARGETS),
    st.builds(hardlink, NAMES, TARGETS),
    st.builds(fifo, NAMES),
    st.builds(file, MARKS),
)


@pytest.mark.root
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(entries=st.lists(ENTRIES, max_size=12), lower=st.lists(ENTRIES, max_size=4))
def test_any_archive_is_unpacked_or_refused_and_nothing_else_is_touched(
    tmp_path: Path, entries: list[tuple[Entry, bytes]], lower: list[tuple[Entry, bytes]]
) -> None:
    ground = tmp_path / "ground"
    support.run("rm", "-rf", ground)
    (ground / "outside").mkdir(parents=True)
    (ground / "outside/f").write_text("mine")
    before = describe(ground / "outside")
    below = ground / "below"
    try:
        unpacked(below, *lower)
    except InvalidArchive:
        lower = []
    told = []
    options: dict[str, Any] = {"on_superseded": lambda name, fd: told.append((name, fd))}
    try:
        result = unpacked(ground / "layer", *entries, lowers=(below,) if lower else None, **options)
    except InvalidArchive as error:
        assert error.entry in {entry.name for entry, _ in entries}
    else:
        tree = describe(ground / "layer")
        files = [about for path, about in tree.items() if about.get("same as") == path]
        assert result.size == sum(about["content"][1] for about in files if "content" in about)
        assert result.entries == len(entries)
        assert result.superseded == len(told)
        assert not any(b".wh." in path for path in tree)
    assert sorted(os.listdir(ground)) == sorted({"outside", "below", "layer"})
    assert differences(describe(ground / "outside"), before) == []


@pytest.mark.root
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_garbled_archive_is_unpacked_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    root = tmp_path / "root"
    support.run("rm", "-rf", root)
    root.mkdir()
    garbled = bytearray(
        archive(directory("d"), file("d/f", b"x" * 700, xattrs={"user.a": b"b"}), symlink("s", "d"))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        garbled[data.draw(st.integers(0, len(garbled) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpack(
            TarReader(io.BytesIO(bytes(garbled))),
            root,
            fmt=OVERLAY,
            options=UnpackOptions(warn=lambda _: None, devices="skip"),
        )
    except InvalidArchive:
        pass
