"""The caller's side of the helper interpreter: start it, pass signals on, raise its errors."""

from __future__ import annotations

import marshal
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from lamina.errors import CommandNotFound, LaminaError, MountError, PermissionRequired
from lamina.sandbox.child import END, FORWARDED, FROM_TERMINAL

File = int | IO[Any] | None
"""As subprocess takes it: None is the caller's own, or PIPE, DEVNULL, an fd, a file."""

_PACKAGE_HOME = str(Path(__file__).parents[2])
_START = "import sys; sys.path.append(sys.argv[1]); from lamina.sandbox.{0} import main; main()"
_PATIENCE = 5.0


def run_helper(
    module: str,
    spec: Mapping[str, object],
    *,
    args: list[str],
    stdin: File = None,
    stdout: File = None,
    stderr: File = None,
    input: bytes | None = None,
    timeout: float | None = None,
    forward_signals: bool = False,
    on_terminal: bool | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run ``main`` of a module of this room in a helper interpreter, and wait for it.

    ``spec`` is what marshal can write. With ``forward_signals``, from the main thread, INT,
    TERM, HUP, QUIT, WINCH, USR1 and USR2 go on to the command, which then decides; else they do
    to the caller what they always do. ``on_terminal`` (whether one of the three files is one)
    says that the command stays in the caller's session, on its terminal.

    If the caller stops waiting (an exception, a timeout) everything that the helper started is
    killed before this returns.
    """
    if input is not None:
        stdin = subprocess.PIPE
    if on_terminal is None:
        files = enumerate((stdin, stdout, stderr))
        on_terminal = any(_is_terminal(file, fd) for fd, file in files)
    full = {
        **spec,
        "caller": os.getpid(),
        "on_terminal": on_terminal,
        "ignored": [n for n in signal.valid_signals() if _is_ignored(n)],
    }
    with ExitStack() as stack:
        spec_fd = _written(marshal.dumps(full))
        stack.callback(os.close, spec_fd)
        reader, writer = os.pipe()
        errors = stack.enter_context(open(reader, "rb"))
        with ExitStack() as parent_only:
            parent_only.callback(os.close, writer)
            stack.enter_context(_terminal_kept(on_terminal))
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START.format(module), _PACKAGE_HOME,
                 str(spec_fd), str(writer)],
                stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=(spec_fd, writer),
            )  # fmt: skip
        with _forwarding(process, on_terminal) if forward_signals else ExitStack():
            output, error_output = _communicate(process, input, timeout, args)
        message = errors.read()
    if message:
        raise_reported(marshal.loads(message))
    return subprocess.CompletedProcess(args, process.returncode, output, error_output)


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


def raise_reported(message: tuple[Any, ...]) -> NoReturn:
    """Raise what ``child.report`` sent."""
    kind, *rest = message
    if kind == "command":
        raise CommandNotFound(*rest)
    if kind == "mount":
        raise MountError(*rest)
    if kind == "os":
        number, text, name = rest
        if text == "user namespace":
            raise PermissionRequired(
                f"can't make a user namespace ({os.strerror(number)}); run as root, or allow "
                "them (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
                "kernel.apparmor_restrict_unprivileged_userns)"
            )
        raise OSError(number, text, name)
    raise LaminaError(f"the helper process failed: {rest[0]}")


def _written(data: bytes) -> int:
    """An fd to read ``data`` from, however long it is."""
    fd = os.memfd_create("lamina-spec")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


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
