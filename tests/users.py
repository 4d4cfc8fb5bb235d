"""An ordinary user for tests that run as root: someone without rights, and with a home."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import pytest

from tests import support

P = ParamSpec("P")
R = TypeVar("R")

NOBODY = 65534
REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Reach:
    """Where someone without rights finds the interpreter and its modules.

    Either may lie below a directory that only root enters (``/root/.pyenv``, a clone in
    ``/root``). ``moved`` maps such a prefix to where it can be reached.
    """

    moved: Mapping[str, str] = field(default_factory=dict)

    def path(self, path: str) -> str:
        """The path under which the user reaches ``path``."""
        for prefix, other in self.moved.items():
            if path == prefix or path.startswith(f"{prefix}/"):
                return other + path[len(prefix) :]
        return path

    @property
    def python(self) -> str:
        """An interpreter that sees the same modules as this one (with ``environment``)."""
        return self.path(os.path.realpath(sys.executable)) if self.moved else sys.executable

    def environment(self) -> dict[str, str]:
        """What the interpreter needs in its environment to see those modules."""
        ours = [p for p in sys.path if p and not p.startswith(f"{sys.base_prefix}/lib/python3")]
        return {"PYTHONPATH": os.pathsep.join(map(self.path, ours))}

    def move_modules(self) -> None:
        """Have this process import, and start interpreters, from where the user can."""
        sys.executable = self.python
        sys.path[:] = map(self.path, sys.path)
        for name, module in list(sys.modules.items()):
            if type(getattr(module, "__path__", None)) is list:
                module.__path__[:] = map(self.path, module.__path__)
            if name.startswith("lamina"):  # __file__, and paths that were made from it
                texts = {k: v for k, v in vars(module).items() if type(v) is str}
                vars(module).update({k: self.path(v) for k, v in texts.items()})


@contextmanager
def reach(ground: Path) -> Iterator[Reach]:
    """Bind what ``NOBODY`` can't get at to below ``ground``."""
    moved: dict[str, str] = {}
    with ExitStack() as stack:
        for name, prefix in (("python", sys.base_prefix), ("repository", str(REPOSITORY))):
            if os.geteuid() == 0 and not _can_enter(prefix):
                target = ground / name
                target.mkdir()
                stack.callback(target.rmdir)
                support.run("mount", "--bind", prefix, target)
                stack.callback(support.run, "umount", target)
                support.run("mount", "-o", "remount,bind,ro", target)
                moved[prefix] = str(target)
        yield Reach(moved)


def _can_enter(path: str) -> bool:
    test = ["/usr/bin/test", "-r", path, "-a", "-x", path]
    done = subprocess.run(test, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", check=False)
    return done.returncode == 0


@dataclass(frozen=True, slots=True)
class User:
    """An ordinary user to run things as. ``home`` is theirs, and can be reached by them."""

    uid: int
    gid: int
    home: Path
    reach: Reach

    @property
    def python(self) -> str:
        """An interpreter that this user can run, with Lamina and what it needs."""
        return self.reach.python

    def environment(self, extra: Mapping[str, str] = {}) -> dict[str, str]:
        """The process environment that this user has after logging in."""
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "LAMINA_ROOT"))},
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "tmp"),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            **self.reach.environment(),
            **extra,
        }

    def run(
        self, argv: Sequence[str | bytes | Path], *, env: Mapping[str, str] = {}, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """``subprocess.run`` as this user, in their home, output captured unless asked else."""
        if os.geteuid() == 0:
            options.update(user=self.uid, group=self.gid, extra_groups=[])
        options.setdefault("cwd", self.home)
        if not {"stdout", "stderr"} & options.keys():
            options.setdefault("capture_output", True)
        return subprocess.run(argv, env=self.environment(env), check=False, **options)

    def says(self, program: str) -> str:
        """What a Python ``program`` prints, run as this user; the test fails if it fails."""
        done = self.run([self.python, "-c", program])
        if done.returncode:
            pytest.fail(f"the program exited with {done.returncode}: {done.stderr.decode()}")
        return done.stdout.decode()

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``function(...)`` in a child process that is this user; result or error come back.

        Both travel by pickle. A child's traceback is added to its exception as a note.
        """
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            _answer(write_end, lambda: self._become_and_call(function, *args, **kwargs))
        os.close(write_end)
        with os.fdopen(read_end, "rb") as answer:
            data = answer.read()
        _, status = os.waitpid(pid, 0)
        if not data:
            pytest.fail(f"the child died with wait status {status}")
        succeeded, value = pickle.loads(data)
        if not succeeded:
            raise value
        result: R = value
        return result

    def _become_and_call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
        environment = self.environment()
        self.reach.move_modules()
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(self.home)
        return function(*args, **kwargs)


def _answer(fd: int, function: Callable[[], Any]) -> NoReturn:
    """Write what ``function`` gives or raises to the pipe and end this child at once."""
    try:
        try:
            data = pickle.dumps((True, function()))
        except BaseException as error:
            error.add_note(traceback.format_exc())
            try:
                data = pickle.dumps((False, error))
                pickle.loads(data)
            except Exception:
                data = pickle.dumps((False, RuntimeError(traceback.format_exc())))
        with os.fdopen(fd, "wb") as pipe:
            pipe.write(data)
    finally:
        os._exit(0)
