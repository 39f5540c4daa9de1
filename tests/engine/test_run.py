"""A merge on disk gives what the formula gives in memory, the same bytes however it is run, and a whole folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import weightsmith
from weightsmith.engine.planning import plan_making as plans
from weightsmith.engine.running.run import run
from weightsmith.errors import NonFiniteError, OutputError, RecipeError
from weightsmith.graph.backends import native
from weightsmith.methods.parts import registry

from .conftest import Family

METHODS = [
    "linear",
    "slerp",
    "task_arithmetic",
    "ties",
    "dare_ties",
    "model_stock",
    "karcher",
    "della",
    "sce",
    "breadcrumbs",
]
BACKENDS = ["torch", *(["native"] if native.available() else [])]
Weights = Callable[[Path], dict[str, bytes]]


def experts_of(method: str) -> int:
    """How many experts to give a method."""
    return registry.get(method).experts[1] or 3


def parameters_of(method: str) -> dict[str, float]:
    """Values for parameters that have no default."""
    return {"t": 0.3} if method in ("slerp", "nearswap") else {}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_merge_on_disk_equals_the_same_merge_in_memory(
    family: Family, method: str, backend: str
) -> None:
    """Tiles, passes and files change nothing: the result is the formula's, rounded once."""
    recipe = family.recipe(
        method, experts=experts_of(method), parameters=parameters_of(method), seed=7
    )
    weightsmith.merge(recipe, family.root / "out", backend=backend, threads=2)
    experts = [family.tensors(f"e{i + 1}") for i in range(experts_of(method))]
    base = family.tensors("base") if "base_model" in recipe else None
    labels = [f"e{i + 1}" for i in range(len(experts))]
    expected = weightsmith.merge_state_dicts(
        method, experts, base=base, parameters=parameters_of(method), seed=7, labels=labels
    )
    merged = family.tensors("out")
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        assert tensor.dtype is torch.bfloat16
        different = (tensor != expected[name]).sum().item()
        # A float64 sum in another order may move a coefficient by an ulp, and so a value across a rounding border.
        assert different <= tensor.numel() * 1e-4, f"{name}: {different} of {tensor.numel()} differ"


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "della", "slerp", "model_stock"])
def test_threads_tiles_and_memory_do_not_change_a_bit(
    family: Family, weights_of: Weights, method: str
) -> None:
    """The bytes depend on recipe and inputs alone."""
    recipe = family.recipe(method, experts=experts_of(method), parameters=parameters_of(method))
    results = []
    for threads in (1, 2, 4):
        for tile in (1, 1 << 18, 1 << 20):
            planned = plans.make_plan(weightsmith.Recipe.load(recipe), threads=threads)
            planned = replace(planned, tile_elements=tile)
            out = family.root / f"out-{threads}-{tile}"
            run(planned, out)
            results.append(weights_of(out))
    assert all(result == results[0] for result in results)


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
@pytest.mark.parametrize(
    "method", ["linear", "task_arithmetic", "ties", "dare_ties", "della", "breadcrumbs"]
)
def test_both_backends_write_the_same_bytes(
    family: Family, weights_of: Weights, method: str
) -> None:
    """For methods without sums over a tensor the backends agree bit for bit."""
    for backend in ("native", "torch"):
        weightsmith.merge(family.recipe(method), family.root / backend, backend=backend)
    assert weights_of(family.root / "native") == weights_of(family.root / "torch")


def test_the_hash_seed_does_not_change_a_bit(family: Family) -> None:
    """Nothing iterates over a set where order matters: whole folders are equal, manifest and card included."""
    recipe = family.root / "recipe.yaml"
    recipe.write_text(weightsmith.Recipe.load(family.recipe("ties", shard_size="400KB")).dump())
    folders = []
    for seed in ("0", "1"):
        out = family.root / f"seed-{seed}" / "merged"
        out.parent.mkdir()
        code = f"import weightsmith; weightsmith.merge({str(recipe)!r}, {str(out)!r})"
        subprocess.run(
            [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        folders.append({p.name: p.read_bytes() for p in sorted(out.iterdir())})
    assert folders[0] == folders[1]
    assert "model.safetensors.index.json" in folders[0]


def test_the_output_is_a_checkpoint_with_its_papers(family: Family) -> None:
    """Config, card, recipe and manifest are there, and nothing else beside the weights."""
    (family.root / "base" / "tokenizer.json").write_bytes(b'{"version": "1.0"}')
    out = family.root / "out"
    weightsmith.merge(family.recipe("ties"), out)
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "weightsmith-manifest.json",
        "weightsmith-recipe.yaml",
    ]
    assert (out / "tokenizer.json").read_bytes() == b'{"version": "1.0"}'
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert not (family.root / "out.partial").exists()
    manifest = json.loads((out / "weightsmith-manifest.json").read_text())
    assert len(manifest["outputs"]) == len(family.tensors("base"))
    assert all(
        len(i["tensors"]) == len(family.tensors("base")) for i in manifest["inputs"].values()
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_in_an_input_names_tensor_count_and_place_and_leaves_no_output(
    family: Family, bad: float
) -> None:
    """Also where sign election would have hidden it."""
    from safetensors.torch import save_file

    tensors = family.tensors("e2")
    tensors["model.layers.1.mlp.up_proj.weight"][7, 5] = bad
    save_file(tensors, family.root / "e2" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"up_proj.*1 NaN or infinite.*element 677"):
        weightsmith.merge(family.recipe("ties"), family.root / "out")
    assert not (family.root / "out").exists()
    weightsmith.merge(family.recipe("ties", nonfinite="propagate"), family.root / "out", fresh=True)


def test_an_overflow_of_the_output_dtype_is_an_error(family: Family) -> None:
    """Finite inputs whose combination does not fit into the output dtype."""
    recipe = family.recipe(
        "linear", per_expert={"weight": 1e7}, parameters={"normalize": False}, dtype="float16"
    )
    with pytest.raises(NonFiniteError, match="overflows float16"):
        weightsmith.merge(recipe, family.root / "out")


def test_outputs_that_would_harm_are_refused(family: Family) -> None:
    """An existing folder, an input, a place inside or around an input, a link, a missing parent."""
    recipe = family.recipe("linear")
    out = family.root / "out"
    weightsmith.merge(recipe, out)
    with pytest.raises(OutputError, match="exists"):
        weightsmith.merge(recipe, out)
    weightsmith.merge(recipe, out, force=True)
    for place in (family.root / "e1", family.root / "e1" / "inside", family.root):
        with pytest.raises(OutputError, match="input"):
            weightsmith.merge(recipe, place, force=True)
    (family.root / "foreign").mkdir()
    (family.root / "foreign" / "precious.txt").write_text("keep")
    with pytest.raises(OutputError, match="not written by weightsmith"):
        weightsmith.merge(recipe, family.root / "foreign", force=True)
    (family.root / "link").symlink_to(family.root / "foreign")
    with pytest.raises(OutputError, match="symbolic link"):
        weightsmith.merge(recipe, family.root / "link", force=True)
    with pytest.raises(OutputError, match="does not exist"):
        weightsmith.merge(recipe, family.root / "no" / "where")
    assert (family.root / "foreign" / "precious.txt").read_text() == "keep"


def test_inputs_that_are_read_only_are_enough(family: Family) -> None:
    """Nothing is written to an input, not even for a moment."""
    before = {p: p.stat().st_mtime_ns for p in family.root.rglob("*")}
    for name in ("base", "e1", "e2", "e3"):
        os.chmod(family.root / name, 0o555)
    weightsmith.merge(family.recipe("ties"), family.root / "out")
    for name in ("base", "e1", "e2", "e3"):
        os.chmod(family.root / name, 0o755)
    assert all(p.stat().st_mtime_ns == time for p, time in before.items() if p != family.root)


def test_a_plan_with_errors_does_not_run(family: Family) -> None:
    """Every error is in the message."""
    from safetensors.torch import save_file

    tensors = family.tensors("e1")
    tensors["model.norm.weight"] = torch.zeros(97, dtype=torch.bfloat16)
    save_file(tensors, family.root / "e1" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"model\.norm\.weight"):
        weightsmith.merge(family.recipe("linear"), family.root / "out")


def test_a_tensor_with_matrix_and_model_methods_runs_streamed(family: Family) -> None:
    """A rank-truncated TIES with layer-wise scaling: matrix kind, model kind and measured kind in one graph."""
    recipe = family.recipe(
        "ties", then=[{"truncate": {"rank": 4}}, {"lines": {"alpha": 0.5, "beta": 0.5}}]
    )
    weightsmith.merge(recipe, family.root / "out")
    name = "model.layers.1.mlp.up_proj.weight"
    delta = family.tensors("out")[name].double() - family.tensors("base")[name].double()
    singular = torch.linalg.svdvals(delta)
    # What lies beyond rank 4 is the rounding to bfloat16 alone.
    assert singular[3] > 5 * singular[4]


@pytest.mark.parametrize(
    ("method", "memory_bytes", "advice"),
    [
        ("linear", 2**20, "the program itself takes"),
        ("linear", 43 * 10**6, "or use fewer threads"),
        ("tsv_m", 60 * 10**6, "a method that needs no whole rows or matrices"),
    ],
)
def test_advice_on_memory_is_about_what_takes_it(
    family: Family, method: str, memory_bytes: int, advice: str
) -> None:
    planned = weightsmith.plan(
        family.recipe(method), memory_bytes=memory_bytes, threads=16, backend=BACKENDS[-1]
    )
    (finding,) = [f for f in planned.findings if f.code == "memory"]
    assert advice in finding.fix
    assert "tokenizers" not in finding.fix


def test_what_a_method_refuses_is_said_once_and_not_for_every_kind_of_tensor(
    family: Family,
) -> None:
    """The sentence of some methods has the tensor's name within it."""
    planned = weightsmith.plan(family.recipe("della", parameters={"density": 0.05, "epsilon": 0.1}))
    assert [finding.code for finding in planned.errors] == ["method"]
    assert "keep probabilities" in planned.errors[0].message


def test_a_plan_of_no_tensors_says_what_is_wrong_however_small_the_memory(family: Family) -> None:
    """Where every tensor lacks a parameter there is nothing to compute, and no largest tensor."""
    recipe = family.recipe("slerp", experts=1)
    planned = weightsmith.plan(recipe, memory_bytes=2**20)
    assert not planned.tensors
    assert {finding.code for finding in planned.errors} == {"missing-parameter"}
