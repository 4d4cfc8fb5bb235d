"""The caller's side of the helper interpreter: start it, pass signals on, raise its errors."""

from __future__ import annotations

import marshal
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, NoReturn, Self

from lamina.errors import (
    CommandNotFound,
    LaminaError,
    MountError,
    PermissionRequired,
    RuntimeFailed,
)
from lamina.sandbox.child import END, FORWARDED, FROM_TERMINAL

File = int | IO[Any] | None
"""As subprocess takes it: None is the caller's own, or PIPE, DEVNULL, an fd, a file."""

_PACKAGE_HOME = str(Path(__file__).parents[2])
_START = "import sys; sys.path.append(sys.argv[1]); from lamina.sandbox.{0} import main; main()"
_PATIENCE = 5.0


class Helper:
    """A helper interpreter: ``main`` of a module of this room, waiting to be told what to do.

    It takes as long to start as the rest of a short command: who knows early that there will be
    something to run starts it, and does meanwhile what comes before. A context manager; at the
    end of the block one that was told nothing is gone.
    """

    def __init__(
        self, module: str, *, stdin: File = None, stdout: File = None, stderr: File = None
    ) -> None:
        self._files = (stdin, stdout, stderr)
        spec_fd, spec = os.pipe()
        reader, errors_fd = os.pipe()
        self._spec = open(spec, "wb")  # noqa: SIM115 - closed by __exit__, as the next
        self._errors = open(reader, "rb")  # noqa: SIM115
        # What the terminal sends before the helper can block it would end it with a traceback.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START.format(module), _PACKAGE_HOME,
                 str(spec_fd), str(errors_fd)],
                stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=(spec_fd, errors_fd),
            )  # fmt: skip
        except BaseException:
            self._spec.close()
            self._errors.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(spec_fd)
            os.close(errors_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        try:
            self._spec.close()
        except BrokenPipeError:
            pass
        self._errors.close()

    def is_terminal(self, *fds: int) -> bool:
        """Whether all of these, of 0, 1 and 2, are terminals for what it runs."""
        return all(_is_terminal(self._files[fd], fd) for fd in fds)

    def run(
        self,
        spec: Mapping[str, object],
        *,
        args: list[str],
        input: bytes | None = None,
        timeout: float | None = None,
        forward_signals: bool = False,
        on_terminal: bool | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Have it do what ``spec`` says, and wait for it. Once only.

        ``spec`` is what marshal can write, or enumerations and paths. With ``forward_signals``,
        from the main thread, INT, TERM, HUP, QUIT, WINCH, USR1 and USR2 go on to the command,
        which then decides; else they do to the caller what they always do. ``on_terminal``
        (whether one of the three files is one) says that the command stays in the caller's
        session, on its terminal; by default it does if there is one. ``input`` is for a helper
        whose stdin is PIPE.

        If the caller stops waiting (an exception, a timeout) everything that the helper started
        is killed before this returns.
        """
        if on_terminal is None:
            on_terminal = any(_is_terminal(file, fd) for fd, file in enumerate(self._files))
        full = {
            **spec,
            "caller": os.getpid(),
            "on_terminal": on_terminal,
            "ignored": [n for n in signal.valid_signals() if _is_ignored(n)],
        }
        process = self._process
        with _terminal_kept(on_terminal):
            try:
                self._spec.write(marshal.dumps(_plain(full)))
                self._spec.close()
            except BrokenPipeError:
                pass  # it was killed; its exit status tells
            with _forwarding(process, on_terminal) if forward_signals else nullcontext():
                output, error_output = _communicate(process, input, timeout, args)
            message = self._errors.read()
        if message:
            raise_reported(marshal.loads(message))
        return subprocess.CompletedProcess(args, process.returncode, output, error_output)


def _plain(value: Any) -> Any:
    """The same as marshal can write it: no enumerations, paths or other kinds of str and int."""
    if type(value) in (str, bytes, int, bool, type(None)):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str.__str__(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _communicate(
    process: subprocess.Popen[bytes],
    input: bytes | None,
    timeout: float | None,
    args: list[str],
) -> tuple[bytes | None, bytes | None]:
    try:
        return process.communicate(input, timeout)
    except BaseException as error:
        process.send_signal(END)
        try:
            output, error_output = process.communicate(timeout=_PATIENCE)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        if isinstance(error, subprocess.TimeoutExpired):
            assert timeout is not None
            raise subprocess.TimeoutExpired(args, timeout, output, error_output) from None
        raise


def no_user_namespace(why: str) -> PermissionRequired:
    """The error for a machine, or a place, where an ordinary user can't have one."""
    from lamina.kernel.mountinfo import in_chroot

    if in_chroot():  # user_namespaces(7), EPERM
        return PermissionRequired(
            "can't make a user namespace: the kernel refuses them in a chroot; run as root there, "
            "or outside of it"
        )
    return PermissionRequired(
        f"can't make a user namespace ({why}); run as root, or allow them "
        "(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns)"
    )


def raise_reported(message: tuple[Any, ...]) -> NoReturn:
    """Raise what ``child.report`` sent."""
    kind, *rest = message
    if kind == "command":
        raise CommandNotFound(*rest)
    if kind == "mount":
        raise MountError(*rest)
    if kind == "runtime":
        raise RuntimeFailed(*rest)
    if kind == "os":
        number, text, name = rest
        if text == "user namespace":
            raise no_user_namespace(os.strerror(number))
        raise OSError(number, text, name)
    raise LaminaError(f"the helper process failed: {rest[0]}")


def _is_terminal(file: File, fd: int) -> bool:
    if file is None:
        return os.isatty(fd)
    if isinstance(file, int):
        return file >= 0 and os.isatty(file)
    return file.isatty()


def _is_ignored(number: int) -> bool:
    """Whether whoever started this program had the signal ignored (nohup), not Python itself."""
    pythons_own = (signal.SIGPIPE, getattr(signal, "SIGXFSZ", 0))
    return number not in pythons_own and signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def _forwarding(process: subprocess.Popen[bytes], on_terminal: bool) -> Iterator[None]:
    """Pass signals to the helper; those the terminal sends reach the command by themselves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, _frame: object) -> None:
        if not (on_terminal and number in FROM_TERMINAL):
            process.send_signal(number)

    before = {n: signal.signal(n, forward) for n in FORWARDED if not _is_ignored(n)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _terminal_kept(on_terminal: bool) -> Iterator[None]:
    """Be the terminal's foreground group again at the end, whatever the command made it.

    An interactive shell makes itself the foreground group, and from inside its pid namespace
    can't name ours to give the terminal back.
    """
    fd = next((n for n in (0, 1, 2) if on_terminal and os.isatty(n)), None)
    if fd is None:
        yield
        return
    try:
        before = os.tcgetpgrp(fd)
    except OSError:  # not our controlling terminal
        yield
        return
    try:
        yield
    finally:
        if before == os.getpgrp() and os.tcgetpgrp(fd) != before:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            try:
                os.tcsetpgrp(fd, before)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
