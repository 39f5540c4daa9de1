"""Regular expressions from files of strangers, matched in bounded time.

Python's `re` tries one way after another, which takes 2^n steps for `(a+)+!` on n letters. Here all ways are
followed at once (Thompson, 1968), in states that are built as they are met. Only whether a text matches is asked,
never where, so all of the syntax works whose meaning is a set of texts: groups, repeats, classes, anchors,
look-ahead and look-behind, which the adapters of several trainers have. References to groups, conditions on groups,
and repeats that give nothing back have no such meaning and are refused.
"""

from weightsmith.patterns.matching import Allowance, Patterns
from weightsmith.patterns.syntax import PatternError

__all__ = ["Allowance", "PatternError", "Patterns"]
