"""What an OCI layer says is gone is gone, and nothing else is."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from lamina.drivers import Driver
from lamina.errors import InvalidArchive
from lamina.types import LayerId
from tests.conformance.trees import entry, names_in, tar

A, B, C, D = (LayerId(name) for name in "abcd")


def stack(driver: Driver, *layers: object) -> LayerId:
    """Apply tars on each other; the last layer."""
    parent: LayerId | None = None
    for number, stream in enumerate(layers):
        id = LayerId(f"layer{number}")
        driver.create(id, parent)
        driver.apply_diff(id, parent, stream)  # type: ignore[arg-type]
        parent = id
    assert parent is not None
    return parent


def shown(driver: Driver, id: LayerId) -> list[str]:
    with driver.mounted(id) as root:
        return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_a_whiteout_hides_a_file(driver: Driver) -> None:
    top = stack(driver, tar("a", "b"), tar(".wh.a"))
    assert shown(driver, top) == ["b"]
    assert [str(c) for c in driver.changes(top, LayerId("layer0"))] == ["D /a"]


def test_a_whiteout_hides_a_whole_directory(driver: Driver) -> None:
    top = stack(driver, tar("d/", "d/e/", "d/e/f", "x"), tar(".wh.d"))
    assert shown(driver, top) == ["x"]


def test_a_whiteout_reaches_through_several_layers(driver: Driver) -> None:
    top = stack(driver, tar("d/", "d/a"), tar("d/", "d/b"), tar("d/", "d/c"), tar("d/.wh.a"))
    assert shown(driver, top) == ["d", "d/b", "d/c"]


def test_a_whiteout_below_what_is_no_directory_hides_nothing(driver: Driver) -> None:
    """umoci writes them where a file or a link takes a directory's place."""
    link = entry("e", tarfile.SYMTYPE, linkname="nowhere")
    top = stack(
        driver,
        tar("d/", "d/a", "d/b/", "d/b/c", "e/", "e/a"),
        tar(("d", b"file"), "d/.wh.a", "d/b/.wh.c", "d/.wh.b", link, "e/.wh.a"),
    )
    assert shown(driver, top) == ["d", "e"]
    with driver.mounted(top) as root:
        assert (root / "d").read_bytes() == b"file"
        assert (root / "e").is_symlink()
    changes = [str(c) for c in driver.changes(top, LayerId("layer0"))]
    assert changes == ["C /d", "C /e"]


def test_what_was_deleted_can_come_back(driver: Driver) -> None:
    top = stack(driver, tar(("a", b"1")), tar(".wh.a"), tar(("a", b"three")))
    with driver.mounted(top) as root:
        assert (root / "a").read_bytes() == b"three"


def test_a_directory_that_comes_back_does_not_bring_its_files(driver: Driver) -> None:
    top = stack(driver, tar("d/", "d/old"), tar(".wh.d"), tar("d/", "d/new"))
    assert shown(driver, top) == ["d", "d/new"]


def test_an_opaque_directory_hides_all_below(driver: Driver) -> None:
    top = stack(driver, tar("d/", "d/a", "d/s/", "d/s/b"), tar("d/", "d/.wh..wh..opq", "d/c"))
    assert shown(driver, top) == ["d", "d/c"]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_an_opaque_marker_spares_its_own_layer_in_any_order(driver: Driver, order: int) -> None:
    members = ["d/", "d/new", "d/.wh..wh..opq"]
    members = members[order:] + members[:order]
    top = stack(driver, tar("d/", "d/old"), tar(*members))
    assert shown(driver, top) == ["d", "d/new"]


def test_two_opaque_layers(driver: Driver) -> None:
    opaque = ("d/", "d/.wh..wh..opq")
    top = stack(driver, tar("d/", "d/1"), tar(*opaque, "d/2"), tar(*opaque, "d/3"))
    assert shown(driver, top) == ["d", "d/3"]


@pytest.mark.parametrize("members", [(".wh.a", ("a", b"new")), (("a", b"new"), ".wh.a")])
def test_a_whiteout_spares_a_file_of_its_own_layer(driver: Driver, members: tuple) -> None:  # type: ignore[type-arg]
    top = stack(driver, tar(("a", b"old")), tar(*members))
    with driver.mounted(top) as root:
        assert (root / "a").read_bytes() == b"new"


@pytest.mark.parametrize("members", [(".wh.d", "d/", "d/new"), ("d/", "d/new", ".wh.d")])
def test_a_whiteout_beside_its_directory_makes_it_opaque(
    driver: Driver,
    members: tuple,  # type: ignore[type-arg]
) -> None:
    top = stack(driver, tar("d/", "d/old"), tar(*members))
    assert shown(driver, top) == ["d", "d/new"]


def test_a_file_in_the_place_of_a_directory(driver: Driver) -> None:
    top = stack(driver, tar("d/", "d/a"), tar(("d", b"file")), tar("d/", "d/b"))
    assert shown(driver, LayerId("layer1")) == ["d"]
    assert shown(driver, top) == ["d", "d/b"]


def test_a_whiteout_of_what_is_not_there_is_harmless(driver: Driver) -> None:
    top = stack(driver, tar("a"), tar(".wh.b", "d/.wh.c"))
    assert [n for n in shown(driver, top) if n != "d"] == ["a"]
    assert "D /b" not in [str(c) for c in driver.changes(top, LayerId("layer0"))]


def test_an_opaque_root_hides_everything_below(driver: Driver) -> None:
    top = stack(driver, tar("a", "d/", "d/b"), tar(".wh..wh..opq", "c"))
    assert shown(driver, top) == ["c"]


def test_no_marker_shows_in_the_tree(driver: Driver) -> None:
    top = stack(driver, tar("d/", "d/a", "b"), tar("d/", "d/.wh..wh..opq", "d/x", ".wh.b"))
    assert not [name for name in shown(driver, top) if ".wh." in name]


@pytest.mark.parametrize("bad", [".wh.", ".wh..", ".wh...", "d/.wh.."])
def test_a_whiteout_of_no_name_is_refused(driver: Driver, bad: str) -> None:
    driver.create(A)
    driver.apply_diff(A, None, tar("d/", "d/x"))
    driver.create(B, A)
    with pytest.raises(InvalidArchive):
        driver.apply_diff(B, A, tar(bad))
    assert shown(driver, B) == ["d", "d/x"]


def test_a_diff_speaks_of_deletions_in_oci_names(driver: Driver) -> None:
    stack(driver, tar("a", "d/", "d/x", "d/y"))
    driver.create_read_write(B, LayerId("layer0"))
    with driver.mounted(B) as root:
        (root / "a").unlink()
        (root / "d/x").unlink()
    with driver.diff(B, LayerId("layer0")) as stream:
        names = [name for name in names_in(stream) if ".wh." in name]
    assert names == [".wh.a", "d/.wh.x"]


def test_a_hard_link_to_a_file_of_a_lower_layer(driver: Driver) -> None:
    link = entry("link", tarfile.LNKTYPE, linkname="d/a")
    top = stack(driver, tar("d/", ("d/a", b"content")), tar(link))
    with driver.mounted(top) as root:
        assert (root / "link").read_bytes() == b"content"


def test_names_that_do_not_name_their_directories(driver: Driver) -> None:
    base = tar(entry("d", tarfile.DIRTYPE, mode=0o750, uid=0), "d/old")
    top = stack(driver, base, tar("d/new", "n/e/w"))
    assert shown(driver, top) == ["d", "d/new", "d/old", "n", "n/e", "n/e/w"]
    with driver.mounted(top) as root:
        assert (root / "d").stat().st_mode & 0o7777 == 0o750


HOSTILE = {
    "dot dot": tar("../evil"),
    "deep dot dot": tar("d/", "d/../../../evil"),
    "link out, then through": tar(entry("l", tarfile.SYMTYPE, linkname="/tmp"), "l/../../evil"),
    "hard link out": tar(entry("h", tarfile.LNKTYPE, linkname="../../../etc/passwd")),
    "hard link to nothing": tar(entry("h", tarfile.LNKTYPE, linkname="nothing")),
    "hard link to itself": tar(entry("h", tarfile.LNKTYPE, linkname="h")),
    "whiteout of dot dot": tar("d/.wh..."),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_as_a_whole(driver: Driver, case: str) -> None:
    driver.create(A)
    with pytest.raises(InvalidArchive) as caught:
        HOSTILE[case].seek(0)
        driver.apply_diff(A, None, HOSTILE[case])
    assert caught.value.entry is not None
    assert shown(driver, A) == []


def test_a_symlink_leads_nowhere_outside(driver: Driver, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    stream = tar(
        entry("l", tarfile.SYMTYPE, linkname=str(outside)),
        ("l/planted", b"evil"),
        entry("l/.wh.precious"),
    )
    driver.create(A)
    try:
        driver.apply_diff(A, None, stream)
    except InvalidArchive:
        pass
    assert [p.name for p in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "precious"
