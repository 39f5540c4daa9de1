"""The family `language-tiny`: Python, English and two skills from what every Python has, for tests."""

from __future__ import annotations

from weightsmith.testbeds.data import skills
from weightsmith.testbeds.data.passages import manual, standard_library
from weightsmith.testbeds.families.languages import DomainShare, Languages
from weightsmith.testbeds.family_registry import Blueprint
from weightsmith.testbeds.models.byte_llama import LlamaSize
from weightsmith.testbeds.models.training import Schedule

_MODULES = ("argparse.py", "inspect.py", "tarfile.py", "typing.py")


def languages() -> Languages:
    """What decides the family."""
    return Languages(
        name="language-tiny",
        parts=(
            DomainShare(standard_library("python", _MODULES), 1),
            DomainShare(manual("manual"), 1),
        ),
        skills=((skills.last(), 0.0), (skills.larger(), 0.0)),
        sources=(),
        size=LlamaSize(width=48, layers=2, heads=4, key_value_heads=2, inner=96),
        rehearsal=0.25,
        base=Schedule(350, 6e-3, batch=8, warm_up=20, second_beta=0.98, seed=1),
        expert=Schedule(110, 2e-3, batch=8, seed=3),
        skill_expert=Schedule(110, 2e-3, batch=8, seed=3),
        counts={"train": 3000, "validation": 60, "test": 200},
        factors=(0.2, 0.4, 0.6),
        costs=(1, 7, 2.5, 2),
    )


def language_tiny() -> Blueprint:
    """The steps of the family."""
    return languages().blueprint()
