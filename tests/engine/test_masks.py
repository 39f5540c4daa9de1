"""Masks of task vectors: merged from their files, free in recipes, evaluated and differentiated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from weightsmith.engine import make_plan, merge, verify
from weightsmith.errors import CheckpointError, CompatibilityError, RecipeError, UsageError
from weightsmith.recipes import load, write_masks

from .test_evaluating import CONFIG, SHAPES
from .test_free_gradients import write

NAMES = list(SHAPES)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("masked"), np.float32)


def weights(root: Path, name: str) -> dict[str, np.ndarray]:
    return load_file(root / name / "model.safetensors")


def random_masks(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {n: generator.random(size=s).astype(np.float32) for n, s in shapes.items()}


def recipe(root: Path, out: Path, statistics: list[Any], **more: Any) -> Path:
    content = {
        "weightsmith": 1,
        "merge_method": "task_arithmetic",
        "base_model": str(root / "base"),
        "modify": ["mask"],
        "models": [
            {"model": str(root / name), "statistics": given}
            for name, given in zip("abc", statistics, strict=False)
        ],
        "parameters": {"weight": 0.75},
        **more,
    }
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def merged(path: Path, out: Path) -> dict[str, np.ndarray]:
    merge(load(path), out)
    return load_file(out / "model.safetensors")


def test_task_vectors_are_weighed_by_masks_of_any_shape_that_spreads(root, tmp_path):
    """Masks of elements, rows, columns, whole tensors and booleans; weights without one are not masked."""
    own = random_masks(1)
    generator = np.random.default_rng(2)
    other: dict[str, np.ndarray] = {
        NAMES[0]: generator.random(size=(24, 1)).astype(np.float32),
        NAMES[1]: generator.random(size=(1, 8)).astype(np.float16),
        NAMES[2]: np.float32(0.25),
        NAMES[3]: generator.random(size=(12, 8)) < 0.5,
    }
    own = {name: own[name] for name in other}
    write_masks(tmp_path / "a.safetensors", own, of=root / "a")
    write_masks(tmp_path / "b.safetensors", other, of=root / "b")
    files = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    found = merged(recipe(root, tmp_path, files), tmp_path / "out")

    base, a, b = (weights(root, name) for name in ("base", "a", "b"))
    for name, tensor in found.items():
        one = np.asarray(own.get(name, 1.0), np.float64)
        two = np.asarray(other.get(name, 1.0), np.float64)
        start = base[name].astype(np.float64)
        wanted = start + 0.75 * (one * (a[name] - start) + two * (b[name] - start))
        np.testing.assert_allclose(tensor, wanted, rtol=0, atol=2e-6)
    assert verify(tmp_path / "out").ok


@pytest.mark.parametrize("value", [0, 1])
def test_an_expert_keeps_every_bit_under_ones_and_is_the_base_under_zeros(root, tmp_path, value):
    """With the weights themselves, no rounding is left of what a mask does not change."""
    masks = {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}
    write_masks(tmp_path / "a.safetensors", masks, of=root / "a")
    path = recipe(
        root, tmp_path, [str(tmp_path / "a.safetensors")], merge_method="linear", parameters={"weight": 1}
    )
    found = merged(path, tmp_path / "out")
    wanted = weights(root, "a" if value else "base")
    assert all((found[name] == wanted[name]).all() for name in SHAPES)


def test_one_mask_of_the_base_is_that_of_all_models(root, tmp_path):
    """Concrete Subspace Learning has one mask for all task vectors."""
    masks = random_masks(3)
    write_masks(tmp_path / "shared.safetensors", masks, of=root / "base")
    found = merged(
        recipe(root, tmp_path, [str(tmp_path / "shared.safetensors")] * 2), tmp_path / "out"
    )
    base, a, b = (weights(root, name) for name in ("base", "a", "b"))
    for name in SHAPES:
        start = base[name].astype(np.float64)
        wanted = start + 0.75 * masks[name] * ((a[name] - start) + (b[name] - start))
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=2e-6)


def test_masks_that_do_not_fit_are_refused(root, tmp_path):
    """By name, shape, numbers and checkpoint, when they are written and when they are read."""
    path = tmp_path / "a.safetensors"
    with pytest.raises(UsageError, match="no tensor 'x' to be masked"):
        write_masks(path, {"x": np.ones(3, np.float32)}, of=root / "a")
    with pytest.raises(UsageError, match="outside of"):
        write_masks(path, {NAMES[0]: np.full((24, 8), 1.5, np.float32)}, of=root / "a")
    with pytest.raises(UsageError, match=r"shape \[8, 24\] for a weight of shape \[24, 8\]"):
        write_masks(path, {NAMES[0]: np.ones((8, 24), np.float32)}, of=root / "a")
    write_masks(path, random_masks(1), of=root / "a")
    with pytest.raises(CompatibilityError, match="are of 'a'"):
        make_plan(load(recipe(root, tmp_path, [str(path)] * 2)))
    with pytest.raises(RecipeError, match="mask needs statistics of kind mask"):
        make_plan(load(recipe(root, tmp_path, [str(path), None])))
    from weightsmith.checkpoints import open_checkpoint

    metadata = open_checkpoint(path).metadata
    wrong = random_masks(1) | {NAMES[0]: np.full((24, 8), np.nan, np.float32)}
    save_file(wrong, tmp_path / "nan.safetensors", metadata=dict(metadata))
    with pytest.raises(CheckpointError, match="outside of"):
        merged(recipe(root, tmp_path, [str(tmp_path / "nan.safetensors")]), tmp_path / "out")
