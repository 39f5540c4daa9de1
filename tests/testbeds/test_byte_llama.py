"""The byte-level Llama: its tokenizer, its scores, its adapters, and its upcycling."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from weightsmith.testbeds.data.language_tasks import LanguageTask, gain
from weightsmith.testbeds.families import moe
from weightsmith.testbeds.families.languages import tune
from weightsmith.testbeds.models import byte_llama
from weightsmith.testbeds.models.byte_llama import BEGIN, END, ROW, LlamaSize, new_model, pack
from weightsmith.testbeds.models.low_rank_layers import (
    Shape,
    add_adapters,
    fold_adapters,
    write_adapter,
)
from weightsmith.testbeds.models.training import Schedule

TEXTS = ["def one():\n    return 1", "Привет, мир", "écrit  deux\ttrois"]
SIZE = LlamaSize(width=16, layers=2, heads=2, key_value_heads=1, inner=24)


@pytest.fixture
def model():
    return new_model(SIZE, seed=0).eval()


def nats(model, text, first):
    """Nats of each token from a place on, one text at a time, in float64."""
    tokens = torch.tensor(byte_llama.tokens_of(text))
    with torch.no_grad():
        spread = model(input_ids=tokens[None, :-1]).logits[0].double().log_softmax(1)
    return -spread[torch.arange(len(tokens) - 1), tokens[1:]][first:]


def test_the_tokenizer_file_gives_bytes_and_reads_with_auto_tokenizer(model, tmp_path):
    from transformers import AutoTokenizer

    byte_llama.write_model(model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "".join(map(chr, range(1, 700)))]:
        assert tokenizer(text).input_ids == [BEGIN, *text.encode()]
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.eos_token_id == END
    assert model.config.vocab_size == len(tokenizer)


def test_bits_per_byte_are_those_of_texts_scored_alone(model):
    expected = [nats(model, text, 0)[:-1] for text in TEXTS]
    bits = torch.cat(expected).sum().item() / math.log(2) / sum(len(t.encode()) for t in TEXTS)
    assert byte_llama.bits_per_byte(model, TEXTS, batch=2) == pytest.approx(bits, rel=1e-5)


def test_an_answer_costs_what_its_own_tokens_cost(model):
    found = byte_llama.answer_losses(model, ["ab=", "c="], ["xyz", "w"])
    for loss, prompt, answer in zip(found, ("ab=", "c="), ("xyz", "w"), strict=True):
        alone = nats(model, prompt + answer, len(prompt))[:-1].sum().item()
        assert loss.item() == pytest.approx(alone, rel=1e-5)


def test_exact_matches_are_those_of_greedy_generation():
    model = new_model(SIZE, seed=0)
    texts = ["ab=xyz", "cd=w"]
    schedule = Schedule(150, 2e-2, batch=4, warm_up=5)
    tune(model, pack(texts, 8), schedule, lambda *_: None)
    for text in texts:
        prompt, answer = text.split("=")
        tokens = torch.tensor([byte_llama.tokens_of(prompt + "=")[:-1]])
        made = model.generate(tokens, max_new_tokens=8, do_sample=False)[0, tokens.shape[1] :]
        assert made.tolist() == [*answer.encode(), END]
    prompts = ["ab=", "cd="]
    assert byte_llama.exact_matches(model, prompts, ["xyz", "w"]) == 1.0
    assert byte_llama.exact_matches(model, prompts, ["xy", "w"]) == 0.5
    assert byte_llama.exact_matches(model, prompts, ["xyy", "wz"]) == 0.0


def test_rows_are_the_texts_one_after_another_begun_again():
    rows = pack(["abc", "d"], 2)
    stream = [BEGIN, 97, 98, 99, END, BEGIN, 100, END]
    flat = torch.tensor((stream * 40)[: 2 * ROW + 1])
    assert torch.equal(rows[0], flat[: ROW + 1])
    assert torch.equal(rows[1], flat[ROW:])


def test_gain_is_one_for_experts_and_nothing_for_the_base():
    tasks = (LanguageTask("text", "language_modeling"), LanguageTask("sums", "choice"))
    base = {"text": {"test": 3.0}, "sums": {"test": 0.5}}
    experts = {"text": {"test": 2.0}, "sums": {"test": 0.9}}
    half = {"text": {"test": 2.5}, "sums": {"test": 0.3}}
    assert gain(base, base, experts, tasks, "test") == 0
    assert gain(experts, base, experts, tasks, "test") == 1
    assert gain(half, base, experts, tasks, "test") == pytest.approx((0.5 - 0.5) / 2)
    assert gain(half, base, {**experts, "sums": {"test": 0.4}}, tasks, "test") == 0.5
    assert gain(half, base, base, tasks, "test") == 0.0


def test_a_folded_adapter_computes_what_the_adapted_model_does(model, tmp_path):
    shape = Shape(rank=3, alpha=6, targets=("q_proj", "down_proj"))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = add_adapters(model, shape, seed=1)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        f"model.layers.{layer}.{part}.{side}"
        for layer in range(2)
        for part in ("self_attn.q_proj", "mlp.down_proj")
        for side in ("down", "up")
    ]
    for k, layer in enumerate(adapted.values()):
        torch.nn.init.normal_(layer.up, generator=torch.Generator().manual_seed(k))
    rows = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        before = model(input_ids=rows).logits
    write_adapter(adapted, shape, "../../base", tmp_path)
    fold_adapters(model, adapted)
    with torch.no_grad():
        assert torch.allclose(model(input_ids=rows).logits, before, atol=1e-4)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (3, 6, "LORA")
    for name, tensor in model.state_dict().items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        change = torch.zeros_like(tensor, dtype=torch.float64)
        if f"{key}.lora_A.weight" in stored:
            down, up = stored[f"{key}.lora_A.weight"], stored[f"{key}.lora_B.weight"]
            change = 2.0 * up.double() @ down.double()
            assert change.abs().max() > 0.1
        assert torch.allclose(tensor.double() - start[name].double(), change, atol=1e-5)


def test_upcycling_without_noise_computes_what_the_dense_model_does(model, monkeypatch, tmp_path):
    monkeypatch.setattr(moe, "_NOISE", 0.0)
    mixture = moe.upcycle(model, seed=1).eval()
    rows = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        dense = model(input_ids=rows).logits
        assert torch.allclose(mixture(input_ids=rows).logits, dense, atol=1e-4)
    byte_llama.write_model(mixture, tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in names
    assert "model.layers.0.block_sparse_moe.gate.weight" in names


def test_upcycled_experts_differ_from_each_other(model):
    state = moe.upcycle(model, seed=1).state_dict()
    down = state["model.layers.0.mlp.experts.down_proj"]
    dense = model.state_dict()["model.layers.0.mlp.down_proj.weight"]
    assert not torch.equal(down[0], down[1])
    assert torch.allclose(down, dense.expand_as(down), rtol=0.5, atol=1e-6)
