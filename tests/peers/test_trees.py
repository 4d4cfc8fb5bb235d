"""An image that another program made looks in every driver as it does with its maker."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.store import Store
from tests.adopt.trees import tree
from tests.peers.comparing import unlike
from tests.peers.conftest import Original

pytestmark = pytest.mark.root

MAKERS = ("docker", "podman", "buildah", "umoci", "umoci_plain")


@pytest.mark.parametrize("driver", ["overlay", "vfs", "aufs"])
@pytest.mark.parametrize("original", MAKERS, indirect=True)
def test_a_tree_is_as_its_maker_shows_it(original: Original, driver: str, tmp_path: Path) -> None:
    with Store(tmp_path / "store", run=tmp_path / "run", driver=driver) as store:
        (image,) = store.load(original.path, [original.tag])
        assert (image.id, image.diff_ids) == (original.built.id, original.built.diff_ids)
        assert store.check(contents=True) == []
        with store.container(image) as box:
            assert unlike(tree(box.root), original.tree) == []
