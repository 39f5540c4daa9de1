"""Adapters that were trained on the language family: extracted from their folded checkpoints, and as PEFT has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.adapters.attaching import attach
from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas.changed import read_matrix
from weightsmith.lora.adapter_writing import write_adapter
from weightsmith.lora.as_changes import load_changes
from weightsmith.lora.extraction import extract
from weightsmith.testbeds.family_places import family_folder

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

FAMILY = family_folder("lora")
TASKS = {"english": 8, "python": 8, "french": 4, "russian": 4, "turkish": 2}
TOKENS = torch.tensor([[72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100, 46]])

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FAMILY / "family.json").exists(), reason="the family is not built"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits.double().numpy()


def base_model():
    return transformers.AutoModelForCausalLM.from_pretrained(FAMILY / "base", dtype=torch.float64)


def with_peft(folder):
    return peft.PeftModel.from_pretrained(base_model(), folder, autocast_adapter_dtype=False)


@pytest.mark.parametrize("task", TASKS)
def test_the_adapter_of_a_folded_checkpoint_is_found_again(task, tmp_path):
    base = open_checkpoint(FAMILY / "base")
    tuned = open_checkpoint(FAMILY / "experts" / task)
    adapter, report = extract(tuned, base, rank=TASKS[task])
    trained = load_changes(open_adapter(FAMILY / "adapters" / task), base)
    assert set(adapter.factors) == set(trained.factors)
    for key, factors in adapter.factors.items():
        one, other = (f.change.rows(0, f.shape[0]) for f in (factors, trained.factors[key]))
        np.testing.assert_allclose(one, other, atol=2e-6 * abs(other).max() + 2e-6)
    assert report.relative < 1e-6
    write_adapter(adapter, tmp_path / "out", base=base)
    expected = logits(with_peft(FAMILY / "adapters" / task))
    np.testing.assert_allclose(logits(with_peft(tmp_path / "out")), expected, atol=1e-4)
    assert abs(expected - logits(base_model())).max() > 0.1


@pytest.mark.parametrize("task", TASKS)
def test_a_base_read_with_an_adapter_gives_the_logits_of_peft(task):
    base = open_checkpoint(FAMILY / "base")
    merged = attach(base, [(open_adapter(FAMILY / "adapters" / task), 1.0)])
    model = base_model()
    state = {n: torch.from_numpy(read_matrix(t)) for n, t in merged.tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    expected = logits(with_peft(FAMILY / "adapters" / task))
    np.testing.assert_allclose(logits(model), expected, atol=1e-4)


def test_half_of_the_rank_loses_what_the_report_says(tmp_path):
    base = open_checkpoint(FAMILY / "base")
    tuned = open_checkpoint(FAMILY / "experts/english")
    adapter, report = extract(tuned, base, rank=4)
    write_adapter(adapter, tmp_path / "out", base=base)
    merged = attach(base, [(open_adapter(tmp_path / "out"), 1.0)])
    missed = [
        np.linalg.norm(read_matrix(t) - read_matrix(tuned.tensors[n]))
        for n, t in merged.tensors.items()
    ]
    assert np.linalg.norm(missed) == pytest.approx(report.error, rel=1e-4)
    assert 0.01 < report.relative < 1.0
