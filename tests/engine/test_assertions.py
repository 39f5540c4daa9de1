"""What the `assert:` clauses of a recipe compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import weightsmith
from weightsmith.errors import AssertionFailed, RecipeError
from weightsmith.graph.backends import native

BACKENDS = ["torch", *(["native"] if native.available() else [])]


def folder(root: Path, name: str, **tensors: torch.Tensor) -> str:
    """A checkpoint of a few tensors."""
    (root / name).mkdir()
    save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
    return str(root / name)


def merge(root: Path, base: str, expert: str, reference: str, backend: str) -> None:
    """Task arithmetic whose result must equal the reference in the tensor `steps`."""
    recipe = {
        "weightsmith": 1,
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [{"model": expert}],
        "assert": [{"equal": {"to": reference, "match": {"name": "steps"}}}],
    }
    weightsmith.merge(recipe, root / f"out-{Path(reference).name}", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_integers_are_compared_exactly(tmp_path: Path, backend: str) -> None:
    """2^24 + 1 is no float32."""
    steps = torch.tensor([3, 2**24 + 1, -(2**53) - 1])
    weight = torch.ones(3)
    base = folder(tmp_path, "base", steps=steps, weight=weight)
    expert = folder(tmp_path, "expert", steps=steps - 1, weight=weight)
    with pytest.raises(AssertionFailed, match=r"'steps' differs in 3 element\(s\)"):
        merge(tmp_path, base, expert, expert, backend)
    merge(tmp_path, base, expert, base, backend)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (torch.ones(4), r"has shape \(3,\), its reference \(4,\)"),
        (torch.ones(3, dtype=torch.int32), "has dtype float32, its reference int32"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reference_that_cannot_be_compared_fails_the_clause(
    tmp_path: Path, backend: str, reference: torch.Tensor, said: str
) -> None:
    base = folder(tmp_path, "base", steps=torch.ones(3))
    expert = folder(tmp_path, "expert", steps=torch.zeros(3))
    other = folder(tmp_path, "other", steps=reference)
    with pytest.raises(AssertionFailed, match=said):
        merge(tmp_path, base, expert, other, backend)


def test_a_reference_that_is_measured_over_the_model_is_refused_by_the_plan(tmp_path: Path) -> None:
    base = folder(tmp_path, "base", steps=torch.zeros(3), weight=torch.ones(3))
    expert = folder(tmp_path, "expert", steps=torch.ones(3), weight=torch.ones(3))
    inner = {
        "weightsmith": 1,
        "merge_method": "ties",
        "base_model": base,
        "models": [{"model": expert}, {"model": expert}],
    }
    (tmp_path / "inner.yaml").write_text(json.dumps(inner))
    with pytest.raises(
        RecipeError, match=r"`equal .*` compares with a recipe whose method measures"
    ):
        merge(tmp_path, base, expert, str(tmp_path / "inner.yaml"), "auto")
    weightsmith.merge(tmp_path / "inner.yaml", tmp_path / "inner")
    halved = folder(tmp_path, "halved", steps=torch.full((3,), 0.5), weight=torch.ones(3))
    with pytest.raises(AssertionFailed, match="'steps' differs in"):
        merge(tmp_path, base, halved, str(tmp_path / "inner"), "auto")
