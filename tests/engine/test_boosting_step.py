"""Subspace Boosting as a step of `then:`, over what any method merged."""

from __future__ import annotations

import torch

import weightsmith

from .conftest import Family


def test_a_step_boosts_what_was_merged(family: Family) -> None:
    """Matrices of attention and MLPs have no direction below the one that reaches the share; all else stays."""
    merged = {"density": 0.5, "trim_scope": "tensor"}
    plain = family.recipe("ties", parameters=merged, dtype="float32")
    weightsmith.merge(plain, family.root / "plain")
    steps = [{"subspace_boosting": {"beta": 0.5, "rank_tolerance": 1e-5}}]
    boosted = family.recipe("ties", parameters=merged, then=steps, dtype="float32")
    weightsmith.merge(boosted, family.root / "out")
    base, before, after = (family.tensors(label) for label in ("base", "plain", "out"))
    seen = 0
    for name, tensor in after.items():
        if tensor.ndim < 2 or "embed" in name or "lm_head" in name:
            assert torch.equal(tensor, before[name]), name
            continue
        start = base[name].double()
        u, s, v = torch.linalg.svd(before[name].double() - start, full_matrices=False)
        least = s[int((s.cumsum(0) < 0.5 * s.sum()).sum())]
        # One matrix has a value of 3e-8: rounding, which the step does not raise.
        raised = torch.where(s > 1e-5 * s[0], s.clamp(min=least), s)
        expected = start + u @ torch.diag(raised) @ v
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-5 * float(s[0]))
        seen += 1
    assert seen
