"""lamina.drivers.erofs.listings."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lamina.drivers.erofs import listings
from lamina.drivers.erofs.listings import Listings


@pytest.fixture
def directory(tmp_path: Path) -> str:
    made = tmp_path / "layer"
    made.mkdir()
    (made / "tar").touch()
    return str(made)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all changes had been made long ago."""
    monkeypatch.setattr(listings, "_SETTLED", 0)


@pytest.mark.usefixtures("settled")
def test_a_directory_is_listed_once(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Listings()
    assert known.of(directory) == {"tar"}
    monkeypatch.setattr(os, "listdir", None)
    assert known.of(directory) == {"tar"}


@pytest.mark.usefixtures("settled")
def test_a_name_that_comes_or_goes_shows(directory: str) -> None:
    known = Listings()
    assert known.of(directory) == {"tar"}
    Path(directory, "index").touch()
    assert known.of(directory) == {"tar", "index"}
    Path(directory, "tar").unlink()
    assert known.of(directory) == {"index"}
    Path(directory, "index").rename(f"{directory}/chain")
    assert known.of(directory) == {"chain"}


@pytest.mark.usefixtures("settled")
def test_another_directory_in_its_place_shows(directory: str) -> None:
    known = Listings()
    known.of(directory)
    other = Path(f"{directory}-other")
    other.mkdir()
    (other / "diff").mkdir()
    shutil.rmtree(directory)
    other.rename(directory)
    assert known.of(directory) == {"diff"}


def test_of_what_changed_just_now_nothing_is_said(directory: str) -> None:
    known = Listings()
    assert known.of(directory) is None
    assert known.of(directory) is None


@pytest.mark.usefixtures("settled")
def test_a_directory_that_is_gone_is_missed(directory: str) -> None:
    known = Listings()
    known.of(directory)
    shutil.rmtree(directory)
    with pytest.raises(FileNotFoundError):
        known.of(directory)


@pytest.mark.usefixtures("settled")
def test_no_more_are_remembered_than_is_reasonable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "_KEPT", 3)
    known = Listings()
    for number in range(10):
        (tmp_path / f"{number}").mkdir()
        assert known.of(str(tmp_path / f"{number}")) == set()
        assert len(known._known) <= 3
