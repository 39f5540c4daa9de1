"""The family `moe`: a small mixture of experts upcycled from the base of `language`, and three fine-tunes of it.

Every feed-forward part becomes four copies of itself behind a router that begins at random; the copies differ by a
little noise, and grow apart in a short training on the mixture of all domains. Members have Mixtral's architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from weightsmith.testbeds.data.language_tasks import measure
from weightsmith.testbeds.families.language_family import languages
from weightsmith.testbeds.families.languages import EVALUATED, merge_figures, mixture, tune
from weightsmith.testbeds.families.shared_base import shared_steps, tasks_among
from weightsmith.testbeds.family_registry import Blueprint, BuildStep
from weightsmith.testbeds.models import byte_llama
from weightsmith.testbeds.models.training import Schedule, one_thread
from weightsmith.testbeds.workshop import Workshop

_TASKS = ("python", "french", "russian")
_EXPERTS = 4
_ACTIVE = 2
_NOISE = 0.05
_BASE = Schedule(120, 1e-3, batch=16, second_beta=0.98, seed=21)
_TUNED = Schedule(100, 6e-4, batch=16, seed=22)
_FACTORS = (0.2, 0.33, 0.5, 0.7)
_DENSE = "dense"


def moe() -> Blueprint:
    """The steps of the family: dense (the base of `language`), base (the mixture of experts), experts/TASK."""
    family = languages()
    settings = {
        **family.settings(),
        "experts": [_EXPERTS, _ACTIVE, _NOISE],
        "upcycling": _BASE.settings(),
        "tuning": _TUNED.settings(),
        "factors": list(_FACTORS),
    }
    steps = list(shared_steps("moe", family, _TASKS, base=_DENSE))
    steps.append(BuildStep("base", 60, _make_base))
    steps += [BuildStep(f"experts/{name}", 50, partial(_make_expert, name=name)) for name in _TASKS]
    steps.append(BuildStep("merges", 250, _make_merges))
    return Blueprint(_TASKS, family.sources, settings, tuple(steps))


def upcycle(dense: Any, seed: int) -> Any:
    """A Mixtral model whose experts are noisy copies of a Llama's feed-forward parts.

    An expert's weights are W * (1 + noise * n), n standard normal; all else but the routers is the Llama's.
    """
    from transformers import MixtralConfig, MixtralForCausalLM

    old = dense.config
    config = MixtralConfig(
        vocab_size=old.vocab_size,
        hidden_size=old.hidden_size,
        intermediate_size=old.intermediate_size,
        num_hidden_layers=old.num_hidden_layers,
        num_attention_heads=old.num_attention_heads,
        num_key_value_heads=old.num_key_value_heads,
        max_position_embeddings=old.max_position_embeddings,
        rms_norm_eps=old.rms_norm_eps,
        rope_parameters=dict(old.rope_parameters),
        tie_word_embeddings=True,
        num_local_experts=_EXPERTS,
        num_experts_per_tok=_ACTIVE,
        bos_token_id=old.bos_token_id,
        eos_token_id=old.eos_token_id,
        pad_token_id=old.pad_token_id,
    )
    torch.manual_seed(seed)
    model = MixtralForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    state, found = dense.state_dict(), model.state_dict()
    changed = {name: state.get(name, tensor) for name, tensor in found.items()}
    for layer in range(old.num_hidden_layers):
        place = f"model.layers.{layer}.mlp"
        up = [state[f"{place}.{part}_proj.weight"] for part in ("gate", "up")]
        changed[f"{place}.experts.gate_up_proj"] = _copies(torch.cat(up), generator)
        down = state[f"{place}.down_proj.weight"]
        changed[f"{place}.experts.down_proj"] = _copies(down, generator)
    model.load_state_dict(changed)
    return model


def _copies(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noisy copies [E, O, I] of a weight [O, I]."""
    noise = torch.randn(_EXPERTS, *weight.shape, generator=generator)
    return weight * (1 + _NOISE * noise)


def _make_base(workshop: Workshop) -> Mapping[str, Any]:
    family = languages()
    model = upcycle(byte_llama.read_model(workshop.root / _DENSE), _BASE.seed)
    with one_thread():
        rows = mixture(workshop.root, family.weights(), _BASE)
        tune(model, rows, _BASE, workshop.within)
        byte_llama.write_model(model, workshop.place("base/config.json").parent)
        tasks = tasks_among(family, _TASKS)
        return {"base": measure(model, workshop.root, tasks, EVALUATED)}


def _make_expert(workshop: Workshop, name: str) -> Mapping[str, Any]:
    tasks = tasks_among(languages(), _TASKS)
    model = byte_llama.read_model(workshop.root / "base")
    with one_thread():
        tune(model, mixture(workshop.root, {name: 1.0}, _TUNED), _TUNED, workshop.within)
        byte_llama.write_model(model, workshop.place(f"experts/{name}/config.json").parent)
        figures = measure(model, workshop.root, tasks, ("validation",))
        own = [task for task in tasks if task.name == name]
        figures[name].update(measure(model, workshop.root, own, ("test",))[name])
        return {f"experts/{name}": figures}


def _make_merges(workshop: Workshop) -> Mapping[str, Any]:
    tasks = tasks_among(languages(), _TASKS)
    experts = {task.name: (task,) for task in tasks if task.name in _TASKS}
    return merge_figures(workshop, experts, tasks, _FACTORS)
