"""The command ``lamina``: one thin module a verb, which parses, calls and prints.

A verb's module (``lamina.cli.verbs.NAME``) is imported when that verb is used, and nothing at all
for ``lamina --version``.
"""

from __future__ import annotations

import sys

import lamina


def main() -> None:
    """The entry point. Exits with the verb's status."""
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["-V"]):
        print(f"lamina {lamina.__version__}")  # before click, which costs twice Python's own start
        return
    from lamina.cli.process import run

    sys.exit(run(arguments))
