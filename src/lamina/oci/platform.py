"""Platforms: what an image runs on, and which image of an index runs here.

Spelling and compatibility are those of github.com/containerd/platforms (its documentation and
tables), which Docker uses too.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from lamina.errors import InvalidImage, InvalidName, PlatformNotFound, printable

if TYPE_CHECKING:
    from lamina.oci.descriptor import Descriptor, Platform
    from lamina.oci.manifest import Index

REFERENCE_TYPE = "vnd.docker.reference.type"
"""The annotation by which buildkit marks what stands beside an image: an attestation."""

MAX_DEPTH = 4
"""Indexes within indexes that are followed."""

_MAX_INDEXES = 64
_PART = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_SYSTEMS = frozenset({
    "aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux",
    "macos", "nacl", "netbsd", "openbsd", "plan9", "solaris", "wasip1", "windows", "zos",
})  # fmt: skip
_ARCHITECTURES = frozenset({
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64",
    "ppc64le", "riscv64", "s390x", "wasm",
})  # fmt: skip
# Other names, and the variant that each implies.
_ALIASES = {
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "loongarch64": ("loong64", None),
    "mips64el": ("mips64le", None),
    "mipsel": ("mipsle", None),
}
# What the kernel calls its machines, uname(2), beside the names above.
_MACHINES = {
    "armv5tel": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
}
_IN_32_BITS = {"amd64": ("386", ""), "arm64": ("arm", "v8")}
_DEFAULT_VARIANTS = {"amd64": "v1", "arm64": "v8"}  # what no variant means, and is written as
_OLDEST = {"amd64": 1, "arm": 5}
_FALLBACKS = {"arm64": ("arm", "v8"), "amd64": ("386", "")}


class Spec(NamedTuple):
    """A platform in its one spelling: ``linux/amd64``, ``linux/arm/v7``.

    ``variant`` is empty for the baseline: amd64's v1, arm64's v8. arm without one is v7.
    """

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in self if part)


def normalize(os: str, architecture: str, variant: str = "") -> Spec:
    """The one spelling of a platform: ``Linux``, ``aarch64``, ``8`` is ``linux/arm64``."""
    system, architecture, variant = os.lower(), architecture.lower(), variant.lower()
    if system == "macos":
        system = "darwin"
    architecture, implied = _ALIASES.get(architecture, (architecture, None))
    if implied is not None:
        variant = implied
    if variant[:1].isdigit():
        variant = f"v{variant}"
    if architecture in ("arm", "arm64"):
        variant = variant.removesuffix(".0")
    if architecture == "arm" and not variant:
        variant = "v7"
    if variant == _DEFAULT_VARIANTS.get(architecture):
        variant = ""
    return Spec(system, architecture, variant)


def parse(text: str) -> Spec:
    """A platform as people write it: ``linux/arm/v7``, ``arm64``, ``linux``.

    What is not said is this machine's. Raises :class:`InvalidName`.
    """
    parts = text.split("/")
    if len(parts) > 3 or not all(_PART.fullmatch(part) for part in parts):
        raise _invalid(text, "OS/ARCHITECTURE[/VARIANT], as in linux/arm/v7")
    if len(parts) > 1:
        return normalize(*parts)
    here = this_machine()
    if text.lower() in _SYSTEMS:
        return normalize(text, here.architecture, here.variant)
    found = normalize(here.os, text)
    if found.architecture not in _ARCHITECTURES:
        raise _invalid(text, "OS/ARCHITECTURE, as in linux/amd64; alone it is no known one")
    return found


def this_machine() -> Spec:
    """What programs like this one run on.

    The levels of amd64 are not looked for: as with Docker, v2 and v3 are for who asks for them.
    """
    machine = os.uname().machine
    spec = normalize("linux", *_MACHINES.get(machine, (machine, "")))
    if struct.calcsize("P") == 4 and spec.architecture in _IN_32_BITS:
        spec = Spec("linux", *_IN_32_BITS[spec.architecture])  # on a kernel of 64 bits
    return spec


def of(platform: Platform) -> Spec:
    """The one spelling of a descriptor's platform."""
    return normalize(platform.os, platform.architecture, platform.variant or "")


def preference(wanted: Spec, *, fallback: bool = False) -> list[Spec]:
    """What runs where ``wanted`` does, best first: arm/v7 runs v7, v6 and v5.

    ``fallback``: also what a 64-bit machine mostly can run in 32 bits (arm64: arm/v8 and lower,
    amd64: 386).
    """
    found = [wanted]
    level = wanted.variant or _DEFAULT_VARIANTS.get(wanted.architecture, "")
    oldest = 8 if wanted.architecture == "arm64" else _OLDEST.get(wanted.architecture)
    if oldest is not None and (match := re.fullmatch(r"v([0-9]+)(\.[0-9]+)?", level)):
        newest = int(match[1]) - (match[2] is None)
        # Where 9.2 runs, so does 9: a minor number asks for more, never for less.
        lower = range(min(newest, oldest + 16), oldest - 1, -1)
        found += [normalize(wanted.os, wanted.architecture, f"v{number}") for number in lower]
    if fallback and wanted.architecture in _FALLBACKS:
        found += preference(Spec(wanted.os, *_FALLBACKS[wanted.architecture]))
    return found


def is_image(descriptor: Descriptor) -> bool:
    """Whether an index's entry is an image or an index of such, not what stands beside one.

    Attestations are marked by an annotation and the platform unknown/unknown (buildkit), other
    artifacts by their ``artifactType`` (image-spec, manifest.md).
    """
    from lamina.oci import mediatypes

    if descriptor.media_type not in mediatypes.MANIFESTS | mediatypes.INDEXES:
        return False
    if REFERENCE_TYPE in (descriptor.annotations or {}):
        return False
    if descriptor.artifact_type and descriptor.artifact_type not in mediatypes.CONFIGS:
        return False
    platform = descriptor.platform
    return platform is None or "unknown" not in (platform.os, platform.architecture)


def choose(
    index: Index,
    wanted: Spec,
    nested: Callable[[Descriptor], Index],
    *,
    fallback: bool = False,
) -> Descriptor:
    """The image of an index that runs best on ``wanted``.

    Args:
        index: as it was read.
        wanted: the platform.
        nested: reads an index that the index names.
        fallback: as in :func:`preference`.

    Of equal entries the first counts. The only image of an index may lack a platform; it is
    taken, and the caller, who will read its configuration, looks there whether it fits.

    Raises:
        PlatformNotFound: none does; it lists those there are.
        InvalidImage: indexes in indexes go too deep, or are too many.
    """
    entries = [entry for entry in _images(index, nested) if is_image(entry)]
    specs = [None if entry.platform is None else of(entry.platform) for entry in entries]
    for spec in preference(wanted, fallback=fallback):
        if spec in specs:
            return entries[specs.index(spec)]
    if len(entries) == 1 and specs[0] is None:
        return entries[0]
    raise PlatformNotFound(str(wanted), list(dict.fromkeys(str(s or "unnamed") for s in specs)))


def check(wanted: Spec, found: Spec, *, fallback: bool = False) -> None:
    """Raise :class:`PlatformNotFound` unless what is for ``found`` runs where ``wanted`` does."""
    if found not in preference(wanted, fallback=fallback):
        raise PlatformNotFound(str(wanted), [str(found)])


def _images(index: Index, nested: Callable[[Descriptor], Index]) -> Iterator[Descriptor]:
    """The manifests of an index, and of the indexes in it, in order."""
    from lamina.oci import mediatypes

    read = 0
    pending: list[tuple[Descriptor, int]] = [(entry, 0) for entry in reversed(index.manifests)]
    while pending:
        entry, depth = pending.pop()
        if entry.media_type not in mediatypes.INDEXES:
            yield entry
            continue
        if not is_image(entry):
            continue
        read += 1
        if depth == MAX_DEPTH or read > _MAX_INDEXES:
            raise InvalidImage(f"indexes within indexes, too deep or too many ({entry.digest})")
        pending += [(inner, depth + 1) for inner in reversed(nested(entry).manifests)]


def _invalid(text: str, shape: str) -> InvalidName:
    return InvalidName(f"not a platform: {printable(text[:200])!r} ({shape})")
