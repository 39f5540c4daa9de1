"""Methods that decompose matrices, on task vectors of low rank, opposed, alike, orthogonal, narrow, or none at all.

In float64 directions that do not exist are rounding of 1e-16, and in float32 of 1e-7; weights are exact in both.
"""

from __future__ import annotations

import pytest

from .catalogue import ORACLES, Variant, label
from .known import known
from .running import error, in_memory
from .special import KINDS, NARROW, PLAIN, special

SEEDS = range(8)
WEIGHTED = {"weight": [1.0, -0.5, 2.0]}
TRIED: dict[str, list[Variant]] = {
    "truncate": [{}, {"rank": 3, **WEIGHTED}],
    "tsv_m": [{}, {"preset": "lossless"}, {"rank_share": 0.5, **WEIGHTED}],
    "tsv_c": [{}, {"tasks": 3}],
    "resm": [{}, {"outlier_sigma": 1.0, **WEIGHTED}],
    "iso_c": [{}, WEIGHTED],
    "iso_cts": [{}, {"common_share": 0.5, **WEIGHTED}, {"common_share": 0.0}],
    "opcm": [{}, {"preset": "fusionbench"}],
    "svc": [{}, {"preset": "fusionbench"}],
    "knots": [{}, {"axis": "inputs"}, {"scope": "tensor", "density": 0.5, **WEIGHTED}],
    "wudi": [{}, WEIGHTED],
    "iwudi": [{}, {"filter": "tikhonov", "start": "mean", **WEIGHTED}],
    "swudi": [{}],
    "aswudi": [{}, {"rank_rule": "entropy"}, {"rank_rule": "loss_elbow"}],
    "optmerge": [{"solver": "closed", "rank_share": 0.2}, {"preset": "lora", "steps": 40}],
    "doge": [{}, {"objective": "rows", "density": 1.0}],
}
"""Adam is not among them: where its gradient is 0 but for rounding, it takes steps of full length all the same."""


def applies(variant: Variant, kind: str) -> bool:
    """Whether a variant has as many weights as the family has experts."""
    return kind != "alone" or not any(isinstance(value, list) for value in variant.values())


def cases(name: str) -> list[object]:
    """Every variant with every kind of family that it is for."""
    found = []
    for variant in TRIED[name]:
        for kind in filter(lambda k: applies(variant, k), KINDS):
            reason = known(name, variant, kind)
            marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
            words = f"{name}-{label(variant)}-{kind}"
            found.append(pytest.param(name, variant, kind, marks=marks, id=words))
    return found


EVERYTHING = [case for name in TRIED for case in cases(name)]


@pytest.mark.parametrize("name", TRIED)
def test_a_method_agrees_with_its_oracle_on_task_vectors_of_low_rank(name: str) -> None:
    rule, variant = ORACLES[name], TRIED[name][0]
    family = rule.cut(special("low rank"), variant)
    found = error(rule(family, variant), in_memory(rule, variant, family), family.base)
    assert found <= rule.tolerance


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "variant", "kind"), EVERYTHING)
def test_special_task_vectors_agree(name, variant, kind) -> None:
    rule = ORACLES[name]
    found = {}
    for shapes in (PLAIN, NARROW):
        for seed in SEEDS:
            family = rule.cut(special(kind, seed, shapes), variant)
            got = in_memory(rule, variant, family)
            found[len(found)] = error(rule(family, variant), got, family.base)
    assert max(found.values()) <= rule.tolerance, {k: f"{e:.2g}" for k, e in found.items()}
