from __future__ import annotations

import pytest

from lamina.errors import InvalidName
from lamina.oci import is_image_archive_member, normalize


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("debian", "debian:latest"),
        ("debian:12", "debian:12"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
        ("registry.example.org/x_y/z--w:V1.0_a", "registry.example.org/x_y/z--w:V1.0_a"),
    ],
)
def test_a_name_without_tag_means_latest(name: str, normal: str) -> None:
    assert normalize(name) == normal


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Debian",
        "a b",
        "a:",
        ":1",
        "a//b",
        "/a",
        "a/",
        "a:b:c",
        "a\n",
        "a\0",
        "../a",
        "-a",
        "ä",
        "a:-",
        "a" * 256,
        "a:" + "t" * 129,
        "a@sha256:" + "0" * 64,
        "a" * 1_000_000,
    ],
)
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        normalize(name)


def test_an_image_archive_is_known_by_its_members() -> None:
    assert is_image_archive_member(b"manifest.json")
    assert is_image_archive_member(b"./oci-layout")
    assert not is_image_archive_member(b"etc/manifest.json")
