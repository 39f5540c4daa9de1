"""Which tensor of a model stands for which of the config source's, where the two name one network differently.

A vision-language checkpoint keeps its language model under a prefix (`language_model.model.layers.0`,
`model.language_model.layers.0`), a plain one does not (`model.layers.0`). Stacks of blocks with the same tensors
inside give the pair of prefixes; what lies outside the blocks follows it, or keeps its name, or is the only tensor of
its role and shape there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.recipes.language.problems import Problems
from weightsmith.recipes.resolution.formula import OutputTensor
from weightsmith.recipes.resolution.views import View
from weightsmith.tensors import Kind

# Roles of which a language model has one tensor outside its blocks.
_SINGLE = (Kind.EMBEDDING, Kind.HEAD, Kind.NORM)
# Less than half of their tensors in common, and two blocks are not the same thing.
_ALIKE = 0.5


@dataclass(frozen=True, slots=True)
class Prefixes:
    """A model's name prefix and the config source's for the same part; an empty one stands for every name."""

    theirs: str
    ours: str

    def reaches(self, name: str) -> bool:
        """Whether a name of the model has the prefix."""
        return not self.theirs or name == self.theirs or name.startswith(self.theirs + ".")

    def apply(self, name: str) -> str:
        """The config source's name for a name that the prefix reaches."""
        rest = name[len(self.theirs) :].lstrip(".")
        return ".".join(part for part in (self.ours, rest) if part)

    def __str__(self) -> str:
        theirs, ours = (f"{p}.*" if p else "*" for p in (self.theirs, self.ours))
        return f"{theirs} as {ours}"


def in_config_source_names(
    view: View,
    config_source: View,
    declared: str | Mapping[str, str] | None,
    where: str,
    problems: Problems,
) -> View:
    """A model with its tensors under the config source's names; the model itself where they agree already.

    `declared` is a module's `prefix:`, from the config source's prefixes to the model's, or the config source's alone
    for a model without one; None infers them. The tensors keep their values and places in files. How names are read is
    a note; tensors under a prefix that the config source has no counterpart for are an error that names them. Raises
    RecipeError for a declared prefix that no tensor has, and where two stacks of the config source are equally alike.
    """
    if view is config_source:
        return view
    pairs = (
        _declared(view, config_source, declared, where)
        if declared
        else _inferred(view, config_source, where)
    )
    if not pairs:
        return view
    pairs = sorted(pairs, key=lambda pair: -len(pair.theirs))
    names = _names(view, config_source, pairs)
    problems.add(
        Finding(
            Severity.NOTE,
            "module-names",
            view.label,
            f"{where}: names of {view.label!r} are read as those of {config_source.label!r}: "
            f"{', '.join(map(str, pairs))}{_exceptions(names, pairs)}",
        )
    )
    _note_unmatched(view, config_source, pairs, names, where, problems)
    items = {ours: _moved(view.items[theirs], ours, pairs) for theirs, ours in names.items()}
    ties = tuple(frozenset(names.get(name, name) for name in group) for group in view.ties)
    return replace(view, items=items, ties=ties)


def _declared(
    view: View, config_source: View, declared: str | Mapping[str, str], where: str
) -> list[Prefixes]:
    given = {declared: ""} if isinstance(declared, str) else declared
    pairs = [Prefixes(theirs.strip("."), ours.strip(".")) for ours, theirs in given.items()]
    for pair in pairs:
        if not any(_under(name, pair.ours) for name in config_source.items):
            raise RecipeError(
                f"{where}: prefix {pair.ours!r} is no prefix of a tensor of {config_source.label!r}; its stacks are "
                f"{', '.join(config_source.stacks) or 'none'}."
            )
    if any(_under(s, p.ours) and s in config_source.stacks for p in pairs for s in view.stacks):
        return []
    for pair in pairs:
        if not any(pair.reaches(name) for name in view.items):
            raise RecipeError(
                f"{where}: prefix {pair.theirs!r} is no prefix of a tensor of {view.label!r}; its stacks are "
                f"{', '.join(view.stacks) or 'none'}."
            )
    return pairs


def _under(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(prefix + ".")


def _inferred(view: View, config_source: View, where: str) -> list[Prefixes]:
    pairs: dict[Prefixes, None] = {}
    free = [prefix for prefix in config_source.stacks if prefix not in view.stacks]
    for stack in view.stacks:
        if stack in config_source.stacks:
            continue
        alike = {prefix: _likeness(view, stack, config_source, prefix) for prefix in free}
        best = max(alike.values(), default=0.0)
        if best <= _ALIKE:
            continue
        chosen = [prefix for prefix, likeness in alike.items() if likeness == best]
        if len(chosen) > 1:
            raise RecipeError(
                f"{where}: layers {stack!r} of {view.label!r} could be {' or '.join(map(repr, chosen))} of "
                f"{config_source.label!r}; say which with `prefix:`, such as `prefix: {{{chosen[0]}: {stack}}}`."
            )
        pairs[_stripped(stack, chosen[0])] = None
    return list(pairs)


def _likeness(view: View, stack: str, config_source: View, other: str) -> float:
    """Tensors of one name and shape in the first blocks of two stacks, as a part of those of either."""
    mine, theirs = _block_shapes(view, stack), _block_shapes(config_source, other)
    return len(mine & theirs) / len(mine | theirs)


def _block_shapes(view: View, stack: str) -> set[tuple[str, tuple[int, ...]]]:
    layers = view.stacks[stack]
    return {(rest, item.shape) for rest, item in layers[min(layers)].items()}


def _stripped(theirs: str, ours: str) -> Prefixes:
    """The prefixes of two stacks without the fields that both end in."""
    left, right = theirs.split("."), ours.split(".")
    while left and right and left[-1] == right[-1]:
        left.pop()
        right.pop()
    return Prefixes(".".join(left), ".".join(right))


def _names(view: View, config_source: View, pairs: Sequence[Prefixes]) -> dict[str, str]:
    """The config source's name for each name of the model that has one, each used once."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    waiting: list[str] = []
    for name in view.items:
        wanted = _mapped(name, pairs)
        found = next(
            (n for n in (wanted, name) if n is not None and n in config_source.items), None
        )
        if found is None or found in taken:
            waiting.append(name)
            continue
        names[name] = found
        taken.add(found)
    for name in waiting:
        item = view.items[name]
        if item.place.stack is not None and _mapped(name, pairs) is not None:
            # A block's tensor that the config source lacks keeps its place, so that slices can number it anew.
            names[name] = _mapped(name, pairs) or name
        alike = [n for n in _of_role(config_source, item, pairs) if n not in taken]
        if item.place.stack is None and len(alike) == 1:
            names[name] = alike[0]
            taken.add(alike[0])
    return names


def _mapped(name: str, pairs: Sequence[Prefixes]) -> str | None:
    return next((pair.apply(name) for pair in pairs if pair.reaches(name)), None)


def _of_role(config_source: View, item: OutputTensor, pairs: Sequence[Prefixes]) -> list[str]:
    """The config source's tensors outside blocks that have an item's role; those under a prefix go before the
    others.
    """
    part = item.name.rpartition(".")[2]
    alike = [
        other.name
        for other in config_source.items.values()
        if item.place.kind in _SINGLE
        and other.place.kind is item.place.kind
        and other.place.stack is None
        and _fits(other, item)
        and other.name.rpartition(".")[2] == part
    ]
    near = [name for name in alike if any(_under(name, pair.ours) for pair in pairs)]
    return near or alike


def _fits(ours: OutputTensor, theirs: OutputTensor) -> bool:
    """Whether two tensors of one role can be the same: a table may have more rows than the other."""
    start = 0 if theirs.place.kind is Kind.NORM else 1
    return ours.shape[start:] == theirs.shape[start:]


def _moved(item: OutputTensor, name: str, pairs: Sequence[Prefixes]) -> OutputTensor:
    return replace(item, place=replace(item.place, name=name, stack=_stack(item, pairs)))


def _stack(item: OutputTensor, pairs: Sequence[Prefixes]) -> str | None:
    if item.place.stack is None:
        return None
    return _mapped(item.place.stack, pairs) or item.place.stack


def _exceptions(names: Mapping[str, str], pairs: Sequence[Prefixes]) -> str:
    odd = [f"{a} as {b}" for a, b in names.items() if (_mapped(a, pairs) or a) != b]
    return f", {', '.join(odd)}" if odd else ""


def _note_unmatched(
    view: View,
    config_source: View,
    pairs: Sequence[Prefixes],
    names: Mapping[str, str],
    where: str,
    problems: Problems,
) -> None:
    """An error for what a prefix reaches and the config source lacks, a note for what is of another part."""
    for name in _lacking(view, config_source, names, pairs):
        if any(pair.reaches(name) for pair in pairs):
            problems.error(
                name,
                "module-names",
                view.label,
                f"{where}: tensors of {view.label!r} have no counterpart in {config_source.label!r}",
                "merge models of one architecture, or say how names correspond with the module's `prefix:`",
            )
        else:
            problems.about(
                name,
                Severity.NOTE,
                "module-names",
                view.label,
                f"{where}: tensors of {view.label!r} that {config_source.label!r} has no part for are left out",
                "",
            )


def _lacking(
    view: View, config_source: View, names: Mapping[str, str], pairs: Sequence[Prefixes]
) -> Iterator[str]:
    for name, item in view.items.items():
        # Tables that the network computes anew, such as rotary frequencies, are no loss.
        if names.get(name) in config_source.items or item.place.kind is Kind.BUFFER:
            continue
        # Blocks past the config source's last one are a matter of depth, not of names.
        layers = config_source.stacks.get(_stack(item, pairs) or "", {})
        if item.place.stack is None or not any(
            item.place.rest in layer for layer in layers.values()
        ):
            yield name
