"""Lists that a registry gives in pages: tags, and what refers to a manifest (distribution-spec)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from lamina.errors import RegistryError
from lamina.oci import mediatypes
from lamina.oci.descriptor import Descriptor
from lamina.oci.manifest import Index
from lamina.oci.registry.answers import LIST_LIMIT, json_object
from lamina.oci.registry.client import Ask, Client

if TYPE_CHECKING:
    import httpx

_PAGES = 10_000
_NEXT = re.compile(r'<([^<>]*)>\s*;[^,<]*\brel="?next"?', re.IGNORECASE)


def tags(client: Client, ask: Ask) -> list[str]:
    """The tags of a repository, as ordered by the registry; ``ask`` is the first page's request."""
    found: list[str] = []
    for document in _pages(client, ask):
        page = document.get("tags") or []
        if not isinstance(page, list) or not all(isinstance(tag, str) for tag in page):
            raise RegistryError(f"{client.registry}: {ask.what}: a list of what are no tags")
        found += page
    return found


def referrers(client: Client, ask: Ask) -> list[Descriptor] | None:
    """The manifests that name one as their subject; None where the registry has no such list."""
    found: list[Descriptor] = []
    for document in _pages(client, replace(ask, accept=(200, 404))):
        if not document:
            return None
        found += read_index(document, f"{client.registry}: {ask.what}").manifests
    return found


def read_index(document: dict[str, Any], what: str) -> Index:
    """An index that is a list; :class:`RegistryError` for what is none."""
    if document.get("mediaType", mediatypes.OCI_INDEX) != mediatypes.OCI_INDEX:
        raise RegistryError(f"{what}: a list that is no index")
    if document.get("manifests") is None:
        document = document | {"manifests": []}
    return Index.decode(msgspec.json.encode(document))


def _pages(client: Client, ask: Ask) -> Iterator[dict[str, Any]]:
    """The documents of all pages; an empty one where the first is not there."""
    seen = set()
    for _ in range(_PAGES):
        response, data = client.fetch(ask, LIST_LIMIT)
        if response.status_code == 404:
            yield {}
            return
        following = _next(response)
        yield json_object(data, f"{client.registry}: {ask.what}")
        if following is None:
            return
        if following in seen:
            break
        seen.add(following)
        ask = replace(ask, path=following, accept=(200,))
    raise RegistryError(f"{client.registry}: {ask.what}: a list without an end")


def _next(response: httpx.Response) -> str | None:
    """Where the next page is, in full, by the header ``Link`` (RFC 8288)."""
    match = _NEXT.search(response.headers.get("link", ""))
    return str(response.request.url.join(match[1])) if match else None
