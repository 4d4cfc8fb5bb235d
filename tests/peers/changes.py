"""What the layers of an image do to a tree: every kind of thing and of change, five steps of it.

The steps are done by system calls in whatever root is mounted, so that each program makes an
image of the same changes in its own way. All times are set, so that two who do the same have
the same tree.
"""

from __future__ import annotations

import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

from lamina.archive import acl

_TIME = 1_600_000_000
_RECENT = 3600  # seconds; longer than the tests take
_CAP_NET_RAW = struct.pack("<IIIII", 0x0200_0001, 1 << 13, 0, 0, 0)
_HOLE = 3 << 20

LONG_NAME = b"n" * 255
LONG_PATH = b"/".join(letter * 110 for letter in (b"a", b"b", b"c"))
LATIN = b"caf\xe9"
"""A name that is not UTF-8."""


class Tree:
    """A root that is being changed."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)

    def path(self, name: bytes | str) -> bytes:
        """Where a name is."""
        return os.path.join(self._root, os.fsencode(name))

    def directory(
        self, name: bytes | str, mode: int = 0o755, owner: tuple[int, int] = (0, 0)
    ) -> None:
        os.makedirs(self.path(name), exist_ok=True)
        os.chown(self.path(name), *owner)
        os.chmod(self.path(name), mode)

    def file(
        self,
        name: bytes | str,
        content: bytes = b"",
        mode: int = 0o644,
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "wb") as file:
            file.write(content)
        os.chown(self.path(name), *owner)
        os.chmod(self.path(name), mode)

    def symlink(self, target: bytes | str, name: bytes | str) -> None:
        os.symlink(os.fsencode(target), self.path(name))

    def link(self, old: bytes | str, new: bytes | str) -> None:
        os.link(self.path(old), self.path(new), follow_symlinks=False)

    def node(self, name: bytes | str, mode: int, device: int = 0) -> None:
        os.mknod(self.path(name), mode, device)

    def xattr(self, name: bytes | str, attribute: str, value: bytes) -> None:
        os.setxattr(self.path(name), attribute, value, follow_symlinks=False)

    def unnote(self, name: bytes | str) -> None:
        """Remove the attributes ``user.*``; not every program has kept them to here."""
        for attribute in os.listxattr(self.path(name), follow_symlinks=False):
            if attribute.startswith("user."):
                os.removexattr(self.path(name), attribute, follow_symlinks=False)

    def remove(self, name: bytes | str) -> None:
        path = self.path(name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)

    def settle(self, step: int) -> None:
        """Give everything that was touched now a time of its own: that of the step."""
        for directory, _, names in os.walk(self._root, topdown=False):
            for name in (*names, *(d for d in os.listdir(directory) if d not in names), b"."):
                path = os.path.join(directory, name)
                status = os.lstat(path)
                if abs(status.st_mtime - time.time()) < _RECENT:
                    when = _TIME + 1000 * step
                    os.utime(path, (when, when), follow_symlinks=False)


def _posix_acl(default: bool = False) -> bytes:
    user = "user:70000:rwx" if default else "user:70000:r--"
    return acl.parse(f"user::rw-,{user},group::r--,mask::rwx,other::---")


def base(tree: Tree) -> None:
    """The first layer: one of everything that there is."""
    for name in ("bin", "etc", "srv/empty/below", "var/lib"):
        tree.directory(name)
    tree.file("etc/motd", b"welcome\n")
    tree.file("etc/shadow", b"secret\n", 0)
    tree.file("bin/su", b"#!/su\n", 0o4755)
    tree.file("bin/wall", b"#!/wall\n", 0o2755, (0, 5))
    tree.file("bin/ping", b"#!/ping\n", 0o755)
    tree.xattr("bin/ping", "security.capability", _CAP_NET_RAW)
    tree.directory("tmp", 0o1777)
    tree.directory("var/mail", 0o2775, (0, 8))
    tree.file("srv/far", b"far\n", owner=(70_000, 80_000))
    tree.file("srv/farther", b"farther\n", owner=(2_100_000_000, 4_000_000_000))
    tree.file("srv/noted", b"noted\n")
    tree.xattr("srv/noted", "user.note", b"bytes \x00\xff")
    tree.xattr("srv", "user.of.directory", b"1")
    tree.file("srv/shared", b"shared\n")
    tree.xattr("srv/shared", "system.posix_acl_access", _posix_acl())
    tree.directory("srv/inherits")
    tree.xattr("srv/inherits", "system.posix_acl_default", _posix_acl(default=True))
    _nodes_and_links(tree)
    _names(tree)
    tree.file("srv/sparse", b"begin")
    with open(tree.path("srv/sparse"), "r+b") as file:
        file.seek(_HOLE)
        file.write(b"end")
    for name in ("gone", "opaque", "becomes-file", "becomes-link", "releases/1"):
        tree.file(f"d/{name}/inside", name.encode())
        tree.file(f"d/{name}/sub/deeper", name.encode())
    tree.file("d/becomes-directory", b"a file")
    tree.symlink("releases/1", "d/link-becomes-directory")
    tree.file("old", b"old\n")
    os.utime(tree.path("old"), (1, 1))


def _nodes_and_links(tree: Tree) -> None:
    tree.directory("dev")
    tree.node("dev/null", 0o020666, os.makedev(1, 3))
    tree.node("dev/loop", 0o060660, os.makedev(7, 300))
    tree.node("dev/fifo", 0o010600)
    tree.file("l/one", b"linked\n")
    tree.link("l/one", "l/two")
    tree.directory("l/elsewhere")
    tree.link("l/one", "l/elsewhere/three")
    tree.file("l/pair-a", b"pair\n", 0o4711, (70_000, 70_000))
    tree.link("l/pair-a", "l/pair-b")
    tree.symlink("/etc/motd", "l/absolute")
    tree.symlink("../nowhere/at/all", "l/dangling")
    tree.symlink("../d/releases/1/inside", "l/into-replaced")
    tree.symlink("../d/releases", "l/to-replaced")
    os.lchown(tree.path("l/dangling"), 70_000, 80_000)


def _names(tree: Tree) -> None:
    tree.file(b"names/" + LONG_NAME, b"255\n")
    tree.file(b"names/" + LONG_PATH + b"/file", b"300\n")
    tree.link(b"names/" + LONG_PATH + b"/file", b"names/to-long")
    tree.link(b"names/to-long", b"names/" + LONG_PATH + b"/file-again")
    tree.symlink(b"/names/" + LONG_PATH + b"/file", b"names/long-link")
    tree.file(b"names/" + LATIN, b"latin 1\n")
    tree.file(b"names/" + LATIN + b".d/\xff\xfe", b"not text\n")
    tree.symlink(LATIN, b"names/to-latin")
    tree.file("names/ü/ue", b"UTF-8\n")
    tree.file('names/ a\nb\\c"d*', b"odd\n")
    tree.file("/".join(["names", *"deep" * 12, "bottom"]), b"deep\n")


def change(tree: Tree) -> None:
    """Whiteouts, opaque directories, one kind replaced by another, only one attribute changed."""
    tree.remove("d/gone")
    tree.remove(b"names/" + LATIN)
    tree.remove("l/two")
    tree.remove("dev/fifo")
    tree.remove("d/opaque")
    tree.file("d/opaque/new", b"new\n")
    tree.directory("d/opaque/sub")
    tree.remove("d/becomes-file")
    tree.file("d/becomes-file", b"a file now\n")
    tree.remove("d/becomes-link")
    tree.symlink("opaque", "d/becomes-link")
    tree.remove("d/becomes-directory")
    tree.file("d/becomes-directory/inside", b"a directory now\n")
    tree.remove("d/link-becomes-directory")
    tree.directory("d/link-becomes-directory", 0o700, (70_000, 70_000))
    tree.remove("d/releases")
    tree.file("d/releases", b"no directory any more\n")
    os.chmod(tree.path("etc/motd"), 0o600)
    os.chown(tree.path("srv/noted"), 100_000, 100_000)
    tree.xattr("srv/noted", "user.second", b"2")
    os.utime(tree.path("old"), (2**32 + 5, 2**32 + 5))
    tree.remove("l/one")  # written to in place, it would be a link still in some file systems
    tree.file("l/one", b"no longer what three is\n")
    tree.link("etc/motd", "etc/motd-too")


def undo(tree: Tree) -> None:
    """What was removed comes back, as something else; what came goes."""
    tree.symlink("opaque", "d/gone")
    tree.file(b"names/" + LATIN + b"/again", b"a directory\n")
    tree.remove("d/opaque/new")
    tree.file("d/opaque/inside", b"not the first\n")
    tree.remove("d/becomes-directory")
    tree.file("d/becomes-directory", b"a file again\n", 0o4755)
    tree.remove("d/releases")
    tree.file("d/releases/2/inside", b"second\n")
    tree.node("dev/fifo", 0o020600, os.makedev(5, 1))
    tree.unnote("srv/noted")
    tree.remove(b"names/" + LONG_PATH)
    tree.remove("srv/empty/below")


def small(tree: Tree) -> None:
    """One file."""
    tree.file("srv/small", b"small\n")


Step = Callable[[Tree], None]

STEPS: tuple[Step, ...] = (base, change, undo, small)


def do(number: int, root: Path) -> None:
    """Do one of the steps in ``root``."""
    tree = Tree(root)
    STEPS[number](tree)
    tree.settle(number)
