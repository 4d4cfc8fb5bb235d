"""Places of images as people write them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from lamina.errors import ImageNotFound, InvalidImage, InvalidName
from lamina.oci.layout import LayoutDirectory
from lamina.oci.transports import Place, copy_image, is_place, open_source
from lamina.progress import Progress
from tests.oci.images import make, put, tar

FULL = "docker.io/library/debian:12"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("debian:12", Place("docker", "", FULL)),
        ("docker://debian:12", Place("docker", "", FULL)),
        ("localhost:5000/x", Place("docker", "", "localhost:5000/x:latest")),
        ("docker://docker:dind", Place("docker", "", "docker.io/library/docker:dind")),
        ("oci:/a/b", Place("oci", "/a/b", None)),
        ("oci:/a/b:12", Place("oci", "/a/b", "12")),
        ("oci-archive:x.tar:debian:12", Place("oci-archive", "x.tar", "debian:12")),
        ("docker-archive:x.tar", Place("docker-archive", "x.tar", None)),
    ],
)
def test_a_place_is_read_and_written(text: str, place: Place) -> None:
    assert Place.parse(text) == place
    assert Place.parse(str(place)) == place


@pytest.mark.parametrize(
    "text", ["docker:debian", "oci:", "oci::x", "dir:x", "docker-daemon:x", "/x", "./x", "UP", ""]
)
def test_what_is_no_place_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(InvalidName):
        Place.parse(text)


def test_a_bare_name_says_no_place() -> None:
    assert [is_place(t) for t in ("docker://x", "oci:x", "docker:dind", "localhost:5000/x")] == [
        True, True, False, False,
    ]  # fmt: skip


@pytest.fixture
def layout(tmp_path: Path) -> str:
    with closing(LayoutDirectory.create(tmp_path / "l")) as found:
        put(found, make({"a": b"a" * 5000}, {"b": b"b"}), FULL)
    return f"oci:{tmp_path}/l"


def test_progress_counts_every_byte(layout: str, tmp_path: Path) -> None:
    seen: list[Progress] = []
    for target in (f"oci:{tmp_path}/m:1", f"oci:{tmp_path}/m:2"):  # the second has it all
        seen.clear()
        copy_image(Place.parse(layout), Place.parse(target), progress=seen.append)
        assert seen[-1].done == seen[-1].total
        assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_an_archive_that_fails_is_not_there_and_takes_no_others_place(
    layout: str, tmp_path: Path
) -> None:
    target = tmp_path / "a.tar"
    target.write_text("precious")
    (blob, *_) = sorted((tmp_path / "l/blobs/sha256").iterdir(), key=lambda p: -p.stat().st_size)
    blob.write_bytes(b"b" * blob.stat().st_size)
    with pytest.raises(Exception, match="digest"):
        copy_image(Place.parse(layout), Place.parse(f"oci-archive:{target}"))
    assert target.read_text() == "precious"
    with pytest.raises(ImageNotFound):
        copy_image(Place.parse(f"{layout}:9"), Place.parse(f"oci:{tmp_path}/new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "l"]


def test_a_file_system_and_a_digest_are_refused(layout: str, tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(tar({"etc/passwd": b"x"}))
    with pytest.raises(InvalidImage), open_source(Place.parse(f"oci-archive:{tmp_path}/r")):
        pass
    with pytest.raises(InvalidName, match="digest"):
        copy_image(Place.parse(layout), Place.parse(f"x@sha256:{'0' * 64}"))
