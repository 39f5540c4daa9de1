"""PEFT's functions for task tensors, in float64: what `ties_svd` does to adapters once they are multiplied out."""

from __future__ import annotations

import pytest
import torch

import weightsmith

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("peft")
WEIGHTS = [0.3, 2.0, -0.4]


@pytest.fixture(scope="module")
def tasks() -> list[torch.Tensor]:
    """Three task vectors; the first two cancel in places."""
    torch.manual_seed(0)
    first, second, third = torch.randn(3, 16, 9, dtype=torch.float64)
    second.view(-1)[::5] = -first.view(-1)[::5]
    third.view(-1)[::5] = 0.0
    return [first, second, third]


@pytest.mark.parametrize("density", [0.05, 0.4, 0.999])
@pytest.mark.parametrize(("election", "vote"), [("total", "mass"), ("frequency", "count")])
def test_ties(tasks, density, election, vote):
    from peft.utils.merge_utils import ties

    theirs = ties(tasks, torch.tensor(WEIGHTS, dtype=torch.float64), density, election)
    ours = weightsmith.merge_state_dicts(
        "ties",
        [{"w": task} for task in tasks],
        base={"w": torch.zeros_like(tasks[0])},
        parameters={"density": density, "vote": vote},
        per_expert=[{"weight": w} for w in WEIGHTS],
        preset="peft",
    )["w"]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
