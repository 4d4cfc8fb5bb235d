"""What a command imports before it runs: most of the time that it takes to start is that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

PROBE = """
import sys
from lamina.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""

HEAVY = {
    "asyncio", "base64", "bz2", "dataclasses", "email", "http", "logging", "lzma",
    "multiprocessing", "random", "secrets", "shutil", "socket", "ssl", "tempfile", "tomllib",
    "traceback", "typing_extensions", "unittest", "xml",
    "backports", "concurrent", "fastcrc", "getpass", "grpc", "h2", "httpcore", "httpx", "isal",
    "msgspec", "rich", "textual", "zlib_ng",
}  # fmt: skip
"""Of the standard library and of others, what takes milliseconds and a start has no use for."""

# Whole rooms, and the modules of the store's that are for other work than a start.
UNUSED_BY_RUN = (
    "lamina.archive",
    *(f"lamina.oci.{m}" for m in ("config", "conversion", "runtime")),
    "lamina.sandbox.bundle",
    "lamina.sandbox.runtime",
    *(f"lamina.oci.{m}" for m in ("archives", "config", "layout", "platform", "registry")),
    *(f"lamina.store.{m}" for m in ("checking", "committing", "observing", "pruning", "usage")),
    "lamina.store.transfer",
)
UNUSED_BY_TRY = (
    *(f"lamina.archive.{m}" for m in ("changes", "compression", "fold", "pack", "split", "stack")),
    *(f"lamina.archive.{m}" for m in ("tar", "unpack")),
    "lamina.oci",
    "lamina.sandbox.conflicts",
    "lamina.store.database",
    "lamina.store.store",
    "sqlite3",
)


def imported(cli: Cli, *args: str | Path) -> set[str]:
    argv = [sys.executable, "-c", PROBE, *map(str, args)]
    done = subprocess.run(argv, env=cli.env, capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def unneeded(modules: set[str], rooms: tuple[str, ...] = ()) -> list[str]:
    return sorted(m for m in modules if m.partition(".")[0] in HEAVY or m.startswith(rooms))


@pytest.mark.root
def test_a_run_imports_nothing_that_it_has_no_use_for(cli: Cli, small_tar: Path) -> None:
    cli("import", small_tar, "small")
    cli("create", "--name", "box", "small", "/bin/true")
    assert unneeded(imported(cli, "run", "--rm", "small", "/bin/true"), UNUSED_BY_RUN) == []
    assert unneeded(imported(cli, "start", "box"), UNUSED_BY_RUN) == []


@pytest.mark.root
def test_a_try_that_writes_nothing_imports_nothing_that_it_has_no_use_for(cli: Cli) -> None:
    assert unneeded(imported(cli, "try", "--discard", "--", "true"), UNUSED_BY_TRY) == []


def test_lists_import_nothing_that_they_have_no_use_for(cli: Cli) -> None:
    for verb in ("images", "ps"):
        rooms = (*UNUSED_BY_RUN, "lamina.sandbox")
        assert unneeded(imported(cli, verb, "-a"), rooms) == [], verb
