"""`replay` makes the same bytes again from the record, wherever the folders are now, or nothing at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

import weightsmith
from weightsmith.errors import RecipeError, VerificationError, WeightsmithError

from .conftest import Family
from .interrupted import bytes_of

Weights = Callable[[Path], dict[str, bytes]]


@pytest.mark.parametrize(
    ("method", "experts"),
    [("linear", 3), ("ties", 3), ("dare_ties", 3), ("della", 3), ("model_stock", 3)],
)
def test_a_replay_has_the_same_bytes(
    family: Family, weights_of: Weights, method: str, experts: int
) -> None:
    """Also where masks are drawn at random; the replay's own record replays again."""
    recipe = family.recipe(method, experts=experts, seed=11, shard_size=500_000)
    first = weightsmith.merge(recipe, family.root / "out")
    second = weightsmith.replay(family.root / "out", family.root / "again", threads=3)
    third = weightsmith.replay(family.root / "again", family.root / "once-more")
    assert (
        weights_of(family.root / "out")
        == weights_of(family.root / "again")
        == weights_of(family.root / "once-more")
    )
    assert first.digest == second.digest == third.digest
    assert first.inputs == second.inputs == third.inputs
    assert bytes_of(family.root / "out").keys() == bytes_of(family.root / "again").keys()


def test_a_tree_that_moved_together_replays(
    family: Family, weights_of: Weights, tmp_path: Path
) -> None:
    """Inputs are looked for where they lay seen from the output; absolute paths of the recipe are of the past."""
    weightsmith.merge(family.recipe("dare_ties"), family.root / "out")
    before = weights_of(family.root / "out")
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("base", "e1", "e2", "e3", "out"):
        shutil.move(family.root / name, moved / name)
    weightsmith.replay(moved / "out", moved / "new")
    assert weights_of(moved / "new") == before
    assert weightsmith.verify(moved / "out", recompute=5).ok


def test_a_recipe_with_relative_paths_replays_from_any_working_directory(
    family: Family, weights_of: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they were meant from the working directory or from the recipe's folder."""
    recipe = {
        "weightsmith": 1,
        "merge_method": "dare_ties",
        "base_model": "base",
        "models": [{"model": "./e1"}, {"model": "e2"}],
        "dtype": "bfloat16",
    }
    (family.root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    elsewhere = family.root / "elsewhere"
    elsewhere.mkdir()
    for number, folder in enumerate((family.root, elsewhere)):
        monkeypatch.chdir(folder)
        weightsmith.merge(family.root / "recipe.yaml", family.root / f"out-{number}")
        monkeypatch.chdir("/")
        weightsmith.replay(family.root / f"out-{number}", family.root / f"new-{number}")
        assert weights_of(family.root / f"new-{number}") == weights_of(family.root / "out-0")


def test_an_output_reached_through_a_link_replays(
    family: Family, weights_of: Weights, tmp_path: Path
) -> None:
    """The way from the output to its inputs is that of the real folders."""
    real = tmp_path / "disk" / "deep" / "er"
    real.mkdir(parents=True)
    (family.root / "link").symlink_to(real)
    weightsmith.merge(family.recipe("linear"), family.root / "link" / "out")
    weightsmith.replay(family.root / "link" / "out", family.root / "new")
    assert weights_of(family.root / "new") == weights_of(real / "out")


@pytest.mark.parametrize("method", ["dare_ties", "della"])
def test_inputs_may_be_named_anew(
    family: Family, weights_of: Weights, tmp_path: Path, method: str
) -> None:
    """Another place and another folder name give the same bytes, drawn masks included."""
    recipe = family.recipe(method)
    weightsmith.merge(recipe, family.root / "out")
    renamed = {}
    for name in ("base", "e1", "e2", "e3"):
        new = tmp_path / "store" / f"blob-{name}"
        new.parent.mkdir(exist_ok=True)
        shutil.move(family.root / name, new)
        renamed[str(family.root / name)] = new
    weightsmith.replay(family.root / "out", family.root / "new", inputs=renamed)
    assert weights_of(family.root / "new") == weights_of(family.root / "out")
    found = weightsmith.verify(family.root / "out", recompute=9, inputs=renamed)
    assert found.problems == ()


def test_an_input_that_is_not_on_record_cannot_be_named(family: Family) -> None:
    """The sentence lists those that can."""
    weightsmith.merge(family.recipe("linear"), family.root / "out")
    with pytest.raises(VerificationError, match=r"has no input 'e9'; it has .*e1"):
        weightsmith.replay(
            family.root / "out", family.root / "new", inputs={"e9": family.root / "e1"}
        )


def test_an_override_that_does_not_exist_is_not_passed_over(family: Family) -> None:
    """Falling back to the input on record would answer another question than was asked."""
    weightsmith.merge(family.recipe("linear"), family.root / "out")
    with pytest.raises(WeightsmithError, match="nowhere"):
        weightsmith.replay(
            family.root / "out",
            family.root / "new",
            inputs={str(family.root / "e1"): Path("/nowhere")},
        )


def test_a_changed_input_is_refused_and_nothing_is_sealed(family: Family) -> None:
    """One bit of one expert."""
    weightsmith.merge(family.recipe("linear"), family.root / "out")
    file = family.root / "e2" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 64
    file.write_bytes(data)
    with pytest.raises(
        VerificationError, match=r"differs from the record in 1 of 9 tensors.*No output was made"
    ):
        weightsmith.replay(family.root / "out", family.root / "new")
    assert not (family.root / "new").exists()


def test_an_input_of_another_shape_is_refused(family: Family) -> None:
    """Before anything is computed."""
    weightsmith.merge(family.recipe("linear"), family.root / "out")
    tensors = family.tensors("e2")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:7].contiguous()
    save_file(tensors, family.root / "e2" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match="lm_head"):
        weightsmith.replay(family.root / "out", family.root / "new")


def test_a_damaged_record_is_not_replayed(family: Family) -> None:
    """A changed weight in the recipe on record would make another model."""
    weightsmith.merge(family.recipe("linear", per_expert={"weight": 0.25}), family.root / "out")
    path = family.root / "out" / "weightsmith-manifest.json"
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.75"))
    with pytest.raises(VerificationError, match="damaged"):
        weightsmith.replay(family.root / "out", family.root / "new")


@pytest.mark.parametrize("place", ["out", "base", "e1/inside"])
def test_a_replay_does_not_write_over_what_it_reads(family: Family, place: str) -> None:
    """The folder it replays from, an input, inside an input."""
    weightsmith.merge(family.recipe("linear"), family.root / "out")
    with pytest.raises(WeightsmithError):
        weightsmith.replay(family.root / "out", family.root / place)


def test_what_is_on_record_does_not_depend_on_where_the_output_lies(
    family: Family, tmp_path: Path
) -> None:
    """Two outputs side by side have the same record, so their folders can be compared byte for byte."""
    recipe: dict[str, Any] = family.recipe("linear")
    for place in ("one", "two"):
        weightsmith.merge(recipe, tmp_path / place)
    one, two = (bytes_of(tmp_path / place) for place in ("one", "two"))
    assert {n for n in one if one[n] != two[n]} <= {"README.md", "weightsmith-manifest.json"}
    assert weightsmith.verify(tmp_path / "two", recompute=2).ok
