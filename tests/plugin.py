"""The rules that hold for every test, as a pytest plugin (conftest.py loads it).

A test leaves no mount, loop device, open file, thread or child process behind
(tests/leaks.py), and logs no warning that it did not announce with
``@pytest.mark.allow_log(regex)`` or look at itself with ``caplog``. Everything a test
run makes lies below one directory, ``config.stash[GROUND]``, which goes at the end.

Not in conftest.py itself, whose hooks are not called for fixtures of session scope.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests import leaks, support

GROUND = pytest.StashKey[Path]()
_BEFORE = pytest.StashKey[leaks.Snapshot]()
_WARNINGS = pytest.StashKey["_WarningCollector"]()
_PR_SET_CHILD_SUBREAPER = 36


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "seconds a test may take (needs pytest-timeout)")
        parser.addini("timeout_func_only", "without its fixtures (needs pytest-timeout)")
    group = parser.getgroup("lamina")
    group.addoption("--slow", action="store_true", help="run tests marked slow too")
    group.addoption(
        "--driver",
        action="append",
        default=[],
        metavar="NAME",
        help="run the conformance suite for this driver only (may be repeated)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "allow_log(*regexes): warnings this test may log")
    # Orphans of our children become our children, so that the leak check sees daemons too.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ground = Path(tempfile.mkdtemp(prefix="lamina-tests-"))
    ground.chmod(0o711)  # ordinary_user has to get through
    config.stash[GROUND] = ground
    if config.option.basetemp is None:
        config.option.basetemp = str(ground / "t")
    (ground / "tmp").mkdir(mode=0o700)
    tempfile.tempdir = os.environ["TMPDIR"] = str(ground / "tmp")
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
        os.environ[name] = str(ground / name.lower())
        Path(os.environ[name]).mkdir(mode=0o700)
    for name in ("LAMINA_ROOT", "LAMINA_RUN_ROOT", "LAMINA_DRIVER"):
        os.environ.pop(name, None)
    config.stash[_WARNINGS] = _WarningCollector()
    logging.getLogger().addHandler(config.stash[_WARNINGS])


def pytest_unconfigure(config: pytest.Config) -> None:
    logging.getLogger().removeHandler(config.stash[_WARNINGS])
    _clear(config.stash[GROUND])


def _clear(ground: Path) -> None:
    """Remove the session's directory, first unmounting what a broken test left there."""
    for target in reversed(_mounted_below(ground)):
        subprocess.run(["umount", "-l", target], check=False)
    if not _mounted_below(ground):  # never delete through a mount
        subprocess.run(["rm", "-rf", str(ground)], check=False)


def _mounted_below(ground: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [t for line in lines if (t := line.split()[4]).startswith(f"{ground}/")]


@pytest.fixture(scope="session")
def ground(pytestconfig: pytest.Config) -> Path:
    """The directory that everything of this run lies in; others can pass through it."""
    return pytestconfig.stash[GROUND]


# --- which tests run


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        _skip(items, "slow", "slow: only with --slow")
    if not support.is_root():
        skipped = _skip(items, "root", "needs root (with the right to mount)")
        if skipped and support.in_ci():
            raise pytest.UsageError(f"in CI this must be root: {skipped} tests need it")


def _skip(items: list[pytest.Item], mark: str, reason: str) -> int:
    marked = [item for item in items if item.get_closest_marker(mark)]
    for item in marked:
        item.add_marker(pytest.mark.skip(reason=reason))
    return len(marked)


# --- what a test may leave behind and log


# Hooks of a form that pytest 7.2 (Debian 12) knows too.


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_BEFORE] = leaks.Snapshot.take(str(item.config.stash[GROUND]))
    item.config.stash[_WARNINGS].records.clear()


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None]:
    """Take what a fixture of wider scope holds as known, not as left by the test."""
    if fixturedef.scope == "function":
        yield
        return
    ground = str(request.config.stash[GROUND])
    before = leaks.Snapshot.take(ground)
    yield
    held = leaks.Snapshot.take(ground).beyond(before)
    request.session.stash.setdefault(_BEFORE, leaks.Snapshot()).add(held)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    known = item.stash[_BEFORE]
    known.add(item.session.stash.get(_BEFORE, leaks.Snapshot()))
    left = leaks.leaked_since(known, str(item.config.stash[GROUND]))
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)
    unexpected = item.config.stash[_WARNINGS].unexpected(item)
    if unexpected:
        pytest.fail("the test logged:\n  " + "\n  ".join(unexpected), pytrace=False)


class _WarningCollector(logging.Handler):
    """Keeps what is logged at WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def unexpected(self, item: pytest.Item) -> list[str]:
        """What this test logged and did not announce."""
        if "caplog" in getattr(item, "fixturenames", ()):
            return []
        allowed = [regex for mark in item.iter_markers("allow_log") for regex in mark.args]
        lines = [f"{r.levelname} {r.name}: {r.getMessage()}" for r in self.records]
        return [line for line in lines if not any(re.search(regex, line) for regex in allowed)]
