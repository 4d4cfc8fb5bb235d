"""Which servers are asked for a registry, and how each is trusted."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lamina.errors import ImageNotFound, RegistryError
from lamina.oci.content import read_document
from lamina.oci.registry import Credentials, Repository
from lamina.oci.registry.client import Ask
from lamina.oci.registry.hosts import CAPABILITIES, find_hosts, is_loopback
from tests.oci.registry.conftest import DATA, Open, quick
from tests.oci.registry.test_repository import BLOB, put, put_image, read
from tests.registries import Authority, Registry, free_port, serve
from tests.servers import Faulty, relay, replying


def hosts_toml(tmp_path: Path, registry: str, text: str) -> Path:
    path = tmp_path / "hosts" / registry / "hosts.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- what is read


@pytest.mark.parametrize(
    ("registry", "base"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("quay.io", "https://quay.io/v2"),
        ("example.org:5000", "https://example.org:5000/v2"),
        ("[::1]:5000", "https://[::1]:5000/v2"),
    ],
)
def test_a_registry_speaks_for_itself(tmp_path: Path, registry: str, base: str) -> None:
    [host] = find_hosts(registry, quick(tmp_path))
    assert (host.base, host.capabilities, host.namespace) == (base, CAPABILITIES, None)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("localhost:5000", True), ("127.0.0.1", True), ("127.9.9.9:1", True),
     ("[::1]:5000", True), ("a.localhost", True), ("example.org", False), ("10.0.0.1", False),
     ("localhost.example.org", False), ("127.0.0.1.example.org", False)],
)  # fmt: skip
def test_only_this_machine_is_spoken_with_in_the_clear(
    tmp_path: Path, host: str, expected: bool
) -> None:
    assert is_loopback(host) == expected
    assert find_hosts(host, quick(tmp_path))[0].plain_too == expected
    assert find_hosts(host, quick(tmp_path, insecure=True))[0].plain_too


def test_mirrors_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = hosts_toml(
        tmp_path,
        "docker.io",
        """
        server = "https://registry-1.docker.io"
        ca = "/etc/own.pem"
        [host."https://mirror.example:8443"]
          capabilities = ["pull", "resolve"]
          ca = ["one.pem", "/etc/two.pem"]
          client = [["client.cert", "client.key"], ["both.pem", ""]]
          [host."https://mirror.example:8443".header]
            x-one = "1"
            x-many = ["2", "3"]
        [host."http://10.0.0.1:5000/prefix"]
        [host."https://cache.example/v2/docker"]
          override_path = true
          skip_verify = true
        """,
    )
    first, second, third, server = find_hosts("docker.io", quick(tmp_path))
    assert first.base == "https://mirror.example:8443/v2"
    assert first.capabilities == {"pull", "resolve"}
    assert first.tls.authorities == (path.parent / "one.pem", Path("/etc/two.pem"))
    assert first.tls.clients == (
        (path.parent / "client.cert", path.parent / "client.key"),
        (path.parent / "both.pem", None),
    )
    assert first.headers == (("x-one", "1"), ("x-many", "2"), ("x-many", "3"))
    assert second.base == "http://10.0.0.1:5000/prefix/v2"
    assert third.base == "https://cache.example/v2/docker"
    assert [h.tls.skip_verify for h in (first, second, third, server)] == [
        False,
        False,
        True,
        False,
    ]
    assert [h.namespace for h in (first, second, third, server)] == ["docker.io"] * 3 + [None]
    assert server.base == "https://registry-1.docker.io/v2"
    assert server.tls.authorities == (Path("/etc/own.pem"),)


@pytest.mark.parametrize("name", ["example.org:5000", "example.org_5000_", "_default"])
def test_a_file_is_found_by_the_names_that_containerd_gives_it(tmp_path: Path, name: str) -> None:
    hosts_toml(tmp_path, name, '[host."https://mirror.example"]')
    mirror, server = find_hosts("example.org:5000", quick(tmp_path))
    assert mirror.base == "https://mirror.example/v2"
    assert server.base == "https://example.org:5000/v2"


@pytest.mark.parametrize(
    "text",
    ["not toml", 'server = "ftp://a"', '[host."https://a b"]', "host = 3", '[host]\na = 3',
     '[host."https://a"]\ncapabilities = ["steal"]', '[host."https://a"]\nca = [3]',
     '[host."https://a"]\nclient = [["a", "b", "c"]]', '[host."https://user@a"]'],
)  # fmt: skip
def test_a_file_that_says_what_it_can_not_is_named(tmp_path: Path, text: str) -> None:
    path = hosts_toml(tmp_path, "example.org", text)
    with pytest.raises(RegistryError, match=str(path)):
        find_hosts("example.org", quick(tmp_path))


def test_directories_of_certificates_are_docker_s(tmp_path: Path) -> None:
    directory = tmp_path / "certs/example.org:5000"
    directory.mkdir(parents=True)
    for name in ("b.crt", "a.crt", "client.cert", "client.key", "README"):
        (directory / name).touch()
    [host] = find_hosts("example.org:5000", quick(tmp_path))
    assert host.tls.authorities == (directory / "a.crt", directory / "b.crt")
    assert host.tls.clients == ((directory / "client.cert", directory / "client.key"),)
    assert find_hosts("example.org", quick(tmp_path))[0].tls.authorities == ()


# --- TLS


def test_a_private_authority_is_trusted_where_it_is_named(
    tls_registry: Registry, repository_name: str, opened: Open, tmp_path: Path
) -> None:
    assert tls_registry.ca
    with pytest.raises(RegistryError, match=r"certificate.*/etc/docker/certs.d/127.0.0.1") as e:
        opened(tls_registry.host, repository_name).tags()
    assert e.value.status is None
    text = f'server = "{tls_registry.url}"\nca = "{tls_registry.ca}"'
    hosts_toml(tmp_path, tls_registry.host, text)
    repository = opened(tls_registry.host, repository_name)
    put_image(repository, "one", DATA)
    assert read(repository, BLOB) == DATA
    assert repository.tags() == ["one"]


def test_any_certificate_is_taken_when_that_is_asked_for(
    tls_registry: Registry, repository_name: str, opened: Open, tmp_path: Path
) -> None:
    put_image(opened(tls_registry.host, repository_name, insecure=True), "one")
    hosts_toml(
        tmp_path, tls_registry.host, f'server = "https://{tls_registry.host}"\nskip_verify = true'
    )
    assert opened(tls_registry.host, repository_name).resolve("one")


def test_a_certificate_that_is_not_trusted_leads_to_no_plain_http(
    plain_registry: Registry, authority: Authority, repository_name: str, opened: Open
) -> None:
    with Faulty(plain_registry.host, tls=authority.server_context()) as faulty, faulty.running():
        with pytest.raises(RegistryError, match="certificate"):
            opened(faulty.host, repository_name).resolve("one")
        assert faulty.requests == []


def test_a_client_s_certificate_is_shown(
    authority: Authority, repository_name: str, opened: Open, tmp_path: Path
) -> None:
    (tmp_path / "registry").mkdir()
    with serve(tmp_path / "registry", authority=authority, clients=True) as registry:
        directory = tmp_path / "certs" / registry.host
        directory.mkdir(parents=True)
        (directory / "ca.crt").write_bytes(authority.ca.read_bytes())
        with pytest.raises(RegistryError, match=repository_name):
            opened(registry.host, repository_name).resolve("one")
        authority.issue("client", directory / "client.cert", directory / "client.key")
        repository = opened(registry.host, repository_name)
        assert put_image(repository, "one")
        repository.close()


def test_certificates_that_can_not_be_read_are_named(
    tls_registry: Registry, opened: Open, tmp_path: Path
) -> None:
    directory = tmp_path / "certs" / tls_registry.host
    directory.mkdir(parents=True)
    (directory / "ca.crt").write_text("no certificate")
    with pytest.raises(RegistryError, match=f"can't be loaded.*{directory}/ca.crt"):
        opened(tls_registry.host, "a/b").resolve("one")


def test_http_2_is_used_where_it_is_offered_but_not_for_blobs(
    tls_registry: Registry, repository_name: str, opened: Open
) -> None:
    repository = opened(tls_registry.host, repository_name, insecure=True)
    put(repository, DATA)

    def version(bulk: bool) -> str:
        path = f"/{repository_name}/blobs/{BLOB.digest}"
        response = repository.client.ask(Ask(method="GET", path=path, what="", bulk=bulk))
        assert b"".join(response.iter_raw()) == DATA
        response.close()
        return response.http_version

    assert version(bulk=False) == "HTTP/2"
    assert version(bulk=True) == "HTTP/1.1"


# --- mirrors


@pytest.fixture
def origin(plain_registry: Registry) -> Iterator[Faulty]:
    """The registry that mirrors stand for."""
    with Faulty(plain_registry.host) as server, server.running():
        yield server


@pytest.fixture
def mirrored(
    faulty: Faulty, origin: Faulty, repository_name: str, opened: Open, tmp_path: Path
) -> Repository:
    """A repository of registry.example: ``faulty`` is its mirror, ``origin`` itself."""
    hosts_toml(
        tmp_path,
        "registry.example",
        f"""
        server = "http://{origin.host}"
        [host."http://{faulty.host}"]
          capabilities = ["pull", "resolve"]
          header = {{ x-secret = "of the mirror" }}
        """,
    )
    return opened("registry.example", repository_name)


def test_a_mirror_is_asked_first_and_never_written_to(
    mirrored: Repository, faulty: Faulty, origin: Faulty
) -> None:
    written = put_image(mirrored, "one", DATA)
    assert faulty.requests == []
    before = len(origin.requests)
    assert mirrored.resolve("one").digest == written.digest
    assert read(mirrored, BLOB) == DATA
    assert len(origin.requests) == before
    assert {request.headers["x-secret"] for request in faulty.requests} == {"of the mirror"}
    assert all("ns=registry.example" in request.path for request in faulty.requests)
    assert not [r for r in origin.requests if r.headers["x-secret"]]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_what_a_mirror_has_not_comes_from_the_registry(
    mirrored: Repository, faulty: Faulty, origin: Faulty, status: int
) -> None:
    put_image(mirrored, "one", DATA)
    faulty.fault("GET", replying(status), times=99)
    assert read_document(mirrored, mirrored.resolve("one"))
    assert read(mirrored, BLOB) == DATA
    assert len(faulty.requests) == 2


def test_a_mirror_that_is_down_is_passed_over(
    origin: Faulty, repository_name: str, opened: Open, tmp_path: Path
) -> None:
    text = f'server = "http://{origin.host}"\n[host."http://127.0.0.1:{free_port()}"]\n'
    hosts_toml(tmp_path, "registry.example", text + 'capabilities = ["pull", "resolve"]')
    repository = opened("registry.example", repository_name)
    put_image(repository, "one", DATA)
    before = repository.requests
    assert read_document(repository, repository.resolve("one"))
    assert read(repository, BLOB) == DATA
    assert repository.requests <= before + 3


def test_a_blob_cut_at_the_mirror_goes_on_at_the_registry(
    mirrored: Repository, faulty: Faulty, origin: Faulty
) -> None:
    put(mirrored, DATA)
    faulty.fault("GET .*/blobs/", lambda handler: relay(handler, cut_after=1_000_000))
    faulty.fault("GET .*/blobs/", replying(500), times=9)
    assert read(mirrored, BLOB) == DATA
    assert origin.asked("GET .*/blobs/")[-1].headers["Range"] == "bytes=1000000-"


def test_a_mirror_that_may_not_resolve_gives_digests_only(
    faulty: Faulty, origin: Faulty, repository_name: str, opened: Open, tmp_path: Path
) -> None:
    text = f'server = "http://{origin.host}"\n[host."http://{faulty.host}"]\n'
    hosts_toml(tmp_path, "registry.example", text + 'capabilities = ["pull"]')
    repository = opened("registry.example", repository_name)
    written = put_image(repository, "one")
    repository.resolve("one")
    assert faulty.requests == []
    repository.resolve(written.digest)
    assert len(faulty.requests) == 1


def test_what_is_written_goes_to_the_first_host_that_takes_it(
    faulty: Faulty, origin: Faulty, repository_name: str, opened: Open, tmp_path: Path
) -> None:
    """As containerd has it: a host may do all that its ``capabilities`` do not leave out."""
    text = f'server = "http://{origin.host}"\n[host."http://{faulty.host}"]'
    hosts_toml(tmp_path, "registry.example", text)
    put_image(opened("registry.example", repository_name), "one", DATA)
    assert origin.requests == []
    assert faulty.asked("PUT")


def test_tls_is_not_given_up_once_it_worked(
    plain_registry: Registry, authority: Authority, repository_name: str, opened: Open
) -> None:
    context = authority.server_context()
    with Faulty(plain_registry.host, tls=context) as faulty, faulty.running():
        repository = opened(faulty.host, repository_name, insecure=True)
        put_image(repository, "one")
        host, port = faulty.server_address[:2]
    with socket.create_server((str(host), int(port))) as listener:
        listener.settimeout(0.2)
        seen: list[bytes] = []

        def look() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    return
                with connection:
                    seen.append(connection.recv(1))

        thread = threading.Thread(target=look)
        thread.start()
        with pytest.raises(RegistryError):
            repository.resolve("one")
        thread.join()
    assert seen
    assert set(seen) == {b"\x16"}  # a greeting by TLS, and never a request in the clear


def test_a_mirror_gets_its_own_credentials_and_not_the_registry_s(
    mirrored: Repository, faulty: Faulty, origin: Faulty, repository_name: str,
    opened: Open,
) -> None:  # fmt: skip
    repository = opened(
        "registry.example", repository_name, credentials=Credentials("of-registry", "x")
    )
    challenge = {"WWW-Authenticate": 'Basic realm="x"'}
    faulty.fault("GET", replying(401, challenge), times=9)
    origin.fault("GET", replying(401, challenge))
    with pytest.raises(ImageNotFound):
        repository.resolve("none")
    assert [request.authorization for request in faulty.requests] == [None]
    assert origin.requests[-1].authorization == Credentials("of-registry", "x").basic()


# --- proxies


def test_plain_http_goes_through_the_proxy_of_the_environment(
    faulty: Faulty, repository_name: str, opened: Open, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("http_proxy", f"http://{faulty.host}")
    hosts_toml(tmp_path, "registry.test", 'server = "http://registry.test"')
    repository = opened("registry.test", repository_name)
    put(repository, DATA)
    assert read(repository, BLOB) == DATA
    assert urlsplit(faulty.requests[0].path).netloc == "registry.test"


def test_tls_goes_through_the_proxy_of_the_environment(
    tls_registry: Registry, authority: Authority, repository_name: str, opened: Open,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with Faulty(tls_registry.host) as proxy, proxy.running():
        monkeypatch.setenv("HTTPS_PROXY", proxy.host)
        repository = opened("registry.test", repository_name, insecure=True)
        put(repository, DATA)
        assert read(repository, BLOB) == DATA
        assert {str(request) for request in proxy.requests} == {"CONNECT registry.test:443"}
        repository.close()


def test_no_proxy_is_honoured(
    faulty: Faulty, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{faulty.host}")
    monkeypatch.setenv("no_proxy", "registry.invalid")
    hosts_toml(tmp_path, "registry.invalid", 'server = "http://registry.invalid"')
    with pytest.raises(RegistryError):
        opened("registry.invalid", "a/b").resolve("one")
    assert faulty.requests == []
