"""Debian's dockerd keeps its layers with the plugin, as well as it does itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lamina.drivers.registry import names
from tests import daemons
from tests.adopt import conftest as aufs_store
from tests.daemons import Docker
from tests.sandbox.roots import make_small_root
from tests.serve.docker.plugin import Plugin, Refused, running

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

DRIVERS = [name for name in names() if name != "vfs"]
"""Those that mount; how vfs copies is the conformance suite's to see."""
PLUGINS = Path("/run/docker/plugins")
PROGRAMS = ("cat", "chmod", "echo", "ln", "ls", "mkdir", "mv", "rm", "sh", "sleep", "touch")

DOCKERFILE = """\
FROM base:1
COPY file /dir/file
RUN echo built > /built; rm /etc/motd; mkdir /etc/conf; mv /etc/list /etc/conf/list
RUN rm -r /data; mkdir /data; echo again > /data/new; ln -s new /data/link; chmod 700 /dir
ENV A=B
CMD ["cat", "/dir/file", "/built", "/data/new"]
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tar of a small root."""
    root = tmp_path_factory.mktemp("base") / "root"
    make_small_root(root, PROGRAMS)
    (root / "etc").mkdir()
    (root / "etc/motd").write_text("hello\n")
    (root / "etc/list").write_text("list\n")
    (root / "data").mkdir()
    for number in range(50):
        (root / f"data/{number}").write_text(str(number))
    archive = root.with_suffix(".tar")
    subprocess.run(["tar", "-C", root, "--sort=name", "-cf", archive, "."], check=True)
    return archive


class Machine:
    """A dockerd, and the plugin that it uses."""

    def __init__(self, docker: Docker, plugin: Plugin, home: Path) -> None:
        self.docker = docker
        self.plugin = plugin
        self.home = home

    def mounts(self) -> list[bytes]:
        """What is mounted below the home, itself apart."""
        home = os.fsencode(self.home) + b"/"
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
        return [line for line in lines if line.split()[4].startswith(home)]

    def layers(self) -> list[str]:
        return os.listdir(self.home / "layers")


@contextmanager
def machine(
    driver: str,
    ground: Path,
    run: Path,
    *more: str,
    prepare: Callable[[str], None] = lambda name: None,
) -> Iterator[Machine]:
    """Both; ``prepare`` is called with the name of the plugin, before Docker comes up."""
    daemons.need()
    with ExitStack() as stack:
        PLUGINS.mkdir(parents=True, exist_ok=True)
        socket = PLUGINS / f"lamina-test-{os.getpid()}.sock"
        plugin = stack.enter_context(running(socket, ground, run, "--driver", driver))
        data = ground / "docker"
        prepare(socket.stem)
        docker = stack.enter_context(
            daemons.dockerd(data, socket.stem, more=["--experimental", *more])
        )
        found = Machine(docker, plugin, data / socket.stem)
        yield found
        if plugin.process is None:
            plugin.start()
        for id in docker("ps", "-aq").split():
            docker("rm", "-f", id)
        assert found.mounts() == []


@pytest.fixture
def box(works: str, tmp_path: Path, run: Path, base: Path) -> Iterator[Machine]:
    with machine(works, tmp_path, run) as made:
        made.docker("import", base, "base:1")
        yield made


def work(docker: Docker, ground: Path) -> dict[str, object]:
    """The same things with any storage driver, and what came of them."""
    seen: dict[str, object] = {}
    script = "echo new > /new; rm /etc/motd /data/1; mv /etc/list /data/list; chmod 700 /data; ls /"
    seen["run"] = docker(
        "run", "--name", "c1", "--network", "none", "base:1", "sh", "-c", script
    )  # fmt: skip
    seen["diff"] = docker.lines("diff", "c1")
    docker("commit", "c1", "committed:1")
    context = ground / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "file").write_text("copied\n")
    os.utime(context / "file", (1_000_000_000, 1_000_000_000))
    docker("build", "--network", "none", "-t", "built:1", context)
    seen["built"] = docker("run", "--rm", "--network", "none", "built:1")
    seen["committed"] = contents(docker, "committed:1", ground)
    seen["contents"] = contents(docker, "built:1", ground)
    (ground / "in").write_text("put in\n")
    docker("cp", ground / "in", "c1:/data/in")
    docker("cp", "c1:/data/in", ground / "out")
    seen["cp"] = (ground / "out").read_text()
    return seen


def contents(docker: Docker, image: str, ground: Path) -> dict[str, tuple[object, ...]]:
    """All files of an image but what Docker puts there for a container, by export."""
    archive = ground / "export.tar"
    container = docker("create", image, "x").strip()
    docker("export", "-o", archive, container)
    docker("rm", container)
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(archive) as opened:
        for member in opened:
            file = opened.extractfile(member) if member.isreg() else None
            content = hashlib.sha256(file.read()).hexdigest() if file else ""
            found[member.name] = (
                member.type, member.mode, member.uid, member.gid, member.linkname, content
            )  # fmt: skip
    return found


def saved(docker: Docker, archive: Path, *images: str) -> dict[str, list[str]]:
    """The layers of saved images, by the digests of what the archive holds."""
    docker("save", "-o", archive, *images)
    found = {}
    with tarfile.open(archive) as opened:
        manifest = opened.extractfile("manifest.json")
        assert manifest is not None
        for image in json.load(manifest):
            digests = []
            for name in image["Layers"]:
                layer = opened.extractfile(name)
                assert layer is not None
                digests.append("sha256:" + hashlib.sha256(layer.read()).hexdigest())
            config = opened.extractfile(image["Config"])
            assert config is not None
            assert json.load(config)["rootfs"]["diff_ids"] == digests
            found[image["RepoTags"][0]] = digests
    return found


@pytest.fixture(scope="module")
def overlay2(
    tmp_path_factory: pytest.TempPathFactory, base: Path
) -> Callable[[], tuple[dict[str, object], Path, dict[str, list[str]]]]:
    """What dockerd's own driver does, once: results, an archive, its layers."""
    made: list[tuple[dict[str, object], Path, dict[str, list[str]]]] = []

    def once() -> tuple[dict[str, object], Path, dict[str, list[str]]]:
        if not made:
            ground = tmp_path_factory.mktemp("overlay2")
            with daemons.dockerd(ground / "docker") as docker:
                docker("import", base, "base:1")
                results = work(docker, ground)
                archive = ground / "images.tar"
                layers = saved(docker, archive, "base:1", "committed:1", "built:1")
                docker("rm", "-f", "c1")
            made.append((results, archive, layers))
        return made[0]

    return once


def test_all_that_docker_does_is_as_with_its_own_driver(
    box: Machine, tmp_path: Path,
    overlay2: Callable[[], tuple[dict[str, object], Path, dict[str, list[str]]]],
) -> None:  # fmt: skip
    expected, archive, layers = overlay2()
    docker = box.docker
    found = work(docker, tmp_path)
    for name, value in expected.items():
        assert found[name] == value, name
    docker("rm", "c1")
    own = saved(docker, tmp_path / "own.tar", "base:1", "committed:1", "built:1")
    assert own["base:1"] == layers["base:1"]
    docker("image", "prune", "-a", "-f")
    assert box.layers() == []

    docker("load", "-i", archive)
    again = saved(docker, tmp_path / "again.tar", "base:1", "committed:1", "built:1")
    assert again == layers, "layers are given back byte for byte"
    assert contents(docker, "built:1", tmp_path) == expected["contents"]
    docker("image", "prune", "-a", "-f")
    docker("load", "-i", tmp_path / "own.tar")
    assert saved(docker, tmp_path / "own-again.tar", *own) == own
    docker("system", "prune", "-a", "-f")
    assert box.layers() == []


def test_info_and_inspect_say_where_layers_are(box: Machine) -> None:
    info = json.loads(box.docker("info", "--format", "{{json .}}"))
    assert info["Driver"] == box.plugin.socket.stem
    assert ["Root Dir", str(box.home)] in info["DriverStatus"]
    container = box.docker("create", "base:1", "ls").strip()
    data = box.docker.inspect(container)[0]["GraphDriver"]["Data"]
    assert str(box.home) in "".join(data.values())


def test_prune_and_removal_leave_no_layer(box: Machine) -> None:
    docker = box.docker
    before = set(box.layers())
    docker("run", "--network", "none", "base:1", "touch", "/a")
    docker("run", "--rm", "--network", "none", "base:1", "touch", "/b")
    assert len(set(box.layers()) - before) == 2
    docker("container", "prune", "-f")
    assert set(box.layers()) == before
    docker("rmi", "base:1")
    assert box.layers() == []


def test_a_container_runs_on_while_the_plugin_restarts(box: Machine) -> None:
    docker = box.docker
    docker("run", "-d", "--name", "long", "--network", "none", "base:1",
           "sh", "-c", "while true; do echo x >> /log; sleep 0.1; done")  # fmt: skip
    mounts = box.mounts()
    for end in (box.plugin.kill, box.plugin.stop):
        end()
        box.plugin.start()
        assert box.mounts() == mounts
        docker("exec", "long", "sh", "-c", "echo y > /exec")
        assert docker("exec", "long", "cat", "/exec") == "y\n"
    assert "A /exec" in docker.lines("diff", "long")
    docker("cp", "long:/log", "-")
    assert box.mounts() == mounts, "the container has its mount still"
    docker("rm", "-f", "long")
    assert box.mounts() == []


def test_both_killed_and_started_in_either_order(box: Machine) -> None:
    docker = box.docker
    docker("run", "--name", "kept", "--network", "none", "base:1", "sh", "-c", "echo 1 > /kept")
    for plugin_first in (True, False):
        docker("run", "-d", "--name", "long", "--network", "none", "base:1", "sleep", "600")
        docker.daemon.kill()
        box.plugin.kill()
        if plugin_first:
            box.plugin.start()
            docker.daemon.start()
        else:
            docker.daemon.start(wait=False)
            time.sleep(0.5)  # it tries again after 1, 2, 4 and 8 seconds
            box.plugin.start()
            docker.daemon.wait()
        assert "A /kept" in docker.lines("diff", "kept")
        docker("rm", "-f", "long")
        assert docker("run", "--rm", "--network", "none", "base:1", "cat", "/etc/motd") == "hello\n"
        assert box.mounts() == []


def test_a_plugin_killed_in_the_middle_of_a_load(box: Machine, tmp_path: Path) -> None:
    docker = box.docker
    big = tmp_path / "big"
    big.mkdir()
    for number in range(8):
        (big / f"f{number}").write_bytes(os.urandom(16 << 20))
    subprocess.run(["tar", "-C", big, "-cf", tmp_path / "big.tar", "."], check=True)
    before = set(box.layers())
    importing = subprocess.Popen(
        ["/usr/bin/docker", "import", tmp_path / "big.tar", "big:1"],
        env=docker.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not set(box.layers()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    box.plugin.kill()
    box.plugin.start()
    importing.communicate(timeout=60)
    if importing.returncode:
        docker("import", tmp_path / "big.tar", "big:1")
    docker("run", "--rm", "--network", "none", "base:1", "cat", "/etc/motd")
    docker("rmi", "big:1")
    docker.daemon.stop()
    docker.daemon.start()
    docker("rmi", "-f", "base:1")
    left = box.layers()
    for id in left:  # what dockerd does not know of: as with its own drivers
        try:
            box.plugin.call("GraphDriver.Remove", ID=id)
        except Refused as error:
            pytest.fail(f"{id}: {error}")
    assert box.layers() == []


def test_a_dockerd_that_stops_leaves_no_mount(box: Machine) -> None:
    box.docker("run", "-d", "--network", "none", "base:1", "sleep", "600")
    assert box.mounts()
    box.docker.daemon.stop()
    assert box.mounts() == []
    box.docker.daemon.start()


def test_live_restore_keeps_the_mount_of_a_running_container(
    works: str, tmp_path: Path, run: Path, base: Path
) -> None:
    with machine(works, tmp_path, run, "--live-restore") as box:
        docker = box.docker
        docker("import", base, "base:1")
        docker("run", "-d", "--name", "long", "--network", "none", "base:1", "sleep", "600")
        mounts = box.mounts()
        docker.daemon.kill()
        box.plugin.kill()
        box.plugin.start()
        docker.daemon.start()
        docker("exec", "long", "touch", "/after")
        assert box.mounts() == mounts
        assert "A /after" in docker.lines("diff", "long")
        docker("rm", "-f", "long")
        assert box.mounts() == []


def test_128_layers_build_and_run(box: Machine, tmp_path: Path) -> None:
    lines = ["FROM base:1", *(f"COPY f /f{n}" for n in range(100)), 'CMD ["ls", "/"]']
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("\n".join(lines))
    (context / "f").touch()
    box.docker("build", "--network", "none", "-t", "deep:1", context)
    assert "f99" in box.docker("run", "--rm", "--network", "none", "deep:1").split()


def test_containers_started_at_once(box: Machine) -> None:
    def once(number: int) -> str:
        return box.docker("run", "--rm", "--network", "none", "base:1", "echo", str(number))

    before = set(box.layers())
    with ThreadPoolExecutor(8) as pool:
        assert [s.strip() for s in pool.map(once, range(24))] == [str(n) for n in range(24)]
    assert set(box.layers()) == before
    assert box.mounts() == []


def test_a_root_that_dockers_own_aufs_driver_wrote_goes_on(tmp_path: Path, run: Path) -> None:
    """As docs/serve.md says how."""
    expected = json.loads((aufs_store.DATA / "expected.json").read_text())
    data = aufs_store.unpack(tmp_path / "docker")
    with machine("aufs", tmp_path, run, prepare=lambda name: _rename_driver(data, name)) as box:
        docker = box.docker
        for name in ("fx/base:0", "fx/l5:meta", "fx/l7:rootdel"):
            layers = saved(docker, tmp_path / "saved.tar", name)
            assert layers == {name: expected["images"][name]["diff_ids"]}
        diffs = {id: docker.lines("diff", id) for id in docker("ps", "-aq").split()}
        assert sum(map(len, diffs.values())) > 20
        docker("start", "c-running")
        docker("exec", "c-running", "touch", "/since")
        assert "A /since" in docker.lines("diff", "c-running")
        docker("rm", "-f", "c-running")
        docker("run", "--rm", "--network", "none", "fx/l7:rootdel", "ls", "/")


def _rename_driver(data: Path, name: str) -> None:
    (data / "aufs").rename(data / name)
    (data / "image/aufs").rename(data / "image" / name)
    for config in data.glob("containers/*/config.v2.json"):
        config.write_text(config.read_text().replace('"Driver":"aufs"', f'"Driver":"{name}"'))
