"""Matrix methods on disk: the same as in memory, for any threads; continual merges that go on from a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import weightsmith
from weightsmith.checkpoints.formats import merge_state
from weightsmith.engine.running.scratch import Scratch
from weightsmith.errors import CheckpointError, CompatibilityError, RecipeError
from weightsmith.graph.backends import native
from weightsmith.tensors.dtypes import DType

from .conftest import Family

METHODS = ["tsv_m", "iso_c", "iso_cts", "resm", "opcm", "knots", "doge", "truncate", "svc"]
BACKENDS = ["torch", *(["native"] if native.available() else [])]
Weights = Callable[[Path], dict[str, bytes]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_spectral_merge_on_disk_equals_the_same_merge_in_memory(
    family: Family, method: str, backend: str
) -> None:
    """Matrices are collected from tiles, seen whole once, and streamed on; model-wide norms and cuts among them."""
    parameters = {"embeddings": "spectral"}
    recipe = family.recipe(method, parameters=parameters)
    weightsmith.merge(recipe, family.root / "out", backend=backend, threads=2)
    experts = [family.tensors(f"e{i}") for i in (1, 2, 3)]
    expected = weightsmith.merge_state_dicts(
        method, experts, base=family.tensors("base"), parameters=parameters
    )
    merged = family.tensors("out")
    for name, tensor in merged.items():
        different = (tensor != expected[name]).sum().item()
        assert different <= tensor.numel() * 1e-3, f"{name}: {different} of {tensor.numel()} differ"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["tsv_m", "opcm", "knots"])
def test_threads_do_not_change_a_bit_of_a_spectral_merge(
    family: Family, weights_of: Weights, method: str, backend: str
) -> None:
    """Linear algebra runs on one thread per worker, so the number of workers is no matter."""
    results = []
    for threads in (1, 2, 4):
        out = family.root / f"out-{threads}"
        weightsmith.merge(family.recipe(method), out, threads=threads, backend=backend)
        results.append(weights_of(out))
    assert all(result == results[0] for result in results)


def test_statistics_of_matrix_results_leave_nothing_on_disk(family: Family) -> None:
    """The scratch file has no name, so neither the output nor the folder beside it shows it."""
    out = family.root / "merged" / "out"
    out.parent.mkdir()
    weightsmith.merge(family.recipe("opcm"), out)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "weightsmith-manifest.json",
        "weightsmith-recipe.yaml",
        "weightsmith-state.json",
    ]


def test_the_scratch_file_gives_back_what_was_put(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    arrays = [np.arange(12, dtype=np.float32) + i for i in range(3)]
    put = scratch.put(
        "key", "tensor", DType.FLOAT32, (3, 4), [a.view(np.uint8).data for a in arrays]
    )
    assert scratch.get("key") == put
    assert scratch.get("other") is None
    for array, stored in zip(arrays, put, strict=True):
        buffer = bytearray(20)
        stored.read_into(4, 9, memoryview(buffer))
        assert np.frombuffer(buffer, np.float32).tolist() == array[4:9].tolist()


# OPCM, folded in steps -----------------------------------------------------------------------------------------


def steps(family: Family, dtype: str = "float32") -> dict[str, torch.Tensor]:
    """e1 and e2 merged to `first`, then e3 folded into it."""
    two = family.recipe("opcm", experts=2, dtype=dtype)
    weightsmith.merge(two, family.root / "first")
    third = family.recipe("opcm", experts=1, dtype=dtype, parameters={"previous": True})
    third["models"] = [
        {"model": str(family.root / "first")},
        {"model": str(family.root / "e3")},
    ]
    weightsmith.merge(third, family.root / "second")
    return family.tensors("second")


def test_a_continual_merge_in_steps_equals_the_merge_at_once(family: Family) -> None:
    """The state in the folder is all that is needed of the experts that are gone."""
    in_steps = steps(family)
    weightsmith.merge(family.recipe("opcm", dtype="float32"), family.root / "once")
    for name, tensor in family.tensors("once").items():
        torch.testing.assert_close(in_steps[name], tensor, rtol=0, atol=2e-7)
    base = family.tensors("base")
    lengths = []
    for member in ("e1", "e2", "e3", "second"):
        tensors = family.tensors(member)
        square = sum(float(((tensors[k].double() - base[k].double()) ** 2).sum()) for k in base)
        lengths.append(square**0.5)
    assert lengths[3] == pytest.approx(sum(lengths[:3]) / 3, rel=1e-5)
    state = merge_state.read_state(family.root / "second", "opcm").numbers
    assert state["previous_count"] == 3
    assert state["previous_norm"] == pytest.approx(lengths[3], rel=1e-5)
    assert 1.0 < state["previous_lambda"] < 3**0.5 + 1e-3


def test_the_state_is_part_of_the_record(family: Family) -> None:
    """A changed state file is found by verify, as any other file of the folder."""
    steps(family)
    manifest = json.loads((family.root / "second" / "weightsmith-manifest.json").read_text())
    assert merge_state.FILE_NAME in manifest["files"]


def test_a_folder_without_state_cannot_be_continued(family: Family) -> None:
    recipe = family.recipe("opcm", experts=2, parameters={"previous": True})
    with pytest.raises((CheckpointError, RecipeError), match="can be continued"):
        weightsmith.merge(recipe, family.root / "out")


def test_a_state_of_another_method_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / merge_state.FILE_NAME
    path.write_bytes(merge_state.MergeState("other", {"previous_count": 2.0}, {}).to_json())
    with pytest.raises(CheckpointError, match="cannot continue"):
        merge_state.read_state(tmp_path, "opcm")
    empty = '"method": "opcm", "rules": [], "tensors": {}'
    for text in (
        b"{",
        b"[]",
        b'{"format": 2, %s, "state": {"a": NaN}}' % empty.encode(),
        b'{"format": 3, %s, "state": {}}' % empty.encode(),
        b'{"format": 2, "method": "opcm", "state": {}, "rules": [], "tensors": {"a": {"base": []}}}',
    ):
        path.write_bytes(text)
        with pytest.raises(CheckpointError, match="damaged"):
            merge_state.read_state(tmp_path, "opcm")


def test_a_state_of_an_earlier_version_is_not_called_damaged(tmp_path: Path) -> None:
    """It has the numbers, which may be given, and not what they are of."""
    state = b'{"format": 1, "method": "opcm", "state": {"previous_count": 2.0}}'
    (tmp_path / merge_state.FILE_NAME).write_bytes(state)
    with pytest.raises(CheckpointError, match=r"an earlier version.* or give previous_count"):
        merge_state.read_state(tmp_path, "opcm")


@pytest.mark.parametrize("rule", [{"others": "average"}, {"embeddings": "average"}])
def test_averages_are_continued_exactly(family: Family, rule: dict[str, str]) -> None:
    """The first model counts as often as it has experts."""
    rest = [str(family.root / f"e{i}") for i in (2, 3)]
    for start, out in (("e1", "first"), ("first", "second")):
        recipe = family.recipe("opcm", dtype="float64", parameters=dict(rule))
        recipe["models"] = [{"model": str(family.root / start)}, {"model": rest.pop(0)}]
        if start == "first":
            recipe["parameters"]["previous"] = True
        weightsmith.merge(recipe, family.root / out)
    once = family.recipe("opcm", dtype="float64", parameters=rule)
    weightsmith.merge(once, family.root / "once")
    in_steps = family.tensors("second")
    for name, tensor in family.tensors("once").items():
        torch.testing.assert_close(in_steps[name], tensor, rtol=0, atol=2e-7)


def continued(family: Family, **parameters: object) -> dict[str, object]:
    """A recipe that goes on with `first`, which is e1 and e2."""
    weightsmith.merge(family.recipe("opcm", experts=2), family.root / "first")
    recipe = family.recipe("opcm", parameters={"previous": True} | parameters)
    recipe["models"] = [{"model": str(family.root / name)} for name in ("first", "e3")]
    return recipe


def test_a_merge_is_not_continued_on_another_base(family: Family) -> None:
    recipe = continued(family) | {"base_model": str(family.root / "e2")}
    with pytest.raises(
        CompatibilityError, match=r"e2/model\.safetensors' is not the base that opcm"
    ):
        weightsmith.merge(recipe, family.root / "out")
    assert not (family.root / "out").exists()


def test_a_merge_that_was_changed_is_not_continued(family: Family) -> None:
    from safetensors.torch import save_file

    recipe = continued(family)
    tensors = family.tensors("first")
    tensors["model.norm.weight"][3] += 1.0
    save_file(tensors, family.root / "first" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CompatibilityError, match=r"'model\.norm\.weight'.*not what opcm wrote there"
    ):
        weightsmith.merge(recipe, family.root / "out")
    state = merge_state.read_state(family.root / "first", "opcm").numbers
    taken = recipe | {"parameters": {**state, "previous_lambda": 1.25, "previous": True}}
    weightsmith.merge(taken, family.root / "as it is")


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("others", "average"),
        ("embeddings", "average"),
        ("exempt", "head"),
        ("rank_tolerance", 0.25),
        ("alpha", 0.25),
    ],
)
def test_a_merge_is_not_continued_by_other_rules(family: Family, key: str, other: object) -> None:
    """Before anything is read."""
    with pytest.raises(CompatibilityError, match=f"with {key} {other!r}, but that was merged with"):
        weightsmith.plan(continued(family, **{key: other}))


def test_tensors_that_another_method_merged_are_not_continued(family: Family) -> None:
    rules = [{"match": {"role": "head"}, "merge_method": "linear"}]
    weightsmith.merge(family.recipe("opcm", experts=2, rules=rules), family.root / "mixed")
    recipe = family.recipe("opcm", parameters={"previous": True})
    recipe["models"] = [{"model": str(family.root / name)} for name in ("mixed", "e3")]
    with pytest.raises(CompatibilityError, match=r"'lm_head\.weight'.*not merged by opcm"):
        weightsmith.plan(recipe)
    weightsmith.merge(recipe | {"rules": rules}, family.root / "out")


def test_what_a_recipe_makes_has_no_state_to_go_on_with(family: Family) -> None:
    recipe = family.recipe("opcm", parameters={"previous": True})
    recipe["models"] = [{"model": family.recipe("opcm", experts=2)}, recipe["models"][2]]
    with pytest.raises(RecipeError, match="which a recipe makes"):
        weightsmith.plan(recipe)


# Storage orders ------------------------------------------------------------------------------------------------


def conv1d_family(root: Path) -> None:
    """GPT-2's names and shapes: projections stored as (inputs, outputs)."""
    from safetensors.torch import save_file

    shapes = {
        "wte.weight": (40, 8),
        "h.0.attn.c_attn.weight": (8, 24),
        "h.0.attn.c_proj.weight": (8, 8),
        "h.0.mlp.c_fc.weight": (8, 32),
        "h.0.mlp.c_proj.weight": (32, 8),
        "h.1.attn.c_attn.weight": (8, 24),
        "h.1.attn.c_proj.weight": (8, 8),
        "h.1.mlp.c_fc.weight": (8, 32),
        "h.1.mlp.c_proj.weight": (32, 8),
    }
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "e1", "e2"):
        (root / name).mkdir()
        tensors = {k: torch.randn(s, generator=generator) for k, s in shapes.items()}
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})


def test_weights_stored_input_first_are_merged_as_their_transposes(tmp_path: Path) -> None:
    """Iso-CTS tells left from right, so orientation shows; it is found without any setting."""
    from safetensors.torch import load_file

    conv1d_family(tmp_path)
    recipe = {
        "weightsmith": 1,
        "merge_method": "iso_cts",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / name)} for name in ("e1", "e2")],
        "parameters": {"common_share": 0.5},
    }
    weightsmith.merge(recipe, tmp_path / "out")
    base, first, second, merged = (
        load_file(tmp_path / name / "model.safetensors") for name in ("base", "e1", "e2", "out")
    )
    key = "h.1.mlp.c_fc.weight"
    expected = weightsmith.merge_state_dicts(
        "iso_cts",
        [{key: t[key].T.contiguous()} for t in (first, second)],
        base={key: base[key].T.contiguous()},
        parameters={"common_share": 0.5},
    )[key].T
    torch.testing.assert_close(merged[key], expected, rtol=0, atol=1e-5)
    as_stored = weightsmith.merge_state_dicts(
        "iso_cts",
        [{key: t[key]} for t in (first, second)],
        base={key: base[key]},
        parameters={"common_share": 0.5},
    )[key]
    assert (merged[key] - as_stored).abs().max() > 1e-2


# Merges of merges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_over_a_merged_model_run_over_its_matrices_and_vectors_together(
    family: Family, backend: str
) -> None:
    """Matrices and vectors of the inner merge come about differently, and are one model for the outer trim."""
    inner = family.recipe("tsv_m")
    del inner["weightsmith"], inner["dtype"]
    outer = {
        "weightsmith": 1,
        "merge_method": "ties",
        "base_model": str(family.root / "base"),
        "models": [{"model": inner, "parameters": {"density": 0.1}}],
        "dtype": "float32",
    }
    weightsmith.merge(outer, family.root / "out", backend=backend)
    weightsmith.merge(family.recipe("tsv_m", dtype="float32"), family.root / "inner")
    base, merged, whole = (family.tensors(name) for name in ("base", "out", "inner"))
    changes = {name: (whole[name] - base[name].float()).abs() for name in base}
    every = torch.cat([c.flatten() for c in changes.values()])
    threshold = every.sort(descending=True).values[int(0.1 * every.numel()) - 1]
    for name, tensor in merged.items():
        kept = changes[name] > threshold * 1.001
        dropped = changes[name] < threshold * 0.999
        torch.testing.assert_close(tensor[kept], whole[name][kept], rtol=0, atol=1e-6)
        assert torch.equal(tensor[dropped], base[name].float()[dropped])


def test_a_continual_merge_can_be_computed_again_and_compared(family: Family) -> None:
    """Verification recomputes tensors with the norms of the whole model and the carried state."""
    from weightsmith.engine.records.verify import verify_output

    steps(family)
    checked = verify_output(family.root / "second", recompute=3)
    assert checked.ok, checked
