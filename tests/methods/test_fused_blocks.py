"""Fused projections that are cut are merged as if each were a tensor of its own."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.methods.parts import registry

WIDTH = 8
# (role, outputs of each block). Grouped heads make k and v smaller than q.
FUSED = {
    "q, k, v": ("attention.qkv", (8, 8, 8)),
    "grouped q, k, v": ("attention.qkv", (8, 2, 2)),
    "k, v": ("attention.kv", (4, 4)),
    "gate, up": ("mlp.fused", (6, 6)),
}
CUT = [name for name in registry.names() if "fused" in registry.get(name).parameters]
# Whose coefficients are those of a whole tensor, as in the paper, however that is cut.
BY_TENSOR = {"doge"}
# Whose exponent goes by the role, which the blocks apart do not have here.
BY_ROLE = {"resmerge"}
CASES = [
    *((name, {}) for name in CUT if name not in BY_TENSOR | BY_ROLE),
    ("resmerge", {"scored": ""}),
    ("truncate", {"rank_share": 0.5}),
    ("truncate", {"rank": 3}),
    ("tsv_c", {"tasks": 3}),
    ("tsv_m", {"rank_share": 0.5}),
    ("optmerge", {"rank_share": 0.5, "solver": "closed"}),
    ("aswudi", {"rank_rule": "gavish_donoho"}),
    ("aswudi", {"rank_rule": "hard_threshold"}),
    ("knots", {"axis": "inputs", "density": 0.6}),
    ("knots", {"axis": "inputs", "basis": "scaled"}),
]


def described(case):
    name, parameters = case
    return " ".join([name, *(f"{key}={value}" for key, value in parameters.items())])


@pytest.mark.parametrize("input_first", [False, True], ids=["outputs first", "inputs first"])
@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("case", CASES, ids=described)
def test_blocks_are_merged_like_tensors_of_their_own(merge_model, case, fused, input_first):
    name, parameters = case
    role, sizes = FUSED[fused]
    count = registry.get(name).experts[1] or 3
    rng = np.random.default_rng(7)
    blocks = {
        str(i): rng.normal(size=(1 + count, size, WIDTH)) * [[[1.0]], *[[[0.1]]] * count]
        for i, size in enumerate(sizes)
    }

    def merged(tensors, **facts):
        given = {}
        for key, (base, *deltas) in tensors.items():
            models = [base, *(base + delta for delta in deltas)]
            base, *experts = [m.T.copy() if input_first else m for m in models]
            given[key] = (base, experts, {"input_first": input_first, **facts})
        made = merge_model(name, given, shared={"fused": "split", **parameters})
        return {key: value.T if input_first else value for key, value in made.items()}

    apart = merged(blocks)
    (together,) = merged({"all": np.concatenate(list(blocks.values()), 1)}, role=role).values()
    np.testing.assert_allclose(together, np.concatenate(list(apart.values())), rtol=0, atol=1e-9)
