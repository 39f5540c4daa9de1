"""What a report shows of the difference between two checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weightsmith.inspection import CheckpointDifference, Measures, Mismatch
from weightsmith.reports.figures import ColourScale, Grid
from weightsmith.reports.layer_maps import Places, map_pictures
from weightsmith.reports.page import Block, DataTable, Facts, PageSection, Paragraph, Picture
from weightsmith.reports.report_text import number, share
from weightsmith.wording import counted


def difference_sections(found: CheckpointDifference) -> list[PageSection]:
    """How B differs from A by layer and role; with a base, what each changed of it."""
    sections = [PageSection("In short", tuple(_summary(found)))]
    if found.groups:
        sections.append(PageSection("By layer and role", tuple(_maps(found))))
    tables = _tables(found)
    return (
        [*sections, PageSection("What could not be compared", tuple(tables))]
        if tables
        else sections
    )


def _summary(found: CheckpointDifference) -> list[Block]:
    total = found.total
    pairs = [
        ("A", found.a),
        ("B", found.b),
        *([("Base", found.base)] if found.base is not None else []),
        ("|B - A| / |A|", number(total.relative_delta)),
        ("Cosine of A and B", number(total.cosine, 6)),
        (
            "Changed values",
            f"{total.changed:,} of {total.elements:,} ({share(total.changed_share)})",
        ),
        ("Largest |B - A|", number(total.largest)),
    ]
    if found.base is not None:
        pairs.append(("Cosine of A - base and B - base", number(total.delta_cosine)))
    verdict = (
        f"Identical: {counted(total.tensors, 'tensor')}, every byte."
        if found.identical
        else f"Different in {counted(total.other_bits, 'tensor')} of {total.tensors:,}."
    )
    return [Paragraph(verdict), Facts(tuple(pairs))]


def _maps(found: CheckpointDifference) -> list[Block]:
    groups = {(g.block, g.layer, g.role): g.measures for g in found.groups}
    places = Places(groups)

    def grid(figure: Callable[[Measures], float | None], scale: ColourScale) -> Grid:
        return places.grid(lambda place: figure(groups[place]), scale)

    maps: list[Picture] = [
        *map_pictures(
            "difference",
            "Relative difference",
            "|B - A| / |A| by layer and role, Euclidean norms.",
            grid(lambda m: m.relative_delta, ColourScale.SIZE),
        ),
        *map_pictures(
            "changed",
            "Changed values",
            "The share of values that are not the same.",
            grid(lambda m: m.changed_share, ColourScale.SHARE),
        ),
    ]
    if found.base is not None:
        maps += [
            *map_pictures(
                "change-a",
                "Relative change of A",
                "|A - base| / |base| by layer and role.",
                grid(lambda m: m.delta_a, ColourScale.SIZE),
            ),
            *map_pictures(
                "change-b",
                "Relative change of B",
                "|B - base| / |base| by layer and role.",
                grid(lambda m: m.delta_b, ColourScale.SIZE),
            ),
            *map_pictures(
                "change-cosine",
                "Cosine between changes",
                "Between A - base and B - base, by layer and role.",
                grid(lambda m: m.delta_cosine, ColourScale.COSINE),
            ),
        ]
    legend = [Paragraph(places.legend)] if places.legend else []
    return [*legend, *maps]


def _tables(found: CheckpointDifference) -> list[DataTable]:
    lists: tuple[tuple[str, Sequence[str]], ...] = (
        ("Only in A", found.missing),
        ("Only in B", found.extra),
        ("Not comparable with the base", found.not_in_base),
    )
    mismatches: tuple[tuple[str, Sequence[Mismatch]], ...] = (
        ("Named otherwise", found.names),
        ("Different shapes", found.shapes),
        ("Different dtypes", found.dtypes),
    )
    return [
        *(
            DataTable(title, ("tensor",), tuple((name,) for name in names))
            for title, names in lists
            if names
        ),
        *(
            DataTable(title, ("tensor", "A", "B"), tuple((m.name, m.a, m.b) for m in rows))
            for title, rows in mismatches
            if rows
        ),
    ]
