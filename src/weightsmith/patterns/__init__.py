"""Regular expressions from files of strangers, matched in bounded time.

Python's `re` tries one way after another, which takes 2^n steps for `(a+)+!` on n letters. Here all ways are
followed at once (Thompson, 1968), in states that are built as they are met. Only whether a text matches is asked,
never where, so all of the syntax works whose meaning is a set of texts: groups, repeats, classes, anchors,
look-ahead and look-behind, which the adapters of several trainers have. References to groups, conditions on groups,
and repeats that give nothing back have no such meaning and are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.patterns.matching import Allowance as Allowance
    from weightsmith.patterns.matching import Patterns as Patterns
    from weightsmith.patterns.syntax import PatternError as PatternError
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Allowance": "weightsmith.patterns.matching",
            "PatternError": "weightsmith.patterns.syntax",
            "Patterns": "weightsmith.patterns.matching",
        },
    )
