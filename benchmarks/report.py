"""The results as a table (markdown), as JSON and as a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import CASES
from measure import Cost

TOOLS = ("floor", "native", "torch", "mergekit")
Costs = Mapping[str, Mapping[str, Cost]]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": [round(number, 2) for number in os.getloadavg()],
    }


def ratio(costs: Mapping[str, Cost], slow: str, fast: str, figure: str = "wall_s") -> float | None:
    """How many times more one tool took than another; None where one of them did not run."""
    if slow not in costs or fast not in costs:
        return None
    return float(getattr(costs[slow], figure) / max(getattr(costs[fast], figure), 1e-9))


def main_table(costs: Costs) -> str:
    """One row per case: seconds and memory of each tool, and the ratios that the goals are set in."""
    header = (
        "| case | "
        + " | ".join(TOOLS)
        + " | mergekit/native | mergekit/torch | CPU: mergekit/native | native/floor | goal |"
    )
    lines = [header, "|" + "---|" * (header.count("|") - 1)]
    for name, by_tool in costs.items():
        native, with_torch = (
            ratio(by_tool, "mergekit", "native"),
            ratio(by_tool, "mergekit", "torch"),
        )
        cells = [name, *(cell(by_tool.get(tool)) for tool in TOOLS)]
        cells += [
            times(native),
            times(with_torch),
            times(ratio(by_tool, "mergekit", "native", "cpu_s")),
        ]
        cells += [times(ratio(by_tool, "native", "floor")), goal(name, native, with_torch)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(cost: Cost | None) -> str:
    """Wall and CPU seconds, then peak memory with its two kinds."""
    if cost is None:
        return "-"
    kinds = f"{cost.anonymous_mib:.0f} + {cost.file_mib:.0f}"
    return f"{cost.wall_s:.2f} s, {cost.cpu_s:.2f} CPU; {kinds} MiB"


def times(number: float | None) -> str:
    """A ratio for the table."""
    return "-" if number is None else f"{number:.1f}x"


def goal(name: str, native: float | None, with_torch: float | None) -> str:
    """The speed-ups aimed at, and whether they were reached."""
    marks = []
    for found, wanted in zip((native, with_torch), CASES[name].target, strict=True):
        mark = "" if found is None else " reached" if found >= wanted else " missed"
        marks.append(f"{wanted:g}x{mark}")
    return ", ".join(marks)


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one sub-benchmark as markdown."""
    if not rows:
        return ""
    keys = list(rows[0])
    lines = [f"## {title}", "", "| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    for row in rows:
        cells = [
            f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in keys
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


NOTES = """\
Whole processes from interpreter start to exit, warm cache unless said otherwise. Each cell: median wall
and CPU (user + system) seconds, then the largest anonymous + file-backed resident memory. weightsmith
takes digests, checks every value and makes its files durable (fsync); mergekit and the floor (read every
input once, write the output once) do not. On a shared machine the CPU seconds are the figure to trust.
"""


def write(
    folder: Path,
    costs: Costs,
    record: dict[str, Any],
    extras: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """Write all three forms and return the markdown; `record` has size, machine, runs and failures."""
    folder.mkdir(parents=True, exist_ok=True)
    size = record["size"]
    facts = ", ".join(f"{key} {number}" for key, number in record["machine"].items())
    parts = [f"# {size} checkpoints", f"{facts}.", NOTES]
    parts += [main_table(costs)] if costs else []
    parts += [table(title, rows) for title, rows in extras.items()]
    parts += [f"FAILED: {f['case']}, {f['tool']}" for f in record["failures"]]
    text = "\n\n".join(part.strip() for part in parts if part) + "\n"
    (folder / f"{size}.md").write_text(text)
    (folder / f"{size}.json").write_text(json.dumps({**record, "extras": extras}, indent=1) + "\n")
    if costs:
        plot(folder / f"{size}.svg", size, costs)
    return text


def plot(path: Path, size: str, costs: Costs) -> None:
    """Bars of wall seconds and of anonymous memory, on logarithmic scales; nothing without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "weightsmith"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(11, 8), sharex=True, layout="constrained")
    colours = {"floor": "#bbbbbb", "native": "#1b6e53", "torch": "#e08a1e", "mergekit": "#7a4fa3"}
    names = list(costs)
    shown = [tool for tool in TOOLS if any(tool in by_tool for by_tool in costs.values())]
    for axis, key, label in zip(
        axes, ("wall_s", "anonymous_mib"), ("wall seconds", "anonymous memory, MiB"), strict=True
    ):
        for place, tool in enumerate(shown):
            present = [i for i, name in enumerate(names) if tool in costs[name]]
            heights = [getattr(costs[names[i]][tool], key) for i in present]
            width = 0.8 / len(shown)
            axis.bar(
                [i + (place - (len(shown) - 1) / 2) * width for i in present],
                heights,
                width,
                color=colours[tool],
                label=tool,
            )
        axis.set_yscale("log")
        axis.set_ylabel(label)
        axis.grid(axis="y", which="both", alpha=0.25)
    axes[0].legend(ncols=len(shown), frameon=False)
    axes[0].set_title(f"Merging {size} checkpoints, whole process, warm")
    axes[1].set_xticks(range(len(names)), names, rotation=30, ha="right")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
