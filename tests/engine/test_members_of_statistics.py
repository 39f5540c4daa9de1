"""Who takes part in a statistic of the whole model: every tensor of the merge, once, in any file and any order."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.errors import UsageError
from weightsmith.graph.graph import Scope, source, total

Tensors = dict[str, torch.Tensor]


def drawn(seed: int, base: Tensors | None = None, dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (20, 8), "logit_scale": (1,), "model.norm.weight": (8,)}
    for layer in range(4):
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = (16, 8)
    size = 0.3 if base is None else 0.05
    found = {n: torch.randn(s, generator=generator) * size for n, s in shapes.items()}
    return {n: (t if base is None else base[n].float() + t).to(dtype) for n, t in found.items()}


def stored(folder: Path, tensors: Tensors, order: list[str] | None = None) -> str:
    """A folder with the tensors' bytes in an order of choice."""
    folder.mkdir(parents=True)
    header: dict[str, Any] = {}
    body = b""
    for name in order or list(tensors):
        data = tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes()
        dtype = {torch.float32: "F32", torch.bfloat16: "BF16"}[tensors[name].dtype]
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": offsets}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    return str(folder)


def merged(out: Path, recipe: dict[str, Any]) -> Tensors:
    weightsmith.merge({"weightsmith": 1, **recipe}, out, threads=1)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("method", ["ties", "localize_and_stitch", "pcb", "consensus"])
def test_files_in_another_order_give_the_same_tensors_and_replay(
    tmp_path: Path, method: str
) -> None:
    """Changes of one grid, so that many magnitudes are equal at the threshold."""
    base = drawn(0, dtype=torch.bfloat16)
    states = {"base": base, **{f"e{i}": drawn(i, base, torch.bfloat16) for i in (1, 2)}}
    parameters = {"masks": "magnitude"} if method == "consensus" else {}

    def recipe(root: Path) -> dict[str, Any]:
        models = [{"model": str(root / name)} for name in ("e1", "e2")]
        return {
            "merge_method": method,
            "base_model": str(root / "base"),
            "models": models,
            "parameters": parameters,
        }

    for name, tensors in states.items():
        stored(tmp_path / "a" / name, tensors)
    first = merged(tmp_path / "first", recipe(tmp_path / "a"))
    for name, tensors in states.items():
        (tmp_path / "a" / name / "model.safetensors").unlink()
        (tmp_path / "a" / name).rmdir()
        stored(tmp_path / "a" / name, tensors, sorted(tensors, reverse=True))
    second = merged(tmp_path / "second", recipe(tmp_path / "a"))
    assert all(first[name].equal(tensor) for name, tensor in second.items())
    weightsmith.replay(tmp_path / "first", tmp_path / "again")


@pytest.mark.parametrize("method", ["ties", "pcb", "emr", "opcm", "localize_and_stitch", "knots"])
def test_a_tied_head_counts_once_in_memory_as_in_files(tmp_path: Path, method: str) -> None:
    base = drawn(0)
    experts = [drawn(i, base) for i in (1, 2, 3)]
    names = [stored(tmp_path / f"m{i}", tensors) for i, tensors in enumerate([base, *experts])]
    models = [{"model": name} for name in names[1:]]
    on_disk = merged(
        tmp_path / "out", {"merge_method": method, "base_model": names[0], "models": models}
    )

    def tied(tensors: Tensors) -> Tensors:
        # The head comes first, and the embedding is its leader all the same.
        return {"lm_head.weight": tensors["model.embed_tokens.weight"], **tensors}

    found = weightsmith.merge_state_dicts(method, [tied(e) for e in experts], base=tied(base))
    assert found["lm_head.weight"].equal(found["model.embed_tokens.weight"])
    for name, tensor in on_disk.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-6)


def test_heads_that_only_some_models_tie_are_tensors_of_their_own() -> None:
    base = drawn(0)
    base["lm_head.weight"] = base["model.embed_tokens.weight"]
    expert = drawn(1, base | {"lm_head.weight": base["lm_head.weight"]})
    expert["lm_head.weight"] = expert["model.embed_tokens.weight"] + 1.0
    found = weightsmith.merge_state_dicts("linear", [base, expert])
    wanted = (base["lm_head.weight"] + expert["lm_head.weight"]) / 2
    torch.testing.assert_close(found["lm_head.weight"], wanted)


def test_gradients_of_tied_tensors_reach_the_one_tensor() -> None:
    base = torch.zeros(3)
    expert = torch.ones(3, requires_grad=True)
    found = weightsmith.merge_state_dicts(
        "task_arithmetic",
        [{"a": expert, "b": expert}],
        base={"a": base, "b": base},
        parameters={"lambda": 0.5},
    )
    (found["a"].sum() + 2 * found["b"].sum()).backward()
    assert expert.grad is not None
    assert expert.grad.tolist() == [1.5, 1.5, 1.5]


def test_rescalers_of_means_count_tensors_of_one_element() -> None:
    """lambda_t = sum_n mean|tau_t,n| / sum_n mean|M_t,n tau_uni,n| over all tensors, in float64."""
    base = {n: t.double() for n, t in drawn(0).items()}
    experts = [{n: t.double() for n, t in drawn(i, drawn(0)).items()} for i in (1, 2)]
    deltas = [{n: e[n] - base[n] for n in base} for e in experts]
    shared = {}
    for name in base:
        a, b = (d[name] for d in deltas)
        sign = torch.where(a + b > 0, 1.0, -1.0)
        agreeing = [torch.where(d.sign() == sign, d.abs(), 0.0) for d in (a, b)]
        shared[name] = sign * torch.maximum(*agreeing)
    for task in (0, 1):
        masks = {n: deltas[task][n] * shared[n] > 0 for n in base}
        own = sum(float(deltas[task][n].abs().mean()) for n in base)
        rebuilt = sum(float((masks[n] * shared[n]).abs().mean()) for n in base)
        found = weightsmith.merge_state_dicts(
            "emr", experts, base=base, preset="reference", parameters={"task": str(task + 1)}
        )
        for name in base:
            kept = torch.where(masks[name], shared[name], 0.0)
            wanted = base[name] + own / rebuilt * kept
            torch.testing.assert_close(found[name], wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("last", [1.0, 0.9999])
def test_alpha_of_lines_counts_layers_whose_weight_is_one(tmp_path: Path, last: float) -> None:
    """alpha = (||sum_i tau_i||_1 / ||tau_M||_1) / N, here with tau_M = sum_i w_i tau_i and w along the depth."""
    base = drawn(0)
    experts = [drawn(i, base) for i in (1, 2)]
    names = [stored(tmp_path / f"m{i}", tensors) for i, tensors in enumerate([base, *experts])]
    models = [{"model": n, "parameters": {"weight": [0.5, last]}} for n in names[1:]]
    found = merged(
        tmp_path / "out", {"merge_method": "lines", "base_model": names[0], "models": models}
    )
    before = after = 0.0
    for name in base:
        taus = sum((e[name] - base[name]).double() for e in experts)
        weight = 0.5
        if "layers" in name:
            weight = 0.5 + (last - 0.5) * int(name.split(".")[2]) / 3
        before += float(taus.abs().sum())
        after += float((weight * taus).abs().sum())
    alpha = before / after / 2
    name = "model.embed_tokens.weight"
    tau = sum((e[name] - base[name]).double() for e in experts) * 0.5
    moved = found[name].double() - base[name].double()
    assert float((moved * tau).sum() / (tau * tau).sum()) == pytest.approx(alpha, rel=1e-6)


def test_the_order_of_equal_magnitudes_is_a_choice(tmp_path: Path) -> None:
    base = {f"model.layers.{i}.w.weight": torch.zeros(2, 5) for i in range(2)}
    expert = {name: torch.ones(2, 5) for name in base}
    order = sorted(base, reverse=True)
    names = [stored(tmp_path / n, t, order) for n, t in (("base", base), ("expert", expert))]
    kept = {}
    for rule in ("hash", "index", "file"):
        recipe = {
            "merge_method": "ties",
            "base_model": names[0],
            "models": [{"model": names[1]}],
            "parameters": {"density": 0.6},
            "equal_magnitudes": rule,
        }
        found = merged(tmp_path / rule, recipe)
        kept[rule] = [int(found[name].sum()) for name in base]
        in_memory = weightsmith.merge_state_dicts(
            "ties",
            [{n: expert[n] for n in order}],
            base={n: base[n] for n in order},
            parameters={"density": 0.6},
            equal_magnitudes=rule,
        )
        assert all(in_memory[name].equal(found[name]) for name in base)
    assert kept["index"] == [10, 2]
    assert kept["file"] == [2, 10]
    assert sum(kept["hash"]) == 12


def test_an_unknown_order_of_equal_magnitudes_is_refused() -> None:
    states = [drawn(1)]
    with pytest.raises(UsageError, match="equal_magnitudes is one of 'hash', 'index', 'file'"):
        weightsmith.merge_state_dicts("linear", states, equal_magnitudes="name")


def test_a_reduction_over_the_model_needs_a_name() -> None:
    with pytest.raises(UsageError, match="needs a name"):
        total(source(0), Scope.MODEL)


def test_saved_files_of_this_test_are_read_by_safetensors(tmp_path: Path) -> None:
    tensors = drawn(0, dtype=torch.bfloat16)
    stored(tmp_path / "own", tensors, sorted(tensors))
    save_file(tensors, tmp_path / "theirs.safetensors")
    own = load_file(tmp_path / "own" / "model.safetensors")
    theirs = load_file(tmp_path / "theirs.safetensors")
    assert all(own[name].equal(tensor) for name, tensor in theirs.items())
