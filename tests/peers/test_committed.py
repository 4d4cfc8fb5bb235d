"""What was changed in our containers the others show as we do; the same changes are one layer."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lamina.store import Store
from tests import daemons
from tests.adopt.trees import Entry, tree
from tests.oci import peers
from tests.peers import building, changes
from tests.peers.building import Built
from tests.peers.comparing import unlike
from tests.peers.conftest import Ground

pytestmark = pytest.mark.root

NAME = "localhost/committed:1"
_EPOCH = "1700000000"


@dataclass(frozen=True)
class Committed:
    """An image that was made in our containers, and the tree of the last one."""

    built: Built
    tree: dict[str, Entry]
    archive: Path
    layout: Path


def commit(driver: str, ground: Path) -> Committed:
    """An image of all steps, the first from a directory; the tree is the last container's."""
    (ground / "base").mkdir()
    changes.do(0, ground / "base")
    with Store(ground / "store", run=ground / "run", driver=driver) as store:
        store.import_directory(ground / "base", NAME)
        for step in (1, 2, 3):
            with store.container(NAME) as box:
                changes.do(step, box.root)
                image = box.commit(NAME)
                shown = tree(box.root)
        store.save([NAME], ground / "archive.tar")
        store.save([NAME], ground / "layout", format="oci")
        return Committed(
            Built(image.id, list(image.diff_ids)), shown, ground / "archive.tar", ground / "layout"
        )


@pytest.fixture(scope="session")
def _committed(ground_for: Ground) -> Iterator[dict[str, Committed]]:
    names = ("overlay", "overlay again", "vfs", "aufs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", _EPOCH)
        made = {name: commit(name.split()[0], ground_for("committed")) for name in names}
    yield made


@pytest.fixture(params=["overlay", "vfs", "aufs"])
def committed(_committed: dict[str, Committed], request: pytest.FixtureRequest) -> Committed:
    """By each driver; with aufs it is fuse-overlayfs that is written through."""
    return _committed[request.param]


def test_the_same_changes_are_the_same_image(_committed: dict[str, Committed]) -> None:
    again = _committed["overlay again"]
    assert again.built == _committed["overlay"].built
    assert again.archive.read_bytes() == _committed["overlay"].archive.read_bytes()


def test_drivers_differ_in_how_they_say_that_a_directory_was_replaced(
    _committed: dict[str, Committed],
) -> None:
    """vfs compares two trees, in which a directory that was removed and made anew is one."""
    overlay, vfs = _committed["overlay"], _committed["vfs"]
    assert unlike(vfs.tree, overlay.tree) == []
    same = [a == b for a, b in zip(vfs.built.diff_ids, overlay.built.diff_ids, strict=True)]
    assert same == [True, False, True, True]
    ours, theirs = (entries(each, 1) for each in (overlay, vfs))
    assert ours - theirs == {"d/opaque/.wh..wh..opq"}
    assert theirs - ours == {"d/opaque/.wh.inside", "d/opaque/sub/.wh.deeper"}


def entries(committed: Committed, number: int) -> set[str]:
    """The names in one of the layers."""
    digest = committed.built.diff_ids[number].removeprefix("sha256:")
    with (
        tarfile.open(committed.archive) as archive,
        tarfile.open(fileobj=archive.extractfile(f"blobs/sha256/{digest}")) as layer,
    ):
        return set(layer.getnames())


def test_docker_shows_it_so(
    far_docker: daemons.Docker, committed: Committed, tmp_path: Path
) -> None:
    far_docker("load", "-i", committed.archive)
    assert building.docker_built(far_docker, NAME) == committed.built
    with building.docker_mounted(far_docker, NAME, tmp_path) as root:
        assert unlike(tree(root), committed.tree) == []


def test_podman_shows_it_so(far_podman: peers.Podman, committed: Committed) -> None:
    far_podman.load(committed.archive)
    assert building.podman_built(far_podman, NAME) == committed.built
    with far_podman.mounted(NAME) as root:
        assert unlike(tree(root), committed.tree) == []


def test_umoci_shows_it_so(committed: Committed, tmp_path: Path) -> None:
    assert unlike(building.umoci_tree(committed.layout, NAME, tmp_path), committed.tree) == []
