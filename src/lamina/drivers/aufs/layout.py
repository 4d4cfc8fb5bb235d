"""Docker's layout of AUFS layers, kept to the letter.

    home/
      layers/ID    the layer's chain: parent, grandparent and so on, one id a line
      diff/ID      the layer's own files, with AUFS whiteouts
      mnt/ID       where its union is mounted
      work/ID      only while fuse-overlayfs has the branch, or left it unsettled

A layer is there when ``layers/ID`` is, which is linked in whole after the directories and
goes before them. What is being made or deleted is below ``diff/NAME-removing``, which Docker's
driver and this one sweep when they start; that of a living process is locked, and this one
leaves it.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.drivers.base import check_id
from lamina.drivers.layout import Chain
from lamina.errors import InvalidName, LayerBroken, LayerExists, LayerInUse, LayerNotFound
from lamina.kernel.lock import unlock
from lamina.kernel.remove import remove_tree
from lamina.log import Log
from lamina.types import LayerId

log = Log(__name__)

REMOVING = "-removing"
_PARTS = {"diff": "diff", "merged": "mnt", "parents": "layers"}
_serial = itertools.count()


class AufsLayout:
    """Finds, makes and removes layers in Docker's layout; see :class:`drivers.layout.Layout`."""

    def __init__(self, home: Path, owner: tuple[int, int]) -> None:
        self.home = home
        self.staging = _Removing(f"{home}/diff")
        self._owner = owner
        self._parents = _Parents(f"{home}/layers")
        make_directory(str(home), 0o700, owner)
        for part in ("mnt", "diff", "layers"):
            make_directory(f"{home}/{part}", 0o700, owner)

    # -- looking ------------------------------------------------------------------------

    def path(self, id: LayerId, part: str) -> str:
        """Where a part of a layer lies or would lie."""
        if ":" in check_id(id) or "," in id:
            raise InvalidName(f"not an id for AUFS, whose mount options ':' and ',' part: '{id}'")
        return f"{self.home}/{_PARTS[part]}/{id}"

    def exists(self, id: LayerId) -> bool:
        """Whether the layer is there."""
        return os.path.lexists(self.path(id, "parents"))

    def ids(self) -> Iterator[LayerId]:
        """All layers, in no order."""
        return map(LayerId, os.listdir(f"{self.home}/layers"))

    def strays(self) -> Iterator[LayerId]:
        """Names in ``diff`` and ``mnt`` of which ``layers`` has none."""
        found = {name for part in ("diff", "mnt") for name in os.listdir(f"{self.home}/{part}")}
        for name in found.difference(os.listdir(f"{self.home}/layers")):
            if not name.endswith(REMOVING):
                yield check_id(name)

    def chain(self, id: LayerId) -> Chain:
        """What the layer stands on, as ``layers/ID`` lists it.

        Raises:
            LayerNotFound: no such layer.
            LayerBroken: the list names the layer itself, one twice, or what can't be one.
        """
        try:
            with open(self.path(id, "parents"), "rb", opener=_open_regular) as file:
                return _chain(id, file.read())
        except FileNotFoundError:
            raise LayerNotFound(id) from None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EINVAL):
                raise
            raise LayerBroken(id, "its list of parents is no regular file") from None

    def check_chain(self, id: LayerId, chain: Chain) -> None:
        """Raise LayerBroken where the lists of those below do not go on as this one does.

        The nearest and the last are asked: whoever stands in a circle, one of them says so.
        """
        for place in {0, len(chain.layers) - 1} if chain else ():
            below = chain.layers[place]
            try:
                rest = self.chain(below).layers
            except LayerNotFound:
                continue
            if rest != chain.layers[place + 1 :]:
                raise LayerBroken(id, f"its list of parents and that of {below} do not agree")

    def chain_of_child(self, parent: LayerId | None) -> Chain:
        """What a new layer on ``parent`` stands on."""
        return Chain() if parent is None else Chain((parent, *self.chain(parent).layers))

    def has_children(self, id: LayerId) -> bool:
        """Whether any layer has ``id`` as its direct parent."""
        return self._parents.has_child(id)

    # -- making and removing ------------------------------------------------------------

    def commit(self, staged: str, id: LayerId, chain: Chain) -> None:
        """Let ``staged/diff`` appear as the layer ``id``; see :meth:`Layout.commit`."""
        if self.exists(id):
            raise LayerExists(id)
        if chain.layers and not self.exists(chain.layers[0]):
            raise LayerNotFound(chain.layers[0])
        diff = self.path(id, "diff")
        if os.path.lexists(diff):  # of a crash, or of a removal that Docker did not finish
            os.rename(diff, f"{staged}/stray")
        os.rename(f"{staged}/diff", diff)
        make_directory(self.path(id, "merged"), 0o755, self._owner)
        try:
            self._list_parents(staged, id, chain)
        except FileExistsError as error:
            raise LayerExists(id) from error

    def _list_parents(self, staged: str, id: LayerId, chain: Chain) -> None:
        with open(f"{staged}/layers", "wb") as file:
            file.write(chain.encode())
            os.fchmod(file.fileno(), 0o644)
        os.link(f"{staged}/layers", self.path(id, "parents"))

    def detach(self, id: LayerId, staged: str) -> None:
        """Take the layer away to be deleted; see :meth:`Layout.detach`.

        A diff directory without its ``layers`` file goes too.
        """
        if self.has_children(id):
            raise LayerInUse(id, "it has child layers")
        found = _unlink(self.path(id, "parents"))
        for part in ("diff", "merged"):
            try:
                os.rename(self.path(id, part), f"{staged}/{part}")
                found = True
            except FileNotFoundError:
                pass
        if not found:
            raise LayerNotFound(id)

    def sweep(self) -> None:
        """Delete ``*-removing`` in ``mnt`` and ``diff``; what can't be is logged, and stays."""
        for part in ("mnt", "diff"):
            with os.scandir(f"{self.home}/{part}") as entries:
                left = [entry.path for entry in entries if _is_stale(entry)]
            for path in left:
                try:
                    _sweep_one(path)
                except OSError as error:
                    log.error("can't delete the stale layer directory %s: %s", path, error)


class _Removing:
    """Places for half-made and half-removed things, of the names that Docker sweeps."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    @contextmanager
    def directory(self) -> Iterator[str]:
        """A new, empty directory (0700); what of it is left after the block is deleted."""
        staged, lock = self._claim()
        try:
            yield staged
        finally:
            remove_tree(staged)
            unlock(lock)

    def _claim(self) -> tuple[str, int]:
        """Make and lock a directory that is this call's alone."""
        while True:
            number = f"{os.getpid()}-{threading.get_native_id()}-{next(_serial)}"
            staged = f"{self._directory}/lamina-{number}{REMOVING}"
            try:
                os.mkdir(staged, 0o700)
            except FileExistsError:
                continue  # of a process of another pid namespace, or left by a dead one
            lock = _try_lock(staged)
            if lock is not None:
                return staged, lock
            # Before it was locked a sweep took it for stale.

    def close(self) -> None:
        """Nothing is held between two directories."""


class _Parents:
    """Who is whose direct parent. A ``layers`` file is read again only when it is another one."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._known: dict[str, tuple[tuple[int, int], bytes]] = {}
        self._mutex = threading.Lock()

    def has_child(self, id: LayerId) -> bool:
        """Whether a ``layers`` file begins with ``id``."""
        wanted = id.encode()
        with self._mutex, os.scandir(self._directory) as entries:
            known, self._known = self._known, {}
            for entry in entries:
                try:
                    self._known[entry.name] = self._first_line(entry, known.get(entry.name))
                except OSError:  # gone meanwhile, or not a file that can be read
                    continue
            return any(parent == wanted for name, (_, parent) in self._known.items() if name != id)

    def _first_line(
        self, entry: os.DirEntry[str], known: tuple[tuple[int, int], bytes] | None
    ) -> tuple[tuple[int, int], bytes]:
        status = entry.stat(follow_symlinks=False)
        identity = (status.st_ino, status.st_ctime_ns)
        if known is not None and known[0] == identity:
            return known
        with open(entry.path, "rb", opener=_open_regular) as file:
            return identity, file.readline().strip()


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file, and no link to one; EINVAL for what else there may be."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file", path)


def make_directory(path: str, mode: int, owner: tuple[int, int]) -> None:
    """Make a directory, and those above it, of this mode and owner; one that is there stays."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkdir(path, mode)
    except FileExistsError:
        return
    os.chmod(path, mode)
    if os.geteuid() == 0 and owner != (0, 0):
        os.chown(path, *owner)


def _chain(id: LayerId, data: bytes) -> Chain:
    try:
        layers = tuple(check_id(line.decode()) for line in data.splitlines() if line.strip())
    except ValueError as error:
        raise LayerBroken(id, f"its list of parents is damaged: {error}") from error
    if id in layers or len(set(layers)) != len(layers):
        raise LayerBroken(id, "its list of parents goes round in a circle")
    return Chain(layers)


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def _is_stale(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(REMOVING) and entry.is_dir(follow_symlinks=False)


def _sweep_one(path: str) -> None:
    lock = _try_lock(path)
    if lock is None:
        return  # a living process is at it
    try:
        remove_tree(path)
    finally:
        unlock(lock)


def _try_lock(path: str) -> int | None:
    """An fd that holds a directory; None when another has it, or has deleted it meanwhile."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.lstat(path)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None
