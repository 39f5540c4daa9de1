"""What a report shows of experts' changes: heat maps by layer and role."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from weightsmith.checkpoints import Checkpoint
from weightsmith.inspection import (
    RANK,
    Changes,
    Interference,
    MatrixOverlap,
    Place,
    measure_interference,
    measure_overlaps,
    place_order,
)
from weightsmith.reports.evaluation_sections import names_of
from weightsmith.reports.figures import ColourScale, Grid
from weightsmith.reports.layer_maps import Places, map_pictures
from weightsmith.reports.page import Block, DataTable, PageSection, Paragraph, Picture
from weightsmith.reports.report_text import number
from weightsmith.reports.validation import caution_about, diagnostics_table
from weightsmith.wording import counted

_MOST_MAPS = 8


def change_sections(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    *,
    merged: Checkpoint | None = None,
    has_base: bool = True,
    threads: int | None = None,
) -> list[PageSection]:
    """Measure what experts changed of a base and show it.

    `merged` is what was made of them. Without a base (`has_base` False) the first checkpoint stands for it. Cosine,
    sign conflict and overlap need two experts. Reads the checkpoints; memory does not depend on their size.
    """
    found = measure_interference(base, experts, threads=threads)
    if not found.tensors:
        return []
    names = names_of([expert.source for expert in experts])
    layers = _Layers(found)
    blocks: list[Block] = [*_preface(base, found, layers.places, has_base)]
    blocks += _sizes(found, layers, names)
    sections = [PageSection("What was changed", tuple(blocks))]
    if len(experts) > 1:
        overlaps = measure_overlaps(base, experts, threads=threads)
        sections.append(
            PageSection("How the changes meet", tuple(_meetings(found, layers, names, overlaps)))
        )
    if merged is not None:
        sections.append(_merged_section(base, experts, merged, names, threads))
    return sections


class _Layers:
    """Changes by layer and role, as heat maps need them."""

    def __init__(self, found: Interference) -> None:
        self._groups = found.grouped()
        self.places = Places(self._groups)

    def grid(self, figure: Callable[[Changes], float | None], scale: ColourScale) -> Grid:
        return self.places.grid(lambda place: figure(self._groups[place]), scale)


def _preface(
    base: Checkpoint, found: Interference, places: Places, has_base: bool
) -> list[Paragraph]:
    total = found.total
    assert total is not None
    measured = f"{counted(total.tensors, 'tensor')} with {total.elements:,} values"
    words = f"Changes are measured from {names_of([base.source])[0]}, over {measured}."
    blocks = [Paragraph(f"{words} {places.legend}".strip())]
    if not has_base:
        blocks.append(
            Paragraph(
                "No base was given, so the first checkpoint stands for it; name the base with --base.",
                caution=True,
            )
        )
    if found.left_out:
        kept_out = counted(len(found.left_out), "tensor")
        listed = ", ".join(found.left_out[:5]) + (" ..." if len(found.left_out) > 5 else "")
        blocks.append(
            Paragraph(f"Left out, as not all have them in one shape: {kept_out}: {listed}.")
        )
    return blocks


def _sizes(found: Interference, layers: _Layers, names: Sequence[str]) -> list[Block]:
    total = found.total
    assert total is not None
    if len(names) > _MOST_MAPS:
        grid = layers.grid(
            lambda c: sum(c.relative(i) for i in range(len(names))) / len(names), ColourScale.SIZE
        )
        maps = [
            *map_pictures(
                "change",
                "Relative change, mean of all",
                "Mean over models of |model - base| / |base|.",
                grid,
            )
        ]
    else:
        maps = [
            picture
            for i, name in enumerate(names)
            for picture in map_pictures(
                f"change-{i}",
                f"Relative change of {name}",
                "|model - base| / |base| by layer and role, Euclidean norms.",
                layers.grid(lambda c, i=i: c.relative(i), ColourScale.SIZE),  # type: ignore[misc]
            )
        ]
    table = DataTable(
        "All tensors together",
        ("model", "relative change"),
        tuple((name, number(total.relative(i))) for i, name in enumerate(names)),
        frozenset({1}),
    )
    return [*maps, table]


def _meetings(
    found: Interference,
    layers: _Layers,
    names: Sequence[str],
    overlaps: Sequence[MatrixOverlap],
) -> list[Block]:
    total = found.total
    assert total is not None
    experts = range(len(names))
    matrix = Grid(
        tuple(names),
        tuple(names),
        tuple(tuple(total.cosine(i, j) for j in experts) for i in experts),
        ColourScale.COSINE,
    )
    pictures = [
        *map_pictures(
            "cosine-pairs",
            "Cosine between changes, pair by pair",
            "Over all tensors together: 1 the same direction, 0 unrelated, -1 opposite.",
            matrix,
            first="model",
        ),
        *map_pictures(
            "cosine",
            "Cosine between changes",
            "Mean over pairs of models, by layer and role.",
            layers.grid(lambda c: c.mean_cosine, ColourScale.COSINE),
            caution=caution_about("delta_cosine"),
        ),
        *map_pictures(
            "sign-conflict",
            "Sign conflict",
            "Of the pairs of changes of one value, the share with opposite signs; unrelated changes have 0.5.",
            layers.grid(lambda c: c.sign_conflict, ColourScale.SHARE),
            caution=caution_about("sign_conflict"),
        ),
    ]
    pictures += _overlap_pictures(overlaps, layers.places)
    own = [found.overlap for found in overlaps]
    return [*pictures, diagnostics_table(total, sum(own) / len(own) if own else None)]


def _overlap_pictures(overlaps: Sequence[MatrixOverlap], places: Places) -> list[Picture]:
    if not overlaps:
        return []
    means: dict[Place, float] = {}
    ordered = sorted(overlaps, key=lambda overlap: place_order(overlap.place))
    for place, members in itertools.groupby(
        sorted(ordered, key=lambda o: (place_order(o.place), o.place[2])), key=lambda o: o.place
    ):
        own = [overlap.overlap for overlap in members]
        means[place] = sum(own) / len(own)
    chances = [overlap.chance for overlap in overlaps]
    expected = (
        number(min(chances), 2)
        if min(chances) == max(chances)
        else f"{number(min(chances), 2)} to {number(max(chances), 2)}"
    )
    grid = places.grid(means.get, ColourScale.SHARE)
    return map_pictures(
        "subspace-overlap",
        "Subspace overlap",
        f"Of the {RANK} leading left singular directions of two changes, the share that is common, mean over pairs; "
        f"unrelated ones have {expected}.",
        grid,
        caution=caution_about("subspace_overlap"),
    )


def _merged_section(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    merged: Checkpoint,
    names: Sequence[str],
    threads: int | None,
) -> PageSection:
    found = measure_interference(base, [*experts, merged], threads=threads)
    total = found.total
    title = "What the merge changed"
    if total is None:
        return PageSection(title, (Paragraph("No tensor has the same shape in all models."),))
    own = len(experts)
    layers = _Layers(found)
    return PageSection(
        title,
        (
            *map_pictures(
                "merged-change",
                "Relative change of the merged model",
                "|merged - base| / |base| by layer and role, Euclidean norms.",
                layers.grid(lambda c: c.relative(own), ColourScale.SIZE),
            ),
            DataTable(
                "The merged model's change beside each model's",
                ("model", "relative change", "cosine with the merged change"),
                (
                    *(
                        (name, number(total.relative(i)), number(total.cosine(i, own)))
                        for i, name in enumerate(names)
                    ),
                    ("merged", number(total.relative(own)), number(total.cosine(own, own))),
                ),
                frozenset({1, 2}),
            ),
        ),
    )
