"""The mask methods streamed from files, on both backends, against the same methods over tensors in memory."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.engine.api import merge_state_dicts

SHAPES = {"layers.0.w": (700, 601), "layers.1.w": (37, 11), "norm": (5,), "empty": (0, 4)}
METHODS = [
    ("consensus", {}),
    ("consensus", {"vector": "ties", "density": 0.3}),
    ("tall_masks", {"task": "2", "masks": "magnitude"}),
    ("emr", {"task": "3"}),
    ("emr", {"rescale": "mean", "zero_sum": "negative"}),
    ("magmax", {}),
    ("localize_and_stitch", {"density": 0.07}),
    ("pcb", {}),
    ("pcb", {"between": "raw", "clamp": 1e-4}),
    ("pcb", {"between": "normalised", "clamp": 0.01, "density": 0.7}),
    ("pcb", {"between": "pairs", "clamp": 0.01, "density": 0.05}),
]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    root = tmp_path_factory.mktemp("family")
    generator = torch.Generator().manual_seed(0)
    states = []
    for i in range(4):
        base = states[0] if states else None
        state = {}
        for name, shape in SHAPES.items():
            noise = torch.randn(shape, generator=generator)
            # Many equal magnitudes, as bfloat16 checkpoints have.
            state[name] = (
                noise if base is None else base[name].float() + (noise * 8).round() / 1024
            ).to(torch.bfloat16)
        states.append(state)
        folder = root / f"m{i}"
        folder.mkdir()
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return root, states


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(("method", "parameters"), METHODS)
def test_streamed_is_as_in_memory(family, tmp_path, backend, method, parameters):
    from weightsmith.graph.backends import native

    if backend == "native" and not native.available():
        pytest.skip("the native backend is not built")
    root, states = family
    recipe = {
        "weightsmith": 1,
        "merge_method": method,
        "base_model": str(root / "m0"),
        "models": [{"model": str(root / f"m{i}")} for i in (1, 2, 3)],
        "parameters": parameters,
    }
    weightsmith.merge(recipe, tmp_path / "out", backend=backend, threads=2)
    streamed = load_file(tmp_path / "out" / "model.safetensors")
    wanted = merge_state_dicts(method, states[1:], base=states[0], parameters=parameters)
    for name in SHAPES:
        torch.testing.assert_close(streamed[name], wanted[name], rtol=0, atol=1e-2)
        differing = (streamed[name] != wanted[name]).float().mean() if wanted[name].numel() else 0.0
        assert differing < 1e-3
