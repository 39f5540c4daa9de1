"""The registry of families: which there are, what each needs, and where its recipe of steps lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from weightsmith.errors import UsageError
from weightsmith.naming import nearest

if TYPE_CHECKING:
    from weightsmith.testbeds.data.sources import Archive
    from weightsmith.testbeds.workshop import Workshop


@dataclass(frozen=True, slots=True)
class BuildStep:
    """One part of a build: it is finished whole, or it is done again.

    `make` reads finished parts under `Workshop.root`, writes its own files under `Workshop.new` at the same relative
    paths, and returns what it measured, by member, for family.json: {"experts/greek": {task: {split: score}}}, or {}.
    `cost` is about how many CPU-seconds it takes; the remaining time of a build is estimated from it.
    """

    name: str
    cost: float
    make: Callable[[Workshop], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """How a family is made: its tasks, where its data comes from, and its steps in order.

    `settings` is everything that decides the outcome beside the code (sizes, rates, seeds): a build that was
    interrupted goes on only with the same settings and the same versions of the libraries.
    """

    tasks: tuple[str, ...]
    sources: tuple[Archive, ...]
    settings: Mapping[str, Any]
    steps: tuple[BuildStep, ...]


@dataclass(frozen=True, slots=True)
class TrainedFamily:
    """A family that can be built. `recipe` is `module:function`, imported when the family is asked for."""

    name: str
    title: str
    needs: tuple[str, ...]
    download_megabytes: int
    cpu_minutes: float
    recipe: str

    def blueprint(self) -> Blueprint:
        """How to make it."""
        module, _, function = self.recipe.partition(":")
        made: Blueprint = getattr(import_module(module), function)()
        return made


_RECIPES = "weightsmith.testbeds.families"
_TRAINING = ("torch", "transformers", "safetensors")

FAMILIES: Mapping[str, TrainedFamily] = {
    family.name: family
    for family in (
        TrainedFamily(
            "vision",
            "one small ViT, eight image tasks with frozen heads",
            (*_TRAINING, "sklearn", "PIL", "fontTools"),
            14,
            6,
            f"{_RECIPES}.vision:vision",
        ),
        TrainedFamily(
            "vision-tiny",
            "a tiny ViT, four image tasks, nothing to download",
            (*_TRAINING, "sklearn", "PIL"),
            0,
            0.8,
            f"{_RECIPES}.vision_tiny:vision_tiny",
        ),
        TrainedFamily(
            "pair",
            "two networks of one shape, trained independently on the same images",
            (*_TRAINING, "sklearn", "PIL"),
            0,
            1,
            f"{_RECIPES}.pair:pair",
        ),
        TrainedFamily(
            "language",
            "one byte-level Llama, five domains and exact skills",
            (*_TRAINING, "tokenizers"),
            39,
            11,
            f"{_RECIPES}.language_family:language",
        ),
        TrainedFamily(
            "language-tiny",
            "a tiny byte-level Llama, two domains and exact skills, nothing to download",
            (*_TRAINING, "tokenizers"),
            0,
            0.5,
            f"{_RECIPES}.language_tiny:language_tiny",
        ),
        TrainedFamily(
            "lora",
            "five low-rank adapters on the base of `language`, each also folded into a checkpoint",
            (*_TRAINING, "tokenizers"),
            39,
            10,
            f"{_RECIPES}.lora:lora",
        ),
        TrainedFamily(
            "moe",
            "a small mixture of experts grown from the base of `language`, three fine-tunes",
            (*_TRAINING, "tokenizers"),
            39,
            10,
            f"{_RECIPES}.moe:moe",
        ),
        TrainedFamily(
            "embedding",
            "the sentence encoder all-MiniLM-L6-v2, three kinds of retrieval",
            (*_TRAINING, "tokenizers"),
            115,
            10,
            f"{_RECIPES}.embedding:embedding",
        ),
        TrainedFamily(
            "smollm",
            "SmolLM2-135M-Instruct, three low-rank adapters, each also folded into a checkpoint",
            (*_TRAINING, "tokenizers", "gguf"),
            132,
            8,
            f"{_RECIPES}.smollm:smollm",
        ),
    )
}


def find_family(name: str) -> TrainedFamily:
    """The family of a name.

    Raises UsageError, with the nearest name, if there is none.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    near = nearest(name, FAMILIES)
    hint = f"did you mean {near!r}?" if near else f"there are {', '.join(FAMILIES)}."
    raise UsageError(f"There is no family {name!r}; {hint}")
