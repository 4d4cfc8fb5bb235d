"""The marks that keep the kernel's aufs from showing what is hidden (lamina.archive.aufs)."""

from __future__ import annotations

from pathlib import Path

from lamina.archive.aufs import mend


def branch(root: Path, name: str, *paths: str) -> Path:
    """A branch with these files; a name that ends in ``/`` is a directory."""
    made = root / name
    made.mkdir()
    for path in paths:
        target = made / path
        if path.endswith("/"):
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    return made


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_what_only_the_upper_opaque_mark_hides_gets_marks_of_its_own(tmp_path: Path) -> None:
    base = branch(tmp_path, "base", "d/1")
    middle = branch(tmp_path, "middle", "d/.wh..wh..opq", "d/2", "d/s/t/3", "d/both")
    top = branch(tmp_path, "top", "d/.wh..wh..opq", "d/4", "d/s/t/5", "d/both")
    before = (top / "d").stat().st_mtime_ns
    mend(str(top), [middle, base])
    own = ["d", "d/.wh..wh..opq", "d/4", "d/both", "d/s", "d/s/t", "d/s/t/5"]
    assert names(top) == sorted([*own, "d/.wh.2", "d/s/.wh..wh..opq"])
    assert (top / "d").stat().st_mtime_ns == before
    mend(str(top), [middle, base])
    assert names(top) == sorted([*own, "d/.wh.2", "d/s/.wh..wh..opq"])


def test_marks_of_lower_subdirectories_count_too(tmp_path: Path) -> None:
    base = branch(tmp_path, "base", "d/.wh..wh..opq", "d/s/.wh..wh..opq", "d/s/1")
    top = branch(tmp_path, "top", "d/.wh..wh..opq", "d/s/2")
    mend(str(top), [base])
    assert "d/s/.wh..wh..opq" in names(top)
    assert "d/s/.wh.1" in names(top)


def test_a_directory_over_a_file_is_opaque(tmp_path: Path) -> None:
    base = branch(tmp_path, "base", "d/1", "e/1")
    middle = branch(tmp_path, "middle", "d")
    top = branch(tmp_path, "top", "d/2", "e/2")
    mend(str(top), [middle, base])
    assert names(top) == ["d", "d/.wh..wh..opq", "d/2", "e", "e/2"]


def test_one_opaque_mark_is_enough_where_there_is_no_other(tmp_path: Path) -> None:
    base = branch(tmp_path, "base", "d/1", "e/.wh..wh..opq")
    top = branch(tmp_path, "top", "d/.wh..wh..opq", "d/2", "e/3")
    before = names(top)
    mend(str(top), [base])
    mend(str(top), [])
    assert names(top) == before
