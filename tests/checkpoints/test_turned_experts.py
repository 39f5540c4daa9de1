"""Stacks of experts against transformers: its own class computes with a stack what linear layers of each expert do."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.checkpoints.spelled_models import write

from weightsmith.checkpoints import open_checkpoint, respelled
from weightsmith.checkpoints.spelling.spelling_facts import (
    ALTERNATING_EXPERTS,
    EITHER_WAY_EXPERTS,
    INPUT_FIRST_EXPERTS,
)
from weightsmith.tensors import read_bytes

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.conversion_mapping")
pytestmark = pytest.mark.filterwarnings("ignore")
models = transformers.models
EXPERTS, HIDDEN, INNER = 3, 4, 6


def _silu(gate, up):
    return torch.nn.functional.silu(gate) * up


def _clamped(gate, up):
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def _routed(module, states):
    """Every token to every expert, with weights that tell them apart."""
    chosen = torch.arange(EXPERTS).repeat(len(states), 1)
    weights = torch.tensor([0.2, 0.3, 0.5]).repeat(len(states), 1)
    return module(states, chosen, weights)


def _all_of_llama4(module, states):
    found = module(torch.cat([states * scale for scale in (0.2, 0.3, 0.5)]))
    return found.view(EXPERTS, *states.shape)


def _kinds():
    common = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": 2}
    moe = {"num_experts": EXPERTS, "moe_intermediate_size": INNER}
    configs = {
        "llama4_text": (
            "Llama4TextConfig",
            "llama4",
            "Llama4TextExperts",
            {"num_local_experts": 3},
        ),
        "gpt_oss": ("GptOssConfig", "gpt_oss", "GptOssExperts", {"num_local_experts": 3}),
        "openai_privacy_filter": (
            "OpenAIPrivacyFilterConfig",
            "openai_privacy_filter",
            "OpenAIPrivacyFilterExperts",
            {"num_local_experts": 3},
        ),
        "aria_text": ("AriaTextConfig", "aria", "AriaExperts", {"moe_num_experts": 3}),
        "qwen3_vl_moe_text": (
            "Qwen3VLMoeTextConfig",
            "qwen3_vl_moe",
            "Qwen3VLMoeTextExperts",
            moe,
        ),
    }
    for kind, (config, room, name, own) in configs.items():
        module = getattr(getattr(models, room), f"modeling_{room}")
        yield kind, getattr(module, name), getattr(transformers, config)(**{**common, **own})


@pytest.mark.parametrize("kind", ["llama4_text", *sorted(INPUT_FIRST_EXPERTS - {"llama4_text"})])
def test_a_stack_of_the_matrices_of_experts_computes_what_they_compute(tmp_path, kind):
    made = {name: (kind_of, config) for name, kind_of, config in _kinds()}
    known = kind if kind in made else f"{kind}_text"
    build, config = made[known]
    experts = build(config).eval()
    has_bias = hasattr(experts, "down_proj_bias")
    parts = _parts(has_bias)
    config_json = {"model_type": kind}
    apart = open_checkpoint(write(tmp_path / "apart", _named(parts), config_json))
    empty = {f"layers.0.mlp.experts.{k}": v.detach() for k, v in experts.state_dict().items()}
    like = open_checkpoint(write(tmp_path / "stacked", empty, config_json))
    found = respelled(apart, like)
    assert found.tensors.keys() == empty.keys()
    state = {name.rpartition(".")[2]: _tensor(view) for name, view in found.tensors.items()}
    experts.load_state_dict(state)
    states = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        if kind.startswith("llama4"):
            computed = _all_of_llama4(experts, states)
            wanted = torch.stack(
                [_expert(parts, e, states * s, _silu) for e, s in enumerate((0.2, 0.3, 0.5))]
            )
        else:
            act = _clamped if has_bias else _silu
            computed = _routed(experts, states)
            wanted = sum(s * _expert(parts, e, states, act) for e, s in enumerate((0.2, 0.3, 0.5)))
    torch.testing.assert_close(computed, wanted, rtol=1e-4, atol=1e-5)
    # And back, to the bit.
    stacked = open_checkpoint(
        write(
            tmp_path / "again",
            {f"layers.0.mlp.experts.{k}": v for k, v in state.items()},
            config_json,
        )
    )
    back = respelled(stacked, apart)
    assert back.tensors.keys() == apart.tensors.keys()
    assert all(
        torch.equal(_tensor(view), _named(parts)[name]) for name, view in back.tensors.items()
    )


def _parts(has_bias):
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "gate_proj": (INNER, HIDDEN),
        "up_proj": (INNER, HIDDEN),
        "down_proj": (HIDDEN, INNER),
    }
    return [
        {
            name: SimpleNamespace(
                weight=torch.randn(*shape, generator=generator),
                bias=torch.randn(shape[0], generator=generator) if has_bias else None,
            )
            for name, shape in shapes.items()
        }
        for _ in range(EXPERTS)
    ]


def _named(parts):
    return {
        f"layers.0.mlp.experts.{number}.{name}.{leaf}": tensor
        for number, own in enumerate(parts)
        for name, one in own.items()
        for leaf, tensor in vars(one).items()
        if tensor is not None
    }


def _expert(parts, number, states, act):
    linear, own = torch.nn.functional.linear, parts[number]
    gate = linear(states, own["gate_proj"].weight, own["gate_proj"].bias)
    up = linear(states, own["up_proj"].weight, own["up_proj"].bias)
    return linear(act(gate, up), own["down_proj"].weight, own["down_proj"].bias)


def _tensor(view):
    data = np.frombuffer(read_bytes(view, 0, view.numel), np.float32)
    return torch.from_numpy(data.reshape(view.shape).copy())


def test_matrices_that_stay_fused_of_each_expert_are_those_of_the_stack(tmp_path):
    generator = torch.Generator().manual_seed(0)
    fused = [torch.randn(12, 4, generator=generator) for _ in range(3)]
    biases = [torch.randn(12, generator=generator) for _ in range(3)]
    start = "model.layers.0.mlp.experts."
    apart = {f"{start}gate_up_projs.{e}.weight": w for e, w in enumerate(fused)}
    apart |= {f"{start}gate_up_projs.{e}.bias": b for e, b in enumerate(biases)}
    stacked = {
        f"{start}gate_up_proj": torch.stack([w.T for w in fused]),
        f"{start}gate_up_proj_bias": torch.stack(biases),
    }
    kind = {"model_type": "gpt_oss"}
    one = open_checkpoint(write(tmp_path / "a", apart, kind))
    other = open_checkpoint(write(tmp_path / "b", stacked, kind))
    found = respelled(one, other).tensors
    assert {name: _tensor(view).tolist() for name, view in found.items()} == {
        name: tensor.tolist() for name, tensor in stacked.items()
    }


def test_layouts_are_those_that_the_library_declares():
    """`is_transposed` and `is_concatenated` of its classes; the two that are turned by a rule are found there."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    declared = {}
    for kind, build, config in _kinds():
        module = build(config)
        declared[kind] = (
            getattr(module, "is_transposed", None),
            getattr(module, "is_concatenated", None),
        )
    declared.pop("llama4_text")  # It computes by its own code, which the test above runs.
    for kind, (is_transposed, is_concatenated) in declared.items():
        assert is_transposed == (kind in INPUT_FIRST_EXPERTS - EITHER_WAY_EXPERTS), kind
        assert is_concatenated == (kind not in ALTERNATING_EXPERTS), kind
    rules = get_checkpoint_conversion_mapping("qwen3_vl_moe")
    steps = [step for rule in rules for step in getattr(rule, "operations", None) or []]
    assert {type(step).__name__ for step in steps} == {"Transpose"}
    assert all(step.check_dims for step in steps)
