"""What the rule for equal magnitudes does to merges of bfloat16 models: scores and shares kept, rule by rule.

    python benchmarks/equal_magnitudes.py --families vision-tiny,language-tiny

The base and the experts of a family are rounded to bfloat16, so that many magnitudes are equal. Methods with a
threshold over the whole model merge them with their defaults under each `equal_magnitudes`, and the merges are scored
on the test split as a share of each expert's score. The last column is the smallest and the largest share that a matrix
of the stacks keeps when the first expert is merged alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.comparison.family import Family
from weightsmith.comparison.family_opening import open_family
from weightsmith.comparison.standings import mean_normalized
from weightsmith.evaluation.scoring import evaluate
from weightsmith.graph.equal_magnitudes import EqualMagnitudes

METHODS = {
    "ties": {"density": 0.2},
    "localize_and_stitch": {},
    "consensus": {"vector": "ties"},
    "pcb": {},
}
ROOT = Path(__file__).resolve().parent / "work" / "equal-magnitudes"


def rounded(model: Path, out: Path) -> str:
    """The model in bfloat16."""
    recipe = {"weightsmith": 1, "merge_method": "passthrough", "models": [{"model": str(model)}]}
    weightsmith.merge({**recipe, "out_dtype": "bfloat16"}, out, force=True)
    return str(out)


def shares_kept(merged: Path, base: str) -> tuple[float, float]:
    """The smallest and the largest share of changed elements among the matrices of the stacks."""
    after, before = open_checkpoint(merged), open_checkpoint(base)
    shares = []
    for name, tensor in after.tensors.items():
        if len(tensor.shape) < 2 or after.places[name].layer is None:
            continue
        found = []
        for one in (tensor, before.tensors[name]):
            data = bytearray(one.nbytes)
            one.read_into(0, one.numel, memoryview(data))
            found.append(np.frombuffer(data, np.uint16 if one.dtype.itemsize == 2 else np.float32))
        widened = [
            f if f.dtype == np.float32 else (f.astype(np.uint32) << 16).view(np.float32)
            for f in found
        ]
        shares.append(float((widened[0] != widened[1]).mean()))
    return min(shares), max(shares)


def measure(family: Family) -> list[str]:
    work = ROOT / family.name
    work.mkdir(parents=True, exist_ok=True)
    base = rounded(family.base.reference, work / "base")
    experts = {task: rounded(family.expert(task), work / task) for task in family.experts}
    suite = family.suite("test")
    own = {task: evaluate(path, suite, tasks=[task], threads=1) for task, path in experts.items()}
    lines = []
    for method, parameters in METHODS.items():
        for rule in EqualMagnitudes:
            recipe = {
                "weightsmith": 1,
                "merge_method": method,
                "base_model": base,
                "models": [{"model": path} for path in experts.values()],
                "parameters": parameters,
                "dtype": "float32",
                "equal_magnitudes": rule.value,
            }
            out = work / f"{method}-{rule.value}"
            weightsmith.merge(recipe, out, force=True)
            found = evaluate(out, suite, tasks=list(experts), threads=1)
            one = {**recipe, "models": recipe["models"][:1]}
            alone = work / f"{method}-{rule.value}-one"
            weightsmith.merge(one, alone, force=True)
            low, high = shares_kept(alone, base)
            score = mean_normalized(found, own)
            line = f"| {family.name} | {method} | {rule.value} | {score:.4f} | {low:.3f} to {high:.3f} |"
            print(line, flush=True)
            lines.append(line)
    return lines


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--families", default="vision-tiny,language-tiny")
    given = options.parse_args()
    print("| family | method | equal_magnitudes | normalised score | kept, one expert |")
    print("| --- | --- | --- | --- | --- |")
    for name in given.families.split(","):
        measure(open_family(name))


if __name__ == "__main__":
    main()
