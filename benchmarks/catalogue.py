"""The cost of every method of the catalogue against `linear`, or against its decompositions alone.

    python benchmarks/catalogue.py                       # every method that has no figures yet, then the table
    python benchmarks/catalogue.py ties wudi --again     # these, measured anew

Methods that stream run on the 0.35 B family, whole processes, warm, in turns with `linear` over as many experts. Those
that decompose matrices run on one matrix of each shape of a layer, single-threaded, and are compared with the
decompositions (or products and solves) of their papers' formulas by LAPACK alone, in float64 and float32. The
figures are kept in benchmarks/work/catalogue, so that the benchmark can be run in parts; the table is written to
benchmarks/results/catalogue.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import report
from cases import weightsmith_command
from catalogue_inputs import Case, bare_matrices, cases, inputs, recipe
from make_checkpoints import WORK

from weightsmith.tensors.blas import one_blas_thread

KEPT = WORK / "catalogue"
RESULTS = Path(__file__).parent / "results"
STREAMED_GOAL, SPECTRAL_GOAL = 3.0, 1.3


def merged(case: Case, runs: int, threads: int | None = None) -> measure.Cost:
    """The median of whole processes."""
    return measure.middle([_once(case, threads) for _ in range(runs)])


def _once(case: Case, threads: int | None) -> measure.Cost:
    scratch = KEPT / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / "recipe.yaml").write_text(recipe(case))
    command = weightsmith_command(scratch / "recipe.yaml", scratch / "out", threads=threads)
    try:
        return measure.run(command, scratch / "log.txt")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def streamed(case: Case, runs: int) -> dict[str, Any]:
    """In turns with `linear` over the same experts."""
    peer = Case(
        "linear", experts=max(case.experts, 2), each={"weight": (1.0,) * max(case.experts, 2)}
    )
    _warm(case)
    turns = [(_once(peer, None), _once(case, None)) for _ in range(runs)]
    linear, own = (measure.middle([turn[i] for turn in turns]) for i in (0, 1))
    size = sum(file.stat().st_size for file in _files(case))
    return {
        **_figures(case, own),
        "read_gb": round(size / 1e9, 2),
        "linear_cpu_s": round(linear.cpu_s, 2),
        "ratio": round(own.cpu_s / linear.cpu_s, 2),
    }


def spectral(case: Case, runs: int) -> dict[str, Any]:
    """Against LAPACK alone."""
    _warm(case)
    own = merged(case, runs, threads=1)
    bare = {}
    for dtype in (np.float64, np.float32):
        stacks = bare_matrices(case, dtype)
        assert case.bare is not None
        work: Callable[[list[np.ndarray[Any, Any]]], object] = case.bare
        began = time.process_time()
        for stack in stacks:
            work(stack)
        bare[np.dtype(dtype).name] = time.process_time() - began
    return {
        **_figures(case, own),
        "bare_float64_s": round(bare["float64"], 2),
        "bare_float32_s": round(bare["float32"], 2),
        "ratio": round(own.cpu_s / bare["float64"], 2),
        "ratio_float32": round(own.cpu_s / bare["float32"], 2),
    }


def _figures(case: Case, own: measure.Cost) -> dict[str, Any]:
    return {
        "method": case.method,
        "experts": case.experts,
        "cpu_s": round(own.cpu_s, 2),
        "wall_s": round(own.wall_s, 2),
        "anonymous_mib": round(own.anonymous_mib),
    }


def _files(case: Case) -> list[Path]:
    found = inputs(case)
    return [
        *measure.weight_files([p for p in found if p.is_dir()]),
        *(p for p in found if p.is_file()),
    ]


def _warm(case: Case) -> None:
    buffer = bytearray(4 << 20)
    for path in _files(case):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def table(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> str:
    """Rows as markdown, the columns by their titles."""
    lines = ["| " + " | ".join(names.values()) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row[key]) for key in names) + " |" for row in rows]
    return "\n".join(lines)


def tables(kept: Sequence[dict[str, Any]]) -> str:
    """Both tables, the cheapest first."""
    kept = sorted(kept, key=lambda row: row["ratio"])
    common = {"method": "method", "experts": "experts", "cpu_s": "CPU s", "wall_s": "wall s"}
    memory = {"anonymous_mib": "anonymous MiB"}
    first = table(
        [{**row, "goal": _met(row["ratio"], STREAMED_GOAL)} for row in kept if "read_gb" in row],
        {
            **common,
            **memory,
            "read_gb": "inputs, GB",
            "linear_cpu_s": "linear, CPU s",
            "ratio": "ratio",
            "goal": "goal",
        },
    )
    second = table(
        [
            {**row, "goal": _met(row["ratio"], SPECTRAL_GOAL)}
            for row in kept
            if "read_gb" not in row
        ],
        {
            **common,
            **memory,
            "bare_float64_s": "bare float64, s",
            "ratio": "ratio",
            "bare_float32_s": "bare float32, s",
            "ratio_float32": "ratio to float32",
            "goal": "goal",
        },
    )
    return f"{first}\n\n{second}\n"


def _met(ratio: float, goal: float) -> str:
    return f"{goal:g}x {'reached' if ratio <= goal else 'missed'}"


@one_blas_thread()
def main() -> None:
    """Measure what has no figures yet, and write the table of all that has."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = cases()
    parser.add_argument("methods", nargs="*", help="methods to run (default: all)")
    parser.add_argument("--again", action="store_true", help="measure anew what has figures")
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in chosen.methods or known:
        place = KEPT / f"{name}.json"
        if place.exists() and not chosen.again:
            continue
        case = known[name]
        try:
            row = spectral(case, 1) if case.bare else streamed(case, chosen.runs)
        except measure.BenchmarkFailed as failure:
            print(f"{name}: FAILED: {failure}", flush=True)
            continue
        place.write_text(json.dumps(row, indent=1) + "\n")
        print(json.dumps(row), flush=True)
    kept = [json.loads(p.read_text()) for p in sorted(KEPT.glob("*.json")) if p.stem in known]
    RESULTS.mkdir(exist_ok=True)
    record = {"machine": report.machine(), "methods": kept}
    (RESULTS / "catalogue.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "catalogue.md").write_text(tables(kept))


if __name__ == "__main__":
    main()
