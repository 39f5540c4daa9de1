"""Tensors that are left out because a pattern says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weightsmith.errors import UsageError
from weightsmith.naming import matching, nearest
from weightsmith.tensors import shown


def excluded(patterns: Sequence[str], names: Iterable[str]) -> set[str]:
    """The names that globs have; raises UsageError for a glob that no name has, which is most often misspelt."""
    known = list(names)
    found: set[str] = set()
    for pattern in patterns:
        own = matching(pattern, known)
        if not own:
            near = nearest(pattern, known)
            hint = (
                f"did you mean {shown(near)}?" if near else "`*` stands for any run of characters."
            )
            raise UsageError(f"No tensor has a name like {shown(pattern)}; {hint}")
        found.update(own)
    return found
