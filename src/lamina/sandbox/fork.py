"""A copy-on-write fork of this machine: run on it, look at what changed, apply or forget it.

    with fork_machine(workdir) as fork:
        fork.run(["apt-get", "install", "--yes", "hello"])
        for change in fork.changes():
            print(change)
        fork.apply()

What the command sees is this machine: its processes, network, users, devices, terminal. What it
writes to file systems goes to the fork. Services that run outside (a package's daemon told to
restart, a database behind a socket) are not forked. See ``plan.py`` for what an ordinary user's
fork has.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.archive.nodes import Copier
from lamina.archive.owners import for_process
from lamina.archive.whiteout import OVERLAY, OVERLAY_USER, Format
from lamina.errors import ApplyConflict, LaminaError
from lamina.kernel import mountinfo, namespaces
from lamina.kernel.copy import syncfs
from lamina.kernel.idmap import IdMap
from lamina.kernel.remove import remove_tree
from lamina.log import Log
from lamina.sandbox import clock, plan
from lamina.sandbox.helper import File, Helper
from lamina.sandbox.plan import Plan, Point

# A command that writes nothing is soon over: what compares, applies and gathers layers is imported
# by the methods that do so.
if TYPE_CHECKING:
    from lamina.archive.changes import Change

log = Log(__name__)


def fork_machine(workdir: Path, *, only: Path | None = None, hide: Sequence[Path] = ()) -> Fork:
    """Fork this machine, or with ``only`` that directory alone.

    ``workdir`` is made; it holds all of the fork and may be removed at any time when no command
    runs. It has to be on a file system that can be overlayfs's upper layer (ext4, xfs, btrfs,
    tmpfs; not overlayfs itself). ``hide`` are directories that the fork shall not see: those of
    the store. Raises OSError, and LaminaError in a chroot that is no mount point.
    """
    if not _is_user() and mountinfo.in_chroot():
        raise LaminaError(
            "this chroot can't be forked, since its root directory is no mount point: "
            "'mount --bind DIR DIR', outside and before it is entered, makes it one"
        )
    workdir.mkdir(mode=0o700)
    try:
        return Fork(workdir, _plan(only, workdir, hide))
    except BaseException:
        remove_tree(workdir)
        raise


def _plan(only: Path | None, workdir: Path, hide: Sequence[Path]) -> Plan:
    table = mountinfo.mounts()
    directory = None if only is None else os.fsencode(os.path.realpath(only))
    if directory is not None and not os.path.isdir(directory):
        raise NotADirectoryError(20, os.strerror(20), os.fsdecode(directory))
    if not _is_user():
        made = plan.directory_alone(directory, table) if directory else plan.whole_machine(table)
    elif directory is not None:
        made = plan.directory_of_user(directory, table, _temporary())
    else:
        made = plan.places_of_user([*_own_places(), *_temporary()], table)
    for path in (*hide, workdir):
        made.hide(os.fsencode(os.path.realpath(path)))
    return made


def _is_user() -> bool:
    """Whether overlays can only be had within a user namespace."""
    return os.geteuid() != 0 or namespaces.in_user_namespace()


def _own_places() -> list[bytes]:
    home = os.environ.get("HOME", "/")
    return [os.getcwdb(), os.fsencode(home)]


def _temporary() -> list[bytes]:
    return [b"/tmp", b"/var/tmp", os.fsencode(os.environ.get("TMPDIR", "/tmp"))]


class Fork:
    """A fork, as :func:`fork_machine` makes it. As a context manager it is discarded at the end.

    Its work directory::

        WORKDIR/root            where the helper builds the fork's tree; always empty from outside
        WORKDIR/N/upper         the layer of one forked directory, in ``format``
        WORKDIR/N/work          overlayfs's own
        WORKDIR/N/skeleton      placeholders (``plan.py``)
    """

    def __init__(self, workdir: Path, plan: Plan) -> None:
        self.workdir = workdir
        self.format: Format = OVERLAY_USER if _is_user() else OVERLAY
        self._plan = plan
        self._runs = 0
        (workdir / "root").mkdir()
        for point in plan.points:
            self._prepare(point)
        self._began = {p.number: clock.now(p.target) for p in plan.points}

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    @property
    def points(self) -> list[Point]:
        """The forked directories whose changes count."""
        return [point for point in self._plan.points if point.reported]

    def _written(self) -> list[Point]:
        """Those of them that something was written to. (The others may be unmounted by now.)"""
        return [point for point in self.points if os.listdir(self.upper(point))]

    def upper(self, point: Point) -> Path:
        """The layer directory of a forked directory."""
        return self.workdir / str(point.number) / "upper"

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        helper: Helper | None = None,
        input: bytes | None = None,
        timeout: float | None = None,
        forward_signals: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command on the fork, by default in this environment and directory.

        The rest is as for :func:`lamina.sandbox.run.run` (``helper`` being one of
        ``forked``). Processes that the command leaves running are killed. May be called again:
        the next command finds what this one did.
        """
        if not argv:
            raise ValueError("an empty command")
        if self._runs:
            self._renew_work()
        self._runs += 1
        uid, gid = os.geteuid(), os.getegid()
        spec = {
            "workdir": os.fspath(self.workdir.absolute()),
            "steps": self._plan.steps,
            "user": self.format is OVERLAY_USER,
            "uid_map": [f"{uid} {uid} 1"] if uid else [],
            "gid_map": [f"{gid} {gid} 1"] if uid else [],
            "argv": [os.fspath(word) for word in argv],
            "env": dict(os.environ if env is None else env),
            "cwd": os.getcwd() if cwd is None else cwd,
        }
        clock.wait_past(max(self._began.values()))
        if helper is None:
            stdin = subprocess.PIPE if input is not None else stdin
            helper = Helper("forked", stdin=stdin, stdout=stdout, stderr=stderr)
        with helper:
            return helper.run(
                spec, args=list(argv), input=input, timeout=timeout,
                forward_signals=forward_signals, on_terminal=_has_terminal(),
            )  # fmt: skip

    def changes(self) -> list[Change]:
        """What the fork has otherwise than the machine, sorted by path.

        The directories above a change are listed as changed, as ``docker diff`` does.
        """
        written = self._written()
        if not written:
            return []
        from lamina.archive.changes import Change, Kind

        found: dict[bytes, Change] = {}
        for point in written:
            for change in self._changes_at(point):
                path = _join(point.target, change.path)
                found[path] = Change(path, change.kind)
        for path in tuple(found):
            while (path := os.path.dirname(path)) != b"/":
                found.setdefault(path, Change(path, Kind.MODIFIED))
        return sorted(found.values())

    def sizes(self) -> dict[bytes, int]:
        """The size in bytes of every regular file in the fork's layers, by path."""
        written = self._written()
        if not written:
            return {}
        from lamina.archive.stack import walk

        return {
            _join(point.target, b"/" + node.path): node.status.st_size
            for point in written
            for node in walk([self.upper(point)], self.format)
            if node.status is not None and stat.S_ISREG(node.status.st_mode)
        }

    def conflicts(self) -> list[bytes]:
        """Paths that the fork changes and that the machine changed too since the fork began."""
        from lamina.sandbox.conflicts import conflicts

        found: list[bytes] = []
        for point in self._written():
            upper, target = os.fsencode(self.upper(point)), point.target
            changed = {change.path.lstrip(b"/") for change in self._changes_at(point)}
            since = self._began[point.number]
            paths = conflicts(upper, target, self.format, since, changed)
            found += [_join(target, b"/" + path) for path in paths]
        return sorted(found)

    def apply(self) -> None:
        """Do to the machine what was done to the fork. The fork is then good for nothing.

        Raises ApplyConflict, before anything is done, when the machine changed meanwhile where
        the fork did; OSError when writing fails, which, as any interruption, leaves what was done
        until then.
        """
        from lamina.archive.fold import fold

        found = self.conflicts()
        if found:
            raise ApplyConflict(found)
        for point in self._written():
            try:
                fold([self.upper(point)], self.format, point.target, move=True, top=False)
            except OSError as error:
                if isinstance(error.filename, str):  # as seen from the target
                    path = _join(point.target, os.fsencode(error.filename))
                    error.filename = os.fsdecode(path)
                raise
            _sync(point.target)

    def gather(self, into: Path) -> None:
        """Put all changes into one new layer directory ``into``, in ``format``, rooted at ``/``.

        For keeping them as an image. Files are moved where ``into`` is on the same file system;
        the fork is then good for nothing.
        """
        from lamina.archive.fold import squash

        into.mkdir(mode=0o755, exist_ok=True)
        copier = self._copier()
        parents: list[bytes] = []
        for point in sorted(self._written(), key=lambda p: p.target):
            above = point.target
            while above != b"/" and (above := os.path.dirname(above)) != b"/":
                parents.append(above)
            place = _join(os.fsencode(into), point.target) if point.target != b"/" else into
            os.makedirs(place, exist_ok=True)
            squash([self.upper(point)], self.format, place, move=True)
        for path in sorted(set(parents), reverse=True):
            _copy_metadata(copier, path, _join(os.fsencode(into), path))
        _copy_metadata(copier, b"/", into)

    def discard(self) -> None:
        """Forget the fork."""
        remove_tree(self.workdir)

    def _prepare(self, point: Point) -> None:
        """The directories of a forked directory; its layer's top looks like the original."""
        base = self.workdir / str(point.number)
        for path in (base, base / "upper", base / "work"):
            path.mkdir(mode=0o700)
        try:
            _copy_metadata(self._copier(), point.target, base / "upper")
        except FileNotFoundError:  # unmounted since the table was read
            return
        if point.skeleton:
            _copy_outline(point.target, os.fsencode(base / "skeleton"))

    def _renew_work(self) -> None:
        """Overlayfs does not mount what was used volatile before: its mark is in ``work``."""
        for point in self._plan.points:
            work = self.workdir / str(point.number) / "work"
            remove_tree(work)
            work.mkdir(mode=0o700)

    def _changes_at(self, point: Point) -> list[Change]:
        from lamina.archive.changes import changes_from_uppers

        return changes_from_uppers([self.upper(point)], [point.target], self.format)

    def _copier(self) -> Copier:
        return Copier(for_process(IdMap()), self.format, log.debug)


def _copy_metadata(copier: Copier, source: bytes, target: bytes | Path) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    source_fd = os.open(source, flags)
    try:
        target_fd = os.open(target, flags)
        try:
            copier.metadata(source_fd, target_fd, os.fstat(source_fd), source)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def _copy_outline(source: bytes, target: bytes) -> None:
    """Something to mount on for every name in ``source``, and its symbolic links themselves."""
    os.mkdir(target, 0o700)
    with os.scandir(source) as entries:
        for entry in entries:
            place = os.path.join(target, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), place)
            elif entry.is_dir():
                os.mkdir(place)
            else:
                os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _join(target: bytes, path: bytes) -> bytes:
    """``path``, absolute as seen from ``target``, as seen from the root."""
    return target.rstrip(b"/") + path


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal, which the command then shares."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _sync(path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs(fd)
    finally:
        os.close(fd)
