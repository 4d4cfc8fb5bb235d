"""The helper interpreter's side: the spec it was given, errors it sends back, signals, exec.

A command is run by a small interpreter of its own (``helper.py`` starts it), because only a
process with one thread may enter a user namespace, and because the caller's threads must not
be forked. This module and those that use it import next to nothing: they are on the way of
every command. The spec comes as marshal, which both ends, the same interpreter, read fastest.
"""

from __future__ import annotations

import errno
import marshal
import os
import signal

from lamina.errors import CommandNotFound, MountError, RuntimeFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

END = signal.SIGRTMAX
"""Sent to the helper when the caller is gone or gives up: kill all, then go."""

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGWINCH,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH)
"""What a terminal sends to its whole foreground group, the command included."""


def serve(work: Callable[[dict[str, Any]], int], spec_fd: int, error_fd: int) -> NoReturn:
    """Read the spec, do ``work`` with it, exit with what it returns; send an error back."""
    os.set_inheritable(spec_fd, False)
    os.set_inheritable(error_fd, False)
    signal.pthread_sigmask(signal.SIG_BLOCK, (*FORWARDED, signal.SIGCHLD, END))
    try:
        with open(spec_fd, "rb") as file:
            try:
                spec = marshal.load(file)
            except EOFError:
                os._exit(0)  # the caller has nothing to do after all, or is gone
        spec["errors"] = error_fd
        status = work(spec)
    except BaseException as error:
        report(error_fd, error)
        os._exit(125)
    os._exit(status)


def report(fd: int, error: BaseException) -> None:
    """Send ``error`` to the caller, who raises its like (``helper.raise_reported``)."""
    message: tuple[object, ...]
    if isinstance(error, CommandNotFound):
        message = ("command", str(error), error.exit_code)
    elif isinstance(error, RuntimeFailed):
        message = ("runtime", str(error))
    elif isinstance(error, MountError):
        what = (error.strerror or "").rsplit(": ", 1)[0]
        message = ("mount", error.errno, what, str(error.filename), error.kernel_log)
    elif isinstance(error, OSError):
        name = error.filename
        name = os.fsdecode(name) if isinstance(name, str | bytes) else None
        message = ("os", error.errno, error.strerror, name)
    else:
        message = ("other", f"{type(error).__name__}: {error}")
    os.write(fd, marshal.dumps(message))


def supervise(
    child: int,
    signals: Sequence[int],
    *,
    send: Callable[[int, int], None] = os.kill,
    at_end: Callable[[], None] = lambda: None,
) -> int:
    """Wait for ``child`` and reap whatever else ends; pass ``signals`` on to it meanwhile.

    ``send`` is how; ``at_end`` is called when the child has ended and /proc still knows it.
    Returns its exit status as a shell has it: 128 + n when signal n ended it.
    """
    watched = {*signals, signal.SIGCHLD, END}
    while True:
        number = signal.sigwait(watched)
        if number == signal.SIGCHLD:
            status = _reap(child, at_end)
            if status is not None:
                return status
        else:
            send(child, signal.SIGKILL if number == END else number)


def _reap(child: int, at_end: Callable[[], None]) -> int | None:
    """Collect all that ended; the exit status of ``child`` if it is among them."""
    found = None
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return found
        if ended is None:
            return found
        if ended.si_pid == child:
            at_end()
        _, status = os.waitpid(ended.si_pid, 0)
        if ended.si_pid == child:
            code = os.waitstatus_to_exitcode(status)
            found = code if code >= 0 else 128 - code


def reset_signals(ignored: Sequence[int]) -> None:
    """Every signal as the caller was given it: default, or ignored (nohup(1)); none blocked."""
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def execute(argv: list[str], env: Mapping[str, str]) -> NoReturn:
    """Become ``argv``, looked up in the PATH of ``env``; CommandNotFound as a shell says it."""
    name = argv[0]
    if not name:
        raise CommandNotFound("an empty command can't be run")
    denied: OSError | None = None
    for path in _candidates(name, env):
        try:
            os.execve(path, argv, env)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                if os.path.lexists(path) and not denied:
                    denied = error
            elif error.errno == errno.E2BIG:
                raise
            else:
                denied = error
    if denied is None:
        raise CommandNotFound(f"{name}: command not found", 127)
    if denied.errno in (errno.ENOENT, errno.ENOTDIR):
        raise CommandNotFound(f"{name}: its interpreter or a link to it is missing", 127)
    hint = f" (no program for this {os.uname().machine})" if denied.errno == errno.ENOEXEC else ""
    raise CommandNotFound(f"{name}: {denied.strerror}{hint}", 126)


def _candidates(name: str, env: Mapping[str, str]) -> list[str]:
    if "/" in name:
        return [name]
    return [os.path.join(part or ".", name) for part in env.get("PATH", DEFAULT_PATH).split(":")]
