"""From sections to output tensors: which layers go where, and in which order the result has its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.naming import beside
from weightsmith.recipes.language.problems import Problems
from weightsmith.recipes.resolution.formula import OutputTensor
from weightsmith.recipes.resolution.output_sections import MergeSection
from weightsmith.recipes.resolution.redundant_copies import redundant_names
from weightsmith.recipes.resolution.views import View, layer_name
from weightsmith.tensors import Kind, Place, depth_of, record

_INPUT_KINDS = frozenset(
    {Kind.EMBEDDING, Kind.POSITION_EMBEDDING, Kind.TYPE_EMBEDDING, Kind.CONVOLUTION, Kind.BUFFER}
)
_INPUT_WORD = re.compile(r"embed|(?:^|[._])pre_|ln_pre|norm_pre", re.IGNORECASE)


@record
@dataclass(frozen=True, slots=True)
class Placed:
    """One output tensor: the tensor of each source (None where it lacks it), the base's, and its place."""

    section: MergeSection
    items: tuple[OutputTensor | None, ...]
    base: OutputTensor | None
    place: Place


def place_models(
    section: MergeSection, config_source: View, problems: Problems, *, flat: bool
) -> Iterator[Placed]:
    """The outputs of `models:`: every tensor under its own name, in the config source's order.

    `flat` puts all at depth 0, as mergekit does with single files.
    """
    _compare_layer_counts(section, problems)
    views = [source.view for source in section.sources]
    copies = redundant_names([*views, *([section.base] if section.base is not None else [])])
    tensors = [view.items for view in views]
    of_base = section.base.items if section.base is not None else {}
    for name in _joined([config_source.items, *tensors]):
        items = tuple([own.get(name) for own in tensors])
        found = next((item for item in items if item is not None), None)
        if found is None and beside(name) is not None:
            # A file beside the main set that the config source alone has belongs to its configuration.
            found = config_source.items.get(name)
        if found is None or name in copies:
            continue
        place = config_source.items.get(name, found).place
        place = replace(place, depth=0.0) if flat else place
        yield Placed(section, items, of_base.get(name), place)


def _joined(tensors: Sequence[Mapping[str, OutputTensor]]) -> dict[str, None]:
    """The names of all, in the order in which they first appear."""
    names: dict[str, None] = {}
    for own in tensors:
        names.update(dict.fromkeys(own))
    return names


def _compare_layer_counts(section: MergeSection, problems: Problems) -> None:
    counts = {source.view.label: source.view.layer_count for source in section.sources}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} in {label!r}" for label, count in counts.items())
        problems.add(
            Finding(
                Severity.ERROR,
                "layer-count",
                section.where,
                f"{section.where}: the models have different numbers of layers ({listed})",
                "combine equally long ranges of layers with `slices:`",
            )
        )


def place_slices(
    sections: Sequence[MergeSection], lengths: Sequence[int], config_source: View
) -> Iterator[Placed]:
    """The outputs of `slices:`, with layers numbered through.

    What lies before the stack comes from the first slice's sources, what lies after it from the
    last slice's.
    """
    prefix = config_source.main_stack
    if prefix is None:
        raise RecipeError(
            f"{sections[0].where}: {config_source.label!r} has no layers to slice; use `models:` instead."
        )
    total = sum(lengths)
    order = list(config_source.items.values())
    stack = [i for i, item in enumerate(order) if item.place.stack == prefix]
    inputs = [s.view for section in (sections[0], sections[-1]) for s in section.sources]
    inputs += [section.base for section in sections if section.base is not None]
    copies = redundant_names(list({id(view): view for view in inputs}.values()))
    outside = [item for item in _outside(sections, config_source) if item.name not in copies]
    before = [
        item
        for i, item in enumerate(order)
        if item.place.stack != prefix and i < stack[0] and item.name not in copies
    ]
    yield from (_place_outside(sections, item) for item in before)
    offset = 0
    for section, length in zip(sections, lengths, strict=True):
        for k in range(length):
            at = [source.start + k for source in section.sources]
            yield from _place_layer(section, prefix, at, offset + k, total, depth_of(k, length))
        offset += length
    yield from _place_further(sections[-1], config_source, prefix, total)
    done = {item.name for item in before}
    yield from (_place_outside(sections, item) for item in outside if item.name not in done)


def _outside(sections: Sequence[MergeSection], config_source: View) -> list[OutputTensor]:
    views = (
        config_source,
        *(source.view for section in (sections[0], sections[-1]) for source in section.sources),
    )
    found: dict[str, OutputTensor] = {}
    for view in views:
        main = view.main_stack
        for item in view.items.values():
            if item.place.stack != main:
                found.setdefault(item.name, item)
    return list(found.values())


def _place_outside(sections: Sequence[MergeSection], item: OutputTensor) -> Placed:
    section = sections[-1] if comes_after(item) else sections[0]
    items = tuple(source.view.items.get(item.name) for source in section.sources)
    base = section.base.items.get(item.name) if section.base is not None else None
    return Placed(section, items, base, replace(item.place, depth=0.0))


def _place_further(
    section: MergeSection, config_source: View, prefix: str, total: int
) -> Iterator[Placed]:
    """The blocks that predict further tokens, behind the last layer: those of the last slice's sources."""
    for k in range(config_source.further_layers):
        at = [source.view.layer_count + k for source in section.sources]
        yield from _place_layer(section, prefix, at, total + k, total, 1.0)


def _place_layer(
    section: MergeSection, prefix: str, at: Sequence[int], layer: int, total: int, depth: float
) -> Iterator[Placed]:
    """The tensors of one output layer, of the sources' layers `at`, named by what follows the number in their names."""
    layers = []
    for source, number in zip(section.sources, at, strict=True):
        main = source.view.main_stack
        stack = source.view.stacks[main] if main is not None else {}
        layers.append(stack.get(number, {}))
    base = section.base
    for rest in dict.fromkeys(rest for found in layers for rest in found):
        items = tuple(found.get(rest) for found in layers)
        first = next(item for item in items if item is not None)
        base_item: OutputTensor | None = None
        if base is not None:
            own = section.base_index
            base_item = items[own] if own is not None else base.items.get(first.name)
        place = replace(
            first.place,
            name=layer_name(prefix, layer, rest),
            layer=layer,
            layers=total,
            stack=prefix,
            depth=depth,
        )
        yield Placed(section, items, base_item, place)


def comes_after(item: OutputTensor) -> bool:
    """Whether a tensor outside the stack belongs behind it: all but what turns input into vectors."""
    if item.place.kind in _INPUT_KINDS:
        return False
    return not _INPUT_WORD.search(item.name)
