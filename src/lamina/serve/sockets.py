"""Unix sockets of servers: who may connect, what a dead server left, sockets that systemd made.

A server is in one of two situations. Either it makes its socket: :func:`listen` for servers that
take a socket, :func:`claim` and :func:`publish` for those that bind a path themselves. Or systemd
made it (socket activation): then :func:`activated` has it. sd_listen_fds(3), sd_notify(3).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.errors import LaminaError, PermissionRequired, printable
from lamina.log import Log

log = Log(__name__)

_FIRST_FD = 3
"""sd_listen_fds(3), SD_LISTEN_FDS_START."""
_LONGEST = 107
"""Bytes of a socket's path (unix(7)): 108 with the NUL at the end."""
_PATIENCE = 2.0  # seconds that a server has to accept us, before it counts as there


class AddressInUse(LaminaError):
    """Another server listens at a socket, or a file that is no socket is in its place."""


def listen(path: Path, *, group: str | None = None, backlog: int = 128) -> socket.socket:
    """A socket that listens at ``path``, 0600, or 0660 for ``group``; it replaces a dead one's.

    Delete it with :func:`withdraw`.

    Raises:
        AddressInUse: someone listens there.
        LaminaError: there is no such group, the path is too long, or anyone may replace what is in
            its directory.
        PermissionRequired: the directory can't be written.
    """
    with claim(path, group=group) as temporary:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with private_files():
                listening.bind(os.fspath(temporary))
            listening.listen(backlog)
            publish(temporary, path, group=group)
        except BaseException:
            listening.close()
            raise
    return listening


@contextmanager
def claim(path: Path, *, group: str | None = None) -> Iterator[Path]:
    """Where to bind a socket that is to appear at ``path``: a name beside it.

    Its directory is made if missing (0700, or 0710 for the group). What is bound appears with
    :func:`publish`; if that does not happen it is deleted. Bind within :func:`private_files`.

    Raises as :func:`listen`.
    """
    _check_free(path)
    _make_directory(path.parent, group)
    _check_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if len(os.fsencode(temporary)) > _LONGEST:
        raise LaminaError(f"the path of the socket is too long: {printable(path)}")
    try:
        temporary.unlink(missing_ok=True)
        yield temporary
    except PermissionError as error:
        raise PermissionRequired(f"can't make the socket {printable(path)}: use sudo") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def private_files() -> Iterator[None]:
    """Sockets made in the block are their owner's alone. It counts for the whole process."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def publish(bound: Path, path: Path, *, group: str | None = None) -> None:
    """Let a bound socket appear at ``path``, with the permissions that it is to have.

    They are given to the socket that was bound, by descriptor: in a directory that others can write
    its name may be a link by now, to a file that they want to have.
    """
    fd = os.open(bound, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise LaminaError(f"someone replaced the socket {printable(bound)}")
        if group is not None:
            os.chown(f"/proc/self/fd/{fd}", -1, group_id(group))
        os.chmod(f"/proc/self/fd/{fd}", 0o600 if group is None else 0o660)
    finally:
        os.close(fd)
    os.rename(bound, path)


def identity(path: Path) -> tuple[int, int]:
    """What tells a socket at ``path`` from one that replaced it: device and inode."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def withdraw(path: Path, mine: tuple[int, int]) -> None:
    """Delete the socket at ``path`` if it is still the one of :func:`identity` ``mine``."""
    try:
        if identity(path) == mine:
            os.unlink(path)
    except FileNotFoundError:
        pass


def group_id(name: str) -> int:
    """The number of a group, given by name or number.

    Raises:
        LaminaError: there is none.
    """
    import grp

    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise LaminaError(f"there is no group '{printable(name)}'") from error


def activated() -> list[socket.socket]:
    """The listening sockets that systemd made for this process; none if it was started otherwise.

    May be asked once: the variables are taken away, so that no child takes them for its own.

    Raises:
        LaminaError: one of them is none.
    """
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not count.isdecimal() or pid != str(os.getpid()):
        return []
    found = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        try:
            os.set_inheritable(fd, False)
            found.append(socket.socket(fileno=fd))
        except OSError as error:
            raise LaminaError(f"descriptor {fd} (LISTEN_FDS) is no socket") from error
    return found


def notify(state: str) -> None:
    """Tell the service manager, if it listens: ``READY=1``, ``STOPPING=1``. Never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), address)
    except OSError as error:
        log.warning("can't tell the service manager %s: %s", state, error)


def _check_free(path: Path) -> None:
    """Raise :class:`AddressInUse` unless nothing, or a dead server's socket, is at ``path``."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise AddressInUse(f"{printable(path)} is there and no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PATIENCE)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                return
    raise AddressInUse(f"another server listens at {printable(path)}")


def _check_directory(path: Path) -> None:
    """Raise LaminaError if anyone may replace a socket in ``path``, and so be the server."""
    mode = os.stat(path).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise LaminaError(f"everyone can write the directory {printable(path)}: chmod o-w")


def _make_directory(path: Path, group: str | None) -> None:
    gid = None if group is None else group_id(group)
    if path.is_dir():
        return
    try:
        path.mkdir(mode=0o700, parents=True)
        if gid is not None:
            os.chown(path, -1, gid)
            os.chmod(path, 0o710)
    except FileExistsError:
        pass
    except PermissionError as error:
        raise PermissionRequired(f"can't make the directory {printable(path)}") from error
