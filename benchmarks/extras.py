"""Sub-benchmarks: what a merge costs beyond its method, and how the cost grows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import cases
import in_process
import measure
from cases import CASES, weightsmith_command
from make_checkpoints import WORK, make_checkpoint
from measure import Cost

Row = dict[str, Any]
HERE = Path(__file__).parent


def timed(command: Sequence[str | Path], scratch: Path, runs: int) -> Cost:
    """Median of some warm runs of a merge into `scratch/out`."""
    costs = []
    for _ in range(runs):
        shutil.rmtree(scratch / "out", ignore_errors=True)
        costs.append(measure.run(command, scratch / "log.txt"))
    shutil.rmtree(scratch / "out", ignore_errors=True)
    return measure.middle(costs)


def written(case: cases.Case, family: Sequence[Path], scratch: Path) -> Path:
    """The recipe of a case as a file."""
    recipe = scratch / f"{case.name}.yaml"
    recipe.write_text(case.recipe(family))
    return recipe


def cold_inputs(family: Sequence[Path], scratch: Path, runs: int) -> list[Row]:
    """One-pass methods with inputs that are not in the page cache, against `cat` of the same files."""
    rows = []
    for case in (c for c in CASES.values() if c.one_pass):
        inputs = case.inputs(family)
        recipe = written(case, family, scratch)
        walls: dict[str, list[float]] = {"cat": [], "weightsmith": []}
        commands = {
            "cat": ["sh", "-c", 'cat "$@" > /dev/null', "cat", *measure.weight_files(inputs)],
            "weightsmith": weightsmith_command(recipe, scratch / "out"),
        }
        for _ in range(runs):
            for name, command in commands.items():
                measure.forget(inputs)
                walls[name].append(timed(command, scratch, 1).wall_s)
        cat, ours = median(walls["cat"]), median(walls["weightsmith"])
        rows.append(
            {
                "case": case.name,
                "cat s": cat,
                "weightsmith s": ours,
                "ratio": ours / cat,
                "goal": 1.25,
            }
        )
    return rows


def expert_scaling(family: Sequence[Path], scratch: Path, runs: int) -> list[Row]:
    """2 to 16 experts; beyond those that exist, other names for the same bytes."""
    folders = [*family[:1], *_multiplied(family[1:], 16, scratch)]
    measure.warm(family)
    rows = []
    for name in ("linear-4", "model_stock", "ties", "dare_ties"):
        for experts in (2, 4, 8, 16):
            case = cases.Case(f"{CASES[name].method}-{experts}", CASES[name].method, experts, CASES[name].has_base,
                              CASES[name].parameters, CASES[name].each)  # fmt: skip
            cost = timed(
                weightsmith_command(written(case, folders, scratch), scratch / "out"), scratch, runs
            )
            rows.append(
                {
                    "method": case.method,
                    "experts": experts,
                    "wall s": cost.wall_s,
                    "CPU s": cost.cpu_s,
                    "CPU s per expert": cost.cpu_s / experts,
                    "anonymous MiB": cost.anonymous_mib,
                }
            )
    return rows


def _multiplied(folders: Sequence[Path], count: int, scratch: Path) -> list[Path]:
    copies = list(folders)
    for number in range(len(folders), count):
        twin = scratch / f"expert-{number + 1}"
        twin.mkdir()
        for file in folders[number % len(folders)].iterdir():
            os.link(file, twin / file.name)
        copies.append(twin)
    return copies


def large_plan(family: Sequence[Path], scratch: Path, runs: int) -> list[Row]:
    """A plan of 10,000 tensors from three checkpoints of a mixture of experts."""
    del family
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"
        for layer in range(26)
        for expert in range(128)
        for part in ("down", "gate", "up")
    ]
    tensors = [(name, (16, 16)) for name in names] + [
        (f"model.layers.{i % 26}.extra.{i}.weight", (16,)) for i in range(16)
    ]
    folders = []
    for expert in range(3):
        folders.append(scratch / f"plan-{expert}")
        config = {"model_type": "unknown", "num_hidden_layers": 26}
        make_checkpoint(folders[-1], tensors, config, 4, expert)
    rows = []
    for name in ("linear-2", "ties"):
        case = cases.Case(
            name,
            CASES[name].method,
            2,
            CASES[name].has_base,
            CASES[name].parameters,
            CASES[name].each,
        )
        recipe = written(case, folders, scratch)
        plan = timed([sys.executable, "-m", "weightsmith", "plan", recipe], scratch, runs)
        merge = timed(weightsmith_command(recipe, scratch / "out"), scratch, runs)
        rows.append(
            {"method": case.method, "tensors": len(tensors), "plan wall s": plan.wall_s, "plan CPU s": plan.cpu_s,
             "goal s": 2.0, "whole merge wall s": merge.wall_s}
        )  # fmt: skip
    return rows


def shares(family: Sequence[Path], scratch: Path, runs: int) -> list[Row]:
    """What digests, the finite check and fsync cost together: the whole merge against one without them."""
    in_process.build_library()
    measure.warm(family)
    rows = []
    for name in ("linear-4", "task_arithmetic", "ties"):
        recipe = written(CASES[name], family, scratch)
        command: list[str | Path] = [
            sys.executable,
            HERE / "in_process.py",
            recipe,
            scratch / "out",
        ]
        found: dict[str, list[Cost]] = {}
        variants = {
            "whole": [],
            **{p: ["--without", p] for p in in_process.PARTS},
            "all": ["--without", *in_process.PARTS],
        }
        for _ in range(runs):
            for variant, options in variants.items():
                found.setdefault(variant, []).append(timed([*command, *options], scratch, 1))
        cost = {variant: measure.middle(costs) for variant, costs in found.items()}
        row: Row = {"case": name, "wall s": cost["whole"].wall_s, "CPU s": cost["whole"].cpu_s}
        for part in in_process.PARTS:
            row[f"{part}, CPU s"] = cost["whole"].cpu_s - cost[part].cpu_s
        row["all, share of CPU"] = 1 - cost["all"].cpu_s / cost["whole"].cpu_s
        row["all, share of wall"] = 1 - cost["all"].wall_s / cost["whole"].wall_s
        rows.append({**row, "goal": 0.15})
    return rows


def thread_scaling(family: Sequence[Path], scratch: Path, runs: int) -> list[Row]:
    """The same merges on 1, 2, 4... threads, up to twice the cores."""
    measure.warm(family)
    rows = []
    for name in ("linear-4", "ties", "della"):
        recipe = written(CASES[name], family, scratch)
        for backend in ("native", "torch"):
            threads = 1
            while threads <= 2 * (os.cpu_count() or 1):
                command = weightsmith_command(
                    recipe, scratch / "out", backend=backend, threads=threads
                )
                cost = timed(command, scratch, runs)
                rows.append(
                    {"case": name, "backend": backend, "threads": threads, "wall s": cost.wall_s, "CPU s": cost.cpu_s,
                     "anonymous MiB": cost.anonymous_mib}
                )  # fmt: skip
                threads *= 2
    return rows


def large_tensor(family: Sequence[Path], scratch: Path, runs: int) -> list[Row]:
    """Checkpoints of one tensor of 512 MiB, twice the default memory budget."""
    del family, runs
    folders = [WORK / "slab" / name for name in ("base", "expert-1", "expert-2")]
    for expert, folder in enumerate(folders):
        if not (folder / "config.json").exists():
            make_checkpoint(
                folder,
                [("model.embed_tokens.weight", (16384, 16384))],
                {"model_type": "unknown"},
                1,
                expert,
            )
    measure.warm(folders)
    rows = []
    for name in ("linear-2", "slerp", "model_stock", "ties", "dare_ties", "sce", "della"):
        case = cases.Case(
            name,
            CASES[name].method,
            2,
            CASES[name].has_base,
            CASES[name].parameters,
            CASES[name].each,
        )
        recipe = written(case, folders, scratch)
        for backend, goal in (("native", 256), ("torch", 512)):
            cost = timed(weightsmith_command(recipe, scratch / "out", backend=backend), scratch, 1)
            rows.append(
                {"case": name, "backend": backend, "wall s": cost.wall_s, "anonymous MiB": cost.anonymous_mib,
                 "file-backed MiB": cost.file_mib, "goal MiB": goal}
            )  # fmt: skip
    return rows


def start_up(family: Sequence[Path], scratch: Path, runs: int) -> list[Row]:
    """CPU seconds until the program answers, and which heavy libraries it loads for that."""
    del family
    check = "import sys, weightsmith; print(sorted({'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    ).stdout.strip()
    rows = []
    for title, command in {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import weightsmith": [sys.executable, "-c", "import weightsmith"],
        "weightsmith --help": [sys.executable, "-m", "weightsmith", "--help"],
    }.items():
        cost = timed(command, scratch, max(runs, 3))
        rows.append(
            {"command": title, "CPU s": cost.cpu_s, "wall s": cost.wall_s, "import loads": loaded}
        )
    return rows


EXTRAS: dict[str, tuple[str, Callable[[Sequence[Path], Path, int], list[Row]]]] = {
    "cold": ("Cold inputs against `cat`", cold_inputs),
    "experts": ("Number of experts", expert_scaling),
    "plan": ("A plan of 10,000 tensors", large_plan),
    "shares": ("Digests, finite check and fsync", shares),
    "threads": ("Threads", thread_scaling),
    "large-tensor": ("One tensor larger than the memory budget", large_tensor),
    "start-up": ("Start-up", start_up),
}
