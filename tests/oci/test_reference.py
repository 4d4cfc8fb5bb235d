from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lamina.errors import InvalidName
from lamina.oci import is_image_archive_member, normalize
from lamina.oci.reference import Reference

DIGEST = "sha256:" + "0a" * 32
LONG_DIGEST = "sha512:" + "0a" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("index.docker.io/library/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("library/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("some/one", "docker.io/some/one:latest", "some/one:latest"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}", f"debian@{DIGEST}"),
        (f"debian:12@{DIGEST}", f"docker.io/library/debian:12@{DIGEST}", f"debian:12@{DIGEST}"),
        (f"a@{LONG_DIGEST}", f"docker.io/library/a@{LONG_DIGEST}", f"a@{LONG_DIGEST}"),
        ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest", "localhost:5000/a/b:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
        ("Host/a", "Host/a:latest", "Host/a:latest"),
        ("REG.example.ORG:1/a:V1.0_a", "REG.example.ORG:1/a:V1.0_a", "REG.example.ORG:1/a:V1.0_a"),
        ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
        ("x_y/z--w", "docker.io/x_y/z--w:latest", "x_y/z--w:latest"),
        ("quay.io/a:1", "quay.io/a:1", "quay.io/a:1"),
        # Short, these would mean a registry's image, or none.
        ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
        ("docker.io/localhost/c", "docker.io/localhost/c:latest", "docker.io/localhost/c:latest"),
    ],
)
def test_a_short_name_is_completed_and_shown_as_docker_does(
    text: str, full: str, familiar: str
) -> None:
    reference = Reference.parse(text)
    assert (str(reference), reference.familiar) == (full, familiar)
    assert Reference.parse(full) == Reference.parse(familiar) == reference


def test_the_parts_of_a_name() -> None:
    assert Reference.parse("debian") == ("docker.io", "library/debian", "latest", None)
    assert Reference.parse(f"h:1/a/b:t@{DIGEST}") == ("h:1", "a/b", "t", DIGEST)
    assert Reference.parse(f"h:1/a@{DIGEST}").tag is None
    assert Reference.parse("h:1/a/b").name == "h:1/a/b"


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("debian", "debian:latest"),
        ("docker.io/library/debian", "debian:latest"),
        ("debian:12", "debian:12"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
        ("registry.example.org/x_y/z--w:V1.0_a", "registry.example.org/x_y/z--w:V1.0_a"),
    ],
)
def test_a_name_without_tag_means_latest(name: str, normal: str) -> None:
    assert normalize(name) == normal
    assert normalize(normal) == normal


def test_a_store_s_name_has_no_digest() -> None:
    with pytest.raises(InvalidName, match="can't be given"):
        normalize(f"a@{DIGEST}")


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("", "lower-case letters"),
        ("Debian", "has to be lower case: 'debian'"),
        ("a/B", "has to be lower case: 'a/b'"),
        ("a b", "lower-case letters"),
        ("a:", "a tag has"),
        (":1", "lower-case letters"),
        ("a//b", "lower-case letters"),
        ("/a", "lower-case letters"),
        ("a/", "lower-case letters"),
        ("a:b:c", "a tag has"),
        ("a\n", "lower-case letters"),
        ("a:b\n", "a tag has"),
        ("a\0", "lower-case letters"),
        ("../a", "no host"),
        ("a..b/c", "no host"),
        ("-h.org/a", "no host"),
        ("h:port/a", "no host"),
        ("https://h/a", "no host"),
        ("-a", "lower-case letters"),
        ("ä", "lower-case letters"),
        ("a:-", "a tag has"),
        ("a" * 256, "at most 255"),
        ("library/" + "a" * 250, "at most 255"),
        ("h." * 128 + "h/a", "no host"),
        ("a:" + "t" * 129, "a tag has"),
        ("0a" * 32, "an image's id"),
        ("a@sha256:" + "0" * 63, "sha256:HEX"),
        ("a@sha256:" + "A" * 64, "sha256:HEX"),
        ("a@md5:" + "0" * 32, "sha256:HEX"),
        ("a@", "sha256:HEX"),
        (f"a@{DIGEST}@{DIGEST}", "sha256:HEX"),
        ("a" * 1_000_000, "too long"),
    ],
)
def test_odd_names_are_refused_with_what_would_be_right(name: str, right: str) -> None:
    for parse in (Reference.parse, normalize):
        with pytest.raises(InvalidName) as caught:
            parse(name)
        message = str(caught.value)
        assert right in message
        assert len(message) < 700
        assert message.isprintable()


_HOSTS = st.from_regex(r"\A[a-zA-Z0-9]{1,8}(\.[a-z0-9]{1,5}){0,2}(:[0-9]{1,5})?\Z")
_REPOSITORIES = st.from_regex(r"\A[a-z0-9]{1,5}((\.|_|__|-{1,3}|/)[a-z0-9]{1,5}){0,4}\Z")
_TAGS = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}\Z")


@given(
    st.one_of(st.none(), st.just("docker.io"), st.just("index.docker.io"), _HOSTS),
    _REPOSITORIES,
    st.one_of(st.none(), _TAGS),
    st.sampled_from([None, DIGEST, LONG_DIGEST]),
)
def test_the_full_and_the_short_form_mean_the_same(
    host: str | None, repository: str, tag: str | None, digest: str | None
) -> None:
    assume(host or "." not in repository.partition("/")[0])  # that would be a host
    text = repository if host is None else f"{host}/{repository}"
    text += f":{tag}" if tag else ""
    text += f"@{digest}" if digest else ""
    reference = Reference.parse(text)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference
    assert reference.digest == digest
    assert reference.tag == (tag or (None if digest else "latest"))


@given(st.text(max_size=40) | st.text("aA0.-_/:@[]\n", max_size=20))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidName:
        return
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference
    assert str(reference).isascii()
    assert str(reference).isprintable()


def test_an_image_archive_is_known_by_its_members() -> None:
    assert is_image_archive_member(b"manifest.json")
    assert is_image_archive_member(b"./oci-layout")
    assert not is_image_archive_member(b"etc/manifest.json")
