from __future__ import annotations

from .conftest import by_name, errors


def test_models_give_every_tensor_with_resolved_parameters(make, solve):
    make("a"), make("b")
    resolved = solve(
        """
merge_method: linear
models:
  - model: a
    parameters: {weight: [0, 1]}
  - model: b
    parameters: {weight: 0.25}
dtype: bfloat16
"""
    )
    assert not errors(resolved)
    q = by_name(resolved)["model.layers.1.self_attn.q_proj.weight"]
    assert q.formula.per_expert[0] == (("weight", 1 / 3),)
