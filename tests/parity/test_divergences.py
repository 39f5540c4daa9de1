"""Where weightsmith differs from mergekit 0.1.5 on purpose: the rows of docs/parity.md, both sides of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import yaml

import weightsmith
from weightsmith.errors import WeightsmithError

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def ours(
    method: str,
    inputs: Sequence[torch.Tensor],
    each: dict[str, Any] | None = None,
    *,
    base: bool = True,
    **shared: Any,
) -> torch.Tensor:
    experts = inputs[1:] if base else inputs
    merged = weightsmith.merge_state_dicts(
        method,
        [{"w": x} for x in experts],
        base={"w": inputs[0]} if base else None,
        parameters=shared,
        per_expert=[each or {}] * len(experts),
        preset="mergekit",
    )
    return merged["w"]


def theirs(
    peer,
    method: str,
    inputs: Sequence[torch.Tensor],
    each: dict[str, Any] | None = None,
    *,
    base: bool = True,
    **shared: Any,
) -> torch.Tensor:
    parameters = {**shared, **(each or {})}
    return peer.api.merge_tensors(
        list(inputs), method, parameters=parameters, base_index=0 if base else None
    )


def drawn(
    count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, spread: float = 1.0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(shape, generator=generator)
    return [
        x.to(dtype)
        for x in (
            base,
            *(base + spread * torch.randn(shape, generator=generator) for _ in range(count - 1)),
        )
    ]


@pytest.mark.parametrize(
    ("method", "each", "shared"),
    [
        ("task_arithmetic", {"weight": 0.3}, {}),
        ("model_stock", None, {}),
        ("sce", None, {}),
        ("ties", {"weight": 0.7}, {}),
    ],
)
def test_half_dtypes_are_computed_in_float32_and_rounded_once(peer, method, each, shared):
    inputs = drawn(4, (64, 64), torch.bfloat16, 0.01)
    exact = theirs(peer, method, [x.double() for x in inputs], each, **shared)
    nearest = exact.bfloat16()
    wrong = [
        float((merged != nearest).double().mean())
        for merged in (
            ours(method, inputs, each, **shared),
            theirs(peer, method, inputs, each, **shared),
        )
    ]
    assert wrong[0] < 0.004 < 0.01 < wrong[1]


def test_arcee_fusion_of_near_models_is_not_decided_by_rounding(peer):
    inputs = drawn(2, (200, 300), spread=1e-3)
    exact = theirs(peer, "arcee_fusion", [x.double() for x in inputs]).float()
    assert float((ours("arcee_fusion", inputs) != exact).double().mean()) < 1e-4
    assert float((theirs(peer, "arcee_fusion", inputs) != exact).double().mean()) > 0.01


def test_equal_magnitudes_are_kept_in_the_order_of_their_index():
    base = torch.zeros(40)
    kept = ours("ties", [base, base + 1], {"weight": 1.0, "density": 0.5})
    assert kept.nonzero().flatten().tolist() == list(range(20))


def test_della_takes_rows_of_one_element_where_mergekit_stops(peer):
    inputs = drawn(2, (4, 1))
    each = {"weight": 1.0, "density": 0.5}
    with pytest.raises(RuntimeError):
        theirs(peer, "della", inputs, each)
    assert bool(ours("della", inputs, each).isfinite().all())


def test_della_ranks_along_the_last_axis_where_mergekit_takes_the_second(peer, monkeypatch):
    shape = (1, 2, 50)
    delta = torch.arange(100.0).reshape(shape) + 1
    each = {"weight": 1.0, "density": 0.5, "epsilon": 0.4}
    asked = []
    monkeypatch.setattr(torch, "bernoulli", lambda p: asked.append(p) or torch.ones_like(p))
    theirs(peer, "della", [torch.zeros(shape), delta], each)
    assert sorted(asked[0].unique().tolist()) == pytest.approx([0.1, 0.9])
    kept = ours("della", [torch.zeros(shape), delta], each, rescale=False)[
        0, 0, :10
    ].count_nonzero()
    assert int(kept) < 8  # smallest of their row: kept with probability 0.1 to 0.25


def test_an_antipode_has_no_part_in_the_karcher_mean():
    x = torch.randn(50, generator=torch.Generator().manual_seed(1)).double()
    merged = ours("karcher", [x, x, -x], base=False)
    assert torch.allclose(merged.float(), x.float(), atol=1e-5)


def test_arcee_fusion_takes_exact_quartiles_of_large_tensors(peer):
    inputs = drawn(2, (1100, 1000))
    torch.manual_seed(0)
    first = theirs(peer, "arcee_fusion", inputs)
    assert not torch.equal(first, theirs(peer, "arcee_fusion", inputs))
    merged = ours("arcee_fusion", inputs)
    assert torch.equal(merged, ours("arcee_fusion", inputs))
    assert float((merged != first).double().mean()) < 1e-3


@pytest.mark.parametrize("method", ["arcee_fusion", "ramplus_tl"])
def test_results_keep_the_dtype_of_the_inputs(peer, method):
    inputs = drawn(2, (8, 8), torch.bfloat16)
    assert theirs(peer, method, inputs).dtype is torch.float32
    assert ours(method, inputs).dtype is torch.bfloat16


def test_weights_that_cancel_are_refused_where_mergekit_gives_infinities(peer):
    inputs = drawn(2, (8,))
    merged = peer.api.merge_tensors(inputs, "linear", parameters={"weight": [1.0, -1.0]})
    assert not bool(merged.isfinite().any())
    with pytest.raises(WeightsmithError, match="sum to 0"):
        weightsmith.merge_state_dicts(
            "linear",
            [{"w": x} for x in inputs],
            per_expert=[{"weight": 1.0}, {"weight": -1.0}],
            preset="mergekit",
        )


def test_directions_that_cancel_fall_back_to_the_weighted_sum_for_any_number_of_models(peer):
    x = drawn(1, (8,))[0]
    inputs = [x, -x, x, -x]
    with pytest.raises(ValueError, match="weighted sum"):
        theirs(peer, "multislerp", inputs, {"weight": 1.0}, base=False)
    assert torch.allclose(
        ours("multislerp", inputs, {"weight": 1.0}, base=False), torch.zeros(8), atol=1e-6
    )


def test_random_masks_do_not_depend_on_what_was_drawn_before(peer):
    inputs = drawn(2, (100,))
    each = {"weight": 1.0, "density": 0.5}
    assert not torch.equal(
        theirs(peer, "dare_linear", inputs, each), theirs(peer, "dare_linear", inputs, each)
    )
    assert torch.equal(ours("dare_linear", inputs, each), ours("dare_linear", inputs, each))


def is_refused(text: str) -> bool:
    try:
        return bool(weightsmith.plan(text).errors)
    except WeightsmithError:
        return True


@pytest.mark.parametrize("mistake", ["wieght: 0.3", "density: 1.5", "weight: .nan"])
def test_mistakes_in_parameters_are_refused_where_mergekit_goes_on(planned, checkpoints, mistake):
    base, first, _ = checkpoints("llama")
    text = (
        f"merge_method: ties\nbase_model: {base}\nmodels:\n  - model: {first}\n    parameters:\n      {mistake}\n"
        "parameters:\n  weight: 0.5\ndtype: float32\n"
    )
    assert planned(text)
    assert is_refused(text)


def test_unknown_keys_are_refused_where_mergekit_ignores_them(planned, checkpoints):
    _, first, _ = checkpoints("llama")
    text = (
        f"merge_method: passthrough\nmodels:\n  - model: {first}\n    weight: 2\ndtype: float32\n"
    )
    assert planned(text)
    with pytest.raises(WeightsmithError, match="weight"):
        weightsmith.plan(text)


def test_layers_that_do_not_exist_are_found_before_the_merge(planned, checkpoints):
    _, first, _ = checkpoints("llama")
    slices = [{"sources": [{"model": first, "layer_range": [2, 6]}]}]
    text = yaml.safe_dump({"merge_method": "passthrough", "slices": slices, "dtype": "float32"})
    assert planned(text)
    assert is_refused(text)


def test_a_model_may_meet_itself_in_a_slice_of_a_native_recipe(planned, checkpoints):
    _, first, _ = checkpoints("llama")
    sources = [
        {"model": first, "layer_range": r, "parameters": {"weight": 0.5}} for r in ([0, 2], [2, 4])
    ]
    config = {"merge_method": "linear", "slices": [{"sources": sources}], "dtype": "float32"}
    with pytest.raises(ValueError, match=r"[Dd]uplicate"):
        planned(yaml.safe_dump(config))
    assert not weightsmith.plan({"weightsmith": 1, **config}).errors
