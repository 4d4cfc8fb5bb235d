"""What the command costs before it does anything, and what it imports for that."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.command import lamina
from benchmarks.ground import Ground, tool
from benchmarks.measure import Line, compare, in_turn, timed

REPEATS = 10

# Costly packages that a verb may need; none may be imported by a verb that has no use for it.
COSTLY = (
    "asyncio", "backports", "click", "email", "fastcrc", "grpc", "http", "isal", "logging",
    "msgspec", "multiprocessing", "rich", "sqlite3", "ssl", "tarfile", "textual", "unittest", "xml",
    "zlib_ng",
)  # fmt: skip
STORE = {"click", "sqlite3"}
NEEDED: dict[tuple[str, ...], set[str]] = {
    ("--version",): set(),
    ("--help",): {"click"},
    ("images",): STORE | {"msgspec"},
    ("ps", "-a"): STORE,
    ("diff", "box"): STORE,
    ("run", "--rm", "image", "--", "/true"): STORE,
    ("try", "--discard", "--", "true"): {"click"},
}

_SPY = """
import json, sys
from lamina.cli import main
try:
    main()
finally:
    sys.__stderr__.write("\\n" + json.dumps(sorted({n.partition(".")[0] for n in sys.modules})))
"""


def lines(ground: Ground, rounds: int) -> Iterator[Line]:
    """The lines of this group."""
    python = f"Python {sys.version.split()[0]}, python -c pass"
    yield compare(
        "lamina --version", lambda: _start(*lamina(), "--version"),
        lambda: _start(sys.executable, "-c", "pass"), python,
        limit=4, rounds=rounds, unit="ms",
    )  # fmt: skip
    options = ["--root", str(ground.fresh("lamina")), "--run-root", str(ground.run / "lamina")]
    _small_store(ground, options)
    times = in_turn(
        rounds,
        images=lambda: _start(*lamina(), *options, "images"),
        python=lambda: _start(sys.executable, "-c", "pass"),
    )
    images, bare = (statistics.median(times[name]) * 1e3 for name in ("images", "python"))
    yield Line("lamina images", images, bare, python, images / bare, None, unit="ms", samples=times)
    unneeded = {verb: _imported(options, verb) - needed for verb, needed in NEEDED.items()}
    count = sum(map(len, unneeded.values()))
    found = "; ".join(
        f"{verb[0]}: {', '.join(sorted(names))}" for verb, names in unneeded.items() if names
    )
    yield Line(
        f"costly packages imported without need by {len(NEEDED)} verbs", count, 0,
        found or "none", count, 0, unit="", suffix="",
    )  # fmt: skip


def _start(*argv: str) -> float:
    def all_of_it() -> None:
        for _ in range(REPEATS):
            tool(*argv)

    return timed(all_of_it) / REPEATS


def _small_store(ground: Ground, options: list[str]) -> None:
    """An image with a static program in it that does nothing, and a container."""
    tree = ground.fresh("tree")
    tree.mkdir()
    source = tree.with_suffix(".c")
    source.write_text("int main(void) { return 0; }\n")
    tool("cc", "-static", "-o", tree / "true", source)
    tool(*lamina(), *options, "import", tree, "image")
    tool(*lamina(), *options, "create", "--name", "box", "image", "/true")


def _imported(options: list[str], verb: tuple[str, ...]) -> set[str]:
    argv = [sys.executable, "-c", _SPY, *(() if verb[0][0] == "-" else options), *verb]
    done = subprocess.run(argv, capture_output=True, check=False, env=os.environ)
    if done.returncode:
        raise SystemExit(f"lamina {' '.join(verb)} failed: {done.stderr.decode()[-2000:]}")
    return set(json.loads(done.stderr.splitlines()[-1])) & set(COSTLY)
