"""Running a command by an OCI runtime (runc, crun) instead of by our own ``init``.

The container is what ``run`` describes, written as a bundle; the runtime makes it. The runtime
works in a pid namespace whose first process is ours (``runtime_init``), so that the kernel ends
all of it with that process, as it does without a runtime. What a runtime keeps on the machine
beside processes (its state, cgroups) it is told to delete; what is left when everything was
killed, the next run deletes.

    STATE/ID.lock       held while the run's caller lives
    STATE/ID/           config.json, the files that are mounted over /etc/hosts and others,
                        the runtime's log, and below ``state`` its own files
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lamina.errors import RuntimeFailed
from lamina.kernel import namespaces
from lamina.kernel.lock import try_lock, unlock
from lamina.kernel.process import CAPABILITIES, capget
from lamina.kernel.remove import remove_tree
from lamina.oci.runtime import Isolation, Mount, Process, bind, configuration, encode
from lamina.sandbox import commands
from lamina.sandbox.child import DEFAULT_PATH
from lamina.sandbox.inside import MASKED_PATHS, READONLY_PATHS

_OPTIONS: Mapping[str, list[str]] = {"crun": ["--cgroup-manager=disabled"]}
"""Our own containers have no cgroup. runc can't be told to make none."""


class Runtime:
    """An OCI runtime of this machine, by its name, and a directory for the bundles made for it.

    ``state`` is made when needed; it has to be empty after a reboot. Raises RuntimeFailed, saying
    what to install, when there is no such runtime.
    """

    HELPER = "runtime_init"
    """The module that a :class:`~lamina.sandbox.helper.Helper` is started with for it."""

    def __init__(self, name: str, state: Path) -> None:
        self.name = name
        self.path = find_runtime(name)
        self.state = state

    @contextmanager
    def bundled(self, spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The orders for the helper to run what ``spec`` of ``run`` says, as a bundle."""
        wrong = commands.find(spec)
        if wrong is not None and wrong.certain:
            raise wrong.error
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sweep()
        id, lock = self._take()
        try:
            directory = self.state / id
            directory.mkdir(mode=0o700)
            (directory / "state").mkdir()
            (directory / "config.json").write_bytes(encode(_document(spec, directory)))
            yield {
                **spec,
                "id": id,
                "directory": os.fspath(directory),
                "tool": self._tool(id),
                "uses_cgroups": self.name not in _OPTIONS,
                "binds": [],
                "files": [],
                "not_found": wrong and (str(wrong.error), wrong.error.exit_code),
            }
        finally:
            self._delete(id)
            unlock(lock)

    def _tool(self, id: str) -> list[str]:
        directory = os.fspath(self.state / id)
        log = ["--log", f"{directory}/log", "--log-format", "json"]
        return [self.path, *_OPTIONS.get(self.name, []), *log, "--root", f"{directory}/state"]

    def _take(self) -> tuple[str, int]:
        while True:
            id = f"lamina-{self.name}-{os.urandom(8).hex()}"
            lock = try_lock(f"{self.state}/{id}.lock")
            if lock is not None:
                return id, lock

    def _sweep(self) -> None:
        """Delete what runs left whose caller was killed, and whose processes are gone with it."""
        for lock_file in self.state.glob("lamina-*.lock"):
            lock = try_lock(os.fspath(lock_file))
            if lock is not None:
                self._delete(lock_file.stem)
                unlock(lock)

    def _delete(self, id: str) -> None:
        """All that is left of a run: the processes are gone, so that nothing can be killed."""
        directory = self.state / id
        if any((directory / "state").glob("*")):
            name = id.split("-")[1]
            path = self.path if name == self.name else shutil.which(name, path=_search_path())
            if path is not None:
                argv = [path, *_OPTIONS.get(name, []), "--root", f"{directory}/state", "delete", id]
                environment = {"PATH": DEFAULT_PATH}
                subprocess.run(argv, env=environment, capture_output=True, check=False)
        remove_tree(directory)
        (self.state / f"{id}.lock").unlink(missing_ok=True)


def find_runtime(name: str) -> str:
    """The path of a runtime; RuntimeFailed, saying what to install, if it is not there."""
    path = shutil.which(name, path=_search_path())
    if path is None:
        raise RuntimeFailed(
            f"there is no {name} on this machine: install it (the package {name} of Debian, "
            "Ubuntu or Fedora), or run without --runtime"
        )
    return path


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{DEFAULT_PATH}"


def _document(spec: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The bundle's configuration; the small files that it mounts are written beside it."""
    process = Process(
        args=spec["argv"],
        env=spec["env"],
        cwd=os.fspath(spec["cwd"]),
        uid=spec["uid"],
        gid=spec["gid"],
        groups=spec["groups"],
        capabilities=_capabilities(spec),
        terminal=spec["terminal"],
        no_new_privs=spec["no_new_privs"],
    )
    isolation = Isolation(
        private_network=spec["private_network"],
        hostname=spec["hostname"],
        masked_paths=MASKED_PATHS,
        readonly_paths=READONLY_PATHS,
        in_user_namespace=bool(spec["uid_map"]) or namespaces.in_user_namespace(),
    )
    mounts = [
        *(bind(source, target, read_only=ro) for source, target, ro in spec["binds"]),
        *_files(spec["files"], directory),
    ]
    return configuration(process, isolation, root=os.path.realpath(spec["root"]), mounts=mounts)


def _files(files: list[tuple[str, bytes]], directory: Path) -> Iterator[Mount]:
    for number, (target, content) in enumerate(files):
        path = directory / f"file{number}"
        path.write_bytes(content)
        path.chmod(0o644)
        yield bind(os.fspath(path), target)


def _capabilities(spec: Mapping[str, Any]) -> list[str]:
    """Names of those asked for; of those that we don't have ourselves none can be given."""
    _, permitted, _ = capget()
    mask = spec["capabilities"] if spec["uid_map"] else spec["capabilities"] & permitted
    return [name for number, name in enumerate(CAPABILITIES) if mask >> number & 1]
