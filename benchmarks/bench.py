"""Time weightsmith, mergekit 0.1.5 and the floor side by side (`make bench`).

    python benchmarks/bench.py --size small             # everything; tens of minutes, most of them mergekit's
    python benchmarks/bench.py --size tiny --quick      # a look at a few methods in a minute
    python benchmarks/bench.py --size 1b --methods ties linear-4 --runs 1

Checkpoints are made in benchmarks/work, results written to benchmarks/results: a table, JSON and a plot.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cases
import extras
import measure
import report
from make_checkpoints import SIZES, WORK, make_family
from measure import BenchmarkFailed, Cost

RESULTS = Path(__file__).parent / "results"
QUICK = ("linear-4", "slerp", "ties")


class Bench:
    """One run of the benchmark: the family, the tools, and every figure so far."""

    def __init__(self, size: str, tools: Sequence[str], runs: int, peer_runs: int) -> None:
        self.size, self.tools, self.runs, self.peer_runs = size, tools, runs, peer_runs
        self.family = make_family(size)
        self.scratch = WORK / "scratch"
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        self.figures: dict[str, dict[str, list[Cost]]] = {}
        self.failures: list[dict[str, str]] = []
        self.machine = report.machine()

    def measure_case(self, case: cases.Case) -> None:
        """All tools on one case, taking turns, so that a change of the machine's mood meets all of them."""
        recipe = self.scratch / f"{case.name}.yaml"
        recipe.write_text(case.recipe(self.family))
        inputs = case.inputs(self.family)
        measure.warm(inputs)
        write_bytes = sum(file.stat().st_size for file in measure.weight_files(inputs[:1]))
        out = self.scratch / "out"
        commands = {
            "floor": cases.floor_command(out, write_bytes, inputs),
            "native": cases.weightsmith_command(recipe, out, backend="native"),
            "torch": cases.weightsmith_command(recipe, out, backend="torch"),
            "mergekit": cases.mergekit_command(recipe, out),
        }
        found = self.figures.setdefault(case.name, {})
        for run in range(max(self.runs, self.peer_runs)):
            for tool in self.tools:
                if run < (self.peer_runs if tool == "mergekit" else self.runs):
                    environment = cases.mergekit_environment() if tool == "mergekit" else None
                    self._one(case.name, tool, commands[tool], environment, found, out)

    def _one(
        self,
        case: str,
        tool: str,
        command: Sequence[str | Path],
        environment: dict[str, str] | None,
        found: dict[str, list[Cost]],
        out: Path,
    ) -> None:
        shutil.rmtree(out, ignore_errors=True)
        try:
            cost = measure.run(command, self.scratch / "log.txt", environment)
        except BenchmarkFailed as failure:
            self.failed(case, tool, failure)
            return
        finally:
            shutil.rmtree(out, ignore_errors=True)
        found.setdefault(tool, []).append(cost)
        print(f"{case:16} {tool:9} {report.cell(cost)}", flush=True)

    def failed(self, case: str, tool: str, failure: BenchmarkFailed) -> None:
        """Note a failure and go on with the rest."""
        self.failures.append({"case": case, "tool": tool, "problem": str(failure)})
        print(f"{case:16} {tool:9} FAILED: {failure}", flush=True)

    def medians(self) -> dict[str, dict[str, Cost]]:
        """The medians of what has been measured."""
        return {
            case: {tool: measure.middle(costs) for tool, costs in by_tool.items()}
            for case, by_tool in self.figures.items()
        }

    def as_json(self) -> dict[str, Any]:
        """Every single run."""
        cases_run = {
            case: {tool: [cost.as_json() for cost in costs] for tool, costs in by_tool.items()}
            for case, by_tool in self.figures.items()
        }
        return {
            "size": self.size,
            "machine": self.machine,
            "cases": cases_run,
            "failures": self.failures,
        }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time weightsmith, mergekit and the floor side by side."
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument(
        "--methods", nargs="*", choices=sorted(cases.CASES), help="cases to run (default: all)"
    )
    parser.add_argument(
        "--runs", type=int, default=3, help="runs of weightsmith and the floor (median is reported)"
    )
    parser.add_argument(
        "--peer-runs", type=int, default=1, help="runs of mergekit, which takes minutes"
    )
    parser.add_argument("--no-peer", action="store_true", help="leave mergekit out")
    parser.add_argument("--torch-only", action="store_true", help="leave the native backend out")
    parser.add_argument("--native-only", action="store_true", help="leave the torch backend out")
    parser.add_argument(
        "--extras",
        nargs="*",
        choices=sorted(extras.EXTRAS),
        help="sub-benchmarks to run (default: all)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="three methods, one run, no sub-benchmarks"
    )
    parser.add_argument(
        "--prefer",
        action="store_true",
        help="give timed processes priority over all others (root only)",
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    measure.prefer_timed_processes = chosen.prefer
    left_out = {
        "mergekit": chosen.no_peer,
        "native": chosen.torch_only,
        "torch": chosen.native_only,
    }
    tools = [tool for tool in report.TOOLS if not left_out.get(tool)]
    if "mergekit" in tools and not (cases.PARITY / "mergekit-yaml").exists():
        raise SystemExit(
            "mergekit's environment is missing; make it with `make .venv-parity/.ready`, or pass --no-peer."
        )
    bench = Bench(chosen.size, tools, 1 if chosen.quick else chosen.runs, chosen.peer_runs)
    names = (
        chosen.methods
        if chosen.methods is not None
        else QUICK
        if chosen.quick
        else list(cases.CASES)
    )
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for name in names:
            bench.measure_case(cases.CASES[name])
        wanted = (
            chosen.extras
            if chosen.extras is not None
            else []
            if chosen.quick
            else list(extras.EXTRAS)
        )
        for name in wanted:
            title, function = extras.EXTRAS[name]
            try:
                found[title] = function(bench.family, bench.scratch, bench.runs)
            except BenchmarkFailed as failure:
                bench.failed(name, "sub-benchmark", failure)
                continue
            print(report.table(title, found[title]), flush=True)
    finally:
        shutil.rmtree(bench.scratch, ignore_errors=True)
        text = report.write(chosen.results, bench.medians(), bench.as_json(), found)
        print(f"\n{text}\nWritten to {chosen.results}/{chosen.size}.{{md,json,svg}}")


if __name__ == "__main__":
    main()
