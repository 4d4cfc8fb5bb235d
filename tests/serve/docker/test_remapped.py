"""Debian's dockerd with ``--userns-remap``: containers whose root is nobody on the host."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lamina.drivers.registry import names
from tests import daemons, support
from tests.daemons import Docker
from tests.sandbox.roots import make_small_root
from tests.serve.docker.plugin import running
from tests.serve.docker.test_dockerd import PLUGINS, Machine

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

DRIVERS = names()

USER = "daemon"  # Debian has it everywhere
FIRST, COUNT = 1_200_000, 65_536
PROGRAMS = (
    "cat", "chmod", "chown", "echo", "id", "ln", "ls", "mkdir", "mv", "rm", "sh", "sleep", "stat",
    "touch",
)  # fmt: skip
LIST = "stat -c '%u:%g %n' /theirs /theirs/f /theirs/link /etc/motd"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tar of a small root with owners."""
    root = tmp_path_factory.mktemp("base") / "root"
    make_small_root(root, PROGRAMS)
    (root / "etc").mkdir()
    (root / "etc/motd").write_text("hello\n")
    (root / "etc/gone").write_text("gone\n")
    (root / "theirs").mkdir()
    (root / "theirs/f").write_text("theirs\n")
    (root / "theirs/f").chmod(0o640)
    (root / "theirs/link").symlink_to("f")
    for path, uid, gid in (("theirs", 33, 44), ("theirs/f", 1000, 1001), ("theirs/link", 5, 6)):
        os.chown(root / path, uid, gid, follow_symlinks=False)
    (root / "secret").write_text("read\n")
    (root / "secret").chmod(0o600)
    shutil.copy2(root / "bin/cat", root / "bin/able")
    support.run("setcap", "cap_dac_override+ep", root / "bin/able")
    archive = root.with_suffix(".tar")
    options = ["--sort=name", "--xattrs", "--xattrs-include=security.capability"]
    subprocess.run(["tar", "-C", root, *options, "-cf", archive, "."], check=True)
    return archive


@pytest.fixture
def reachable(ground: Path) -> Iterator[Path]:
    """A directory that everybody can pass through to, which Docker wants for its data."""
    path = Path(tempfile.mkdtemp(prefix="remapped-", dir=ground))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def subordinate_ids(tmp_path: Path) -> Iterator[None]:
    """One more line in /etc/subuid and /etc/subgid, for as long as something is mounted there."""
    with ExitStack() as stack:
        for place in (Path("/etc/subuid"), Path("/etc/subgid")):
            if not place.exists():
                support.missing(f"needs {place} (Debian: passwd)")
            lines = [
                line for line in place.read_text().splitlines() if not line.startswith(f"{USER}:")
            ]
            more = tmp_path / place.name
            more.write_text("\n".join([*lines, f"{USER}:{FIRST}:{COUNT}", ""]))
            support.run("mount", "--bind", more, place)
            stack.callback(support.run, "umount", place)
        yield


@pytest.fixture
def box(
    works: str, reachable: Path, run: Path, base: Path, subordinate_ids: None
) -> Iterator[Machine]:
    daemons.need()
    support.need("setcap")
    with ExitStack() as stack:
        PLUGINS.mkdir(parents=True, exist_ok=True)
        socket = PLUGINS / f"lamina-test-{os.getpid()}.sock"
        plugin = stack.enter_context(running(socket, reachable, run, "--driver", works))
        data = reachable / "docker"
        docker = stack.enter_context(
            daemons.dockerd(data, socket.stem, more=["--experimental", f"--userns-remap={USER}"])
        )
        made = Machine(docker, plugin, data / f"{FIRST}.{FIRST}" / socket.stem)
        docker("import", base, "base:1")
        yield made
        for id in docker("ps", "-aq").split():
            docker("rm", "-f", id)
        assert made.mounts() == []


def said(docker: Docker, image: str, script: str, *options: str) -> list[str]:
    """What a shell in a container prints."""
    argv = ("run", *options, "--network", "none", image, "sh", "-c", script)
    return docker(*argv).splitlines()


def test_a_container_sees_the_owners_of_the_image(box: Machine) -> None:
    found = said(box.docker, "base:1", f"id -u; {LIST}; cat /proc/self/uid_map", "--rm")
    assert found[0] == "0"
    assert found[1:5] == [
        "33:44 /theirs",
        "1000:1001 /theirs/f",
        "5:6 /theirs/link",
        "0:0 /etc/motd",
    ]
    assert found[5].split() == ["0", str(FIRST), str(COUNT)]


def test_what_a_container_does_is_committed_saved_and_loaded(box: Machine, tmp_path: Path) -> None:
    docker = box.docker
    script = (
        "echo new > /new; chown 7:8 /new; echo more >> /theirs/f; chown 9:10 /theirs/link -h;"
        f"mkdir /mine; touch /mine/a; rm /etc/gone; ln /etc/motd /etc/second; {LIST} /new /mine"
    )
    found = said(docker, "base:1", script, "--name", "c1")
    expected = [
        "33:44 /theirs", "1000:1001 /theirs/f", "9:10 /theirs/link", "0:0 /etc/motd", "7:8 /new",
        "0:0 /mine",
    ]  # fmt: skip
    assert found == expected
    diff = docker.lines("diff", "c1")
    assert {"A /new", "C /theirs/f", "C /theirs/link", "A /mine/a", "D /etc/gone"} <= set(diff)
    docker("commit", "c1", "next:1")
    again = f"{LIST} /new /mine; cat /theirs/f; ls /etc"
    shown = [*expected, "theirs", "more", *sorted(["motd", "second", "hosts", "hostname",
             "mtab", "resolv.conf"])]  # fmt: skip
    assert said(docker, "next:1", again, "--rm") == shown
    docker("rm", "c1")
    docker("save", "-o", tmp_path / "saved.tar", "next:1", "base:1")
    assert _owner_in(tmp_path / "saved.tar", "theirs/f") == {(1000, 1001)}
    docker("rmi", "next:1", "base:1")
    assert box.layers() == []
    docker("load", "-i", tmp_path / "saved.tar")
    assert said(docker, "next:1", again, "--rm") == shown
    docker("rmi", "next:1", "base:1")
    assert box.layers() == []


def _owner_in(archive: Path, name: str) -> set[tuple[int, int]]:
    """Whose a file is in the layers of a saved image."""
    found = set()
    with tarfile.open(archive) as outer:
        for member in outer:
            if not member.name.endswith("layer.tar"):
                continue
            with tarfile.open(fileobj=outer.extractfile(member)) as layer:
                found |= {
                    (entry.uid, entry.gid)
                    for entry in layer
                    if entry.name.removeprefix("./") == name
                }
    return found


def test_a_file_capability_counts_inside(box: Machine) -> None:
    docker = box.docker
    script = "cat /secret 2> /dev/null; able /secret"
    assert said(docker, "base:1", script, "--rm", "-u", "33:33") == ["read"]
    said(docker, "base:1", "touch -d 2001-01-01 /bin/able; chmod 711 /bin/able", "--name", "c1")
    docker("commit", "c1", "next:1")
    assert said(docker, "next:1", script, "--rm", "-u", "33:33") == ["read"]


def test_files_on_the_host_are_the_mapped_users(box: Machine, tmp_path: Path) -> None:
    docker = box.docker
    script = "touch /mine; chown 3:4 /mine; echo 1 >> /theirs/f; echo ready; sleep 600"
    docker("run", "-d", "--name", "long", "--network", "none", "base:1", "sh", "-c", script)
    while docker("logs", "long") != "ready\n":
        time.sleep(0.05)
    id = docker.inspect("long")[0]["Id"]
    mount = (
        box.home.parent / f"image/{box.plugin.socket.stem}/layerdb/mounts/{id}/mount-id"
    ).read_text()
    root = Path(box.plugin.call("GraphDriver.Get", ID=mount)["Dir"])
    for name, uid, gid in (("theirs", 33, 44), ("theirs/f", 1000, 1001), ("mine", 3, 4)):
        status = (root / name).stat()
        assert (status.st_uid, status.st_gid) == (FIRST + uid, FIRST + gid), name
    (tmp_path / "in").write_text("put in\n")
    docker("cp", tmp_path / "in", "long:/put")
    docker("cp", "long:/theirs/f", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "theirs\n1\n"
    assert docker("exec", "long", "cat", "/put") == "put in\n"
    box.plugin.call("GraphDriver.Put", ID=mount)
    docker("rm", "-f", "long")


def test_an_image_with_an_owner_outside_of_the_map_is_refused(box: Machine, tmp_path: Path) -> None:
    before = set(box.layers())
    with tarfile.open(tmp_path / "far.tar", "w") as archive:
        entry = tarfile.TarInfo("far")
        entry.uid = COUNT
        archive.addfile(entry)
    done = subprocess.run(
        ["/usr/bin/docker", "import", tmp_path / "far.tar", "far:1"],
        env=box.docker.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode
    assert f"user id {COUNT} has no place on the host" in done.stderr
    assert set(box.layers()) == before


def test_a_plugin_that_restarts_knows_the_owners(box: Machine) -> None:
    for end in (box.plugin.kill, box.plugin.stop):
        end()
        box.plugin.start()
        assert said(box.docker, "base:1", LIST, "--rm")[1] == "1000:1001 /theirs/f"
