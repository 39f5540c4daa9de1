"""The protocol: logits, features, losses and tokens as the libraries have them, and a runtime beside a network."""

from __future__ import annotations

import pytest
import torch

from weightsmith.errors import CompatibilityError, ResourceError, UsageError
from weightsmith.evaluation.likelihood import Window, nats_of
from weightsmith.live import NetworkKind, load_model
from weightsmith.progress import Silence

from .architectures import ARCHITECTURES, reference

KINDS = {
    "llama": NetworkKind.CAUSAL,
    "gpt2": NetworkKind.CAUSAL,
    "llava": NetworkKind.CAUSAL,
    "t5": NetworkKind.SEQUENCE,
    "bart": NetworkKind.SEQUENCE,
    "bert masked": NetworkKind.MASKED,
    "bert": NetworkKind.ENCODER,
    "vit": NetworkKind.ENCODER,
    "clip vision": NetworkKind.ENCODER,
    "vit classes": NetworkKind.CLASSIFIER,
    "llama classes": NetworkKind.CLASSIFIER,
    "resnet": NetworkKind.CLASSIFIER,
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_the_kind_of_a_network_is_that_of_its_class(saved, name, kind):
    assert load_model(saved(name), filled=False).kind is kind


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "t5", "bart", "bert masked", "bert classes", "vit classes", "resnet"]
)
def test_a_loss_is_the_one_that_the_architecture_computes_itself(saved, name):
    live, expected = load_model(saved(name)), reference(saved(name))
    batch = ARCHITECTURES[name].batch()
    if live.kind is NetworkKind.CLASSIFIER:
        labels = torch.tensor([1, 0])
    else:
        labels = batch["input_ids"].clone()
        labels[0, -2:] = -100
    batch.pop("decoder_input_ids", None)
    with torch.no_grad():
        own = live.loss(batch, labels)
        theirs = expected(**batch, labels=labels).loss
    torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "t5", "bart"])
def test_greedy_tokens_are_those_of_the_library(saved, name):
    live, expected = load_model(saved(name)), reference(saved(name))
    rows = ARCHITECTURES[name].batch()["input_ids"]
    ends = 7
    with torch.no_grad():
        found = live.generate({"input_ids": rows}, most=6, ends=[ends])
        made = expected.generate(
            rows,
            max_new_tokens=6,
            do_sample=False,
            num_beams=1,
            eos_token_id=ends,
            pad_token_id=0,
            attention_mask=torch.ones_like(rows),
            forced_eos_token_id=None,
            forced_bos_token_id=None,
        )
    begun = 1 if live.kind is NetworkKind.SEQUENCE else rows.shape[1]
    for own, row in zip(found, made[:, begun:].tolist(), strict=True):
        whole = row[: row.index(ends)] if ends in row else row
        assert own == whole


def test_features_are_the_last_hidden_states(saved):
    for name in ("llama", "bert", "vit", "t5", "bart"):
        batch = ARCHITECTURES[name].batch()
        live, expected = load_model(saved(name)), reference(saved(name))
        with torch.no_grad():
            own = live.features(batch)
            result = expected(**batch, output_hidden_states=True)
        key = "decoder_hidden_states" if name in ("t5", "bart") else "hidden_states"
        theirs = result.get("last_hidden_state")
        assert torch.equal(own, result[key][-1] if theirs is None else theirs), name


def test_what_a_network_does_not_give_is_told(saved):
    encoder = load_model(saved("bert"))
    with pytest.raises(UsageError, match="is a BertModel, which gives features and no logits"):
        encoder.logits(ARCHITECTURES["bert"].batch())
    with pytest.raises(UsageError, match="an encoder, which generates no tokens"):
        encoder.generate(ARCHITECTURES["bert"].batch(), most=2)
    with pytest.raises(CompatibilityError, match=r"cannot be run as its config\.json"):
        load_model(saved("llama")).logits({"input_ids": torch.tensor([[10**6]])})
    with pytest.raises(UsageError, match="float32 or bfloat16, not in 'float16'"):
        load_model(saved("llama"), dtype="float16")
    with pytest.raises(ResourceError, match="no device 'nonsense'"):
        load_model(saved("llama"), device="nonsense")


class Ensemble:
    """A runtime: the mean of the logits of several models."""

    name, device = "ensemble", "cpu"

    def __init__(self, *members):
        self.members = members

    def logits(self, batch):
        return torch.stack([member.logits(batch) for member in self.members]).mean(0)


def test_a_runtime_is_measured_as_a_network_is(saved):
    one, other = load_model(saved("llama")), load_model(saved("llama", 1))
    rows = [Window((3, 5, 9, 11), 3), Window((4, 6), 1)]
    nats, _ = nats_of(Ensemble(one, other), rows, None, Silence())
    with torch.no_grad():
        ids = torch.tensor([[3, 5, 9]])
        logits = (one.logits({"input_ids": ids}) + other.logits({"input_ids": ids})) / 2
    expected = torch.nn.functional.cross_entropy(logits[0], torch.tensor([5, 9, 11]))
    assert nats[0] == pytest.approx(3 * expected.item(), rel=1e-5)
    same, _ = nats_of(Ensemble(one, one), rows, None, Silence())
    alone, _ = nats_of(one, rows, None, Silence())
    assert same == pytest.approx(alone, rel=1e-6)


def test_a_run_is_the_same_every_time(saved):
    live = load_model(saved("mixtral"))
    batch = ARCHITECTURES["mixtral"].batch()
    with torch.no_grad():
        assert torch.equal(live.logits(batch), live.logits(batch))


@pytest.mark.filterwarnings("ignore")
def test_a_base_with_an_adapter_is_one_model(saved, tmp_path):
    peft = pytest.importorskip("peft")
    model = reference(saved("family language and lora"))
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, config)
    tuned.save_pretrained(tmp_path / "adapter")
    live = load_model(f"{saved('family language and lora')}+{tmp_path / 'adapter'}")
    batch = ARCHITECTURES["llama"].batch()
    with torch.no_grad():
        torch.testing.assert_close(live.logits(batch), tuned(**batch, use_cache=False).logits)
