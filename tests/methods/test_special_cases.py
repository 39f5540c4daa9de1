"""What the catalogue calls a special case of a method is one: the same result under parameters that are named here."""

from __future__ import annotations

import pytest
import torch

from weightsmith import merge_state_dicts
from weightsmith.methods.parts import registry
from weightsmith.methods.parts.registry import Base

LINEAR = {"merger": "linear", "density": 1.0, "normalize": "none"}

# (method, its parameters, special case, its parameters, experts).
CASES = [
    ("breadcrumbs", {"density": 1.0, "gamma": 0.0}, "task_arithmetic", {}, 3),
    (
        "breadcrumbs_ties",
        {"density": 0.3, "gamma": 0.0},
        "ties",
        {"density": 0.3, "trim_scope": "tensor"},
        3,
    ),
    ("consensus", {"k": 0, "lambda": 0.4}, "task_arithmetic", {"lambda": 0.4}, 3),
    ("dare_linear", {"density": 1.0}, "task_arithmetic", {}, 3),
    ("dare_ties", {"density": 1.0}, "ties", {"density": 1.0}, 3),
    ("della", {"density": 0.5, "epsilon": 0.0}, "dare_ties", {"density": 0.5}, 3),
    ("della", {"density": 1.0, "epsilon": 0.0}, "ties", {"density": 1.0}, 3),
    ("della_linear", {"density": 0.5, "epsilon": 0.0}, "dare_linear", {"density": 0.5}, 3),
    ("della_linear", {"density": 1.0, "epsilon": 0.0}, "task_arithmetic", {}, 3),
    ("ema", {"decay": 1.0, "bias_correction": True}, "soup", {}, 3),
    ("expo", {"alpha": -0.7}, "wise_ft", {"alpha": 0.3}, 1),
    ("lawa", {"k": 3}, "soup", {}, 3),
    ("linear", {}, "soup", {}, 3),
    ("lines", {"alpha": 1.0}, "task_arithmetic", {}, 3),
    ("lines", {"alpha": 1.0, "merger": "ties", "density": 0.3}, "ties", {"density": 0.3}, 3),
    ("localize_and_stitch", {"density": 1.0}, "soup", {}, 3),
    ("lore", {"mu": 1e6}, "linear", {}, 3),
    ("ramplus_tl", {"r": 0.0}, "ram", {}, 3),
    ("task_arithmetic", {"lambda": 1 / 3}, "soup", {}, 3),
    ("task_arithmetic", {"lambda": 0.3}, "wise_ft", {"alpha": 0.3}, 1),
    ("task_arithmetic", {"lambda": 1.3}, "expo", {"alpha": 0.3}, 1),
    (
        "tatr_zero_shot",
        {"drop": 0.0, "lambda": 0.4},
        "task_arithmetic",
        {"lambda": 0.4},
        3,
    ),
    ("cart", {"rank_share": 1.0}, "soup", {}, 3),
    ("trimmed_mean", {"k": 0}, "soup", {}, 3),
    ("truncate", {"rank_share": 1.0, "normalize": False}, "task_arithmetic", {}, 3),
    (
        "twin",
        {"shared_lambda": 0.4, "lambda": 0.0},
        "task_arithmetic",
        {"lambda": 0.4},
        3,
    ),
    ("twin", {"rank_share": 1.0}, "linear", {}, 3),
    ("iso_cts", {"common_share": 1.0}, "iso_c", {}, 3),
    ("knots", {**LINEAR, "others": "sum"}, "task_arithmetic", {}, 3),
]
# Their special cases have statistics or filters of their own, and are tested beside the methods.
ELSEWHERE = {
    "aim": "task_arithmetic",
    "aswudi": "wudi",
    "fisher": "linear soup",
    "iwudi": "wudi",
    "linear": "wise_ft",
    "metrics_weighted": "soup",
    "nuslerp": "slerp",
    "optmerge": "wudi",
    "ota": "task_arithmetic ties",
    "regmean": "linear",
    "resm": "tsv_m",
    "sens": "task_arithmetic",
    "swudi": "wudi iwudi",
    "tatr": "task_arithmetic",
}


@pytest.fixture(scope="module")
def models():
    """A base and three experts; every expert leaves some elements alone."""
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "model.layers.0.mlp.up_proj.weight": (12, 9),
        "model.layers.1.mlp.up_proj.weight": (9, 12),
        "model.norm.weight": (12,),
    }

    def draw():
        return {
            n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()
        }

    base = draw()
    moves = [{n: t * (t.abs() > 0.3) * 0.1 for n, t in draw().items()} for _ in range(3)]
    return base, [{n: base[n] + t for n, t in move.items()} for move in moves]


def merged(name, models, parameters, experts):
    base, every = models
    has_base = registry.get(name).base is not Base.IGNORED
    return merge_state_dicts(
        name,
        every[:experts],
        base=base if has_base else None,
        parameters=parameters,
        labels=("a", "b", "c")[:experts],
    )


@pytest.mark.parametrize(("name", "parameters", "special", "own", "experts"), CASES)
def test_a_special_case_is_one(models, name, parameters, special, own, experts):
    found = merged(name, models, parameters, experts)
    for key, tensor in merged(special, models, own, experts).items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-12)


def test_linear_with_the_base_among_the_experts_is_wise_ft(models):
    base, (expert, *_) = models
    found = merge_state_dicts(
        "linear", [base, expert], per_expert=[{"weight": 0.7}, {"weight": 0.3}]
    )
    for key, tensor in merged("wise_ft", models, {"alpha": 0.3}, 1).items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-12)


def test_nuslerp_of_base_and_expert_is_slerp(models):
    base, (expert, *_) = models
    found = merge_state_dicts(
        "nuslerp", [base, expert], per_expert=[{"weight": 0.7}, {"weight": 0.3}]
    )
    for key, tensor in merged("slerp", models, {"t": 0.3}, 1).items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-12)


def test_every_special_case_that_the_catalogue_names_is_tested():
    shown = {(name, special) for name, _, special, _, _ in CASES}
    shown |= {(name, case) for name, cases in ELSEWHERE.items() for case in cases.split()}
    claimed = {(n, case) for n in registry.names() for case in registry.get(n).generalises}
    assert claimed <= shown | {("widen", case) for case in registry.get("widen").generalises}
