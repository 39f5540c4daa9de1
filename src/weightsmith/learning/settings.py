"""How a merge learns, and presets: what papers set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from weightsmith.errors import UsageError
from weightsmith.learning.optimisers import OptimizerSettings
from weightsmith.naming import nearest


@dataclass(frozen=True, slots=True)
class LearningSettings:
    """What decides a run beside the recipe and the data.

    `penalty` is the factor of the mean of |v - start| over the numbers, times the number of experts where they have
    their own (Expert Merging); `until` stops frank_wolfe at a duality gap; `check_every` steps the loss on the
    validation data is measured, and after `patience` measurements without a better one learning ends.
    """

    objective: str = "entropy"
    temperature: float = 1.0
    steps: int = 500
    batch_size: int = 16
    parametrisation: str = "clip"
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    penalty: float = 0.0
    until: float = 0.0
    check_every: int = 20
    patience: int | None = None
    seed: int = 0

    def described(self) -> dict[str, Any]:
        """All of them, as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Preset:
    """What a paper sets: how to learn, and which numbers of an ordinary recipe are freed for it, and how.

    `frees` is the entry of `parameters:`, by the name of the parameter; `source` says where the settings are from.
    """

    source: str
    settings: Mapping[str, Any]
    frees: Mapping[str, Any]


def _free(start: float, *per: str, high: float = 1.0) -> Mapping[str, Any]:
    return {"weight": {"free": [0, high], "start": start, "per": list(per)}}


PRESETS: Mapping[str, Preset] = {
    "adamerging": Preset(
        "AdaMerging layer-wise, arXiv:2310.02575: coefficients in [0, 1] from 0.3, one for each expert and tensor; "
        "Adam, 1e-3, 500 steps of 16 items a task",
        {"objective": "entropy", "steps": 500, "batch_size": 16, "optimizer": {"rate": 1e-3}},
        _free(0.3, "expert", "tensor"),
    ),
    "adamerging_task_wise": Preset(
        "AdaMerging task-wise, arXiv:2310.02575: one coefficient for each expert",
        {"objective": "entropy", "steps": 500, "batch_size": 16, "optimizer": {"rate": 1e-3}},
        _free(0.3, "expert"),
    ),
    "expert_merging": Preset(
        "Expert Merging, arXiv:2509.25712 and its code: sigmoid from 0.1, AdamW with decay 1e-5 and cosine restarts "
        "from 50 steps, gradients clipped at 1, five items a task, 8 at a time",
        {
            "objective": "kl,hidden",
            "steps": 100,
            "batch_size": 1,
            "parametrisation": "sigmoid",
            "penalty": 5.0,
            "optimizer": {
                "name": "adamw",
                "rate": 0.5,
                "weight_decay": 1e-5,
                "first_restart": 50,
                "clip": 1.0,
            },
        },
        _free(0.1, "expert", "tensor"),
    ),
    "fw_merging": Preset(
        "FW-Merging, arXiv:2503.12649, with its linear minimisation oracle: 10 steps 2 / (t + 2) from the base, one "
        "vertex for the whole model, 100 labelled items a task",
        {
            "objective": "cross_entropy",
            "steps": 10,
            "batch_size": 100,
            "optimizer": {"name": "frank_wolfe", "rate": 1.0},
        },
        _free(0.0, "expert"),
    ),
    "fw_merging_layer_wise": Preset(
        "FW-Merging, arXiv:2503.12649, with a vertex for every tensor by itself",
        {
            "objective": "cross_entropy",
            "steps": 10,
            "batch_size": 100,
            "optimizer": {"name": "frank_wolfe", "rate": 1.0},
        },
        _free(0.0, "expert", "tensor"),
    ),
    "learned_soup": Preset(
        "learned soup, arXiv:2203.05482, appendix I: weights by a softmax from equal ones, AdamW, 0.1 for the "
        "coefficients, three passes",
        {
            "objective": "cross_entropy",
            "steps": 300,
            "batch_size": 64,
            "parametrisation": "softmax",
            "optimizer": {"name": "adamw", "rate": 0.1},
        },
        _free(1.0, "expert"),
    ),
}


def find_preset(name: str) -> Preset:
    """A preset by its name; raises UsageError for another."""
    if name not in PRESETS:
        near = nearest(name, PRESETS)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(PRESETS)}."
        raise UsageError(f"There is no preset {name!r}; {hint}")
    return PRESETS[name]
