"""Challenges are honoured, tokens kept, and credentials go to nobody but those they are for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import RegistryError, Unauthorized
from lamina.oci import mediatypes
from lamina.oci.content import read_document
from lamina.oci.descriptor import described
from lamina.oci.registry import Credentials, Repository
from tests.oci.registry.conftest import DATA, Open
from tests.oci.registry.test_repository import BLOB, put, put_image, read
from tests.registries import PASSWORD, USER, Authority, Registry, free_port, serve
from tests.servers import Faulty, Tokens, relay, replying

BLOB_OF_LAYER = described(DATA, mediatypes.OCI_LAYER)
ANN = Credentials(USER, PASSWORD)


@pytest.fixture
def ann(guarded: Faulty, tokens: Tokens, repository_name: str, opened: Open) -> Repository:
    tokens.users[USER] = PASSWORD
    return opened(guarded.host, repository_name, credentials=ANN)


# --- basic


def test_basic_credentials_are_sent_when_asked_for_and_then_at_once(
    basic_registry: Registry, repository_name: str, opened: Open
) -> None:
    with Faulty(basic_registry.host) as faulty, faulty.running():
        challenge = {"WWW-Authenticate": 'Basic realm="x"'}
        faulty.fault("GET .*/manifests/", replying(401, challenge))
        faulty.fault("GET .*/manifests/", replying(404), times=2)
        repository = opened(faulty.host, repository_name, credentials=ANN)
        for _ in range(2):
            with pytest.raises(LookupError):
                repository.resolve("one")
        said = [request.authorization for request in faulty.requests]
        assert said == [None, ANN.basic(), ANN.basic()]


def test_an_image_goes_to_a_registry_with_basic_authorisation(
    basic_registry: Registry, repository_name: str, opened: Open
) -> None:
    repository = opened(basic_registry.host, repository_name, credentials=ANN)
    written = put_image(repository, "one", DATA)
    assert read_document(repository, repository.resolve("one"))
    assert repository.has(written)


@pytest.mark.parametrize(
    ("who", "hint"), [(None, "lamina login"), (Credentials(USER, "wrong"), "password .* refused")]
)
def test_who_has_no_right_is_told(
    basic_registry: Registry,
    repository_name: str,
    opened: Open,
    who: Credentials | None,
    hint: str,
) -> None:
    repository = opened(basic_registry.host, repository_name, credentials=who)
    with pytest.raises(Unauthorized, match=rf"manifests/one: 401.*UNAUTHORIZED.*{hint}") as e:
        repository.resolve("one")
    assert e.value.status == 401
    assert repository.repository in str(e.value)
    assert "wrong" not in str(e.value)


# --- tokens


def test_an_image_goes_and_comes_with_tokens(
    ann: Repository, guarded: Faulty, tokens: Tokens
) -> None:
    written = put_image(ann, "one", DATA)
    assert read_document(ann, ann.resolve("one"))
    assert ann.has(written)
    # One token for pulling and one for pushing; and the password went to nobody else.
    assert len(tokens.requests) == 2
    assert all(request.authorization == ANN.basic() for request in tokens.requests)
    assert not [r for r in guarded.requests if (r.authorization or "").startswith("Basic")]


def test_an_unchanged_image_is_found_by_three_requests(
    ann: Repository, guarded: Faulty, opened: Open
) -> None:
    put_image(ann, "one")
    repository = opened(guarded.host, ann.repository, credentials=ANN)
    read_document(repository, repository.resolve("one"))
    assert [str(request) for request in guarded.requests[-2:]] == [
        f"GET /v2/{ann.repository}/manifests/one"
    ] * 2
    assert repository.requests == 3


def test_threads_share_a_token(ann: Repository, tokens: Tokens, opened: Open) -> None:
    put(ann, DATA)
    before = len(tokens.requests)
    other = opened(ann.registry, ann.repository, credentials=ANN)
    threads = [threading.Thread(target=read, args=(other, BLOB)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens.requests) == before + 1


def test_a_token_that_expired_is_fetched_again(
    ann: Repository, guarded: Faulty, tokens: Tokens
) -> None:
    tokens.life = 0.4
    put_image(ann, "one")
    refused = len(tokens.requests)
    time.sleep(0.5)
    ann.resolve("one")
    ann.resolve("one")
    assert len(tokens.requests) == refused + 1


def test_a_token_that_was_revoked_is_fetched_again(ann: Repository, tokens: Tokens) -> None:
    put_image(ann, "one")
    ann.resolve("one")
    tokens.grants.clear()
    assert ann.resolve("one")


def test_anyone_gets_a_token_for_what_is_public(
    guarded: Faulty, opened: Open, plain_registry: Registry, repository_name: str
) -> None:
    public = f"public/{repository_name}"
    put_image(opened(plain_registry.host, public), "one")
    nobody = opened(guarded.host, public)
    assert nobody.resolve("one")
    with pytest.raises(Unauthorized):
        put(nobody, DATA)


def test_a_refresh_token_is_given_to_the_token_server_alone(
    guarded: Faulty, tokens: Tokens, repository_name: str, opened: Open
) -> None:
    tokens.refresh.add("a refresh token")
    who = Credentials(identity_token="a refresh token")
    put_image(opened(guarded.host, repository_name, credentials=who), "one")
    assert tokens.forms
    assert {form["grant_type"][0] for form in tokens.forms} == {"refresh_token"}
    assert all(form["client_id"] == ["lamina"] for form in tokens.forms)
    assert not [r for r in guarded.requests if "refresh" in (r.authorization or "")]
    wrong = opened(guarded.host, repository_name, credentials=Credentials(identity_token="x"))
    with pytest.raises(Unauthorized, match="wrong password"):
        wrong.resolve("one")


def test_a_token_server_that_only_takes_forms_gets_one(ann: Repository, tokens: Tokens) -> None:
    tokens.post_only = True
    put_image(ann, "one")
    assert {form["grant_type"][0] for form in tokens.forms} == {"password"}


def test_a_wrong_password_is_said(
    guarded: Faulty, tokens: Tokens, repository_name: str, opened: Open
) -> None:
    repository = opened(guarded.host, repository_name, credentials=ANN)
    with pytest.raises(Unauthorized, match="UNAUTHORIZED: wrong password"):
        repository.resolve("one")
    assert len(guarded.requests) == 1


def test_mounting_asks_for_both_repositories(ann: Repository, tokens: Tokens, opened: Open) -> None:
    blob = put(ann, DATA)
    other = opened(ann.registry, f"{ann.repository}/other", credentials=ANN)
    assert other.mount(blob, ann.repository)


def test_a_registry_that_takes_no_token_is_asked_twice_only(
    ann: Repository, guarded: Faulty, tokens: Tokens
) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="http://{tokens.host}/token",'
                 f'service="{tokens.SERVICE}"'}  # fmt: skip
    guarded.fault("GET", replying(401, challenge), times=99)
    with pytest.raises(Unauthorized):
        ann.resolve("one")
    assert len(guarded.requests) == 2


def test_a_token_server_that_fails_for_now_is_asked_again(ann: Repository, tokens: Tokens) -> None:
    tokens.fault += [replying(503), replying(429, {"Retry-After": "0"})]
    put(ann, DATA)


def test_a_token_server_that_is_away_is_named(ann: Repository, guarded: Faulty) -> None:
    away = f"127.0.0.1:{free_port()}"
    challenge = {"WWW-Authenticate": f'Bearer realm="http://{away}/token"'}
    guarded.fault("GET", replying(401, challenge), times=99)
    with pytest.raises(RegistryError, match=f"a token for {guarded.host} from {away}: .*refused"):
        ann.resolve("one")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"<html>", b'{"token": 1}', b'{"token": "a\\r\\nb: c"}', b"[" * 100_000]
)
def test_what_is_no_token_is_an_error(ann: Repository, tokens: Tokens, body: bytes) -> None:
    tokens.fault.append(replying(200, {}, body))
    with pytest.raises(RegistryError, match="token"):
        ann.resolve("one")


def test_a_token_of_over_a_mebibyte_is_not_read(ann: Repository, tokens: Tokens) -> None:
    tokens.fault.append(replying(200, {}, b'{"token": "' + b"x" * (2 << 20) + b'"}'))
    with pytest.raises(RegistryError, match="over 1048576 bytes"):
        ann.resolve("one")


@pytest.mark.parametrize("realm", ["", "ftp://a/b", "/token", "http://u:p@127.0.0.1/", "http://"])
def test_a_realm_that_is_none_is_not_asked(ann: Repository, guarded: Faulty, realm: str) -> None:
    guarded.fault("GET", replying(401, {"WWW-Authenticate": f'Bearer realm="{realm}"'}))
    with pytest.raises(RegistryError):
        ann.resolve("one")


@pytest.fixture
def signed(tokens: Tokens, authority: Authority, tmp_path: Path) -> Iterator[Registry]:
    """A docker-registry that itself checks the tokens, signed as JSON Web Tokens."""
    tokens.users[USER] = PASSWORD
    tokens.sign = lambda scopes: authority.web_token(tokens.SERVICE, scopes)
    directory = tmp_path / "signed"
    directory.mkdir()
    settings = {
        "auth": {
            "token": {
                "realm": f"http://{tokens.host}/token",
                "service": tokens.SERVICE,
                "issuer": "tests",
                "rootcertbundle": str(authority.ca),
            }
        }
    }
    with serve(directory, settings=settings) as registry:
        yield registry


def test_docker_registry_takes_the_tokens_that_its_challenges_lead_to(
    signed: Registry, tokens: Tokens, opened: Open
) -> None:
    ann = opened(signed.host, "a/b", credentials=ANN)
    written = put_image(ann, "one", DATA)
    assert read_document(ann, ann.resolve("one"))
    assert ann.tags() == ["one"]
    other = opened(signed.host, "a/c", credentials=ANN)
    assert other.mount(BLOB_OF_LAYER, "a/b")
    ann.delete_manifest(written.digest)
    with pytest.raises(Unauthorized, match="UNAUTHORIZED: authentication required"):
        opened(signed.host, "a/b").resolve("one")
    public = opened(signed.host, "public/x", credentials=ANN)
    put_image(public, "one")
    assert opened(signed.host, "public/x").resolve("one")


# --- who gets to see credentials


@pytest.fixture
def storage(plain_registry: Registry) -> Iterator[Faulty]:
    """Another server, to which registries redirect."""
    with Faulty(plain_registry.host) as server, server.running():
        yield server


def test_no_credentials_go_along_to_another_host(
    ann: Repository, guarded: Faulty, storage: Faulty
) -> None:
    put(ann, DATA)
    there = f"http://{storage.host}/v2/{ann.repository}/blobs/{BLOB.digest}"
    guarded.fault("GET .*/blobs/", replying(307, {"Location": there}), times=2)
    storage.fault("GET", lambda handler: relay(handler, cut_after=1000))
    assert read(ann, BLOB) == DATA
    assert len(storage.requests) == 2
    assert [request.authorization for request in storage.requests] == [None, None]
    assert storage.requests[1].headers["Range"] == "bytes=1000-"
    assert guarded.asked("GET .*/blobs/")[-1].authorization


def test_a_redirect_on_the_same_host_keeps_them(ann: Repository, guarded: Faulty) -> None:
    put(ann, DATA)
    path = f"/v2/{ann.repository}/blobs/{BLOB.digest}"
    guarded.fault("GET .*/blobs/", replying(302, {"Location": f"{path}?again"}))
    assert read(ann, BLOB) == DATA
    assert all(r.authorization for r in guarded.asked("GET .*/blobs/"))


def test_another_host_that_wants_credentials_gets_none(
    ann: Repository, guarded: Faulty, storage: Faulty
) -> None:
    put_image(ann, "one")
    guarded.fault("GET", replying(307, {"Location": f"http://{storage.host}/x"}))
    challenge = 'Basic realm="give me your password"'
    storage.fault("GET", replying(401, {"WWW-Authenticate": challenge}), times=9)
    with pytest.raises(RegistryError, match="401") as caught:
        ann.resolve("one")
    assert not isinstance(caught.value, Unauthorized)
    assert [request.authorization for request in storage.requests] == [None]


def test_an_upload_that_goes_on_at_another_host_takes_none_along(
    ann: Repository, guarded: Faulty, storage: Faulty
) -> None:
    location = {"Location": f"http://{storage.host}/v2/{ann.repository}/blobs/uploads/x"}
    guarded.fault("POST", replying(202, location))
    storage.fault("PUT", replying(201))
    put(ann, b"x")
    assert [request.authorization for request in storage.requests] == [None]


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_what_is_sent_is_not_redirected(
    ann: Repository, guarded: Faulty, storage: Faulty, method: str
) -> None:
    guarded.fault(method, replying(307, {"Location": f"http://{storage.host}/"}))
    with pytest.raises(RegistryError, match=f"{method} is not sent elsewhere"):
        put_image(ann, "one")
    assert storage.requests == []


def test_redirects_without_an_end_are_an_error(ann: Repository, guarded: Faulty) -> None:
    guarded.fault("GET", replying(307, {"Location": "/v2/again"}), times=99)
    with pytest.raises(RegistryError, match="over 10 redirects"):
        ann.resolve("one")


@pytest.mark.parametrize("location", ["", "ftp://127.0.0.1/x", "http://[::1", "file:///etc/passwd"])
def test_a_redirect_to_what_is_no_address_is_an_error(
    ann: Repository, guarded: Faulty, location: str
) -> None:
    guarded.fault("GET", replying(307, {"Location": location}), times=99)
    with pytest.raises(RegistryError):
        ann.resolve("one")
    assert len(guarded.requests) <= 11


@pytest.fixture
def by_tls(plain_registry: Registry, authority: Authority, tmp_path: Path) -> Iterator[Faulty]:
    """A proxy with TLS before the plain registry."""
    with Faulty(plain_registry.host, tls=authority.server_context()) as server, server.running():
        (tmp_path / "certs" / server.host).mkdir(parents=True)
        (tmp_path / "certs" / server.host / "ca.crt").write_bytes(authority.ca.read_bytes())
        yield server


def test_tls_is_not_left_by_a_redirect(
    by_tls: Faulty, storage: Faulty, opened: Open, repository_name: str
) -> None:
    repository = opened(by_tls.host, repository_name, credentials=ANN)
    by_tls.fault("GET", replying(307, {"Location": f"http://{storage.host}/x"}))
    with pytest.raises(RegistryError, match="redirected from TLS to http://127"):
        repository.resolve("one")
    assert storage.requests == []


def test_tls_is_not_left_for_a_token(
    by_tls: Faulty, tokens: Tokens, opened: Open, repository_name: str
) -> None:
    repository = opened(by_tls.host, repository_name, credentials=ANN)
    challenge = {"WWW-Authenticate": f'Bearer realm="http://{tokens.host}/token"'}
    by_tls.fault("GET", replying(401, challenge))
    with pytest.raises(RegistryError, match="which is not safe"):
        repository.resolve("one")
    assert tokens.requests == []


def test_tls_is_not_left_for_an_upload(
    by_tls: Faulty, storage: Faulty, opened: Open, repository_name: str
) -> None:
    repository = opened(by_tls.host, repository_name, credentials=ANN)
    by_tls.fault("POST", replying(202, {"Location": f"http://{storage.host}/x"}))
    with pytest.raises(RegistryError, match="goes on at http://127"):
        put(repository, b"x")
    assert storage.requests == []


def test_a_redirect_by_tls_trusts_the_registry_s_authorities(
    by_tls: Faulty, plain_registry: Registry, authority: Authority, opened: Open,
    repository_name: str,
) -> None:  # fmt: skip
    context = authority.server_context()
    with Faulty(plain_registry.host, tls=context) as other, other.running():
        repository = opened(by_tls.host, repository_name)
        put(repository, DATA)
        there = f"https://{other.host}/v2/{repository_name}/blobs/{BLOB.digest}"
        by_tls.fault("GET .*/blobs/", replying(307, {"Location": there}))
        assert read(repository, BLOB) == DATA
        assert other.requests
        repository.close()
