"""Task bundles: made by the engine, opened as checkpoints, exact where the papers say so, refused where damaged."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.checkpoints.formats.bundles import read_bundle_header
from weightsmith.checkpoints.opening import open_task
from weightsmith.errors import CheckpointError, OutputError, RecipeError, WeightsmithError
from weightsmith.progress import Silence
from weightsmith.tensors.digests import digest_tensor


def shapes(family) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in family.base.items()}


def read(tensor) -> np.ndarray:
    kinds = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "int64": np.int64}
    out = bytearray(tensor.nbytes)
    tensor.read_into(0, tensor.numel, memoryview(out))
    return np.frombuffer(out, kinds[str(tensor.dtype)]).reshape(tensor.shape)


def member(folder: Path, task: str) -> dict[str, np.ndarray]:
    return {n: read(t) for n, t in open_checkpoint(f"{folder}#{task}").tensors.items()}


def bundle(family, method, count, name="bundle", form=None, **keys) -> Path:
    out = family.root / name
    weightsmith.merge(family.recipe(method, count, bundle=form or {}, **keys), out, threads=2)
    return out


@pytest.mark.parametrize("base", ["stored", "reference"])
@pytest.mark.parametrize("method", ["tall_masks", "emr", "localize_and_stitch"])
@pytest.mark.parametrize("parameters", [{}, "ties"])
def test_members_are_bit_for_bit_what_the_method_gives(family, method, base, parameters):
    family.random(3)
    given = {"vector": "ties", "density": 0.5} if parameters == "ties" else {}
    if method == "emr":
        given = {"rescale": "mean"} if parameters == "ties" else {}
    if method == "localize_and_stitch":
        given = {"density": 0.4, "exclude": "norm"} if parameters == "ties" else {"lambda": 0.8}
    out = bundle(family, method, 3, form={"base": base}, parameters=given)
    for task in (1, 3):
        direct = family.root / f"direct{task}"
        recipe = family.recipe(method, 3, parameters={**given, "task": str(task)})
        weightsmith.merge(recipe, direct)
        wanted = load_file(direct / "model.safetensors")
        for name, array in member(out, f"e{task}").items():
            np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    assert weightsmith.verify(out, recompute=100).ok


def test_a_bundle_that_torch_wrote_has_the_rescalers_of_the_native_one_and_verifies(family):
    """A rescaler is a number of the whole model: the pass that writes it alone has no input to read."""
    family.random(3)
    outs = {}
    for backend in ("auto", "torch"):
        out = outs[backend] = family.root / backend
        weightsmith.merge(family.recipe("emr", 3, bundle={}), out, backend=backend)
        assert weightsmith.verify(out, recompute=100).ok
    native, torch = (load_file(out / "model.safetensors") for out in outs.values())
    scales = [name for name in native if "::scale::" in name]
    assert scales
    for name in scales:
        np.testing.assert_allclose(torch[name], native[name], rtol=1e-6)


def test_disjoint_tasks_are_rebuilt_exactly_by_tall_masks(family):
    # Dyadic numbers, so that base + (expert - base) is the expert; each element belongs to one task.
    family.base = {n: np.round(b * 64) / 64 for n, b in family.base.items()}
    shutil.rmtree(family.root / "base")
    family.write("base", family.base)
    rng = np.random.default_rng(2)
    owner = {n: rng.integers(0, 4, size=s) for n, s in shapes(family).items()}

    def change(i, name, b):
        return b + (owner[name] == i) * np.round(rng.normal(size=b.shape) * 64) / 64

    experts = family.experts(4, change)
    out = bundle(family, "tall_masks", 4)
    for i, expert in enumerate(experts):
        for name, array in member(out, str(i + 1)).items():
            np.testing.assert_array_equal(array, expert[name])


@pytest.mark.parametrize("method", ["tall_masks", "emr"])
def test_one_expert_is_rebuilt_exactly(family, method):
    family.base = {n: np.round(b * 64) / 64 for n, b in family.base.items()}
    shutil.rmtree(family.root / "base")
    family.write("base", family.base)
    rng = np.random.default_rng(2)
    (expert,) = family.experts(
        1, lambda _i, _n, b: b + np.round(rng.normal(size=b.shape) * 64) / 64
    )
    for name, array in member(bundle(family, method, 1), "e1").items():
        np.testing.assert_array_equal(array, expert[name])


def test_identical_experts_are_rebuilt_exactly_by_emr(family):
    family.base = {n: np.round(b * 64) / 64 for n, b in family.base.items()}
    shutil.rmtree(family.root / "base")
    family.write("base", family.base)
    moved = {
        n: np.round(np.random.default_rng(3).normal(size=s) * 64) / 64
        for n, s in shapes(family).items()
    }
    experts = family.experts(3, lambda _i, n, b: b + moved[n])
    out = bundle(family, "emr", 3)
    for task in ("e1", "e2", "e3"):
        for name, array in member(out, task).items():
            np.testing.assert_array_equal(array, experts[0][name])


def test_emr_members_have_the_l1_norm_of_their_experts(family):
    experts = family.random(4)
    out = bundle(family, "emr", 4)
    for i, expert in enumerate(experts):
        rebuilt = member(out, f"e{i + 1}")
        norms = [
            sum(np.abs(m[n].astype(np.float64) - b).sum() for n, b in family.base.items())
            for m in (rebuilt, expert)
        ]
        np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)


def test_members_of_localize_and_stitch_have_their_own_region_and_averages_where_regions_overlap(
    family,
):
    experts = family.random(2)
    out = bundle(family, "localize_and_stitch", 2, parameters={"density": 0.5})
    deltas = [{n: (e[n] - b).astype(np.float32) for n, b in family.base.items()} for e in experts]
    flat = [np.concatenate([d[n].ravel() for n in family.base]) for d in deltas]
    cuts = [np.sort(np.abs(f))[f.size - f.size // 2] for f in flat]
    for task, other in ((0, 1), (1, 0)):
        rebuilt = member(out, f"e{task + 1}")
        for name, base in family.base.items():
            own, theirs = (np.abs(deltas[t][name]) >= cuts[t] for t in (task, other))
            shared = (deltas[task][name] + deltas[other][name]) / np.float32(2)
            change = np.where(theirs, shared, deltas[task][name])
            np.testing.assert_array_equal(rebuilt[name], np.where(own, base + change, base))
    whole = family.root / "whole"
    weightsmith.merge(family.recipe("localize_and_stitch", 2, parameters={"density": 0.5}), whole)
    stitched = load_file(whole / "model.safetensors")
    for name, base in family.base.items():
        masks = [np.abs(d[name]) >= cut for d, cut in zip(deltas, cuts, strict=True)]
        outside = ~(masks[0] | masks[1])
        np.testing.assert_array_equal(stitched[name][outside], base[outside])


@pytest.mark.parametrize("count", [1, 8])
def test_a_bundle_takes_64_plus_n_bits_per_weight(family, count):
    shutil.rmtree(family.root / "base")
    family.base = {"w": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)}
    family.write("base", family.base)
    family.random(count)
    out = bundle(family, "tall_masks", count)
    numel = 64 * 64
    stored = sum(a.nbytes for a in load_file(out / "model.safetensors").values())
    assert stored * 8 == numel * (64 + count)
    experts = [
        load_file(family.root / n / "model.safetensors")
        for n in ("base", *(f"e{i + 1}" for i in range(count)))
    ]
    assert sum(t["w"].nbytes for t in experts) * 8 == numel * 32 * (count + 1)


def test_masks_lie_packed_on_disk_with_the_sizes_of_tensors_that_are_no_multiple_of_8(family):
    experts = family.random(2)
    out = bundle(family, "tall_masks", 2, parameters={"mask_lambda": 0.5})
    stored = load_file(out / "model.safetensors")
    for name, shape in shapes(family).items():
        n = int(np.prod(shape))
        deltas = [(e[name] - family.base[name]).astype(np.float32) for e in experts]
        together = deltas[0] + deltas[1]
        np.testing.assert_array_equal(stored[f"{name}::shared"], together)
        for t, delta in enumerate(deltas, start=1):
            packed = stored[f"{name}::mask::{t}"]
            assert packed.dtype == np.uint8
            assert packed.shape == (-(-n // 8),)
            mask = np.abs(delta) > np.abs(together - delta) * np.float32(0.5)
            expected = np.packbits(mask.reshape(-1), bitorder="little")
            np.testing.assert_array_equal(packed, expected)


def test_a_member_is_an_input_of_any_recipe_with_its_own_manifest(family):
    family.random(2)
    out = bundle(family, "emr", 2)
    merged = family.root / "merged"
    weightsmith.merge(
        {
            "merge_method": "linear",
            "models": [
                {"model": f"{out}#e1", "parameters": {"weight": 0.5}},
                {"model": f"{out}#2", "parameters": {"weight": 0.5}},
            ],
        },
        merged,
    )
    first, second = member(out, "1"), member(out, "e2")
    for name, array in load_file(merged / "model.safetensors").items():
        np.testing.assert_allclose(array, (first[name] + second[name]) / 2, rtol=1e-6)
    assert weightsmith.verify(merged, recompute=3).ok
    weightsmith.replay(merged, family.root / "again")
    assert json.loads((merged / "config.json").read_text())["torch_dtype"] == "float32"


def test_bundles_replay_and_hold_no_time(family):
    family.random(2)
    out = bundle(family, "emr", 2)
    weightsmith.replay(out, family.root / "again")
    for name in ("model.safetensors", "weightsmith-bundle.json"):
        assert (out / name).read_bytes() == (family.root / "again" / name).read_bytes()


class Stops(Silence):
    """A progress that ends the run after some bytes."""

    def __init__(self, after: int) -> None:
        self._left = after

    def begin(self, name, total=None, unit="", *, done=0, share=1):
        self.resumed = done
        return self

    def advance(self, nbytes, what):
        self._left -= nbytes
        if self._left < 0:
            raise RuntimeError("stopped")


def test_an_interrupted_bundle_goes_on_and_gives_the_same_bytes(family):
    family.random(3)
    whole = bundle(family, "emr", 3)
    out = family.root / "late"
    recipe = family.recipe("emr", 3, bundle={})
    with pytest.raises(RuntimeError, match="stopped"):
        weightsmith.merge(recipe, out, threads=1, progress=Stops(1500))
    assert not out.exists()
    resumed = Stops(10**9)
    weightsmith.merge(recipe, out, threads=1, progress=resumed)
    assert resumed.resumed > 0
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_integers_are_carried_over(family):
    shutil.rmtree(family.root / "base")
    family.write("base", {**family.base, "steps": np.arange(3)})
    rng = np.random.default_rng(0)
    for i in (1, 2):
        moved = {
            n: (b + rng.normal(size=b.shape)).astype(np.float32) for n, b in family.base.items()
        }
        family.write(f"e{i}", {**moved, "steps": np.arange(3) + i})
    for form in ("stored", "reference"):
        out = bundle(family, "emr", 2, name=form, form={"base": form})
        np.testing.assert_array_equal(member(out, "e2")["steps"], np.arange(3))


def test_the_base_is_refused_where_it_is_another_one(family):
    family.random(2)
    out = bundle(family, "tall_masks", 2, form={"base": "reference"})
    changed = {n: b + np.float32(n == "model.norm.weight") for n, b in family.base.items()}
    save_file(changed, family.root / "base" / "model.safetensors", metadata={"format": "pt"})
    target = family.root / "taken-out"
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{out}#e1"}]}
    with pytest.raises(CheckpointError, match="give the base") as raised:
        weightsmith.merge(recipe, target)
    assert "model.norm.weight" in str(raised.value)
    assert not target.exists()


def test_a_moved_base_is_found_where_it_is_said_to_be(family):
    family.random(2)
    out = bundle(family, "tall_masks", 2, form={"base": "reference"})
    wanted = member(out, "e1")
    (family.root / "base").rename(family.root / "elsewhere")
    with pytest.raises(CheckpointError, match="--base"):
        open_checkpoint(f"{out}#e1")
    found = open_task(out, "e1", base=family.root / "elsewhere")
    for name, tensor in found.tensors.items():
        np.testing.assert_array_equal(read(tensor), wanted[name])


@pytest.mark.parametrize("part", ["shared", "mask::1", "scale::1", "base"])
def test_a_flipped_bit_in_any_part_is_found_before_anything_is_written(family, part):
    family.random(2)
    out = bundle(family, "emr", 2)
    name = "model.embed_tokens.weight"
    full = name if part == "base" else f"{name}::{part}"
    tensors = load_file(out / "model.safetensors")
    header_length = int.from_bytes((out / "model.safetensors").read_bytes()[:8], "little")
    header = json.loads((out / "model.safetensors").read_bytes()[8 : 8 + header_length])
    data = bytearray((out / "model.safetensors").read_bytes())
    data[8 + header_length + header[full]["data_offsets"][0]] ^= 1
    (out / "model.safetensors").write_bytes(data)
    assert full in tensors
    target = family.root / "taken-out"
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{out}#e1"}]}
    with pytest.raises(CheckpointError, match="damaged"):
        weightsmith.merge(recipe, target)
    assert not target.exists()
    assert not weightsmith.verify(out).ok


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_bundle_is_refused(family, keep):
    family.random(2)
    out = bundle(family, "emr", 2)
    data = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError):
        open_checkpoint(f"{out}#e1")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda h: h.update(schema=2), "schema"),
        (lambda h: h.pop("tasks"), "not a bundle's header"),
        (lambda h: h.update(tasks=[]), "not a bundle's header"),
        (lambda h: h["tensors"]["model.norm.weight"].update(dtype="int3"), "not a bundle's header"),
        (lambda h: h["tensors"]["model.norm.weight"]["digests"].pop("shared"), "missing"),
        (lambda h: h["tensors"].update(other=h["tensors"]["model.norm.weight"]), "missing"),
        (lambda h: h.update(tensors=3), "not a bundle's header"),
        (lambda h: h.update(method={"a": 1}), "its 'method' is no text"),
        (lambda h: h["base"].update(digest=5), "its 'digest' is no text"),
        (lambda h: h["base"].update(places=[{}]), "a place of its base is no text"),
        (
            lambda h: h["tensors"]["model.norm.weight"]["digests"].update(base={"a": 1}),
            "its 'digests' is no object of texts",
        ),
    ],
)
def test_a_damaged_header_is_told_in_a_sentence(family, change, match):
    family.random(1)
    out = bundle(family, "tall_masks", 1)
    header = json.loads((out / "weightsmith-bundle.json").read_text())
    change(header)
    (out / "weightsmith-bundle.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(f"{out}#e1")


def test_parts_of_another_size_are_refused(family):
    family.random(1)
    out = bundle(family, "tall_masks", 1)
    tensors = load_file(out / "model.safetensors")
    name = "model.embed_tokens.weight::mask::1"
    tensors[name] = np.concatenate([tensors[name], np.zeros(1, np.uint8)])
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="another form"):
        open_checkpoint(f"{out}#e1")


def test_what_is_no_member_is_told(family):
    family.random(2)
    out = bundle(family, "tall_masks", 2)
    with pytest.raises(CheckpointError, match=r"no task 'e9'.*'e1', 'e2'"):
        open_checkpoint(f"{out}#e9")
    with pytest.raises(CheckpointError, match="bundle of the tasks e1, e2"):
        open_checkpoint(out)
    with pytest.raises(CheckpointError, match="No checkpoint"):
        open_checkpoint(f"{family.root}/nowhere#e1")
    header = read_bundle_header(out)
    assert [task.label for task in header.tasks] == ["e1", "e2"]
    assert header.stores_base


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"merge_method": "task_arithmetic"}, "tall_masks, emr or localize_and_stitch"),
        ({"then": ["lines"]}, "then"),
        ({"assert": [{"finite": True}]}, "assert"),
        ({"parameters": {"part": "mask"}}, "leave the parameter"),
    ],
)
def test_recipes_that_cannot_be_bundled_are_refused(family, keys, match):
    family.random(2)
    recipe = {**family.recipe("emr", 2, bundle={}), **keys}
    with pytest.raises((RecipeError, WeightsmithError), match=match):
        weightsmith.plan(recipe)


def test_making_and_reading_a_bundle_takes_memory_that_does_not_depend_on_its_size(family):
    shutil.rmtree(family.root / "base")
    big = np.random.default_rng(0).normal(size=(6_000_001,)).astype(np.float32)
    family.base = {"w": big}
    family.write("base", family.base)
    family.experts(2, lambda i, _n, b: b + np.float32(0.01 * (i + 1)))
    recipe = family.recipe("emr", 2, bundle={})
    budget = 48 * 2**20
    tracemalloc.start()
    try:
        weightsmith.merge(recipe, family.root / "big", threads=1, memory_bytes=budget)
        made = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        take = {"merge_method": "passthrough", "models": [{"model": f"{family.root}/big#e1"}]}
        weightsmith.merge(take, family.root / "out", threads=1, memory_bytes=budget)
        read_back = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(made, read_back) < big.nbytes
    first = load_file(family.root / "out" / "model.safetensors")["w"]
    assert np.abs(first - big).max() < 0.05


def test_the_base_that_a_bundle_refers_to_is_an_input_of_its_tasks(family):
    family.random(2)
    out = bundle(family, "emr", 2, form={"base": "reference"})
    copy = {
        "weightsmith": 1,
        "merge_method": "passthrough",
        "models": [{"model": f"{out}#e1"}],
    }
    with pytest.raises(OutputError, match="is also an input"):
        weightsmith.merge(copy, family.root / "base", force=True)
    made = weightsmith.merge(copy, family.root / "copied")
    (base,) = made.inputs["bundle#e1"].behind
    assert base.path == "../base"
    digests = {
        n: digest_tensor(t) for n, t in open_checkpoint(family.root / "base").tensors.items()
    }
    assert base.tensors == digests


def test_a_bundle_that_stores_its_base_needs_no_other_checkpoint(family):
    family.random(2)
    opened = open_checkpoint(f"{bundle(family, 'emr', 2)}#e1")
    assert opened.inputs == (family.root / "bundle",)
