"""The table and the plot, from what was measured last of each group."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.measure import Line

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Group:
    """What was measured together."""

    name: str
    when: str
    machine: str
    rounds: int
    lines: list[Line]

    def save(self) -> None:
        """Keep it as ``results/NAME.json``."""
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")


def load(name: str) -> Group | None:
    """What was measured last of a group."""
    try:
        data = json.loads((RESULTS / f"{name}.json").read_text())
    except FileNotFoundError:
        return None
    data["lines"] = [Line(**line) for line in data["lines"]]
    return Group(**data)


def now() -> str:
    """The date."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")


def machine() -> str:
    """What it is measured on."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    processor = found[1] if found else platform.machine()
    kernel = re.match(r"\d+\.\d+", platform.release())
    return (
        f"{processor}, {len(os.sched_getaffinity(0))} processors, "
        f"Linux {kernel[0] if kernel else platform.release()}, "
        f"Python {platform.python_version()}, ext4 with a journal on a loop device"
    )


def table(groups: list[Group]) -> str:
    """Markdown."""
    rows = [
        "| what | ours | peer | | result | wanted | |",
        "|---|---:|---:|---|---:|---:|---|",
    ]
    for group in groups:
        for line in group.lines:
            wanted = "" if line.limit is None else f"{line.bound} {line.limit:g}{line.suffix}"
            kept = "" if line.limit is None else "yes" if line.met else "**no**"
            rows.append(
                f"| {line.what} | {_figure(line.ours)} {line.unit} | "
                f"{_figure(line.peer)} {line.unit} | {line.peer_name} | "
                f"{_figure(line.value)}{line.suffix} | {wanted} | {kept} |"
            )
    heads = dict.fromkeys(
        f"{g.machine}. {g.when}, medians of {g.rounds} ({_names(g, groups)})." for g in groups
    )
    return "\n".join(["# Benchmark", "", *heads, "", *rows, "", "![plot](plot.svg)", ""])


def _names(group: Group, groups: list[Group]) -> str:
    alike = [g.name for g in groups if (g.when, g.rounds, g.machine) == _key(group)]
    return ", ".join(alike)


def _key(group: Group) -> tuple[str, int, str]:
    return group.when, group.rounds, group.machine


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


WIDTH, ROW, LABEL, RIGHT = 1000, 30, 430, 170


def plot(groups: list[Group]) -> str:
    """SVG: of each line with a limit, how much of the limit it used up."""
    shown = [(line, line.spent) for group in groups for line in group.lines]
    bars = [(line, spent) for line, spent in shown if spent is not None]
    reach = max(1.2, *(min(spent, 3) for _, spent in bars)) if bars else 1.2
    scale = (WIDTH - LABEL - RIGHT) / reach
    height = 60 + ROW * len(bars)
    limit = LABEL + scale
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{limit:.0f}" y="22" text-anchor="middle">wanted</text>',
    ]
    for number, (line, spent) in enumerate(bars):
        y = 34 + ROW * number
        colour = "#3a7d44" if spent <= 1 else "#c0392b"
        width = max(2, min(spent, reach) * scale)
        parts += [
            f'<text x="{LABEL - 10}" y="{y + 16}" text-anchor="end">{escape(line.what)}</text>',
            f'<rect x="{LABEL}" y="{y + 3}" width="{width:.0f}" height="{ROW - 10}" '
            f'rx="3" fill="{colour}"/>',
            f'<text x="{LABEL + max(width, scale) + 8:.0f}" y="{y + 16}">'
            f"{_figure(line.value)}{escape(line.suffix)} of {line.limit:g}</text>",
        ]
    parts.append(
        f'<line x1="{limit:.0f}" x2="{limit:.0f}" y1="28" y2="{height - 18}" '
        'stroke="#222" stroke-dasharray="4 3"/>'
    )
    return "\n".join([*parts, "</svg>", ""])


def write(names: list[str]) -> None:
    """Write both from what is there of the groups ``names``, in that order."""
    groups = [group for name in names if (group := load(name)) is not None]
    (RESULTS / "table.md").write_text(table(groups))
    (RESULTS / "plot.svg").write_text(plot(groups))
