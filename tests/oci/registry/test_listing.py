"""Lists come in pages, of any number, and end."""

from __future__ import annotations

import json

import pytest

from lamina.errors import RegistryError
from lamina.oci import mediatypes
from lamina.oci.content import read_document
from lamina.oci.descriptor import described
from lamina.oci.manifest import Index
from lamina.oci.registry import Repository
from tests.oci.registry.conftest import Open
from tests.oci.registry.test_repository import put_image
from tests.servers import Action, Faulty, Handler, relay, replying

SUBJECT = described(b"subject", mediatypes.OCI_MANIFEST)


@pytest.fixture
def repository(faulty: Faulty, repository_name: str, opened: Open) -> Repository:
    return opened(faulty.host, repository_name)


def page(document: object, following: str | None = None) -> Action:
    headers = {"Content-Type": "application/json"}
    if following:
        headers["Link"] = f'<{following}>; rel="next"'
    return replying(200, headers, json.dumps(document).encode())


def test_tags_come_page_by_page(repository: Repository, faulty: Faulty) -> None:
    """docker-registry 2.8 gives all at once."""
    where = f"/v2/{repository.repository}/tags/list"
    faulty.fault("last=b", page({"tags": ["c", "d"]}, f"http://{faulty.host}{where}?last=d"))
    faulty.fault("last=d", page({"tags": ["e"]}))
    faulty.fault("GET", page({"tags": ["a", "b"]}, f"{where}?last=b"))
    assert repository.tags() == ["a", "b", "c", "d", "e"]


def test_all_tags_are_listed(repository: Repository) -> None:
    for tag in ("one", "two"):
        put_image(repository, tag)
    assert sorted(repository.tags()) == ["one", "two"]


@pytest.mark.parametrize("document", [{"tags": None}, {}, {"name": "x", "tags": []}])
def test_there_may_be_no_tags(
    repository: Repository, faulty: Faulty, document: dict[str, object]
) -> None:
    faulty.fault("GET", page(document))
    assert repository.tags() == []


@pytest.mark.parametrize("document", [[], 3, {"tags": 3}, {"tags": [3]}, {"tags": {"a": 1}}])
def test_what_is_no_list_is_an_error(
    repository: Repository, faulty: Faulty, document: object
) -> None:
    faulty.fault("GET", page(document))
    with pytest.raises(RegistryError, match="tags"):
        repository.tags()


def test_a_list_without_an_end_is_an_error(repository: Repository, faulty: Faulty) -> None:
    faulty.fault("GET", page({"tags": ["a"]}, "/v2/again"), times=99)
    with pytest.raises(RegistryError, match="without an end"):
        repository.tags()
    assert len(faulty.requests) == 2


def test_a_page_that_is_cut_is_asked_for_again(repository: Repository, faulty: Faulty) -> None:
    put_image(repository, "one")
    faulty.fault("GET .*/tags/", lambda handler: relay(handler, cut_after=5))
    assert repository.tags() == ["one"]


def test_a_page_of_over_four_mebibytes_is_not_read(repository: Repository, faulty: Faulty) -> None:
    faulty.fault("GET", page({"tags": ["x" * 100] * 50_000}))
    with pytest.raises(RegistryError, match="over 4194304 bytes"):
        repository.tags()


def test_referrers_are_listed_by_who_has_a_list(repository: Repository, faulty: Faulty) -> None:
    entries = [described(bytes([n]), mediatypes.OCI_MANIFEST) for n in range(3)]
    first, second = Index(manifests=entries[:2]), Index(manifests=entries[2:])
    following = f"/v2/{repository.repository}/referrers/{SUBJECT.digest}?page=2"
    headers = {"Content-Type": mediatypes.OCI_INDEX, "Link": f'<{following}>; rel="next"'}
    faulty.fault("GET .*page=2", replying(200, {}, second.encode()))
    faulty.fault("GET .*/referrers/", replying(200, headers, first.encode()))
    found = repository.referrers(SUBJECT.digest)
    assert [each.digest for each in found] == [each.digest for each in entries]
    assert len(faulty.requests) == 2


@pytest.mark.parametrize("body", [b"", b"{", b'{"manifests": 3}', b'{"mediaType": "x"}'])
def test_what_is_no_list_of_referrers_is_an_error(
    repository: Repository, faulty: Faulty, body: bytes
) -> None:
    faulty.fault("GET .*/referrers/", replying(200, {}, body))
    with pytest.raises(Exception, match=r"index|JSON"):
        repository.referrers(SUBJECT.digest)


def test_a_registry_with_a_list_of_referrers_gets_no_tag_for_it(
    repository: Repository, faulty: Faulty
) -> None:
    def with_list(handler: Handler) -> None:
        handler.more["OCI-Subject"] = SUBJECT.digest
        relay(handler)

    faulty.fault("PUT .*/manifests/", with_list)
    written = put_image(repository, None, subject=SUBJECT)
    assert read_document(repository, written)
    assert len(faulty.asked("PUT .*/manifests/")) == 1
