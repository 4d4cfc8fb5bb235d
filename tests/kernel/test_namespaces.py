from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.kernel import namespaces
from lamina.kernel.idmap import IdMap, IdRange
from tests.users import User

SOURCE = str(Path(namespaces.__file__).parents[2])
PRELUDE = """
import os
from lamina.kernel import mount, namespaces
from lamina.kernel.idmap import IdMap, IdRange
"""


def python(code: str, user: User | None = None) -> str:
    """The output of ``code`` in a process of its own, perhaps as ``user``."""
    if user is None:
        argv = [sys.executable, "-S", "-c", PRELUDE + code]
        return subprocess.check_output(argv, text=True, env={"PYTHONPATH": SOURCE}).strip()
    done = user.run([user.python, "-S", "-c", PRELUDE + code])
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_a_mount_namespace_has_a_number() -> None:
    assert namespaces.mount_namespace_id() == namespaces.mount_namespace_id(os.getpid())


@pytest.mark.root
def test_unshare_and_setns() -> None:
    code = """
first = os.open("/proc/self/ns/mnt", os.O_RDONLY)
before = namespaces.mount_namespace_id()
namespaces.unshare(namespaces.CLONE_NEWNS | namespaces.CLONE_NEWUTS)
namespaces.sethostname("elsewhere")
assert namespaces.mount_namespace_id() != before
namespaces.setns(first, namespaces.CLONE_NEWNS)
assert namespaces.mount_namespace_id() == before
print(os.uname().nodename)
"""
    assert python(code) == "elsewhere"
    assert os.uname().nodename != "elsewhere"


@pytest.mark.root
def test_pivot_root_changes_the_root(tmp_path: Path) -> None:
    (tmp_path / "inside").touch()
    code = f"""
namespaces.unshare(namespaces.CLONE_NEWNS)
mount.make_private("/", recursive=True)
mount.bind({str(tmp_path)!r}, {str(tmp_path)!r})
os.chdir({str(tmp_path)!r})
namespaces.pivot_root(".", ".")
mount.umount2(".", mount.MNT_DETACH)
print(os.listdir("/"))
"""
    assert python(code) == "['inside']"


@pytest.mark.root
def test_an_ordinary_user_maps_itself_to_root(ordinary_user: User) -> None:
    code = """
uid, gid = os.getuid(), os.getgid()
assert not namespaces.in_user_namespace()
namespaces.unshare(namespaces.CLONE_NEWUSER)
namespaces.write_own_maps("self", [f"0 {uid} 1"], [f"0 {gid} 1"])
print(os.getuid(), os.getgid(), namespaces.in_user_namespace())
"""
    assert python(code, ordinary_user) == "0 0 True"


@pytest.mark.root
@pytest.mark.parametrize("who", ["root", "user"])
def test_maps_of_another_process(who: str, ordinary_user: User) -> None:
    host = 100000 if who == "root" else ordinary_user.uid
    code = f"""
r, w = os.pipe()
back, done = os.pipe()
child = os.fork()
if child == 0:
    namespaces.unshare(namespaces.CLONE_NEWUSER)
    os.write(w, b"x")
    os.read(back, 1)
    if os.getuid() != 7:
        os.setgid(7)
        os.setuid(7)
    print(os.getuid(), os.getgid(), flush=True)
    os._exit(0)
os.read(r, 1)
one = (IdRange(7, {host}, 1),)
namespaces.write_id_maps(child, IdMap(one, one))
print(open(f"/proc/{{child}}/uid_map").read().split(), flush=True)
os.write(done, b"x")
os.waitpid(child, 0)
"""
    lines = python(code, ordinary_user if who == "user" else None).splitlines()
    assert lines == [str(["7", str(host), "1"]), "7 7"]


@pytest.mark.root
def test_a_map_that_was_not_granted_is_refused(ordinary_user: User) -> None:
    code = """
child = os.fork()
if child == 0:
    namespaces.unshare(namespaces.CLONE_NEWUSER)
    import time; time.sleep(2)
    os._exit(0)
import time; time.sleep(0.2)
two = (IdRange(0, os.getuid(), 1), IdRange(1, 100000, 10))
try:
    namespaces.write_id_maps(child, IdMap(two, two))
except (PermissionError, FileNotFoundError) as error:
    print("refused")
os.kill(child, 9)
os.waitpid(child, 0)
"""
    assert python(code, ordinary_user) == "refused"


def test_unshare_of_what_is_no_namespace_is_an_oserror() -> None:
    code = """
try:
    namespaces.unshare(0x1)
except OSError as error:
    print(error.errno)
"""
    assert python(code) == "22"


def test_the_lines_of_a_map() -> None:
    idmap = IdMap((IdRange(0, 1000, 1),), (IdRange(0, 1000, 1),))
    assert [str(r) for r in idmap.uids] == ["0 1000 1"]
