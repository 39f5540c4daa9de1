"""Tokenizers: read from any of the Hub's files, joined, extended and written, with templates and special ids.

Nothing is executed: templates are linted as syntax, and the tokenizers library is asked only what cannot be known
without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.tokenizers.special_ids import consistent as consistent
    from weightsmith.tokenizers.target import TargetVocabulary as TargetVocabulary
    from weightsmith.tokenizers.target import TokenizerMember as TokenizerMember
    from weightsmith.tokenizers.target import copy_target as copy_target
    from weightsmith.tokenizers.templates import resolve_chat_template as resolve_chat_template
    from weightsmith.tokenizers.templates import with_template as with_template
    from weightsmith.tokenizers.tokenizer_library import Library as Library
    from weightsmith.tokenizers.union import union_target as union_target
    from weightsmith.tokenizers.vocabulary import AddedFlags as AddedFlags
    from weightsmith.tokenizers.vocabulary import TokenKind as TokenKind
    from weightsmith.tokenizers.vocabulary import Vocabulary as Vocabulary
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "AddedFlags": "weightsmith.tokenizers.vocabulary",
            "Library": "weightsmith.tokenizers.tokenizer_library",
            "TargetVocabulary": "weightsmith.tokenizers.target",
            "TokenKind": "weightsmith.tokenizers.vocabulary",
            "TokenizerMember": "weightsmith.tokenizers.target",
            "Vocabulary": "weightsmith.tokenizers.vocabulary",
            "consistent": "weightsmith.tokenizers.special_ids",
            "copy_target": "weightsmith.tokenizers.target",
            "resolve_chat_template": "weightsmith.tokenizers.templates",
            "union_target": "weightsmith.tokenizers.union",
            "with_template": "weightsmith.tokenizers.templates",
        },
    )
