"""The registries that tests stand on are what they are said to be."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests import support
from tests.registries import Authority, Registry, serve


def get(url: str, context: ssl.SSLContext | None = None) -> int:
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(url, timeout=10) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_plain_one_lets_anyone_in(plain_registry: Registry) -> None:
    assert get(f"{plain_registry.url}/v2/") == 200
    assert "GET /v2/" in plain_registry.requests()


def test_the_one_with_basic_authorisation_does_not(basic_registry: Registry) -> None:
    assert get(f"{basic_registry.url}/v2/") == 401


def test_the_one_with_tls_is_trusted_with_its_authority_alone(tls_registry: Registry) -> None:
    assert tls_registry.ca is not None
    trusting = ssl.create_default_context(cafile=str(tls_registry.ca))
    assert get(f"{tls_registry.url}/v2/", trusting) == 200
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        get(f"{tls_registry.url}/v2/")


def test_one_may_want_certificates_of_its_clients(authority: Authority, tmp_path: Path) -> None:
    authority.issue("client", tmp_path / "client.crt", tmp_path / "client.key")
    context = ssl.create_default_context(cafile=str(authority.ca))
    with serve(tmp_path, authority=authority, clients=True) as registry:
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            get(f"{registry.url}/v2/", context)
        context.load_cert_chain(tmp_path / "client.crt", tmp_path / "client.key")
        assert get(f"{registry.url}/v2/", context) == 200


@pytest.mark.parametrize("which", ["plain_registry", "basic_registry", "tls_registry"])
def test_skopeo_gets_along_with_it(
    which: str, request: pytest.FixtureRequest, repository_name: str, tmp_path: Path
) -> None:
    support.need("skopeo", "umoci")
    registry: Registry = request.getfixturevalue(which)
    layout, name = tmp_path / "layout", f"docker://{registry.host}/{repository_name}:one"
    support.run("umoci", "init", "--layout", layout)
    support.run("umoci", "new", "--image", f"{layout}:one")
    copy = ("skopeo", "--insecure-policy", "copy", "-q")
    support.run(*copy, *registry.skopeo("dest"), f"oci:{layout}:one", name)
    support.run(*copy, *registry.skopeo("src"), name, f"oci:{tmp_path}/back:one")
    assert (tmp_path / "back/index.json").exists()
