"""containerd 1.7, which takes a differ from outside, with ours: nothing is unpacked by itself.

Debian 12 has an older one; Debian 13's, from its archive, runs there too.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemons, debian, support
from tests.sandbox.roots import make_small_root
from tests.serve.containerd.conftest import Ground
from tests.serve.containerd.test_containerd import LAMINA, NAME, Node, image_on, node_of

pytestmark = pytest.mark.root
PROGRAMS = ("cat", "ls", "rm", "sh")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of a small image of two layers."""
    place = tmp_path_factory.mktemp("small")
    root = place / "root"
    make_small_root(root, PROGRAMS)
    for name in ("etc/issue", "etc/hostname", "usr/share/doc/of"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("first\n")
    support.run("tar", "-C", root, "--numeric-owner", "-cf", place / "root.tar", ".")
    return image_on(place / "root.tar", place)


@pytest.fixture(params=["erofs", "overlay"])
def driver_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["by path", "by service"])
def node(request: pytest.FixtureRequest, ground: Ground) -> Iterator[Node]:
    """With no other differ, so that what ours does not do fails."""
    support.need("runc")
    try:
        programs = daemons.with_differs()
    except debian.Unavailable as error:
        support.missing(str(error))
    with daemons.run_directory() as run:
        content = daemons.Containerd(run / "c.sock").content
        config = (
            f'[proxy_plugins.lamina-diff]\ntype = "diff"\naddress = "{ground.socket}"\n'
            '[plugins."io.containerd.service.v1.diff-service"]\ndefault = ["lamina-diff"]\n'
        )
        options = ("--content", str(content)) if request.param == "by path" else ()
        with node_of(Node(run, ground, programs=programs, config=config, options=options)) as made:
            yield made


def _diff(node: Node, key: str) -> bytes:
    ctr = ("ctr", "--address", node.run / "c.sock", "snapshots", *LAMINA)
    return support.run(*ctr, "diff", key).stdout


def test_an_image_is_imported_changed_and_removed(node: Node, image: Path) -> None:
    node.ctr("images", "import", "--local", *LAMINA, image)
    assert [words[-1] for words in node.listed()] == ["Committed", "Committed"]
    if node.ground.driver == "erofs":
        layers = node.ground.root / "erofs/layers"
        assert all((layers / name / "tar").exists() for name in node.layers()), "not unpacked"
    assert node.run_in("one", "cat", "/etc/hostname") == "second\n"
    assert node.run_in("two", "ls", "/usr/share/doc") == "only\n"
    script = "test -e /etc/issue || echo gone"
    assert node.run_in("three", "sh", "-c", script) == "gone\n"

    node.run_in("box", "sh", "-c", "echo new >/new; rm /etc/hostname", keep=True)
    with tarfile.open(fileobj=io.BytesIO(_diff(node, "box"))) as layer:
        found = {member.name.removeprefix("./") for member in layer if not member.isdir()}
    assert found == {"new", "etc/.wh.hostname"}

    node.ctr("containers", "rm", "box")
    node.ctr("images", "rm", "--sync", NAME)
    assert node.listed() == []
    assert node.layers() == []
