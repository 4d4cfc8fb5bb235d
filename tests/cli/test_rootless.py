"""The command as an ordinary user: a user namespace, entered before the store is opened."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.registries import PASSWORD, USER, Registry
from tests.users import User

pytestmark = pytest.mark.root


@pytest.fixture
def user(ordinary_user: User, small_tar: Path) -> User:
    """A user with a tar of their own, on a machine that allows user namespaces."""
    if ordinary_user.run(["unshare", "-Ur", "true"]).returncode != 0:
        pytest.skip("this machine allows no user namespaces")
    target = ordinary_user.home / "small.tar"
    target.write_bytes(small_tar.read_bytes())
    target.chmod(0o644)
    return ordinary_user


def lamina(user: User, *args: str) -> subprocess.CompletedProcess[bytes]:
    return user.run(
        [user.python, "-m", "lamina", *args],
        env={"XDG_DATA_HOME": str(user.home / "data")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ok(user: User, *args: str) -> str:
    done = lamina(user, *args)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_an_ordinary_user_has_a_store_and_runs_things_as_root_in_it(user: User) -> None:
    ok(user, "import", "small.tar", "small")
    assert (user.home / "data/lamina/lamina.db").exists()
    assert ok(user, "run", "--name", "box", "small", "sh", "-c", "id -u; echo x > /new") == "0\n"
    assert ok(user, "diff", "box") == "A /new\n"
    ok(user, "commit", "box", "small:2")
    assert ok(user, "run", "--rm", "small:2", "cat", "/new") == "x\n"
    assert ok(user, "rm", "box") == "box\n"
    for path in (user.home / "data").rglob("*"):
        assert path.lstat().st_uid == user.uid


def test_info_says_that_it_is_rootless_and_overlay_works(user: User) -> None:
    shown = ok(user, "info")
    assert "Rootless:              yes\n" in shown
    assert f"{user.home}/data/lamina" in shown
    assert "  overlay " in shown
    (erofs,) = [line for line in shown.splitlines() if line.startswith("  erofs ")]
    assert erofs.endswith((": mounting EROFS needs root (outside of user namespaces)",
                           ": the kernel has no EROFS"))  # fmt: skip


def test_mounting_is_for_within_unshare(user: User) -> None:
    ok(user, "import", "small.tar", "small")
    ok(user, "create", "--name", "box", "small", "true")
    refused = lamina(user, "mount", "box")
    assert refused.returncode == 1
    assert b"within 'lamina unshare'" in refused.stderr
    script = f'cat "$({user.python} -m lamina mount box)/etc/motd"; id -u'
    assert ok(user, "unshare", "sh", "-c", script) == "welcome\n0\n"
    assert lamina(user, "unshare", "sh", "-c", "exit 5").returncode == 5
    assert lamina(user, "unshare", "no-such-command").returncode == 127
    ok(user, "run", "--rm", "small", "true")


def test_an_ordinary_user_moves_images(
    user: User, basic_registry: Registry, repository_name: str
) -> None:
    name = f"{basic_registry.host}/{repository_name}:1"
    ok(user, "import", "small.tar", "small")
    id = ok(user, "config", "small", name, "--cmd", '["id", "-u"]')
    hint = f"('lamina login {basic_registry.host}' makes a login)\n"
    assert lamina(user, "push", name).stderr.decode().endswith(hint)
    ok(user, "login", "-u", USER, "-p", PASSWORD, basic_registry.host)
    kept = user.home / ".docker/config.json"
    assert (kept.stat().st_uid, kept.stat().st_mode & 0o777) == (user.uid, 0o600)
    ok(user, "push", name)
    ok(user, "rmi", name)
    assert "Downloaded newer image" in ok(user, "pull", name)
    ok(user, "save", name, "--format", "oci", "-o", "layout")
    ok(user, "copy", name, "oci-archive:copy.tar:copied:1")
    ok(user, "rmi", name)
    assert ok(user, "load", "-i", "copy.tar") == "Loaded image: copied:1\n"
    assert ok(user, "load", "-i", "layout", "--name", "again") == "Loaded image: again:latest\n"
    assert ok(user, "images", "-q", "--no-trunc", "again") == id
    assert ok(user, "run", "--rm", "again") == "0\n"
    assert (user.home / "copy.tar").stat().st_uid == user.uid


def test_a_directory_of_someone_else_is_told_with_what_to_do(user: User) -> None:
    done = lamina(user, "--root", "/var/lib/lamina-of-root", "images")
    assert done.returncode == 1
    assert b"use sudo, or a store of your own" in done.stderr


REFUSED = """
import sys
from lamina.kernel import namespaces
def refuse(flags):
    raise PermissionError(1, "Operation not permitted")
namespaces.unshare = refuse
from lamina.cli import main
main()
"""


def test_a_machine_without_user_namespaces_is_told_what_it_lacks(user: User) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[bytes]:
        return user.run([user.python, "-c", REFUSED, *args], stdin=subprocess.DEVNULL)

    shown = run("info").stdout.decode()
    assert re.search("overlay +does not work: mounting takes root", shown)
    assert re.search("vfs +works", shown)
    assert run("images").returncode == 0
    done = run("unshare", "true")
    assert done.returncode == 1
    assert b"can't make a user namespace" in done.stderr
