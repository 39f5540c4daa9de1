"""The mergekit preset against mergekit 0.1.5 itself, tensor by tensor, in mergekit's own environment."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

PYTHON = Path(__file__).parents[2] / ".venv-parity" / "bin" / "python"
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="mergekit's environment is not made (make parity)"
    ),
]

MERGEKIT = """
import sys, json, numpy as np, torch
from mergekit.merge_methods.api import merge_tensors
data = np.load(sys.argv[1])
results = {}
for key, (name, base, parameters, count) in json.loads(str(data["cases"])).items():
    tensors = [torch.from_numpy(data[f"{key}/{i}"]) for i in range(count)]
    results[key] = merge_tensors(tensors, name, parameters=parameters, base_index=0 if base else None).numpy()
np.savez(sys.argv[2], **results)
"""

# name, has a base, experts, shared parameters, weights
CASES = [
    ("linear", False, 3, {}, (0.2, 0.5, -0.1)),
    ("linear", False, 2, {"normalize": False}, (0.2, 0.5)),
    ("slerp", True, 1, {"t": 0.3}, None),
    ("slerp", True, 1, {"t": 1.2}, None),
    ("nuslerp", False, 2, {}, (0.3, 1.0)),
    ("nuslerp", True, 2, {}, (0.3, 1.0)),
    ("nuslerp", True, 2, {"nuslerp_flatten": False}, (1.0, 1.0)),
    ("nuslerp", False, 2, {"nuslerp_flatten": False, "nuslerp_row_wise": True}, (1.0, 0.4)),
    ("nuslerp", False, 2, {}, (1.0, -1.0)),
    ("multislerp", False, 3, {}, (0.3, 1.0, 0.2)),
    ("multislerp", True, 3, {"normalize_weights": False}, (0.3, 1.0, 0.2)),
    ("karcher", False, 3, {}, None),
    ("karcher", False, 4, {"max_iter": 2}, None),
    ("passthrough", False, 1, {"scale": 1.5}, None),
    ("model_stock", True, 2, {}, None),
    ("model_stock", True, 4, {"filter_wise": True}, None),
    ("nearswap", True, 1, {"t": 0.01}, None),
    ("arcee_fusion", True, 1, {}, None),
    ("task_arithmetic", True, 3, {"lambda": 0.4}, (1.0, 0.5, -0.7)),
    ("task_arithmetic", True, 2, {"normalize": True}, (1.0, 0.5)),
    ("ties", True, 3, {"density": 0.4}, (1.0, 0.5, 0.7)),
    ("ties", True, 3, {"density": 0.3, "rescale": True, "lambda": 1.1}, (1.0, 0.5, -0.7)),
    ("ties", True, 2, {"normalize": False, "density": 0.001}, (1.0, 0.5)),
    ("dare_ties", True, 3, {}, (1.0, 0.5, 0.7)),
    ("dare_linear", True, 3, {"normalize": True}, (1.0, 0.5, 0.7)),
    ("breadcrumbs", True, 2, {"density": 0.5, "gamma": 0.2}, (1.0, 0.5)),
    ("breadcrumbs", True, 2, {"density": 0.9, "gamma": 0.2, "rescale": True}, (1.0, 0.5)),
    ("breadcrumbs_ties", True, 3, {"density": 0.5}, (1.0, 0.5, 0.2)),
    ("della", True, 3, {}, (1.0, 0.5, 0.2)),
    ("della_linear", True, 3, {"density": 0.0}, (1.0, 0.5, 0.2)),
    ("sce", True, 3, {}, None),
    ("sce", True, 3, {"select_topk": 0.3}, None),
    ("ram", True, 3, {"epsilon": 0.05}, None),
    ("ramplus_tl", True, 3, {"epsilon": 0.05, "r": 0.5, "alpha": 2.0}, None),
]
SHAPES = [(7,), (6, 5), (3, 4, 5)]


def drawn(key: str, count: int, shape: tuple[int, ...], spread: float) -> list[np.ndarray]:
    rng = np.random.default_rng(len(key) * 1000 + count)
    base = rng.normal(size=shape)
    return [base] + [base + spread * rng.normal(size=shape) for _ in range(count - 1)]


@pytest.mark.parametrize("spread", [1e-4, 0.1, 3.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_preset_reproduces_mergekit(tmp_path, merge, shape, spread):
    arrays, cases, expected = {}, {}, {}
    for number, (name, base, n, shared, weights) in enumerate(CASES):
        key = f"{number}-{name}"
        inputs = drawn(key, n + base, shape, spread)
        per_expert = [{"weight": w} for w in weights] if weights else None
        theirs = dict(shared)
        if weights:
            theirs["weight"] = list(weights)
        cases[key] = (name, base, theirs, n + base)
        arrays.update({f"{key}/{i}": a for i, a in enumerate(inputs)})
        expected[key] = merge(
            name,
            inputs[0] if base else None,
            inputs[1:] if base else inputs,
            shared=shared,
            per_expert=per_expert,
            preset="mergekit",
        )
    np.savez(tmp_path / "in.npz", cases=json.dumps(cases), **arrays)
    (tmp_path / "run.py").write_text(MERGEKIT)
    subprocess.run(
        [PYTHON, tmp_path / "run.py", tmp_path / "in.npz", tmp_path / "out.npz"], check=True
    )
    theirs = np.load(tmp_path / "out.npz")
    wrong = {
        key: np.abs(theirs[key] - ours).max()
        for key, ours in expected.items()
        if not np.allclose(theirs[key], ours, rtol=0, atol=1e-7 * spread)
    }
    assert not wrong
