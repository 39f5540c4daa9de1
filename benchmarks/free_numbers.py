"""What evaluating and differentiating free numbers costs by the number of experts: memory, and seconds of this process.

    python benchmarks/free_numbers.py                        # 2 and 16 experts of 24 M numbers
    python benchmarks/free_numbers.py --experts 2 4 8

The experts are written once; every case is a process of its own. `products` are the streamed inner products of task
arithmetic, `tiles` the tiles that torch pulls back through TIES.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import measure
import numpy as np
from safetensors.numpy import save_file

LAYERS, ROWS, COLUMNS = 6, 2000, 2000
METHODS = {"products": "task_arithmetic", "tiles": "ties"}
CASE = """
import json, sys
import numpy as np
import weightsmith
from weightsmith.engine import FreeMerge
from weightsmith.tensors import DType, MemoryTensor
what, recipe = sys.argv[1], json.loads(sys.argv[2])
plan = weightsmith.plan(recipe, threads=1)
merge = FreeMerge(plan)
names = [tensor.output.name for tensor in plan.tensors]
shape = plan.tensors[0].output.shape
loss = MemoryTensor.of("loss", DType.FLOAT32, np.ones(shape, np.float32))
if what == "gradient":
    merge.gradient("start", dict.fromkeys(names, loss))
elif what == "nothing":
    import torch
"""


def write_models(root: Path, count: int) -> None:
    """A base and experts in float16."""
    for k in range(count + 1):
        generator = np.random.default_rng(k)
        tensors = {
            f"model.layers.{i}.mlp.up_proj.weight": generator.normal(size=(ROWS, COLUMNS)).astype(
                np.float16
            )
            for i in range(LAYERS)
        }
        folder = root / ("base" if k == 0 else f"e{k}")
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def recipe_of(root: Path, method: str, experts: int) -> dict[str, object]:
    """A weight for each expert, and a factor for each layer."""
    return {
        "weightsmith": 1,
        "merge_method": method,
        "base_model": str(root / "base"),
        "models": [{"model": str(root / f"e{k + 1}")} for k in range(experts)],
        "parameters": {
            "weight": {"free": [0, 2], "start": 0.7, "per": "expert"},
            "lambda": {"free": [0, 2], "start": 0.5, "per": "layer"},
            **({"density": 1.0} if method == "ties" else {}),
        },
    }


def peak_mib(what: str, recipe: dict[str, object], root: Path) -> tuple[float, float]:
    """Peak anonymous memory in MiB and CPU seconds of a case."""
    command = [sys.executable, "-c", CASE, what, json.dumps(recipe)]
    cost = measure.run(command, root / "log")
    return cost.anonymous_mib, cost.cpu_s


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 16])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_models(root, max(given.experts))
        print("way       experts  peak MiB  above planning MiB  CPU s")
        for way, method in METHODS.items():
            for experts in given.experts:
                recipe = recipe_of(root, method, experts)
                resting, _ = peak_mib("nothing", recipe, root)
                peak, seconds = peak_mib("gradient", recipe, root)
                print(
                    f"{way:9} {experts:7} {peak:9.0f} {peak - resting:19.0f} {seconds:6.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
