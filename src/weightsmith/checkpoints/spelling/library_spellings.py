"""Spellings of families that the table of facts does not have, by transformers' own mapping where it is installed.

The library is imported here alone, and only when two checkpoints of such a family have few names in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from weightsmith.checkpoints.spelling.part_views import Parts, Rearrange, Shape
from weightsmith.checkpoints.spelling.spelling_facts import FAMILIES
from weightsmith.checkpoints.spelling.spellings import Spelling, model_types, spelling_of
from weightsmith.tensors import LazyTensor


@dataclass(frozen=True, slots=True)
class LibrarySpelling:
    """The spelling that a checkpoint has without the library, followed by the library's `rules` of names.

    What the library computes beside that is not asked for: experts and joined matrices are those of `Spelling`.
    """

    own: Spelling
    rules: tuple[Any, ...]

    def canonical(self, name: str) -> str:
        """The name in memory of a tensor that the file calls `name`."""
        found = self.own.canonical(name)
        for rule in self.rules:
            found = rule.rename_source_key(found)[0]
        return found

    def parts(self, canonical: str, shape: Shape) -> tuple[Parts, ...]:
        """As `Spelling` has it."""
        return self.own.parts(canonical, shape)

    def counterpart(self, canonical: str) -> tuple[str, Rearrange] | None:
        """As `Spelling` has it."""
        return self.own.counterpart(canonical)

    def as_shaped(self, canonical: str, tensor: LazyTensor, name: str, shape: Shape) -> LazyTensor:
        """As `Spelling` has it."""
        return self.own.as_shaped(canonical, tensor, name, shape)

    def is_beside_weights(self, name: str) -> bool:
        """As `Spelling` has it."""
        return self.own.is_beside_weights(name)


def library_spelling_of(
    config: Mapping[str, Any] | None, names: Iterable[str]
) -> LibrarySpelling | None:
    """The spelling of a checkpoint by the library's rules for its types of models.

    None for families of the table, and where the library is not installed or has no rules for them.
    """
    types = model_types(config)
    if any(family.types & types for family in FAMILIES):
        return None
    rules = tuple(rule for kind in sorted(types) for rule in _rules(kind))
    return LibrarySpelling(spelling_of(config, names), rules) if rules else None


def _rules(kind: str) -> list[Any]:
    """The library's renamings for a type of models; versions before 5 have none."""
    try:
        from transformers import conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:
        return []
    mapping: Any = conversion_mapping
    found: Iterable[Any] = mapping.get_checkpoint_conversion_mapping(kind) or []
    return [rule for rule in found if isinstance(rule, WeightRenaming)]
