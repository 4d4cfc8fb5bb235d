"""Debian's containerd as the client: ctr in all its verbs, runc, garbage collection, kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamina import Store
from lamina.store.policy import SyncPolicy
from tests import daemons, support
from tests.serve.containerd.conftest import Ground
from tests.serve.containerd.test_crashes import server

NAME = "docker.io/library/box:1"
LAMINA = ("--snapshotter", "lamina")
PATIENCE = 60
pytestmark = pytest.mark.root


@pytest.fixture(params=["overlay"])
def driver_name(request: pytest.FixtureRequest) -> str:
    """Most of it is containerd's side of things, the same for all drivers."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def image(debian_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of an image of a Debian root and a layer on it."""
    return image_on(debian_root, tmp_path_factory.mktemp("image"))


def image_on(tar: Path, place: Path) -> Path:
    """An archive of an image of two layers; the upper one deletes, replaces and links."""
    archive = place / "image.tar"
    with Store(place / "store", run=place / "run", driver="overlay", sync=SyncPolicy.NONE) as store:
        base = store.import_tar(tar)
        container = store.container(base)
        with container.mounted() as root:
            (root / "etc/issue").unlink()
            (root / "etc/hostname").write_text("second\n")
            support.run("rm", "-rf", root / "usr/share/doc")
            (root / "usr/share/doc").mkdir()
            (root / "usr/share/doc/only").write_text("this")
        made = container.commit(NAME)
        store.save([made.names[0]], archive)
        container.remove()
    support.run("rm", "-rf", place / "store")
    return archive


@dataclass
class Node:
    """containerd and our server, each of which can be killed and started again."""

    run: Path
    ground: Ground
    containerd: ExitStack = field(default_factory=ExitStack)
    lamina: ExitStack = field(default_factory=ExitStack)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ctr: Callable[..., str] = str
    programs: Path | None = None
    """Where containerd is, if it is not this machine's."""
    config: str = ""
    """More of its configuration."""
    options: tuple[str, ...] = ()
    """More of the server's."""

    def start_lamina(self) -> None:
        options = ("--containerd", str(self.run / "c.sock"), *self.options)
        self.servers.append(self.lamina.enter_context(server(self.ground, *options)))

    def start_containerd(self) -> None:
        config = f'[proxy_plugins.lamina]\ntype = "snapshot"\naddress = "{self.ground.socket}"\n'
        found = daemons.containerd_at(
            self.run, config + self.config, killed=self.processes, programs=self.programs
        )
        self.ctr = self.containerd.enter_context(found)

    def kill_lamina(self) -> None:
        self.servers[-1].send_signal(signal.SIGKILL)
        self.lamina.close()

    def kill_containerd(self) -> None:
        self.processes[-1].send_signal(signal.SIGKILL)
        self.processes[-1].wait()
        self.containerd.close()

    def snapshots(self, *words: str) -> str:
        return self.ctr("snapshots", *LAMINA, *words)

    def listed(self) -> list[list[str]]:
        return [line.split() for line in self.snapshots("ls").splitlines()[1:]]

    def run_in(self, name: str, *command: str, keep: bool = False) -> str:
        return self.ctr("run", *(() if keep else ("--rm",)), *LAMINA, NAME, name, *command)

    def patiently(self, act: Callable[[], str]) -> str:
        """Until containerd has found the server again."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return act()
            except pytest.fail.Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def layers(self) -> list[str]:
        """What our driver has on disk."""
        home = self.ground.root / self.ground.driver
        return os.listdir(home / "layers")


@contextmanager
def node_of(node: Node) -> Iterator[Node]:
    """Both, running; ``node.run`` is a :func:`tests.daemons.run_directory`."""
    try:
        node.start_lamina()
        node.start_containerd()
        yield node
    finally:
        node.containerd.close()
        node.lamina.close()
        daemons.unmount_below(node.run)


@pytest.fixture
def node(ground: Ground) -> Iterator[Node]:
    support.need("containerd", "ctr", "runc")
    with daemons.run_directory() as run, node_of(Node(run, ground)) as made:
        yield made


@pytest.mark.parametrize("driver_name", ["erofs", "overlay", "vfs", "aufs"], indirect=True)
def test_an_image_is_imported_run_and_removed(node: Node, image: Path) -> None:
    node.ctr("images", "import", *LAMINA, image)
    kinds = [words[-1] for words in node.listed()]
    assert kinds == ["Committed", "Committed"]
    assert node.run_in("one", "cat", "/etc/hostname") == "second\n"
    assert node.run_in("two", "ls", "/usr/share/doc") == "only\n"
    missing = node.run_in("three", "sh", "-c", "test -e /etc/issue || echo gone")
    assert missing == "gone\n"
    assert node.run_in("four", "sh", "-c", "echo new >/new && cat /new") == "new\n"
    assert node.run_in("five", "sh", "-c", "test -e /new || echo own") == "own\n"
    node.ctr("images", "rm", "--sync", NAME)
    assert node.listed() == []
    assert node.layers() == []


def test_ctr_snapshots_in_all_its_verbs(node: Node, image: Path, tmp_path: Path) -> None:
    node.ctr("images", "import", *LAMINA, image)
    digest = node.ctr("images", "ls", f"name=={NAME}").splitlines()[1].split()[2]
    base, top = (words[0] for words in sorted(node.listed(), key=len))  # the base has no parent
    assert "done" in node.snapshots("unpack", digest)
    assert [w for w in node.snapshots("tree").split() if ":" in w] == [base, top]
    assert f'"Name": "{top}"' in node.snapshots("info", top)
    sizes = {words.split()[0]: int(words.split()[1]) for words in
             node.snapshots("usage", "-b").splitlines()[1:]}  # fmt: skip
    assert sizes.keys() == {base, top}
    assert sizes[base] > 100 * sizes[top]
    node.snapshots("prepare", "box", top)
    target = tmp_path / "m"
    target.mkdir()
    words = node.snapshots("mounts", str(target), "box").split()
    support.run("sh", "-c", " ".join(words))
    try:
        assert (target / "etc/hostname").read_text() == "second\n"
        (target / "added").write_text("added")
    finally:
        support.run("umount", target)
    node.snapshots("label", "box", "containerd.io/snapshot/x=y")
    assert "containerd.io/snapshot/x" in node.snapshots("info", "box")
    packed = tmp_path / "diff.tar.gz"
    packed.write_bytes(
        support.run(
            "ctr", "--address", node.run / "c.sock", "snapshots", *LAMINA, "diff", "box"
        ).stdout
    )
    assert "added" in support.run("tar", "-tzf", packed).stdout.decode().splitlines()
    node.snapshots("commit", "committed", "box")

    # Let the collection that the diff's lease has called for be over: it would meet the view.
    node.ctr("leases", "create", "--id", "quiet")
    node.ctr("leases", "rm", "--sync", "quiet")

    def look() -> str:
        """Before it is collected: ctr gives views no label that keeps them."""
        key = f"look-{time.monotonic_ns()}"
        node.snapshots("view", key, "committed")
        return node.snapshots("rm", key)

    node.patiently(look)
    kinds = {words[0]: words[-1] for words in node.listed()}
    assert kinds.pop("committed") == "Committed"
    assert kinds.items() >= {base: "Committed", top: "Committed"}.items()

    def removed() -> str:
        """With views before it whose own removal met the collection."""
        for name in sorted((words[0] for words in node.listed()), reverse=True):
            if name == "committed" or name.startswith("look-"):
                node.snapshots("rm", name)
        return "removed"

    node.patiently(removed)
    assert "committed" not in {words[0] for words in node.listed()}


def test_garbage_collection_empties_the_store(node: Node, image: Path) -> None:
    node.ctr("images", "import", *LAMINA, image)
    node.run_in("kept", "true", keep=True)
    node.ctr("images", "rm", "--sync", NAME)
    assert len(node.listed()) == 3, "a container stands on them"
    node.ctr("containers", "rm", "kept")
    node.ctr("images", "import", *LAMINA, image)
    node.ctr("images", "rm", "--sync", NAME)
    assert node.listed() == []
    assert node.layers() == []


@contextmanager
def _running(node: Node) -> Iterator[subprocess.Popen[bytes]]:
    """A container that writes its turns into a file, until the block ends."""
    # By rename, so that whoever reads never finds the file empty.
    loop = "i=0; while :; do i=$((i+1)); echo $i >/next; mv /next /turn; sleep 0.05; done"
    argv = ["ctr", "--address", str(node.run / "c.sock"), "run", "--detach", *LAMINA, NAME,
            "busy", "sh", "-c", loop]  # fmt: skip
    with subprocess.Popen(argv) as process:
        assert process.wait(PATIENCE) == 0
        yield process


def _turn(node: Node) -> int:
    text = node.ctr("tasks", "exec", "--exec-id", f"x{time.monotonic_ns()}", "busy", "cat", "/turn")
    return int(text or 0)


def _alive(node: Node) -> None:
    first = node.patiently(lambda: str(_turn(node)))
    time.sleep(0.5)
    assert _turn(node) > int(first)


@pytest.mark.parametrize("order", ["lamina first", "containerd first"])
def test_both_are_killed_and_started_again(node: Node, image: Path, order: str) -> None:
    node.ctr("images", "import", *LAMINA, image)
    with _running(node):
        _alive(node)
        if order == "lamina first":
            node.kill_lamina()
            node.kill_containerd()
            node.start_lamina()
            node.start_containerd()
        else:
            node.kill_containerd()
            node.kill_lamina()
            node.start_containerd()
            node.start_lamina()
        _alive(node)
        assert node.patiently(lambda: node.run_in("another", "cat", "/etc/hostname")) == "second\n"
        node.ctr("tasks", "kill", "--signal", "SIGKILL", "busy")
        node.patiently(lambda: node.ctr("tasks", "rm", "-f", "busy"))
    node.ctr("containers", "rm", "busy")
    node.ctr("images", "rm", "--sync", NAME)
    assert node.listed() == []
    assert node.layers() == []


def test_lamina_is_killed_while_an_image_is_unpacked(node: Node, image: Path) -> None:
    argv = ["ctr", "--address", str(node.run / "c.sock"), "images", "import", *LAMINA, str(image)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        time.sleep(0.6)
        node.kill_lamina()
        client.wait(PATIENCE)
    node.start_lamina()
    node.patiently(lambda: node.ctr("images", "import", *LAMINA, image))
    assert node.patiently(lambda: node.run_in("box", "cat", "/etc/hostname")) == "second\n"
    node.ctr("images", "rm", "--sync", NAME)
    assert [words for words in node.listed() if words[-1] == "Committed"] == []
