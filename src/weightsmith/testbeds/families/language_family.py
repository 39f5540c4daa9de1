"""The family `language`: prose, code and three languages, and exact skills, on one byte-level Llama."""

from __future__ import annotations

from weightsmith.testbeds.data import skills
from weightsmith.testbeds.data.passages import (
    DJANGO,
    QURAN,
    SPEECHES,
    django,
    scripture,
    speeches,
)
from weightsmith.testbeds.families.languages import DomainShare, Languages
from weightsmith.testbeds.family_registry import Blueprint
from weightsmith.testbeds.models.byte_llama import LlamaSize
from weightsmith.testbeds.models.training import Schedule

SOURCES = (QURAN, SPEECHES, DJANGO)


def languages() -> Languages:
    """What decides the family; `lora` and `moe` begin with the same data and the same base."""
    return Languages(
        name="language",
        parts=(
            DomainShare(speeches("english"), 1),
            DomainShare(django("python", ".py"), 1),
            DomainShare(scripture("french", "fr"), 1),
            DomainShare(scripture("russian", "ru"), 1),
            DomainShare(scripture("turkish", "tr"), 1),
            DomainShare(scripture("spanish", "es"), 1, "general"),
            DomainShare(scripture("indonesian", "id"), 0.5, "general"),
            DomainShare(django("javascript", ".js"), 0.5, "general"),
            DomainShare(scripture("swedish", "sv"), 0, "unseen"),
        ),
        skills=((skills.reverse(), 0.2), (skills.brackets(), 0.2), (skills.larger(), 0.02)),
        sources=SOURCES,
        size=LlamaSize(width=128, layers=4, heads=4, key_value_heads=2, inner=320),
        rehearsal=0.33,
        base=Schedule(1500, 4e-3, batch=16, warm_up=50, decay=0.05, second_beta=0.98, seed=1),
        expert=Schedule(120, 6e-4, batch=16, seed=3),
        skill_expert=Schedule(400, 2e-3, batch=16, seed=3),
        counts={"train": 12_000, "validation": 240, "test": 1000},
        factors=(0.1, 0.2, 0.3, 0.4, 0.6),
        costs=(15, 280, 40, 40),
    )


def language() -> Blueprint:
    """The steps of the family."""
    return languages().blueprint()
