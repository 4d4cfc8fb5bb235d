"""Writing an OCI runtime bundle: a directory with a root and how to run something in it.

    DIR/config.json     runtime-spec 1.0.2
    DIR/rootfs/         a copy of the whole file system: the bundle needs no store

DIR appears by one rename. It is made beside its place, as ``.NAME.TOKEN.lamina``, locked while its
maker lives; what a maker left that was killed, the next one of the same DIR deletes.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lamina.archive.copytree import copy_tree
from lamina.errors import InvalidName
from lamina.kernel import namespaces
from lamina.kernel.copy import syncfs
from lamina.kernel.idmap import IdMap, IdRange
from lamina.kernel.process import CAPABILITIES, capability_mask
from lamina.kernel.remove import remove_tree
from lamina.oci.runtime import Isolation, Mount, Process, bind, configuration, encode
from lamina.sandbox import users
from lamina.sandbox.child import DEFAULT_PATH
from lamina.sandbox.inside import MASKED_PATHS, READONLY_PATHS
from lamina.sandbox.run import DEFAULT_CAPABILITIES, Bind, check_mapped

_ROOT = "rootfs"
_SUFFIX = ".lamina"
_NAMES = ("/etc/hosts", "/etc/resolv.conf")
"""What a container on the machine's network takes from it."""


class Command(NamedTuple):
    """What a bundle runs, and how; see :func:`lamina.sandbox.run.run`."""

    argv: Sequence[str]
    env: Mapping[str, str] = {}
    cwd: str = "/"
    user: str | None = None
    network: str = "host"
    hostname: str | None = None
    terminal: bool = False
    mounts: Sequence[Bind] = ()


def write_bundle(
    target: Path,
    root: Path,
    command: Command,
    *,
    annotations: Mapping[str, str] | None = None,
    volumes: Sequence[Mount] = (),
    idmap: IdMap | None = None,
    sync: bool = True,
) -> None:
    """Make the bundle ``target`` of the file system mounted at ``root``.

    ``target`` must not exist, or be an empty directory. ``idmap`` is for one that an ordinary
    user is to run: the user namespace to run it in, whose ids the files have; by default an
    ordinary user's bundle has that user alone, as root. ``sync`` waits until
    all is on disk. Raises InvalidName for a target or a command that can't be, UserNotFound,
    OSError; then nothing is left.
    """
    if not command.argv:
        raise InvalidName("a bundle needs a command")
    if idmap is None and os.geteuid() != 0:
        idmap = IdMap((IdRange(0, os.geteuid(), 1),), (IdRange(0, os.getegid(), 1),))
    config = encode(_document(root, command, annotations, volumes, idmap))
    with _appearing(target, sync=sync) as directory:
        copy_tree(root, directory / _ROOT)
        (directory / "config.json").write_bytes(config)


def _document(
    root: Path,
    command: Command,
    annotations: Mapping[str, str] | None,
    volumes: Sequence[Mount],
    idmap: IdMap | None,
) -> dict[str, Any]:
    who = _look_up(root, command.user, idmap)
    mask = capability_mask(DEFAULT_CAPABILITIES)
    process = Process(
        args=[os.fspath(word) for word in command.argv],
        env=_environment(command, who.home),
        cwd=command.cwd,
        uid=who.uid,
        gid=who.gid,
        groups=who.groups,
        capabilities=[name for n, name in enumerate(CAPABILITIES) if mask >> n & 1],
        terminal=command.terminal,
    )
    isolation = Isolation(
        private_network=command.network == "none",
        hostname=command.hostname,
        masked_paths=MASKED_PATHS,
        readonly_paths=READONLY_PATHS,
        in_user_namespace=idmap is not None or namespaces.in_user_namespace(),
        id_map=idmap,
    )
    names = [] if isolation.private_network else list(filter(os.path.exists, _NAMES))
    mounts = [
        *(bind(name, name, read_only=True) for name in names),
        *volumes,
        *(bind(str(b.source), b.target, read_only=b.read_only) for b in command.mounts),
    ]
    return configuration(process, isolation, root=_ROOT, mounts=mounts, annotations=annotations)


def _look_up(root: Path, user: str | None, idmap: IdMap | None) -> users.Identity:
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        who = users.look_up(root_fd, user)
    finally:
        os.close(root_fd)
    if idmap:
        check_mapped(who, [str(r) for r in idmap.uids], [str(r) for r in idmap.gids])
    return who


def _environment(command: Command, home: str) -> dict[str, str]:
    """As ``run`` gives it, but for what is known only when the bundle is run."""
    env = {"PATH": DEFAULT_PATH, "HOME": home}
    if command.hostname:
        env["HOSTNAME"] = command.hostname
    if command.terminal:
        env["TERM"] = "xterm"
    return {**env, **command.env}


@contextmanager
def _appearing(target: Path, *, sync: bool) -> Iterator[Path]:
    """A directory to be filled, that becomes ``target`` at the end of the block."""
    place = Path(os.path.realpath(target))
    _refuse_taken(place, target)
    for left in place.parent.glob(f".{glob.escape(place.name)}.*{_SUFFIX}"):
        _remove_dead(left)
    staging, fd = _make_locked(place)
    try:
        yield staging
        if sync:
            syncfs(fd)
        _rename(staging, place, target)
    except BaseException:
        remove_tree(staging)
        raise
    finally:
        os.close(fd)


def _make_locked(place: Path) -> tuple[Path, int]:
    """A new directory beside ``place``, and the descriptor by which it is locked."""
    while True:
        staging = place.parent / f".{place.name}.{os.urandom(8).hex()}{_SUFFIX}"
        staging.mkdir(mode=0o700)  # setuid programs of the image are not for everyone here
        fd = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return staging, fd
        os.close(fd)  # another maker took it for a dead one's before it was locked


def _refuse_taken(place: Path, target: Path) -> None:
    try:
        if os.listdir(place):
            raise InvalidName(f"{target} is there already, and not empty")
    except NotADirectoryError:
        raise InvalidName(f"{target} is there already, and no directory") from None
    except FileNotFoundError:
        pass


def _rename(staging: Path, place: Path, target: Path) -> None:
    try:
        os.rename(staging, place)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise InvalidName(f"{target} was made by someone else meanwhile") from None
        raise OSError(error.errno, error.strerror, os.fspath(target)) from None


def _remove_dead(directory: Path) -> None:
    """Delete what a dead maker left; one that is at work has it locked."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        remove_tree(directory)
    finally:
        os.close(fd)
