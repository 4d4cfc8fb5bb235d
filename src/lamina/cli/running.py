"""How a container's command is run: the options of run and create, kept for start."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from lamina.cli import completing

if TYPE_CHECKING:
    from lamina.api import Store
    from lamina.kernel.idmap import IdMap
    from lamina.sandbox.helper import Helper
    from lamina.store import Container, Image

LABEL = "io.lamina.run"
"""The label of a container in which its :class:`HowToRun` is kept, as JSON."""


_NO_COMMAND = "no command given, and the image has none"


class HowToRun(NamedTuple):
    """What run and create are told of a command, besides the command itself."""

    env: Mapping[str, str] = MappingProxyType({})
    cwd: str | None = None
    user: str | None = None
    network: str = "host"
    hostname: str | None = None
    volumes: tuple[tuple[str, str, bool], ...] = ()
    """Host path, container path, whether read-only."""
    interactive: bool = False
    runtime: str | None = None

    @classmethod
    def of(cls, container: Container) -> HowToRun:
        """What a container was made with."""
        kept = json.loads(container.labels.get(LABEL, "{}"))
        kept["volumes"] = tuple(tuple(volume) for volume in kept.get("volumes", ()))
        return cls(**kept)

    def labels(self) -> dict[str, str]:
        """For :meth:`of`."""
        return {LABEL: json.dumps(self._asdict())}


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options and arguments of run and create."""
    return _with(command, [_NAME, *_HOW, *_CONTAINER_ONLY, _IMAGE_OR_DIRECTORY, _COMMAND])


def bundle_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Those of them that say how a command is run, and bundle's own arguments."""
    target = click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
    image = click.argument("image", metavar="IMAGE", shell_complete=completing.images)
    return _with(command, [*_HOW, _TERMINAL, image, target, _COMMAND])


def _with(command: Callable[..., Any], options: Sequence[Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


_NAME = click.option("--name", metavar="NAME", help="What to call the container.")

_HOW = [
    click.option("-e", "--env", metavar="NAME[=VALUE]", multiple=True,
                 help="Set a variable, or pass on one of this environment."),
    click.option("--env-file", metavar="FILE", multiple=True,
                 type=click.Path(exists=True, dir_okay=False, path_type=Path),
                 help="Read such lines from a file."),
    click.option("-w", "--workdir", metavar="DIR", help="Directory to run the command in."),
    click.option("-u", "--user", metavar="USER[:GROUP]", help="Who runs it, by name or id."),
    click.option("-v", "--volume", metavar="HOST:CTR[:ro]", multiple=True,
                 help="Show a file or directory of this machine in the container."),
    click.option("--network", type=click.Choice(["host", "none"]), default="host",
                 show_default=True, help="This machine's network, or only loopback."),
    click.option("--hostname", metavar="NAME",
                 help="The machine's name inside; by default this one's."),
    click.option("--entrypoint", metavar="COMMAND",
                 help="Run this instead of the image's entrypoint."),
]  # fmt: skip

_TERMINAL = click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")

_CONTAINER_ONLY = [
    click.option("-i", "--interactive", is_flag=True,
                 help="Pass stdin on also if it is no terminal."),
    click.option("-t", "--tty", is_flag=True,
                 help="Accepted for Docker's sake: a terminal is always passed on."),
    click.option("--runtime", type=click.Choice(["crun", "runc"]),
                 help="Have this OCI runtime make the container instead of Lamina itself."),
    click.option("--storage-opt", "size", metavar="size=SIZE", callback=lambda c, p, v: _size(v),
                 help="Limit what can be written, where the driver can."),
]  # fmt: skip

_IMAGE_OR_DIRECTORY = click.argument("image", metavar="IMAGE|DIR", shell_complete=completing.images)
_COMMAND = click.argument("command", metavar="[COMMAND] [ARG]...", nargs=-1, type=click.UNPROCESSED)


def create(
    store: Store,
    *,
    image: str,
    command: tuple[str, ...],
    rm: bool = False,
    runs: bool = False,
    **given: Any,
) -> Container:
    """Make the container that these options describe.

    ``rm`` for one that ends with us, ``runs`` for one that is of no use without a command.
    """
    how = HowToRun(
        env=_environment(given["env"], given["env_file"]),
        cwd=given["workdir"],
        user=given["user"],
        network=given["network"],
        hostname=given["hostname"],
        volumes=tuple(map(_volume, given["volume"])),
        interactive=given["interactive"],
        runtime=given["runtime"],
    )
    base = _base(store, image)
    argv = _argv(base, command, given["entrypoint"])
    if runs and not argv:
        raise click.UsageError(_NO_COMMAND)
    return store.container(
        base,
        name=given["name"],
        keep=not rm,
        volatile=rm,
        size=given["size"],
        labels=how.labels(),
        command=argv,
    )


def bundle(
    store: Store, *, image: str, target: Path, command: tuple[str, ...], idmap: IdMap | None,
    **given: Any,
) -> None:  # fmt: skip
    """Write the bundle that these options describe; see :meth:`lamina.Store.bundle`."""
    from lamina.sandbox.run import Bind

    base = store.image(image)
    argv = _argv(base, command, given["entrypoint"])
    if not argv:
        raise click.UsageError(_NO_COMMAND)
    store.bundle(
        base,
        target,
        argv,
        env=_environment(given["env"], given["env_file"]),
        cwd=given["workdir"],
        user=given["user"],
        network=given["network"],
        hostname=given["hostname"],
        terminal=given["tty"],
        mounts=[Bind(Path(host), at, ro) for host, at, ro in map(_volume, given["volume"])],
        idmap=idmap,
    )


def early_helper(*, interactive: bool, runtime: str | None) -> Helper:
    """What is to run the command, for :func:`run_command`; it starts while the store is opened.

    Raises RuntimeFailed when there is no such runtime on this machine.
    """
    from lamina.sandbox.helper import Helper

    kind = "init"
    if runtime is not None:
        from lamina.sandbox.runtime import Runtime, find_runtime

        find_runtime(runtime)
        kind = Runtime.HELPER
    return Helper(kind, stdin=_stdin(interactive))


def run_command(
    container: Container, *, interactive: bool = False, helper: Helper | None = None
) -> int:
    """Run a container's command in the foreground; its exit status, as a shell has it."""
    from lamina.sandbox.run import Bind

    if not container.command:
        raise click.UsageError(_NO_COMMAND)
    how = HowToRun.of(container)
    result = container.run(
        container.command,
        env=how.env,
        cwd=how.cwd,
        user=how.user,
        network=how.network,
        hostname=how.hostname,
        mounts=[Bind(Path(host), target, ro) for host, target, ro in how.volumes],
        stdin=None if helper else _stdin(how.interactive or interactive),
        helper=helper,
        runtime=how.runtime,
        check=False,
        forward_signals=True,
    )
    return result.returncode


def _stdin(interactive: bool) -> int | None:
    """Our own stdin if it is a terminal or was asked for, else nothing to read."""
    from subprocess import DEVNULL

    return None if interactive or sys.stdin.isatty() else DEVNULL


def _base(store: Store, image: str) -> Image | Path:
    """A directory is told by its ``/``, ``./`` or ``../`` at the beginning; else it is an image."""
    if image in (".", "..") or image.startswith(("/", "./", "../")):
        return Path(image).absolute()
    return store.image(image)


def _argv(base: Image | Path, command: tuple[str, ...], entrypoint: str | None) -> list[str]:
    words = list(command[1:] if command[:1] == ("--",) else command)
    if entrypoint is not None:
        return [entrypoint, *words] if entrypoint else words
    return words if isinstance(base, Path) else base.defaults.argv(words)


def _environment(given: tuple[str, ...], files: tuple[Path, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    lines = [line for file in files for line in file.read_text().splitlines()]
    for text in [*(line for line in lines if line.strip() and line[0] != "#"), *given]:
        name, equals, value = text.partition("=")
        if not name:
            raise click.UsageError(f"a variable needs a name: '{text}'")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def _volume(text: str) -> tuple[str, str, bool]:
    host, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not host or not target.startswith("/") or mode not in ("", "ro", "rw"):
        raise click.UsageError(f"-v takes HOST:CONTAINER[:ro], the second absolute, not '{text}'")
    if os.path.normpath(target).strip("/") == "":
        raise click.UsageError(f"-v: a volume can't stand in for the container's own /: '{text}'")
    source = Path(host).expanduser().absolute()
    if not source.exists():
        raise click.UsageError(f"-v: there is no {source} on this machine")
    return str(source), target, mode == "ro"


def _size(text: str | None) -> str | None:
    if text is None:
        return None
    key, _, value = text.partition("=")
    if key != "size" or not value:
        raise click.UsageError(f"--storage-opt of a container takes size=SIZE, not '{text}'")
    return value
