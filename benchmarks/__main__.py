"""Run groups of lines and write the results; see ``--help``."""

from __future__ import annotations

import argparse
import os

from benchmarks import groups, report
from benchmarks.ground import Ground, ext4
from benchmarks.measure import ROUNDS, Line


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure against the peers.")
    parser.add_argument("group", nargs="*", help=f"of {', '.join(groups.GROUPS)}; default: all")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each (default: 5)")
    options = parser.parse_args()
    unknown = set(options.group) - set(groups.GROUPS)
    if unknown:
        parser.error(f"no group is called {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("measuring takes root: file systems are made and mounted")
    missed = 0
    with ext4() as ground:
        keep_bytecode(ground)
        for name in options.group or groups.GROUPS:
            lines = []
            for line in groups.lines(name, ground, options.rounds):
                show(line)
                lines.append(line)
            report.Group(name, report.now(), report.machine(), options.rounds, lines).save()
            missed += sum(not line.met for line in lines)
            ground.clear()
    report.write(list(groups.GROUPS))
    print(f"{report.RESULTS / 'table.md'}: {missed} lines miss what is wanted")


def keep_bytecode(ground: Ground) -> None:
    """Let our processes start from compiled modules, as where Lamina is installed."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(ground.run / "bytecode")


def show(line: Line) -> None:
    """Print a line as soon as it is known."""
    wanted = "" if line.limit is None else f"({line.bound} {line.limit:g}{line.suffix})"
    figures = f"{line.ours:.4g} {line.unit} : {line.peer:.4g} {line.unit}"
    print(
        f"{line.what}: {line.value:.3g}{line.suffix} {wanted} {figures} {line.peer_name}",
        flush=True,
    )


if __name__ == "__main__":
    main()
