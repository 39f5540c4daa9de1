"""Slices of layers load in transformers with no missing and no unexpected tensor, or are refused in a sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.errors import WeightsmithError

pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

Parts = list[tuple[int, int]]
# The layers from the middle left out, the last half left out, the first ones left out, some twice.
WAYS: dict[str, Parts] = {
    "drop": [(0, 2), (4, 6)],
    "prefix": [(0, 3)],
    "suffix": [(2, 6)],
    "repeat": [(0, 4), (2, 6)],
}
# More numbers than a test should write three times.
_MOST_NUMBERS = 25_000_000


def made(family: str, folder: Path) -> Any:
    """Write the smallest model of a family, and give its class."""
    from transformers import CONFIG_MAPPING

    from .tiny_models import network_class, tiny_config

    torch.manual_seed(0)
    kind = network_class(family)
    network = kind(tiny_config(CONFIG_MAPPING[family]))
    if sum(p.numel() for p in network.parameters()) > _MOST_NUMBERS:
        raise ValueError("the smallest one is large")
    network.save_pretrained(folder)
    return kind


def wrong_names(kind: Any, folder: Path) -> list[str]:
    """The tensors that a class misses in a folder, and those that it does not know."""
    _, found = kind.from_pretrained(folder, output_loading_info=True)
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return sorted(str(name) for key in kinds for name in found.get(key) or ())


def outcome(kind: Any, source: Path, out: Path, parts: Parts) -> str:
    """`loads`, `refused: SENTENCE` or what is wrong with the result."""
    slices = [{"sources": [{"model": str(source), "layer_range": list(part)}]} for part in parts]
    recipe = {"weightsmith": 1, "merge_method": "passthrough", "slices": slices}
    try:
        weightsmith.merge(recipe, out)
    except WeightsmithError as problem:
        return f"refused: {problem}"
    try:
        wrong = wrong_names(kind, out)
    except Exception as problem:  # noqa: BLE001 - whatever a library says
        return f"WRONG: {problem!r:.200}"
    return f"WRONG: {wrong[:3]}" if wrong else "loads"


def outcomes(family: str, folder: Path) -> dict[str, str]:
    """What comes of every way to slice the smallest model of a family, or why there is none."""
    try:
        kind = made(family, folder / "model")
        wrong = wrong_names(kind, folder / "model")
    except Exception as problem:  # noqa: BLE001 - whatever a library says
        return {"not made": f"{problem!r:.100}"}
    count = open_checkpoint(folder / "model").layer_count
    if wrong or count < 2:
        return {"not made": f"{count} layers, {wrong[:2]}"}
    ways = WAYS if count == 6 else {"prefix": [(0, count - 1)]}
    return {
        way: outcome(kind, folder / "model", folder / way, parts) for way, parts in ways.items()
    }


@pytest.mark.parametrize(
    ("family", "way", "expected"),
    [
        ("ernie4_5_moe", "repeat", "loads"),
        ("t5", "repeat", "loads"),
        ("dinov2", "drop", "loads"),
        ("gpt_neox_japanese", "drop", "loads"),
        ("gpt_neox_japanese", "prefix", "attention.dense_bias"),
        ("lightglue", "drop", "with one number"),
    ],
)
def test_slices_of_a_family_load_or_are_refused(
    tmp_path: Path, family: str, way: str, expected: str
) -> None:
    kind = made(family, tmp_path / "model")
    assert expected in outcome(kind, tmp_path / "model", tmp_path / "out", WAYS[way])


@pytest.mark.slow
@pytest.mark.parametrize("share", range(16))
def test_slices_of_every_family_load_or_are_refused(tmp_path: Path, share: int) -> None:
    """Writes what came of it to the folder LAYER_RESULTS, where that is set."""
    from .tiny_models import families

    results = {}
    for family in families()[share::16]:
        results[family] = outcomes(family, tmp_path / family)
        shutil.rmtree(tmp_path / family, ignore_errors=True)
    if "LAYER_RESULTS" in os.environ:
        file = Path(os.environ["LAYER_RESULTS"]) / f"{share}.json"
        file.write_text(json.dumps(results))
    wrong_ones = {
        family: found
        for family, found in results.items()
        if any(text.startswith("WRONG") for text in found.values())
    }
    assert not wrong_ones
