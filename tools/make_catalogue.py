"""Write docs/methods.md, the catalogue of merge methods, from the registry.

python tools/make_catalogue.py            write the page
python tools/make_catalogue.py --check    exit code 1 if the page is not current
"""

from __future__ import annotations

import sys
from pathlib import Path

from click.testing import CliRunner

from weightsmith.cli.main import weightsmith as command_line
from weightsmith.inspection.method_facts import facts_of, facts_of_modifier
from weightsmith.inspection.method_guide import MODIFIERS as MODIFIER_QUESTION
from weightsmith.inspection.method_guide import QUESTIONS
from weightsmith.methods.parts import modifiers, registry
from weightsmith.methods.parts.modifiers import ModifierSpec
from weightsmith.methods.parts.registry import MethodSpec

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
INTRODUCTION = """\
# Methods

*This page is written by `tools/make_catalogue.py` from the methods themselves; change them, not the page.*

The **kind** says what must be seen before an element can be written: only itself (`elementwise`), sums or
order statistics of its row or tensor (`measured`), such of the whole model (`model`), or its whole matrix
(`matrix`). **Passes** is how often the inputs are streamed. Both are found by tracing the method with the
defaults of the paper; other parameters can change them. **Cost** is the time for N experts and a matrix of m outputs
and n inputs. **Statistics** are the kinds of stored statistics that a method takes of each expert (`statistics:` in
recipes), the preferred one first. **Generalises** names methods that are special cases.

Native recipes take the defaults of the preset `paper`. mergekit's files, and `semantics: mergekit`, take
those of `mergekit` where a method has that preset, and else the same. Further presets, such as `mergelm` of
`dare_ties`, are given in the same way. In the formulas theta_0 is the base,
theta_i an expert, tau_i = theta_i - theta_0, and w_i its `weight`.

"""
COLUMNS = (
    "name",
    "title",
    "base",
    "experts",
    "statistics",
    "kind",
    "passes",
    "cost",
    "generalises",
    "presets",
    "paper",
)
MODIFIERS = """\
# Modifiers

A modifier changes the experts before a method merges them, and goes with every method: `modify: [{clip: {limit: 2}}]`
in a recipe, its slices, modules or rules (the closest counts), or `modify=` of `merge_state_dicts`. Several apply one
after the other. **Passes before** are those that it adds.

"""
MODIFIER_COLUMNS = ("name", "title", "base", "kind", "passes before", "paper")


def catalogue() -> str:
    """The whole page."""
    specs = [registry.get(name) for name in registry.names()]
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *(_row(spec) for spec in specs)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    methods = INTRODUCTION + _guide() + table + "\n\n" + "\n".join(_section(spec) for spec in specs)
    known = [modifiers.get(name) for name in modifiers.names()]
    rows = [MODIFIER_COLUMNS, tuple("---" for _ in MODIFIER_COLUMNS)]
    rows += [_modifier_row(spec) for spec in known]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    sections = "\n".join(_section(spec) for spec in known)
    return f"{methods}\n{MODIFIERS}{table}\n\n{sections}"


def _guide() -> str:
    """What `weightsmith methods` prints: which methods answer which question, the first to try first."""
    lines = [
        f"- {question.title}: "
        + "; ".join(f"[{name}](#{name}) ({line})" for name, line in question.answers.items())
        for question in (*QUESTIONS, MODIFIER_QUESTION)
    ]
    more = "[with settings and figures](which-method.md)"
    head = f"By what they are for, the first to try first ({more}):"
    return f"{head}\n\n" + "\n".join(lines) + "\n\n"


def _modifier_row(spec: ModifierSpec) -> tuple[str, ...]:
    facts = facts_of_modifier(spec)
    link = f"[{spec.name}](#{spec.name})"
    return link, spec.title, spec.base.value, facts.kind, str(facts.passes), spec.paper


def _row(spec: MethodSpec) -> tuple[str, ...]:
    facts = facts_of(spec)
    least, most = spec.experts
    experts = (
        f"{least} or more"
        if most is None
        else str(least)
        if least == most
        else f"{least} to {most}"
    )
    return (
        f"[{spec.name}](#{spec.name})",
        spec.title,
        spec.base.value,
        experts,
        " or ".join(spec.statistics),
        facts.kind,
        str(facts.passes),
        facts.cost,
        ", ".join(f"[{name}](#{name})" for name in spec.generalises),
        ", ".join((registry.PAPER, *sorted(spec.presets))),
        spec.paper,
    )


def _section(spec: MethodSpec | ModifierSpec) -> str:
    """What `weightsmith methods NAME --markdown` prints, under a heading that links can name."""
    printed = CliRunner().invoke(command_line, ["methods", spec.name, "--markdown"])
    if printed.exit_code != 0:
        raise SystemExit(printed.output)
    lines = [line.rstrip() for line in printed.stdout.splitlines()]
    if not spec.parameters:
        lines = [*(line for line in lines if not line.startswith("|")), "It has no parameters."]
    return (
        "\n".join((f"## {spec.name}", "", f"**{lines[0].removeprefix('# ')}.**", *lines[1:])) + "\n"
    )


def main() -> int:
    """Write or check the page."""
    if sys.argv[1:] == ["--check"]:
        return 0 if PAGE.read_text() == catalogue() else 1
    PAGE.write_text(catalogue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
