"""What a recipe decides about vocabularies: the target, the fate of tables and special tokens, the companion files'
change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weightsmith.vocabularies.companion_files import VocabularyChange

if TYPE_CHECKING:
    from weightsmith.vocabularies.table_alignment import TableReport


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A special token of the result: role, text and id, and by checkpoint its own row (None: it has none)."""

    role: str
    text: str
    id: int
    rows: Mapping[str, int | None]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """All of it; without a `tokenizer:` section `source` is None and nothing moves.

    `tokens` and `rows` are the target's; `beyond` the number of tokens whose ids have no row in the result's tables.
    `template` says in words whose chat template the result has. `inputs` are the SHA-256 of the tokenizer files that
    were read, by checkpoint and file; `read_tokens` counts the tokens in them. `change` is what the companion files are
    made from.
    """

    source: str | None = None
    tokens: int = 0
    rows: int = 0
    beyond: int = 0
    tables: tuple[TableReport, ...] = ()
    special: tuple[SpecialToken, ...] = ()
    template: str = "the config source's"
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    read_tokens: int = 0
    change: VocabularyChange = field(default_factory=VocabularyChange)
