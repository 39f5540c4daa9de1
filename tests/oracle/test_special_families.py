"""Methods that decompose matrices, on task vectors of low rank, opposed, alike, orthogonal, narrow, or none at all.

In float64 directions that do not exist are rounding of 1e-16, and in float32 of 1e-7; weights are exact in both.
"""

from __future__ import annotations

import pytest

from .catalogue import ORACLES, Variant, label
from .running import error, in_memory
from .special import KINDS, NARROW, PLAIN, special

SEEDS = range(8)
WEIGHTED = {"weight": [1.0, -0.5, 2.0]}
TRIED: dict[str, list[Variant]] = {
    "truncate": [{}, {"rank": 3, **WEIGHTED}, {"preset": "star"}],
    "tsv_m": [{}, {"preset": "lossless"}, {"rank_share": 0.5, **WEIGHTED}],
    "tsv_c": [{}, {"tasks": 3}],
    "resm": [{}, {"outlier_sigma": 1.0, **WEIGHTED}],
    "iso_c": [{}, WEIGHTED],
    "iso_cts": [{}, {"common_share": 0.5, **WEIGHTED}, {"common_share": 0.0}],
    "opcm": [{}, {"preset": "fusionbench"}],
    "subspace_boosting": [{"beta": 0.4}, {"beta": 0.7, **WEIGHTED}],
    "cart": [{"rank": 2}, {"rank": 1, **WEIGHTED}],
    "dc_merge": [{"density": 0.3}, {"density": 0.2, "smoothing": "none", **WEIGHTED}],
    # Above rounding, which decides where all task vectors have one norm.
    "ace": [{}, {"threshold": 1e-9}],
    "orthomerge": [{}],
    "resmerge": [{}],
    "svc": [{}, {"preset": "fusionbench"}],
    "knots": [{}, {"axis": "inputs"}, {"scope": "tensor", "density": 0.5, **WEIGHTED}],
    "wudi": [{}, WEIGHTED, {"preset": "actmat"}],
    "iwudi": [{}, {"filter": "tikhonov", "start": "mean", **WEIGHTED}],
    "swudi": [{}],
    "aswudi": [{}, {"rank_rule": "entropy"}, {"rank_rule": "cumulative", "level": 0.7}],
    "optmerge": [{"solver": "closed", "rank_share": 0.2}, {"preset": "lora", "steps": 40}],
    "doge": [{}, {"objective": "rows", "density": 1.0}],
}
"""Adam is not among them: where its gradient is 0 but for rounding, it takes steps of full length all the same."""


@pytest.mark.parametrize("name", TRIED)
def test_a_method_agrees_with_its_oracle_on_task_vectors_of_low_rank(name: str) -> None:
    rule, variant = ORACLES[name], TRIED[name][0]
    family = rule.cut(special("low rank"), variant)
    found = error(rule(family, variant), in_memory(rule, variant, family), family.base)
    assert found <= rule.tolerance


@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRIED)
def test_special_task_vectors_agree(name: str, kind: str) -> None:
    rule, off = ORACLES[name], {}
    for variant in TRIED[name]:
        if kind == "alone" and any(isinstance(value, list) for value in variant.values()):
            continue
        for shapes in (PLAIN, NARROW):
            for seed in SEEDS:
                family = rule.cut(special(kind, seed, shapes), variant)
                got = in_memory(rule, variant, family)
                found = error(rule(family, variant), got, family.base)
                if not found <= rule.tolerance:
                    off[f"{label(variant)} {seed} {shapes is NARROW}"] = f"{found:.2g}"
    assert not off
