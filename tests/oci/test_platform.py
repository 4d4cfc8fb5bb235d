"""Platforms are spelled, compared and chosen as containerd does it."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import InvalidImage, InvalidName, PlatformNotFound
from lamina.oci import ImageConfig, mediatypes, platform
from lamina.oci.descriptor import Descriptor, Platform, described
from lamina.oci.manifest import Index
from lamina.oci.platform import Spec


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/X86_64", "linux/amd64"),
        ("linux/x86-64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v8.0", "linux/arm64"),
        ("linux/arm64/9.0", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("linux/ppc64le", "linux/ppc64le"),
        ("macos/arm64", "darwin/arm64"),
        ("arm64", "linux/arm64"),
        ("riscv64", "linux/riscv64"),
    ],
)
def test_a_platform_has_one_spelling(text: str, normal: str) -> None:
    assert str(platform.parse(text)) == normal
    assert platform.parse(normal) == platform.parse(text)


def test_what_is_not_said_is_this_machine_s() -> None:
    here = platform.this_machine()
    assert platform.parse("linux") == here
    assert platform.parse("freebsd") == here._replace(os="freebsd")
    config = ImageConfig.for_this_machine()
    assert (config.os, config.architecture, config.variant or "") == here
    if os.uname().machine == "x86_64":
        assert str(here) == "linux/amd64"


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d", "toaster", "linux/a b", "linux/ä"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidName, match="not a platform"):
        platform.parse(text)


@given(st.text(max_size=20) | st.from_regex(r"\A[a-z0-9]{1,6}(/[a-z0-9.]{1,5}){0,2}\Z"))
def test_the_one_spelling_is_a_fixed_point(text: str) -> None:
    try:
        found = platform.parse(text)
    except InvalidName:
        return
    assert platform.parse(str(found)) == found


@pytest.mark.parametrize(
    ("wanted", "fallback", "runs"),
    [
        ("linux/arm/v7", False, "linux/arm/v7 linux/arm/v6 linux/arm/v5"),
        ("linux/arm/v5", False, "linux/arm/v5"),
        ("linux/amd64/v3", False, "linux/amd64/v3 linux/amd64/v2 linux/amd64"),
        ("linux/amd64", False, "linux/amd64"),
        ("linux/amd64", True, "linux/amd64 linux/386"),
        ("linux/arm64", False, "linux/arm64"),
        ("linux/arm64/v9.2", False, "linux/arm64/v9.2 linux/arm64/v9 linux/arm64"),
        (
            "linux/arm64",
            True,
            "linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
        ),
        ("linux/s390x", True, "linux/s390x"),
    ],
)
def test_older_variants_run_too(wanted: str, fallback: bool, runs: str) -> None:
    found = platform.preference(platform.parse(wanted), fallback=fallback)
    assert [str(spec) for spec in found] == runs.split()


def test_a_variant_of_a_huge_number_costs_nothing() -> None:
    assert len(platform.preference(platform.parse("linux/arm/v999999999999"))) < 50


def entry(spec: str | None, **members: object) -> Descriptor:
    found = described(repr((spec, members)).encode(), mediatypes.OCI_MANIFEST, **members)
    if spec is not None:
        system, architecture, *variant = spec.split("/")
        found.platform = Platform(
            os=system, architecture=architecture, variant=variant[0] if variant else None
        )
    return found


def no_index(descriptor: Descriptor) -> Index:
    raise AssertionError(descriptor)


def choose(wanted: str, *entries: Descriptor, fallback: bool = False) -> Descriptor:
    index = Index(manifests=list(entries))
    return platform.choose(index, platform.parse(wanted), no_index, fallback=fallback)


ATTESTATION = entry("unknown/unknown", annotations={platform.REFERENCE_TYPE: "attestation"})


def test_the_exact_platform_comes_before_what_is_compatible() -> None:
    v5, v6, v7 = (entry(f"linux/arm/v{number}") for number in (5, 6, 7))
    assert choose("linux/arm/v7", v5, v6, v7) is v7
    assert choose("linux/arm/v7", v5, v6) is v6
    assert choose("linux/arm", v5) is v5
    assert choose("linux/arm64", v5, v7, fallback=True) is v7
    amd64, v2 = entry("linux/amd64"), entry("linux/amd64/v2")
    assert choose("linux/amd64/v3", amd64, v2) is v2
    assert choose("linux/amd64", v2, amd64) is amd64


def test_other_spellings_in_an_index_are_understood() -> None:
    arm64 = entry("linux/arm64/v8")
    assert choose("linux/aarch64", arm64) is arm64
    assert choose("linux/arm/v7", found := entry("linux/arm")) is found


def test_of_equal_entries_the_first_counts() -> None:
    first = entry("linux/amd64")
    assert choose("linux/amd64", first, entry("linux/amd64", annotations={"a": "b"})) is first


def test_what_is_there_is_said_without_attestations_and_artifacts() -> None:
    with pytest.raises(PlatformNotFound) as caught:
        choose(
            "linux/s390x",
            entry("linux/amd64"),
            entry("linux/arm/v7"),
            entry("linux/s390x", artifact_type="application/x"),
            described(b"", "application/vnd.example"),
            ATTESTATION,
        )
    assert caught.value.available == ["linux/amd64", "linux/arm/v7"]
    assert "linux/amd64, linux/arm/v7" in str(caught.value)


def test_a_newer_variant_or_32_bits_are_not_taken_unasked() -> None:
    for wanted, there in [
        ("linux/arm/v6", "linux/arm/v7"),
        ("linux/amd64", "linux/amd64/v3"),
        ("linux/arm64", "linux/arm/v7"),
        ("linux/amd64", "linux/386"),
    ]:
        with pytest.raises(PlatformNotFound):
            choose(wanted, entry(there))


def test_the_only_image_may_lack_a_platform() -> None:
    alone = entry(None)
    assert choose("linux/amd64", alone, ATTESTATION) is alone
    with pytest.raises(PlatformNotFound, match="unnamed"):
        choose("linux/amd64", alone, entry("linux/s390x"))
    with pytest.raises(PlatformNotFound, match="none"):
        choose("linux/amd64", ATTESTATION)


def test_a_configuration_is_checked_by_the_same_rules() -> None:
    platform.check(Spec("linux", "arm", "v7"), Spec("linux", "arm", "v6"))
    with pytest.raises(PlatformNotFound, match="there are: linux/arm64"):
        platform.check(Spec("linux", "amd64"), Spec("linux", "arm64"))


def test_indexes_within_indexes_are_read() -> None:
    wanted = entry("linux/amd64")
    inner = Index(manifests=[ATTESTATION, wanted])
    outer = Index(manifests=[described(inner.encode(), mediatypes.OCI_INDEX)])
    found = platform.choose(outer, Spec("linux", "amd64"), lambda _: inner)
    assert found is wanted


def test_indexes_without_end_are_refused() -> None:
    itself = Descriptor.decode(
        json.dumps(
            {"mediaType": mediatypes.OCI_INDEX, "digest": "sha256:" + "0" * 64, "size": 1}
        ).encode()
    )
    for width in (1, 1000):
        index = Index(manifests=[itself] * width)
        with pytest.raises(InvalidImage, match="too deep or too many"):
            platform.choose(index, Spec("linux", "amd64"), lambda _, index=index: index)  # type: ignore[misc]
