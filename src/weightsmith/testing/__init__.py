"""Checks for tests of one's own merge methods: what every method promises, and a merge of a few arrays in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.testing.array_merges import merge_arrays as merge_arrays
    from weightsmith.testing.array_merges import merge_models as merge_models
    from weightsmith.testing.conformance import Promise as Promise
    from weightsmith.testing.conformance import check_method as check_method
    from weightsmith.testing.conformance import promises as promises
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Promise": "weightsmith.testing.conformance",
            "check_method": "weightsmith.testing.conformance",
            "merge_arrays": "weightsmith.testing.array_merges",
            "merge_models": "weightsmith.testing.array_merges",
            "promises": "weightsmith.testing.conformance",
        },
    )
