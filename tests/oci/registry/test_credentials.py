"""Credentials are found where Docker and containers keep them, and kept there."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import InvalidName, PermissionRequired, RegistryError, Unauthorized
from lamina.oci.registry import Credentials, credentials, login, logout
from lamina.oci.registry.credentials import find_credentials
from tests import support
from tests.oci.registry.conftest import Open, quick
from tests.oci.registry.test_repository import put_image
from tests.registries import PASSWORD, USER, Registry


def auth(user: str, password: str = "secret") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, **members: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(members))
    return path


@pytest.fixture
def home(no_credentials: Path) -> Path:
    return no_credentials


@pytest.fixture
def docker(home: Path) -> Path:
    """Docker's file, not there yet."""
    return home / ".docker/config.json"


def user_of(host: str, repository: str = "") -> str | None:
    found = find_credentials(host, repository)
    return found.user if found else None


# --- files


def test_without_files_there_are_none(home: Path) -> None:
    assert find_credentials("example.org", "a/b") is None


@pytest.mark.parametrize(
    "key",
    ["example.org", "https://example.org", "http://example.org/", "https://example.org/v1/",
     "https://example.org/v2/"],
)  # fmt: skip
def test_older_forms_of_keys_are_understood(docker: Path, key: str) -> None:
    write(docker, auths={key: auth("ann", "pass:word")})
    assert find_credentials("example.org", "a") == Credentials("ann", "pass:word")
    assert find_credentials("other.example.org", "a") is None
    assert find_credentials("example.org:5000", "a") is None


@pytest.mark.parametrize(
    "key", ["docker.io", "https://index.docker.io/v1/", "registry-1.docker.io", "index.docker.io"]
)
def test_docker_io_has_several_names(docker: Path, key: str) -> None:
    write(docker, auths={key: auth("ann")})
    assert user_of("docker.io", "library/debian") == "ann"


def test_the_longest_path_wins(docker: Path) -> None:
    write(
        docker,
        auths={
            "quay.io": auth("host"),
            "quay.io/org": auth("org"),
            "quay.io/org/repository": auth("repository"),
        },
    )
    assert user_of("quay.io", "org/repository") == "repository"
    assert user_of("quay.io", "org/other/one") == "org"
    assert user_of("quay.io", "organisation/x") == "host"


def test_files_come_in_an_order(
    docker: Path, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where = [
        Path(os.environ["XDG_CONFIG_HOME"], "containers/auth.json"),
        Path(os.environ["XDG_RUNTIME_DIR"], "containers/auth.json"),
        docker,
        tmp_path / "named.json",
    ]
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(where[-1]))
    for number, path in enumerate(where):
        write(path, auths={"example.org": auth(str(number))})
        assert user_of("example.org") == str(number)
    write(where[-1], auths={"other.org": auth("x")})
    assert user_of("example.org") == "2"
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "elsewhere"))
    assert user_of("example.org") == "1"


def test_podman_keeps_logins_by_user_id_where_no_runtime_directory_is_set(
    docker: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Path("/run/containers") == credentials.RUN
    monkeypatch.setattr(credentials, "RUN", tmp_path)
    write(tmp_path / f"{os.geteuid()}/auth.json", auths={"example.org": auth("ann")})
    assert user_of("example.org") is None, "the variable is set"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert user_of("example.org") == "ann"
    write(docker, auths={"example.org": auth("bob")})
    assert user_of("example.org") == "bob"


def test_tokens_are_read(docker: Path) -> None:
    write(docker, auths={"a.org": {**auth("00000000", ""), "identitytoken": "refresh"},
                         "b.org": {"registrytoken": "bearer"}})  # fmt: skip
    found = find_credentials("a.org", "")
    assert found and found.identity_token == "refresh"
    found = find_credentials("b.org", "")
    assert found and found.registry_token == "bearer"


def test_secrets_are_not_shown() -> None:
    text = repr(Credentials("ann", "secret", "secret", "secret"))
    assert "ann" in text
    assert "secret" not in text


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"auths": {"a.org": {"auth": "?"}}}'])
def test_a_damaged_file_is_named(docker: Path, text: str) -> None:
    write(docker).write_text(text)
    with pytest.raises(RegistryError, match=str(docker)):
        find_credentials("a.org", "")


@pytest.mark.parametrize("members", [{"auths": 3}, {"auths": {"a.org": 3}}, {"auths": None}, {}])
def test_members_of_other_types_are_passed_over(docker: Path, members: dict[str, Any]) -> None:
    write(docker, **members)
    assert find_credentials("a.org", "") is None


# --- helpers


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``docker-credential-tests``, which keeps one file an address in the directory returned."""
    kept, programs = tmp_path / "kept", tmp_path / "bin"
    kept.mkdir()
    programs.mkdir()
    program = programs / "docker-credential-tests"
    program.write_text(
        f"""#!/bin/sh
        name() {{ tr -c 'a-z0-9.\\n' _; }}
        case $1 in
            get) file={kept}/$(name)
                 [ -f $file ] || {{ echo "credentials not found in native keychain"; exit 1; }}
                 cat $file ;;
            store) input=$(cat)
                   url=$(printf %s "$input" | sed 's/.*"ServerURL": "\\([^"]*\\)".*/\\1/' | name)
                   printf %s "$input" >{kept}/$url ;;
            erase) rm {kept}/$(name) ;;
        esac
        """
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return kept


def test_a_helper_is_asked(docker: Path, helper: Path) -> None:
    write(docker, auths={"example.org": {}}, credsStore="tests")
    (helper / "example.org").write_text('{"Username": "ann", "Secret": "x"}')
    (helper / "https___index.docker.io_v1_").write_text('{"Username": "<token>", "Secret": "y"}')
    assert find_credentials("example.org", "a/b") == Credentials("ann", "x")
    assert find_credentials("docker.io", "a/b") == Credentials(identity_token="y")
    assert find_credentials("none.org", "a/b") is None


def test_a_host_s_own_helper_comes_first(docker: Path, helper: Path) -> None:
    write(
        docker,
        auths={"example.org": auth("file"), "example.org/path": auth("path")},
        credHelpers={"example.org": "tests"},
        credsStore="not-there",
    )
    (helper / "example.org").write_text('{"Username": "helper", "Secret": "x"}')
    assert user_of("example.org", "a/b") == "helper"
    assert user_of("example.org", "path/b") == "path"


@pytest.mark.allow_log("docker-credential-not-there is not in PATH")
@pytest.mark.parametrize("name", ["not-there"])
def test_a_helper_that_is_missing_is_gone_on_without(docker: Path, name: str) -> None:
    write(docker, credsStore=name)
    assert find_credentials("example.org", "") is None


@pytest.mark.allow_log("not in PATH")
def test_a_helper_is_no_path(docker: Path, tmp_path: Path) -> None:
    program = tmp_path / "docker-credential-x"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran")
    program.chmod(0o755)
    write(docker, credsStore=f"x/../../{tmp_path}/docker-credential-x")
    assert find_credentials("example.org", "") is None
    assert not (tmp_path / "ran").exists()


@pytest.mark.allow_log(r"took over 0.2 s", "gave no credentials", "failed: broken")
@pytest.mark.parametrize("script", ["sleep 5", "echo nonsense", "echo '{}'", "echo broken; exit 2"])
def test_a_helper_that_does_not_do_is_gone_on_without(
    docker: Path, helper: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    monkeypatch.setattr(credentials, "HELPER_TIMEOUT", 0.2)
    (tmp_path / "bin/docker-credential-tests").write_text(f"#!/bin/sh\nexec 3>&-\n{script}\n")
    if script.startswith("sleep"):
        (tmp_path / "bin/docker-credential-tests").write_text("#!/bin/sh\nexec sleep 5\n")
    write(docker, credsStore="tests")
    assert find_credentials("example.org", "") is None


# --- logging in and out


def test_a_login_is_kept_for_docker_and_others(
    basic_registry: Registry, docker: Path, opened: Open, tmp_path: Path, repository_name: str
) -> None:
    write(docker, auths={"other.org": auth("other")}, HttpHeaders={"a": "b"})
    options = quick(tmp_path)
    assert login(basic_registry.host, USER, PASSWORD, options) == docker
    assert stat.S_IMODE(docker.stat().st_mode) == 0o600
    document = json.loads(docker.read_text())
    assert document["auths"].keys() == {"other.org", basic_registry.host}
    assert document["HttpHeaders"] == {"a": "b"}
    assert os.listdir(docker.parent) == ["config.json"]
    put_image(opened(basic_registry.host, repository_name), "one")

    support.need("skopeo")
    there = f"docker://{basic_registry.host}/{repository_name}:one"
    inspect = ("skopeo", "inspect", "--raw", "--tls-verify=false", "--authfile", docker, there)
    assert support.run(*inspect).stdout

    assert logout(basic_registry.host)
    assert not logout(basic_registry.host)
    assert json.loads(docker.read_text()) == {
        "auths": {"other.org": auth("other")}, "HttpHeaders": {"a": "b"},
    }  # fmt: skip
    with pytest.raises(Unauthorized):
        opened(basic_registry.host, repository_name).resolve("one")


def test_skopeo_s_login_is_found(
    basic_registry: Registry, opened: Open, repository_name: str, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    support.need("skopeo")
    file = tmp_path / "auth.json"
    support.run(
        "skopeo", "login", "--tls-verify=false", "--authfile", file, "-u", USER, "-p", PASSWORD,
        basic_registry.host,
    )  # fmt: skip
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))
    assert put_image(opened(basic_registry.host, repository_name), "one")
    assert logout(basic_registry.host)
    assert json.loads(file.read_text()) == {"auths": {}}


def test_a_refused_login_changes_nothing(
    basic_registry: Registry, docker: Path, tmp_path: Path
) -> None:
    with pytest.raises(Unauthorized, match="a login: 401"):
        login(basic_registry.host, USER, "wrong", quick(tmp_path))
    assert not docker.exists()


@pytest.mark.parametrize(("user", "password"), [("", "x"), ("a:b", "x"), ("a\n", "x"), ("a", "\0")])
def test_what_no_header_can_carry_is_refused(user: str, password: str) -> None:
    with pytest.raises(InvalidName):
        login("localhost:1", user, password)


@pytest.mark.root
def test_a_login_that_can_not_be_kept_is_not_tried(home: Path, docker: Path) -> None:
    support.run("mount", "-t", "tmpfs", "-o", "ro", "none", home)
    try:
        with pytest.raises(PermissionRequired, match="REGISTRY_AUTH_FILE names another file"):
            login("localhost:1", USER, PASSWORD)  # where nobody is to be asked
    finally:
        support.run("umount", home)


def test_a_helper_keeps_a_login(
    basic_registry: Registry, docker: Path, helper: Path, tmp_path: Path
) -> None:
    write(docker, credsStore="tests")
    login(basic_registry.host, USER, PASSWORD, quick(tmp_path))
    assert json.loads(docker.read_text())["auths"] == {basic_registry.host: {}}
    assert PASSWORD not in docker.read_text()
    [kept] = helper.iterdir()
    assert json.loads(kept.read_text())["Secret"] == PASSWORD
    assert find_credentials(basic_registry.host, "a") == Credentials(USER, PASSWORD)
    assert logout(basic_registry.host)
    assert [*helper.iterdir()] == []


def test_a_file_that_is_a_link_stays_one(
    basic_registry: Registry, docker: Path, home: Path, tmp_path: Path
) -> None:
    target = write(home / "dotfiles/docker.json")
    docker.parent.mkdir()
    docker.symlink_to(target)
    login(basic_registry.host, USER, PASSWORD, quick(tmp_path))
    assert docker.is_symlink()
    assert json.loads(target.read_text())["auths"]


def test_a_login_replaces_all_keys_of_the_registry(
    basic_registry: Registry, docker: Path, tmp_path: Path
) -> None:
    host = basic_registry.host
    write(docker, auths={f"https://{host}/v1/": auth("old"), f"{host}/path": auth("path")})
    login(host, USER, PASSWORD, quick(tmp_path))
    assert json.loads(docker.read_text())["auths"].keys() == {host, f"{host}/path"}
