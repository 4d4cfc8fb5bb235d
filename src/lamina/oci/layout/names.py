"""The names of images in an ``index.json``, and finding one by its name.

The name of a descriptor is in its annotations. ``io.containerd.image.name`` is a full name
(containerd, Docker from 25 on). ``org.opencontainers.image.ref.name`` is whatever its writer took
for a name: a full one (podman, skopeo), or a bare tag such as ``12`` (umoci, skopeo; containerd
and Docker beside the full one). What has neither ``/`` nor ``:`` counts as such a tag here: it is
found by itself, but is no image's name anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lamina.errors import AmbiguousName, ImageNotFound, InvalidName, printable
from lamina.oci.content import Named
from lamina.oci.descriptor import Descriptor
from lamina.oci.platform import is_image
from lamina.oci.reference import Reference

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"


def is_tag(name: str) -> bool:
    """Whether a name is only good within one layout."""
    return not set(name) & set("/:")


def full_name(text: str) -> str | None:
    """The full name that a layout's ``text`` stands for; None for a tag and what is no name."""
    if is_tag(text):
        return None
    try:
        return str(Reference.parse(text))
    except InvalidName:
        return None


def name_annotations(name: str) -> dict[str, str]:
    """The annotations that give a descriptor a name: so that each of our peers finds it.

    Raises :class:`InvalidName`.
    """
    reference = Reference.parse(name)
    if is_tag(name):
        return {REF_NAME: name}
    return {REF_NAME: str(reference), CONTAINERD_NAME: str(reference)}


def named(descriptor: Descriptor, name: str | None) -> Descriptor:
    """A copy of ``descriptor`` whose annotations give it this name, and no other."""
    copy = descriptor.copy()
    kept = {
        k: v for k, v in (copy.annotations or {}).items() if k not in (REF_NAME, CONTAINERD_NAME)
    }
    copy.annotations = (kept | name_annotations(name) if name is not None else kept) or None
    return copy


def written_names(descriptor: Descriptor) -> list[str]:
    """The names in a descriptor's annotations, as they are written."""
    annotations = descriptor.annotations or {}
    return [annotations[key] for key in (CONTAINERD_NAME, REF_NAME) if annotations.get(key)]


def known_names(descriptor: Descriptor) -> set[str]:
    """The names in a descriptor's annotations: as they are written, and in full."""
    written = written_names(descriptor)
    return {*written, *(full for text in written if (full := full_name(text)))}


def without_names(descriptor: Descriptor, taken: set[str]) -> Descriptor | None:
    """What is left of an entry when another takes some of its names; None without any left."""
    gone = [
        key
        for key in (CONTAINERD_NAME, REF_NAME)
        if (text := (descriptor.annotations or {}).get(key)) and {text, full_name(text)} & taken
    ]
    if not gone:
        return descriptor
    left = descriptor.copy()
    left.annotations = {k: v for k, v in (left.annotations or {}).items() if k not in gone}
    return left if known_names(left) else None


def grouped(
    entries: Iterable[Descriptor], more: dict[str, Sequence[str]] | None = None
) -> list[Named]:
    """The images among an index's entries, each once with all of its full names.

    ``more`` has further names by digest.
    """
    found: dict[str, tuple[Descriptor, dict[str, None]]] = {}
    for entry in entries:
        if is_image(entry):
            _, names = found.setdefault(entry.digest, (entry, {}))
            full = (full_name(text) for text in written_names(entry))
            names.update(dict.fromkeys(name for name in full if name is not None))
    for digest, extra in (more or {}).items():
        if digest in found:
            found[digest][1].update(dict.fromkeys(extra))
    return [Named(entry, tuple(names)) for entry, names in found.values()]


def find(
    images: Sequence[Named], entries: Iterable[Descriptor], name: str | None, where: str
) -> Descriptor:
    """The one that ``name`` means: a name or tag as written, a full or short name, or a digest.

    Raises:
        ImageNotFound: there is none.
        AmbiguousName: there are several of this name; or several at all, and ``name`` is None.
    """
    if name is None:
        candidates = [image.descriptor for image in images]
    else:
        candidates = _matching(images, entries, name)
    digests = {candidate.digest for candidate in candidates}
    if not digests:
        there = _listed(images, entries)
        raise ImageNotFound(name or "any", f"{printable(where)} has {there}")
    if len(digests) > 1:
        what = "images" if name is None else f"images called {printable(name)}"
        raise AmbiguousName(
            f"{printable(where)} has {len(digests)} {what} ({_listed(images, entries)}); "
            "say which by name or digest"
        )
    return candidates[0]


def _matching(
    images: Sequence[Named], entries: Iterable[Descriptor], name: str
) -> list[Descriptor]:
    entries = list(entries)
    written = [e for e in entries if name in written_names(e) or e.digest == name]
    if written:
        return written
    try:
        reference = Reference.parse(name)
    except InvalidName:
        return []
    full = str(reference)
    found = [image.descriptor for image in images if full in image.names]
    return found or [entry for entry in entries if entry.digest == reference.digest]


def _listed(images: Sequence[Named], entries: Iterable[Descriptor]) -> str:
    texts = [text for entry in entries for text in written_names(entry)]
    texts += [name for image in images for name in image.names]
    names = list(dict.fromkeys(texts)) or [image.descriptor.digest for image in images]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(printable(name) for name in names[:10]) or "no image") + more
