"""The ranges of layers that a slice names, checked against the layers that its models have."""

from __future__ import annotations

from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.recipes.language.problems import Problems
from weightsmith.recipes.language.schema import Slice
from weightsmith.recipes.resolution.output_sections import MergeSection


def slice_length(part: Slice, section: MergeSection, problems: Problems) -> int:
    """The number of layers of a slice, having checked its ranges; what is past the layers there are is left out."""
    lengths = {source.layer_range[1] - source.layer_range[0] for source in part.sources}
    if len(lengths) > 1:
        listed = ", ".join(str(list(source.layer_range)) for source in part.sources)
        raise RecipeError(
            f"{section.where}: all sources of a slice must have equally many layers, but the "
            f"ranges are {listed}."
        )
    for given, source in zip(part.sources, section.sources, strict=True):
        count = source.view.layer_count
        if given.layer_range[1] > count:
            problems.add(
                Finding(
                    Severity.ERROR,
                    "layer-range",
                    source.view.label,
                    f"{section.where}: layer_range {list(given.layer_range)} reaches past the "
                    f"{count} layers of {source.view.label!r}",
                    f"end it at {count} at most",
                )
            )
    # A range is any two numbers, but nothing is made for layers that no source has.
    longest = max(source.view.layer_count - source.start for source in section.sources)
    return max(0, min(lengths.pop(), longest))
