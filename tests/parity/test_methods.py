"""Every method under the mergekit preset against mergekit 0.1.5 in the same process, tensor by tensor.

mergekit runs in float64 and float32; for half dtypes it is given the same numbers in float32 and its result is rounded
once, which is what "computed in work precision" means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import weightsmith
from weightsmith.graph.backends.torch_interpreter import uniform_tile
from weightsmith.graph.random import stream_key
from weightsmith.methods.parts import registry
from weightsmith.recipes.language.dialect import PARAMETERS, without_effect

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

NAME = "model.layers.3.mlp.up_proj.weight"


@dataclass(frozen=True)
class Case:
    """A method with parameters; `each` has one value per expert. `steps` scales the allowed rounding error."""

    method: str
    base: bool
    experts: int
    shared: Mapping[str, Any] = field(default_factory=dict)
    each: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    steps: float = 16.0

    def __str__(self) -> str:
        given = [f"{k}={v}" for k, v in {**self.shared, **self.each}.items()]
        return "-".join(
            [self.method, f"{self.experts}{'+base' if self.base else ''}", *given]
        ).replace(" ", "")


def weights(*numbers: float) -> dict[str, Sequence[float]]:
    return {"weight": numbers}


W2, W3 = weights(1.0, 0.5), weights(1.0, 0.5, 0.7)
CASES = [
    Case("linear", False, 1, each=weights(0.3)),
    Case("linear", False, 3, each=weights(0.2, 0.5, -0.1)),
    Case("linear", False, 2, {"normalize": False}, weights(0.2, 0.5)),
    Case("slerp", True, 1, {"t": 0.3}),
    Case("slerp", True, 1, {"t": 0.8}),
    Case("slerp", True, 1, {"t": 1.2}),
    Case("nuslerp", False, 2, each=weights(0.3, 1.0)),
    Case("nuslerp", True, 2, each=weights(0.3, 1.0), steps=64),
    Case("nuslerp", True, 2, {"nuslerp_flatten": False}, weights(1.0, 1.0), steps=64),
    Case(
        "nuslerp",
        False,
        2,
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        weights(1.0, 0.4),
        steps=256,
    ),
    Case("nuslerp", False, 2, each=weights(1.0, -1.0)),
    Case("multislerp", False, 1, each=weights(0.4)),
    Case("multislerp", False, 3, each=weights(0.3, 1.0, 0.2)),
    Case("multislerp", True, 3, {"normalize_weights": False}, weights(0.3, 1.0, 0.2)),
    Case("multislerp", True, 2, {"eps": 3e-8}, weights(0.5, 0.5), steps=64),
    Case("karcher", False, 1),
    Case("karcher", False, 3, steps=256),
    Case("karcher", False, 4, {"max_iter": 2}, steps=256),
    Case("karcher", False, 3, {"max_iter": 50, "tol": 1e-3}, steps=256),
    Case("passthrough", False, 1),
    Case("passthrough", False, 1, each={"scale": (1.5,)}),
    Case("model_stock", True, 2),
    Case("model_stock", True, 4),
    Case("model_stock", True, 4, {"filter_wise": True}, steps=64),
    Case("nearswap", True, 1, {"t": 0.01}),
    Case("nearswap", True, 1, {"t": 1.0}),
    Case("arcee_fusion", True, 1),
    Case("task_arithmetic", True, 3, {"lambda": 0.4}, weights(1.0, 0.5, -0.7)),
    Case("task_arithmetic", True, 2, {"normalize": True}, W2),
    Case("ties", True, 3, {}, {**W3, "density": (0.4, 0.4, 0.9)}),
    Case(
        "ties",
        True,
        3,
        {"rescale": True, "lambda": 1.1},
        {**weights(1.0, 0.5, -0.7), "density": (0.3,) * 3},
        steps=64,
    ),
    Case("ties", True, 2, {"normalize": False, "int8_mask": True}, {**W2, "density": (0.001, 0.5)}),
    Case("ties", True, 2, {}, {**W2, "density": (0.0, 1.0)}),
    Case("dare_ties", True, 3, {}, W3),
    Case("dare_linear", True, 3, {"normalize": True}, W3),
    Case("breadcrumbs", True, 2, {}, {**W2, "density": (0.5, 0.5), "gamma": (0.2, 0.01)}),
    Case(
        "breadcrumbs",
        True,
        2,
        {"rescale": True},
        {**W2, "density": (0.9, 0.9), "gamma": (0.2, 0.2)},
        steps=64,
    ),
    Case("breadcrumbs_ties", True, 3, {}, {**W3, "density": (0.5,) * 3}),
    Case("breadcrumbs_ties", True, 2, {"normalize": True}, {**W2, "density": (0.5, 0.7)}),
    Case("della", True, 3, {}, W3),
    Case("della_linear", True, 3, {}, {**W3, "density": (0.0,) * 3}),
    Case("sce", True, 3),
    Case("sce", True, 3, {"select_topk": 0.3}),
    Case("ram", True, 3, {"epsilon": 0.05}),
    Case("ramplus_tl", True, 3, {"epsilon": 0.05, "r": 0.5, "alpha": 2.0}),
]
SHAPES = [(), (1,), (7,), (6, 5), (4, 1), (3, 4, 5)]
# Angles and divergences of models that are 1e-4 apart drown in float32's rounding, mergekit's as ours.
SPREADS = (1.0, 1e-2, 1e-4)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def drawn(
    count: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    spread: float,
    *,
    strided: bool = False,
    ties: bool = False,
) -> list[torch.Tensor]:
    """Base and experts whose differences have distinct magnitudes, or with `ties` any: mergekit sorts ties anyhow."""
    stored = tuple(reversed(shape)) if strided else shape
    for seed in range(2000):
        generator = torch.Generator().manual_seed(seed)
        base = torch.randn(stored, generator=generator, dtype=torch.float64)
        noise = [
            spread * torch.randn(stored, generator=generator, dtype=torch.float64)
            for _ in range(count - 1)
        ]
        inputs = [x.to(dtype) for x in (base, *(base + n for n in noise))]
        deltas = [(x.double() - inputs[0].double()).abs().flatten() for x in inputs[1:]]
        if ties or all(len(d.unique()) == len(d) for d in deltas):
            return [x.permute(*reversed(range(x.dim()))) for x in inputs] if strided else inputs
    raise AssertionError("no inputs without ties were found")


def ours(case: Case, inputs: Sequence[torch.Tensor], preset: str = "mergekit") -> torch.Tensor:
    """The merge without the parameters that the dialect knows to change nothing, which mergekit is given."""
    experts = inputs[1:] if case.base else inputs
    shared = {
        key: value
        for key, value in case.shared.items()
        if without_effect(key, [case.method]) is None
    }
    merged = weightsmith.merge_state_dicts(
        case.method,
        [{NAME: x} for x in experts],
        base={NAME: inputs[0]} if case.base else None,
        parameters=shared,
        per_expert=[
            {key: numbers[i] for key, numbers in case.each.items()} for i in range(len(experts))
        ],
        preset=preset,
    )
    return merged[NAME]


def theirs(peer, case: Case, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    parameters = {**case.shared, **{key: list(numbers) for key, numbers in case.each.items()}}
    return peer.api.merge_tensors(
        list(inputs),
        case.method,
        parameters=parameters,
        base_index=0 if case.base else None,
        name=NAME,
    )


def unit_in_the_last_place(x: torch.Tensor) -> torch.Tensor:
    info = torch.finfo(x.dtype)
    exponent = torch.floor(torch.log2(x.double().abs().clamp(min=info.tiny)))
    return info.eps * 2.0**exponent


def assert_close(
    found: torch.Tensor, expected: torch.Tensor, inputs: Sequence[torch.Tensor], steps: float
) -> None:
    """`expected` is in float32 or float64; a half dtype may differ by one rounding step more."""
    assert found.shape == expected.shape
    scale = torch.stack([x.double().abs() for x in (*inputs, expected)]).amax(0)
    limit = steps * torch.finfo(expected.dtype).eps * scale
    if found.dtype is not expected.dtype:
        rounded = expected.to(found.dtype)
        limit = limit + unit_in_the_last_place(rounded)
        expected = rounded
    error = (found.double() - expected.double()).abs()
    assert bool((error <= limit).all()), (
        f"worst error {float((error / limit).max()):.3g} times the limit"
    )


SELECTING = {"ties", "breadcrumbs", "breadcrumbs_ties", "sce", "della", "della_linear"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_mergekit_preset_gives_mergekits_numbers(peer, case, dtype):
    half = dtype in (torch.bfloat16, torch.float16)
    selecting = case.method in SELECTING
    spreads = (
        SPREADS if dtype is torch.float64 else SPREADS[:1] if half and selecting else SPREADS[:2]
    )
    for shape in SHAPES:
        if case.method == "karcher" and math.prod(shape) == 1:
            continue  # one-element tensors of opposite sign are antipodes, which have no mean (docs/parity.md)
        for spread in spreads:
            inputs = drawn(case.experts + case.base, shape, dtype, spread, ties=not selecting)
            expected = theirs(peer, case, [x.float() if half else x for x in inputs])
            assert_close(ours(case, inputs), expected, inputs, case.steps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_strided_inputs_give_mergekits_numbers(peer, case, dtype):
    inputs = drawn(
        case.experts + case.base,
        (6, 5),
        dtype,
        1.0,
        strided=True,
        ties=case.method not in SELECTING,
    )
    assert not inputs[0].is_contiguous()
    expected = theirs(peer, case, [x.float() if dtype.itemsize == 2 else x for x in inputs])
    assert_close(ours(case, inputs), expected, inputs, case.steps)


def test_every_method_of_mergekit_is_here_with_its_parameters_and_defaults(peer):
    specs = {method.spec.name: method.spec for method in peer.merge_methods.registered_methods()}
    assert set(specs) <= set(registry.names())
    for name, spec in specs.items():
        mine = registry.get(name)
        defaults = mine.defaults("mergekit")
        for parameter in spec.parameters:
            where = f"{name}: {parameter.name}"
            assert parameter.name in PARAMETERS[name], where
            if without_effect(parameter.name, [name]) is not None:
                assert parameter.name not in mine.parameters, where
                continue
            assert parameter.name in mine.parameters, where
            declared = mine.parameters[parameter.name]
            assert declared.per_expert is (parameter.scope.value != "shared"), where
            if parameter.required:
                assert defaults[parameter.name] is registry.REQUIRED, where
                continue
            # A choice that mergekit writes as true or false means what its switch says.
            assert declared.check(defaults[parameter.name], where) == declared.check(
                parameter.default, where, "mergekit"
            )


# Random methods --------------------------------------------------------------------------------------------------

RANDOM_CASES = [
    Case("dare_ties", True, 3, {}, {**W3, "density": (0.4, 0.4, 0.9)}, steps=64),
    Case(
        "dare_ties",
        True,
        3,
        {"rescale": False, "normalize": True},
        {**W3, "density": (0.4, 0.4, 0.9)},
    ),
    Case("dare_linear", True, 2, {"lambda": 0.7}, {**W2, "density": (0.3, 0.3)}, steps=64),
    Case(
        "della", True, 3, {}, {**W3, "density": (0.5,) * 3, "epsilon": (0.15, 0.3, 0.1)}, steps=64
    ),
    Case(
        "della_linear",
        True,
        2,
        {"rescale": False},
        {**W2, "density": (0.5, 0.4), "epsilon": (0.15, 0.15)},
    ),
]


@pytest.fixture
def same_numbers(monkeypatch) -> None:
    """Let mergekit's masks come from the random numbers that weightsmith draws for the same expert."""
    expert = iter(range(100))

    def bernoulli(probabilities: torch.Tensor) -> torch.Tensor:
        key = stream_key(0, f"expert-{next(expert)}", NAME)
        noise = uniform_tile(key, 0, probabilities.numel(), probabilities.device).reshape(
            probabilities.shape
        )
        return (noise < probabilities).to(probabilities.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)


@pytest.mark.usefixtures("same_numbers")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(40,), (5, 8)], ids=str)
@pytest.mark.parametrize("case", RANDOM_CASES, ids=str)
def test_random_methods_agree_when_both_draw_the_same_numbers(peer, case, shape, dtype):
    inputs = drawn(case.experts + 1, shape, dtype, 1.0, ties=case.method not in SELECTING)
    assert_close(
        ours(case, inputs), theirs(peer, case, [x.float() for x in inputs]), inputs, case.steps
    )


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_methods_keep_the_same_share_and_restore_the_same_norm(peer, method):
    case = Case(method, True, 1, {"normalize": False}, {"weight": (1.0,), "density": (0.4,)})
    torch.manual_seed(5)
    inputs = drawn(2, (500, 400), torch.float32, 1.0, ties=True)
    before = (inputs[1] - inputs[0]).double().abs().sum()
    for merged in (ours(case, inputs), theirs(peer, case, inputs)):
        delta = (merged.double() - inputs[0].double()).abs()
        kept = (delta > 1e-6).double().mean()
        assert abs(float(kept) - 0.4) < 5 * (0.24 / 200_000) ** 0.5
        assert abs(float(delta.sum() / before) - 1) < 1e-5
