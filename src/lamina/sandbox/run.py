"""Run a command in a mounted root, in namespaces of its own.

What the command finds is what it would find under ``docker run``: its own proc, a read-only
sysfs, a small /dev, Docker's capabilities, its masked paths; it is a child of a pid 1 that
reaps. There is no seccomp filter and no cgroup: this isolates what is run on purpose, it does
not hold an attacker who is root.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from lamina.errors import UnmappedId
from lamina.kernel.idmap import IdMap, IdRange
from lamina.kernel.process import capability_mask
from lamina.sandbox import mountpoints, users
from lamina.sandbox.child import DEFAULT_PATH
from lamina.sandbox.helper import File, Helper

if TYPE_CHECKING:
    from lamina.sandbox.runtime import Runtime

DEFAULT_CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
"""Docker's (moby, oci/caps/defaults.go)."""

_DIRECTORIES = (b"proc", b"sys", b"dev")


class Bind(NamedTuple):
    """A directory or file of the host to be seen at ``target`` in the container."""

    source: Path
    target: str
    read_only: bool = False


def run(
    root: Path,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    user: str | None = None,
    network: Literal["host", "none"] = "host",
    hostname: str | None = None,
    capabilities: Iterable[str] = DEFAULT_CAPABILITIES,
    no_new_privs: bool = False,
    idmap: IdMap | None = None,
    mounts: Sequence[Bind] = (),
    input: bytes | None = None,
    stdin: File = None,
    stdout: File = None,
    stderr: File = None,
    helper: Helper | None = None,
    runtime: Runtime | None = None,
    check: bool = False,
    timeout: float | None = None,
    forward_signals: bool = False,
) -> subprocess.CompletedProcess[bytes]:
    """Run ``argv`` with the directory ``root`` (mounted, writable) as its root.

    ``env`` is all of the command's environment, but for PATH, HOME, HOSTNAME and, on a
    terminal, TERM, which have Docker's defaults. ``cwd`` is created if missing. ``user`` is
    ``name|uid[:group|gid]``, looked up in the root. ``hostname`` None is the machine's own.
    An ordinary user gets a user namespace: with ``idmap``, or with root inside standing for
    the user alone. ``stdin``, ``stdout``, ``stderr``, ``input``, ``check`` and ``timeout``
    (seconds) are subprocess.run's; ``forward_signals`` is for a program that only waits for
    the command, and passes on what it is sent. ``helper`` is one of ``init`` that was started
    before, with the three files; those and ``input`` are then not given here. With ``runtime``
    an OCI runtime makes the container, and the command is its pid 1; ``helper`` is then one of
    ``runtime.HELPER``.

    ``returncode`` is the command's exit status, or 128 + n when signal n ended it. Raises
    CommandNotFound, UserNotFound, PermissionRequired where user namespaces are off, OSError or
    MountError (RuntimeFailed with ``runtime``) when the container can't be set up;
    CalledProcessError and TimeoutExpired as subprocess does. Whatever happens, no process of the
    container is left.
    """
    if isinstance(argv, str | bytes):
        raise TypeError(f"a command is a list of words, as ['sh', '-c', ...], not {argv!r}")
    if not argv:
        raise ValueError("an empty command")
    words = [os.fspath(word) for word in argv]
    name = hostname or os.uname().nodename
    uid_map, gid_map = id_maps(idmap)
    with ExitStack() as stack:
        root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root_fd)
        who = users.look_up(root_fd, user)
        check_mapped(who, uid_map, gid_map)
        files = network_files(network, name)
        binds = [(str(b.source), b.target, b.read_only) for b in mounts]
        wanted = [
            *((path, True) for path in _DIRECTORIES),
            *((os.fsencode(path).lstrip(b"/"), False) for path in files),
            *((os.fsencode(to).lstrip(b"/"), os.path.isdir(of)) for of, to, _ in binds),
        ]
        there = stack.enter_context(mountpoints.provided(root_fd, wanted))
        spec = {
            "root": os.fspath(root),
            "argv": words,
            "env": environment(env, who.home, name),
            "cwd": cwd,
            "uid": who.uid,
            "gid": who.gid,
            "groups": list(who.groups),
            "private_network": network == "none",
            "hostname": hostname,
            "capabilities": capability_mask(capabilities),
            "no_new_privs": no_new_privs,
            "uid_map": uid_map,
            "gid_map": gid_map,
            "binds": binds,
            "files": [(p, c) for p, c in files.items() if os.fsencode(p).lstrip(b"/") in there],
            "directories": [f"/{os.fsdecode(path)}" for path in _DIRECTORIES if path in there],
        }
        if helper is None:
            stdin = subprocess.PIPE if input is not None else stdin
            kind = "init" if runtime is None else runtime.HELPER
            helper = Helper(kind, stdin=stdin, stdout=stdout, stderr=stderr)
        stack.enter_context(helper)
        on_terminal = None
        if runtime is not None:
            on_terminal = helper.is_terminal(0, 1, 2)
            spec = stack.enter_context(runtime.bundled({**spec, "terminal": on_terminal}))
        done = helper.run(
            spec,
            args=words,
            input=input,
            timeout=timeout,
            forward_signals=forward_signals,
            on_terminal=on_terminal,
        )
    if check:
        done.check_returncode()
    return done


def id_maps(idmap: IdMap | None) -> tuple[list[str], list[str]]:
    """The lines of the user namespace's maps; none when no namespace is needed."""
    if idmap is None and os.geteuid() != 0:
        idmap = IdMap((IdRange(0, os.geteuid(), 1),), (IdRange(0, os.getegid(), 1),))
    if not idmap:
        return [], []
    return [str(r) for r in idmap.uids], [str(r) for r in idmap.gids]


def check_mapped(who: users.Identity, uid_map: list[str], gid_map: list[str]) -> None:
    """:class:`UnmappedId` if these maps have no place for the user or group."""
    for number, lines, kind in ((who.uid, uid_map, "user"), (who.gid, gid_map, "group")):
        ranges = [tuple(map(int, line.split())) for line in lines]
        if ranges and not any(start <= number < start + size for start, _, size in ranges):
            raise UnmappedId(f"{kind} id {number} has no place in this user namespace")


def environment(env: Mapping[str, str] | None, home: str, hostname: str) -> dict[str, str]:
    """What a command is given: ``env``, over Docker's defaults."""
    full = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname, "HOME": home}
    if os.isatty(1) or os.isatty(0):
        full["TERM"] = os.environ.get("TERM", "xterm")
    full.update(env or {})
    return full


def network_files(network: str, hostname: str) -> dict[str, bytes]:
    """What the container finds in /etc about names: the host's, or itself alone."""
    if network not in ("host", "none"):
        raise ValueError(f"network is 'host' or 'none', not {network!r}")
    alone = f"127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost\n".encode()
    files = {"/etc/hostname": f"{hostname}\n".encode(), "/etc/hosts": alone}
    if network == "host":
        for path in ("/etc/hosts", "/etc/resolv.conf"):
            try:
                with open(path, "rb") as file:
                    files[path] = file.read()
            except OSError:
                continue
    return files
