"""`weightsmith methods`: which merge methods there are, and what each computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli import completing
from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import json_option
from weightsmith.cli.presenting import Block, Cell, Data, Text, TextTable, present
from weightsmith.wording import counted

if TYPE_CHECKING:
    from weightsmith.inspection import Question
    from weightsmith.methods import MethodSpec, ModifierSpec, Parameter

_LIST = ("name", "title", "base", "experts", "statistics", "kind", "passes", "paper")
# A terminal has no room for the columns of more; `--json` and `--markdown` have them all.
_MOST_SHOWN = 3
_MODIFIERS = ("name", "title", "base", "kind", "passes before", "paper")
_MODIFIER_PARAMETERS = ("parameter", "allowed", "default", "meaning")


@click.command(
    cls=DocumentedCommand,
    examples=(
        "methods",
        "methods ties",
        "methods clip",
    ),
)
@click.argument(
    "name", required=False, shell_complete=completing.names(completing.methods_and_modifiers)
)
@click.option("--markdown", is_flag=True, help="Write Markdown.")
@json_option
def methods(name: str | None, markdown: bool, as_json: bool) -> int:
    """List all merge methods and modifiers by what they are for, or explain the one called NAME.

    An explanation is the formula, the parameters with their defaults, and the source. In a list, what stands first
    under a heading is to be tried first.
    """
    from weightsmith.methods import modifiers, registry

    if name is None:
        present(_Catalogue(), _markdown_lists if markdown else _guide, as_json=as_json)
        return 0
    spec = modifiers.get(name) if name in modifiers.names() else registry.get(name)
    present(_Explained(spec), _markdown_page if markdown else _page, as_json=as_json)
    return 0


class _Catalogue:
    """All methods and modifiers; what only needs their names and lines imports none of them."""

    @property
    def questions(self) -> Sequence[Question]:
        """What they are for, and a line on each."""
        from weightsmith.inspection import questions

        return questions()

    @property
    def methods(self) -> list[MethodSpec]:
        """The methods, by name."""
        from weightsmith.methods import registry

        return [registry.get(name) for name in registry.names()]

    @property
    def modifiers(self) -> list[ModifierSpec]:
        """The modifiers, by name."""
        from weightsmith.methods import modifiers

        return [modifiers.get(name) for name in modifiers.names()]

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "methods": [_facts_json(spec) for spec in self.methods],
            "modifiers": [_facts_json(spec) for spec in self.modifiers],
        }


@dataclass(frozen=True, slots=True)
class _Explained:
    """A method or a modifier."""

    spec: MethodSpec | ModifierSpec

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        spec = self.spec
        doc = cleandoc(spec.implementation.__doc__ or "")
        parameters = [_parameter_json(spec, key, p) for key, p in spec.parameters.items()]
        about = {"about_presets": _about_presets(spec)} if _presets(spec) else {}
        return {**_facts_json(spec), **about, "doc": doc, "parameters": parameters}


def _facts_json(spec: MethodSpec | ModifierSpec) -> dict[str, Any]:
    from weightsmith.inspection import facts_of, facts_of_modifier, question_of
    from weightsmith.methods import ModifierSpec

    shared = {
        "name": spec.name,
        "title": spec.title,
        "question": question_of(spec.name),
        "base": spec.base.value,
        "paper": spec.paper,
    }
    if isinstance(spec, ModifierSpec):
        facts = facts_of_modifier(spec)
        return {
            **shared,
            "kind": facts.kind,
            "passes": facts.passes,
            "statistics": list(spec.statistics),
            "measured_on": spec.measured_on.value if spec.statistics else None,
        }
    facts = facts_of(spec)
    return {
        **shared,
        "kind": facts.kind,
        "passes": facts.passes,
        "cost": facts.cost,
        "experts": list(spec.experts),
        "statistics": list(spec.statistics),
        "measured_on": spec.measured_on.value if spec.statistics else None,
        "generalises": list(spec.generalises),
        "presets": list(_presets(spec)),
    }


def _parameter_json(
    spec: MethodSpec | ModifierSpec, key: str, parameter: Parameter
) -> dict[str, Any]:
    from weightsmith.methods import REQUIRED, ModifierSpec

    defaults = (
        {"paper": parameter.default}
        if isinstance(spec, ModifierSpec)
        else {preset: spec.defaults(preset)[key] for preset in _presets(spec)}
    )
    return {
        "key": key,
        "per_expert": parameter.per_expert,
        "type": parameter.kind.__name__,
        "low": parameter.low,
        "high": parameter.high,
        "choices": list(parameter.choices),
        "optional": parameter.optional,
        # A preset that leaves a parameter to the recipe has no default of it.
        "defaults": {p: value for p, value in defaults.items() if value is not REQUIRED},
        "meaning": parameter.doc,
    }


def _guide(catalogue: _Catalogue) -> Iterator[Block]:
    questions = catalogue.questions
    *methods, modifiers = (len(question.answers) for question in questions)
    counted = f"{sum(methods)} methods and {modifiers} modifiers"
    yield f"{counted} by what they are for, under each head the first to try first."
    yield ""
    for question in questions:
        yield TextTable(question.title, ("", ""), list(question.answers.items()))
    yield "`weightsmith methods NAME` explains one: formula, parameters, defaults, source."
    yield "Which to try first, with which settings: docs/which-method.md; `weightsmith league` measures it."


def _markdown_lists(catalogue: _Catalogue) -> Iterator[Block]:
    yield from _markdown_table(_list(catalogue.methods))
    yield ""
    yield from _markdown_table(_modifiers(catalogue.modifiers))


def _page(explained: _Explained) -> Iterator[Block]:
    spec = explained.spec
    yield f"{spec.name}: {spec.title}"
    yield ""
    yield Text(cleandoc(spec.implementation.__doc__ or ""))
    yield ""
    for fact, value in _facts(spec):
        yield f"{fact}: {value}"
    yield ""
    if about := _about_presets(spec):
        yield TextTable("Presets", ("", ""), list(about.items()))
    every = _presets(spec)
    shown = (
        every
        if len(every) <= _MOST_SHOWN
        else tuple(p for p in ("paper", "mergekit") if p in every)
    )
    table = _parameters(spec, shown)
    yield table if table.rows else table.title
    if shown != every:
        yield "Defaults of the other presets: --markdown or --json."


def _markdown_page(explained: _Explained) -> Iterator[Block]:
    spec = explained.spec
    yield Data(f"# {spec.title}")
    yield ""
    yield from map(Data, cleandoc(spec.implementation.__doc__ or "").splitlines())
    yield ""
    for fact, value in _facts(spec):
        yield Data(f"- {fact}: {value}")
    for preset, about in _about_presets(spec).items():
        yield Data(f"  - {preset}: {about}")
    yield ""
    table = _parameters(spec, _presets(spec))
    yield from _markdown_table(table) if table.rows else [table.title]


def _list(specs: list[MethodSpec]) -> TextTable:
    from weightsmith.inspection import facts_of

    rows = []
    for spec in specs:
        facts = facts_of(spec)
        rows.append(
            (
                spec.name,
                spec.title,
                spec.base.value,
                _experts(spec),
                ", ".join(spec.statistics),
                facts.kind,
                str(facts.passes),
                spec.paper,
            )
        )
    return TextTable(f"{len(rows)} methods", _LIST, rows, frozenset({6}))


def _modifiers(specs: list[ModifierSpec]) -> TextTable:
    from weightsmith.inspection import facts_of_modifier

    rows = []
    for spec in specs:
        facts = facts_of_modifier(spec)
        rows.append(
            (spec.name, spec.title, spec.base.value, facts.kind, str(facts.passes), spec.paper)
        )
    return TextTable(f"{len(rows)} modifiers, for `modify:`", _MODIFIERS, rows, frozenset({4}))


# What must be seen before an element can be written, in a few words; see `inspection.method_facts`.
_SEES = {
    "elementwise": "needs nothing but the element",
    "measured": "needs sums or ranks of its tensor first",
    "model": "needs sums or ranks of the whole model first",
    "matrix": "needs whole matrices in memory",
}


def _facts(spec: MethodSpec | ModifierSpec) -> list[tuple[str, str]]:
    from weightsmith.inspection import facts_of, facts_of_modifier
    from weightsmith.methods import ModifierSpec

    if isinstance(spec, ModifierSpec):
        facts = facts_of_modifier(spec)
        added = f"{facts.passes} more {'pass' if facts.passes == 1 else 'passes'}"
        return [
            ("modifier, for", "`modify:`"),
            ("paper", spec.paper),
            ("base", spec.base.value),
            *([("statistics", _statistics(spec))] if spec.statistics else []),
            ("kind", f"{facts.kind} ({_SEES[facts.kind]}), {added} over the inputs"),
        ]
    facts = facts_of(spec)
    shown = [
        ("paper", spec.paper),
        ("base", spec.base.value),
        ("experts", _experts(spec)),
        ("statistics", _statistics(spec)),
        (
            "kind",
            f"{facts.kind} ({_SEES[facts.kind]}), {counted(facts.passes, 'pass', 'passes')} over the inputs",
        ),
        ("cost", facts.cost),
        ("generalises", ", ".join(spec.generalises)),
        ("presets", ", ".join(_presets(spec))),
    ]
    return [(fact, value) for fact, value in shown if value]


def _statistics(spec: MethodSpec | ModifierSpec) -> str:
    """The kinds, and of whose weights, where those are not the experts'."""
    from weightsmith.methods import MeasuredOn

    kinds = " or ".join(spec.statistics)
    is_own = not kinds or spec.measured_on is MeasuredOn.EXPERTS
    return kinds if is_own else f"{kinds} of {spec.measured_on.value}"


def _experts(spec: MethodSpec) -> str:
    least, most = spec.experts
    if least == most:
        return str(least)
    return f"{least} or more" if most is None else f"{least} to {most}"


def _presets(spec: MethodSpec | ModifierSpec) -> tuple[str, ...]:
    """The presets of a method, the paper's first; a modifier has none."""
    from weightsmith.methods import ModifierSpec

    return () if isinstance(spec, ModifierSpec) else ("paper", *sorted(spec.presets))


def _named(presets: Sequence[str]) -> str:
    if len(presets) == 1:
        return f"the preset {presets[0]}"
    return f"the presets {', '.join(presets[:-1])} and {presets[-1]}"


def _about_presets(spec: MethodSpec | ModifierSpec) -> dict[str, str]:
    """Whose rule each preset is, where the method says it."""
    from weightsmith.methods import ModifierSpec

    return {} if isinstance(spec, ModifierSpec) else dict(spec.about_presets)


def _parameters(spec: MethodSpec | ModifierSpec, presets: Sequence[str]) -> TextTable:
    """The parameters of a method, with a column of defaults for each of some presets."""
    from weightsmith.methods import ModifierSpec

    if isinstance(spec, ModifierSpec):
        given = [
            (key, _allowed(p), _written(p.default), p.doc) for key, p in spec.parameters.items()
        ]
        return TextTable("Parameters" if given else "No parameters", _MODIFIER_PARAMETERS, given)
    columns = ("parameter", "per expert", "allowed", *presets, "meaning")
    rows = [
        (
            key,
            "yes" if p.per_expert else "",
            _allowed(p),
            *(_written(spec.defaults(preset)[key]) for preset in presets),
            p.doc,
        )
        for key, p in spec.parameters.items()
    ]
    return TextTable(
        f"Parameters, with the defaults of {_named(presets)}" if rows else "No parameters",
        columns,
        rows,
    )


def _allowed(parameter: Parameter) -> str:
    if parameter.choices:
        return ", ".join(parameter.choices)
    kind = {"float": "number", "int": "whole number", "bool": "true or false", "str": "text"}[
        parameter.kind.__name__
    ]
    return f"{kind}{_bounds(parameter)}{' or none' if parameter.optional else ''}"


def _bounds(parameter: Parameter) -> str:
    if parameter.low is not None and parameter.high is None:
        return f" >= {parameter.low:g}"
    return f" in {parameter.bounds}" if parameter.bounds else ""


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _markdown_table(table: TextTable) -> Iterator[Data]:
    lines = [tuple(map(_escaped, row)) for row in (table.columns, *table.rows)]
    rule = tuple("---:" if i in table.right else "---" for i in range(len(table.columns)))
    for line in (lines[0], rule, *lines[1:]):
        yield Data(f"| {' | '.join(line)} |")


def _escaped(cell: Cell) -> str:
    return str(cell).replace("|", r"\|")
