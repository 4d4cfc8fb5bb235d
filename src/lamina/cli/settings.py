"""What the global options say: command line, else environment, else configuration files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import click

SYSTEM_CONFIG = Path("/etc/lamina/config.toml")


class Settings(NamedTuple):
    """The global options. None leaves the choice to the store."""

    root: Path | None = None
    run_root: Path | None = None
    driver: str | None = None
    storage_options: Mapping[str, str] = MappingProxyType({})
    debug: bool = False
    quiet: bool = False


def load(given: Mapping[str, Any]) -> Settings:
    """Settings from what was given (names as in :class:`click.Context.params`) and the files.

    The user's file goes before the machine's, key by key.
    """
    configured: dict[str, Any] = {}
    for path in _files(given.get("config")):
        configured |= _read(path)

    def value(name: str) -> Any:
        return given.get(name) or configured.get(name.replace("_", "-"))

    root, run_root = value("root"), value("run_root")
    return Settings(
        root=Path(root).absolute() if root else None,
        run_root=Path(run_root).absolute() if run_root else None,
        driver=value("driver"),
        storage_options={
            **configured.get("storage-opt", {}),
            **pairs(given.get("storage_opt") or (), "--storage-opt"),
        },
        debug=bool(value("debug")),
        quiet=bool(value("quiet")),
    )


def pairs(values: tuple[str, ...] | list[str], option: str) -> dict[str, str]:
    """``KEY=VALUE`` texts as a mapping; a usage error for one without ``=``."""
    found = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{option} takes KEY=VALUE, not '{text}'")
        found[key] = value
    return found


def _files(chosen: str | None) -> list[Path]:
    if chosen:
        return [Path(chosen)]
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    candidates = (SYSTEM_CONFIG, Path(home) / "lamina/config.toml")
    return [path for path in candidates if path.exists()]


_KINDS: dict[str, type] = {
    "root": str,
    "run-root": str,
    "driver": str,
    "storage-opt": dict,
    "debug": bool,
    "quiet": bool,
}


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path}: {error}") from error
    for key, value in values.items():
        kind = _KINDS.get(key)
        if kind is None:
            known = ", ".join(_KINDS)
            raise click.ClickException(f"{path}: there is no setting '{key}' (there are: {known})")
        if not isinstance(value, kind):
            shown = {"str": "a string", "bool": "true or false", "dict": "a table"}[kind.__name__]
            raise click.ClickException(f"{path}: '{key}' takes {shown}")
    if "storage-opt" in values:
        values["storage-opt"] = {k: str(v) for k, v in values["storage-opt"].items()}
    for key in ("root", "run-root"):
        if key in values:
            values[key] = os.path.expanduser(values[key])
    return values
