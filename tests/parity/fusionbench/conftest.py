"""FusionBench 0.2.33 and the models that both implementations merge; its import takes a dozen seconds and warns."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import weightsmith

State = dict[str, torch.Tensor]
MODULES = {
    "average": "simple_average",
    "weighted": "weighted_average.weighted_average",
    "arithmetic": "task_arithmetic.task_arithmetic",
    "ties": "ties_merging.ties_merging",
    "ties_functions": "ties_merging.ties_merging_utils",
    "dare": "dare",
    "dare_functions": "dare.utils",
    "magmax": "magmax.magmax",
    "slerp": "slerp.slerp",
    "stock": "model_stock.model_stock",
    "expo": "linear.expo",
    "interpolation": "linear.linear_interpolation",
    "tsv": "task_singular_vector.utils.TSVM_utils",
    "tsv_c": "task_singular_vector.utils.TSVC_utils",
    "iso": "isotropic_merging.iso_utils",
    "opcm": "opcm.opcm_general",
    "doge": "doge_ta.doge_ta",
    "wudi": "wudi.wudi",
    "knots": "knots.knots_utils",
    "emr": "emr_merging.utils",
    "tall": "tall_mask.task_arithmetic",
    "tall_functions": "tall_mask.utils",
    "regmean": "regmean.regmean",
    "fisher": "fisher_merging.fisher_merging",
    "svc": "singular_value_calibration",
    "svc_functions": "singular_value_calibration.utils",
}


@pytest.fixture(scope="session")
def bench() -> SimpleNamespace:
    """The modules of FusionBench that hold its algorithms."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(
            "fusion_bench", reason="FusionBench's environment is another one (make parity)"
        )
        found = importlib.metadata.version("fusion-bench")
        if found != "0.2.33":
            pytest.skip(f"the rules pinned here are those of FusionBench 0.2.33, not {found}")
        loaded: dict[str, Any] = {
            name: importlib.import_module(f"fusion_bench.method.{path}")
            for name, path in MODULES.items()
        }
        loaded["Pool"] = importlib.import_module("fusion_bench").BaseModelPool
        loaded["Fabric"] = importlib.import_module("lightning").Fabric
    return SimpleNamespace(**loaded)


class Small(nn.Module):
    """Linear maps with and without bias, taller and wider than long, a norm and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8, bias=False))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 9)


def made(seed: int, dtype: torch.dtype = torch.float64) -> Small:
    """A model with weights of its own, norms included."""
    generator = torch.Generator().manual_seed(seed)
    model = Small().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn * 0.3)
    return model


class Family:
    """A base and experts near it, as modules for the one implementation and as state dicts for the other."""

    def __init__(self, experts: int, dtype: torch.dtype = torch.float64, spread: float = 0.1):
        self.base = made(0, dtype)
        self.experts = [made(0, dtype) for _ in range(experts)]
        for number, expert in enumerate(self.experts, start=1):
            other = made(number, dtype)
            with torch.no_grad():
                pairs = zip(expert.parameters(), other.parameters(), strict=True)
                for parameter, drawn in pairs:
                    parameter.add_(drawn * spread * number)

    @property
    def base_state(self) -> State:
        return state(self.base)

    @property
    def states(self) -> list[State]:
        return [state(expert) for expert in self.experts]

    @property
    def deltas(self) -> list[State]:
        """The task vectors, new tensors in each call, since some of FusionBench's functions write on them."""
        base = self.base_state
        return [{n: own[n] - base[n] for n in base} for own in self.states]

    def pool(self, bench: SimpleNamespace) -> Any:
        """A pool of copies, since FusionBench writes on the models of a pool."""
        return bench.Pool({"_pretrained_": copied(self.base), **self.named()})

    def named(self) -> dict[str, Small]:
        return {f"expert{i}": copied(expert) for i, expert in enumerate(self.experts)}

    def ours(self, method: str, **options: Any) -> State:
        """weightsmith's result; `only` takes some of the tensors."""
        only: Callable[[str], bool] = options.pop("only", lambda _: True)
        base = options.pop("base", True)

        def chosen(given: State) -> State:
            return {n: tensor for n, tensor in given.items() if only(n)}

        return weightsmith.merge_state_dicts(
            method,
            [chosen(s) for s in self.states],
            base=chosen(self.base_state) if base else None,
            **options,
        )

    def added(self, delta: State) -> State:
        """The base plus a task vector."""
        return {name: tensor + delta[name] for name, tensor in self.base_state.items()}


def copied(model: Small) -> Small:
    other = Small().to(next(model.parameters()).dtype)
    other.load_state_dict(model.state_dict())
    return other


def state(model: Any) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_close(found: State, expected: Any, limit: float = 1e-12) -> None:
    """`limit` is relative to the largest weight: 1e-12 is a few hundred rounding steps of float64."""
    expected = expected if isinstance(expected, dict) else state(expected)
    assert set(found) == set(expected)
    for name, tensor in found.items():
        error = (tensor.double() - expected[name].detach().double()).abs().max()
        scale = expected[name].detach().double().abs().max().clamp(min=1.0)
        assert float(error / scale) <= limit, f"{name}: {float(error / scale):.3g}"


def farthest(found: State, expected: Any, names: Sequence[str] = ()) -> float:
    """The largest difference of any element."""
    expected = expected if isinstance(expected, dict) else state(expected)
    return max(
        float((found[n].double() - expected[n].detach().double()).abs().max())
        for n in names or found
    )


@pytest.fixture
def family() -> Family:
    return Family(3)


@pytest.fixture
def models() -> SimpleNamespace:
    """What tests compare with, since test files are no package to import from."""
    return SimpleNamespace(
        Family=Family, Small=Small, assert_close=assert_close, farthest=farthest, state=state
    )
