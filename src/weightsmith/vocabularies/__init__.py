"""Tables with one row per token, brought into the order of another vocabulary while they are read.

Which token is which, what becomes of rows that are missing, and which companion files a result takes over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.vocabularies.aligned_rows import AlignedRows as AlignedRows
    from weightsmith.vocabularies.companion_files import CompanionFiles as CompanionFiles
    from weightsmith.vocabularies.companion_files import VocabularyChange as VocabularyChange
    from weightsmith.vocabularies.companion_files import carried_files as carried_files
    from weightsmith.vocabularies.companion_files import companions as companions
    from weightsmith.vocabularies.heldout import Errors as Errors
    from weightsmith.vocabularies.heldout import HeldOut as HeldOut
    from weightsmith.vocabularies.heldout import held_out_error as held_out_error
    from weightsmith.vocabularies.missing import MissingRule as MissingRule
    from weightsmith.vocabularies.outcome import Outcome as Outcome
    from weightsmith.vocabularies.outcome import SpecialToken as SpecialToken
    from weightsmith.vocabularies.row_fitting import Rules as Rules
    from weightsmith.vocabularies.rules import RULES as RULES
    from weightsmith.vocabularies.rules import FittedRows as FittedRows
    from weightsmith.vocabularies.rules import Zero as Zero
    from weightsmith.vocabularies.rules import rule_named as rule_named
    from weightsmith.vocabularies.table_alignment import Aligned as Aligned
    from weightsmith.vocabularies.table_alignment import Aligner as Aligner
    from weightsmith.vocabularies.table_alignment import TableReport as TableReport
    from weightsmith.vocabularies.table_alignment import TokenChoice as TokenChoice
    from weightsmith.vocabularies.token_matching import default_match as default_match
    from weightsmith.vocabularies.tokenized_models import TokenizedModel as TokenizedModel
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Aligned": "weightsmith.vocabularies.table_alignment",
            "AlignedRows": "weightsmith.vocabularies.aligned_rows",
            "Aligner": "weightsmith.vocabularies.table_alignment",
            "Errors": "weightsmith.vocabularies.heldout",
            "FittedRows": "weightsmith.vocabularies.rules",
            "HeldOut": "weightsmith.vocabularies.heldout",
            "MissingRule": "weightsmith.vocabularies.missing",
            "Outcome": "weightsmith.vocabularies.outcome",
            "CompanionFiles": "weightsmith.vocabularies.companion_files",
            "RULES": "weightsmith.vocabularies.rules",
            "Rules": "weightsmith.vocabularies.row_fitting",
            "SpecialToken": "weightsmith.vocabularies.outcome",
            "TableReport": "weightsmith.vocabularies.table_alignment",
            "TokenChoice": "weightsmith.vocabularies.table_alignment",
            "TokenizedModel": "weightsmith.vocabularies.tokenized_models",
            "VocabularyChange": "weightsmith.vocabularies.companion_files",
            "Zero": "weightsmith.vocabularies.rules",
            "carried_files": "weightsmith.vocabularies.companion_files",
            "default_match": "weightsmith.vocabularies.token_matching",
            "held_out_error": "weightsmith.vocabularies.heldout",
            "companions": "weightsmith.vocabularies.companion_files",
            "rule_named": "weightsmith.vocabularies.rules",
        },
    )
