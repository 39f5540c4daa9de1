"""`weightsmith methods`: which merge methods there are, and what each computes."""

from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.output import Table, show_line, show_table

if TYPE_CHECKING:
    from weightsmith.methods.modifiers import ModifierSpec
    from weightsmith.methods.registry import MethodSpec, Parameter

_LIST = ("name", "title", "base", "experts", "statistics", "kind", "passes", "paper")
_PARAMETERS = ("parameter", "per expert", "allowed", "paper", "mergekit", "meaning")
_MODIFIERS = ("name", "title", "base", "kind", "passes before", "paper")
_MODIFIER_PARAMETERS = ("parameter", "allowed", "default", "meaning")


@click.command(
    cls=DocumentedCommand,
    short_help="List the merge methods and modifiers, or explain one.",
    examples=(
        "methods",
        "methods ties",
        "methods clip",
    ),
)
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Write Markdown.")
def methods(name: str | None, markdown: bool) -> int:
    """List all merge methods and modifiers, or print the formula, parameters and source of the one called NAME."""
    from weightsmith.methods import modifiers, registry

    if name is None:
        _show(_list([registry.get(known) for known in registry.names()]), markdown)
        if markdown:
            show_line()
        _show(_modifiers([modifiers.get(known) for known in modifiers.names()]), markdown)
        return 0
    spec = modifiers.get(name) if name in modifiers.names() else registry.get(name)
    show_line(f"# {spec.title}" if markdown else f"{spec.name}: {spec.title}")
    show_line()
    for line in cleandoc(spec.implementation.__doc__ or "").splitlines():
        show_line(line)
    show_line()
    for fact, value in _facts(spec):
        show_line(f"- {fact}: {value}" if markdown else f"{fact}: {value}")
    show_line()
    _show(_parameters(spec), markdown)
    return 0


def _list(specs: list[MethodSpec]) -> Table:
    from weightsmith.inspection.method_facts import facts_of

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
    return Table(f"{len(rows)} methods", _LIST, rows, frozenset({6}))


def _modifiers(specs: list[ModifierSpec]) -> Table:
    from weightsmith.inspection.method_facts import facts_of_modifier

    rows = []
    for spec in specs:
        facts = facts_of_modifier(spec)
        rows.append(
            (spec.name, spec.title, spec.base.value, facts.kind, str(facts.passes), spec.paper)
        )
    return Table(f"{len(rows)} modifiers, for `modify:`", _MODIFIERS, rows, frozenset({4}))


def _facts(spec: MethodSpec | ModifierSpec) -> list[tuple[str, str]]:
    from weightsmith.inspection.method_facts import facts_of, facts_of_modifier
    from weightsmith.methods.modifiers import ModifierSpec

    if isinstance(spec, ModifierSpec):
        facts = facts_of_modifier(spec)
        added = f"{facts.passes} more {'pass' if facts.passes == 1 else 'passes'}"
        return [
            ("modifier, for", "`modify:`"),
            ("paper", spec.paper),
            ("base", spec.base.value),
            ("kind", f"{facts.kind}, {added}"),
        ]
    facts = facts_of(spec)
    shown = [
        ("paper", spec.paper),
        ("base", spec.base.value),
        ("experts", _experts(spec)),
        ("statistics", " or ".join(spec.statistics)),
        ("kind", f"{facts.kind}, {facts.passes} {'pass' if facts.passes == 1 else 'passes'}"),
        ("cost", facts.cost),
        ("generalises", ", ".join(spec.generalises)),
        ("presets", ", ".join(("paper", *sorted(spec.presets)))),
    ]
    return [(fact, value) for fact, value in shown if value]


def _experts(spec: MethodSpec) -> str:
    least, most = spec.experts
    if least == most:
        return str(least)
    return f"{least} or more" if most is None else f"{least} to {most}"


def _parameters(spec: MethodSpec | ModifierSpec) -> Table:
    from weightsmith.methods.modifiers import ModifierSpec

    if isinstance(spec, ModifierSpec):
        given = [
            (key, _allowed(p), _written(p.default), p.doc) for key, p in spec.parameters.items()
        ]
        return Table("Parameters" if given else "No parameters", _MODIFIER_PARAMETERS, given)
    paper, mergekit = spec.defaults(), spec.defaults("mergekit")
    rows = [
        (
            key,
            "yes" if p.per_expert else "",
            _allowed(p),
            _written(paper[key]),
            _written(mergekit[key]),
            p.doc,
        )
        for key, p in spec.parameters.items()
    ]
    return Table(
        "Parameters, with the defaults of both presets" if rows else "No parameters",
        _PARAMETERS,
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


def _show(table: Table, markdown: bool) -> None:
    if not markdown:
        show_table(table) if table.rows else show_line(table.title)
        return
    cells = [tuple(_markdown(cell) for cell in row) for row in (table.columns, *table.rows)]
    rule = tuple("---:" if i in table.right else "---" for i in range(len(table.columns)))
    for line in (cells[0], rule, *cells[1:]):
        show_line(f"| {' | '.join(line)} |")


def _markdown(cell: str) -> str:
    return cell.replace("|", r"\|")
