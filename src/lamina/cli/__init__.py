"""The command ``lamina``: one thin module a verb, which parses, calls and prints.

A verb's module (``lamina.cli.verbs.NAME``) is imported when that verb is used, and nothing at all
for ``lamina --version``.
"""

from __future__ import annotations

import gc
import sys

import lamina

_FEW_COLLECTIONS = 100_000
"""Objects between two runs of the garbage collector. A command that is soon over makes fewer;
Python's own 700 would have it look a hundred times through modules that stay."""


def main() -> None:
    """The entry point. Exits with the verb's status."""
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["-V"]):
        print(f"lamina {lamina.__version__}")  # before click, which costs twice Python's own start
        return
    gc.set_threshold(_FEW_COLLECTIONS)
    from lamina.cli.process import run

    status = run(arguments)
    gc.freeze()  # nor need it look through them at the end of the process
    sys.exit(status)
