"""Write the catalogue of merge methods from the registry: docs/methods.md by questions, docs/methods/NAME.md for each.

python tools/make_catalogue.py            write the pages
python tools/make_catalogue.py --check    exit code 1 if a page is not current, missing, or of no method
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from weightsmith.cli.main import weightsmith as command_line
from weightsmith.inspection.method_facts import example_of, facts_of, facts_of_modifier
from weightsmith.inspection.method_guide import MODIFIERS, QUESTIONS, Question, question_of
from weightsmith.methods.parts import modifiers, registry
from weightsmith.methods.parts.modifiers import ModifierSpec
from weightsmith.methods.parts.registry import REQUIRED, Base, MeasuredOn, MethodSpec

DOCS = Path(__file__).resolve().parent.parent / "docs"
INTRODUCTION = """\
# Methods

*This page and those of the methods are written by `tools/make_catalogue.py` from the methods themselves; change them,
not the pages.*

Under each question, the first to try stands first ([with settings and figures](which-method.md)). Every method has a
page with its formula, parameters, defaults, cost, source, and a recipe that runs; `weightsmith methods NAME` prints
it but for the recipe, on a terminal with the defaults of the first presets.

- **Sees** is what must be seen before an element can be written: only itself (`elementwise`), sums or order
  statistics of its row or tensor (`measured`), such of the whole model (`model`), or its whole matrix (`matrix`).
- **Passes** is how often the inputs are streamed. Both are found by tracing the method with the defaults of the
  paper; other parameters can change them.
- **Cost** is the time for N experts and a matrix of m outputs and n inputs.
- **Generalises** names methods that are special cases.
- **Presets** are sets of defaults. Native recipes take those of the preset `paper`. mergekit's files, and `semantics:
  mergekit`, take those of `mergekit` where a method has that preset, and else the same. Others are given likewise.
- In formulas theta_0 is the base, theta_i an expert, tau_i = theta_i - theta_0, and w_i its `weight`.

"""
COLUMNS = ("method", "what it does", "base", "experts", "sees", "passes")
MODIFIED = """\
A modifier changes the experts before a method merges them, and goes with every method; several apply one after the
other. **Passes** are those that it adds.

"""
MODIFIER_COLUMNS = ("modifier", "what it does", "base", "sees", "passes")
# What the example of a method needs beside the base, two experts and what has no default.
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "emr": {"bundle": {}},
    "tall_masks": {"bundle": {}},
    "localize_and_stitch": {"bundle": {}},
    "lines": {"parameters": {"alpha": 0.5, "beta": 0.5}},
}
# Stand-ins of the shapes that the kinds have: `weights` maps names to arrays.
MEASURED = {
    "adam": "{name: weight**2 for name, weight in weights.items()}",
    "fisher": "{name: weight**2 for name, weight in weights.items()}",
    "gradients": "{name: [weight, -weight] for name, weight in weights.items()}",
    "gradients:absolute": '{f"{name}::absolute": abs(weight) for name, weight in weights.items()}',
    "channels:input_magnitude": '{\n        f"{name}::input_magnitude": abs(weight).mean(0)\n        '
    "for name, weight in weights.items()\n        if weight.ndim == 2\n    }",
    "channels:input_square": '{\n        f"{name}::input_square": (weight**2).mean(0)\n        '
    "for name, weight in weights.items()\n        if weight.ndim == 2\n    }",
    "gram": "{name: weight.T @ weight for name, weight in weights.items() if weight.ndim == 2}",
    "mask": "{name: (weight > 0).astype(weight.dtype) for name, weight in weights.items()}",
    "metrics": "{}",
    "repair": "{name: weight**0 for name, weight in weights.items()}",
}
STATISTICS = """\
The recipe below reads statistics{whose}. Real ones are measured on the data of {over}
([how](../statistics.md)); these stand in for them:

```python
from safetensors.numpy import load_file

import weightsmith

for {names}:
    weights = load_file({weights})
    measured = {measured}
    weightsmith.write_statistics(
        f"{{{label}}}.{kind}.safetensors",
        measured,
        kind="{kind}",
        of={of},
        data="stand-ins",
        samples=2,{metrics}
    )
```
"""


def pages() -> dict[Path, str]:
    """Every page of the catalogue, by its path below docs."""
    specs = [registry.get(name) for question in QUESTIONS for name in question.answers]
    known = [modifiers.get(name) for name in MODIFIERS.answers]
    found = {Path("methods.md"): index()}
    return found | {Path("methods") / f"{spec.name}.md": page(spec) for spec in [*specs, *known]}


def index() -> str:
    """Which methods answer which question."""
    return INTRODUCTION + "\n".join([*map(_answers, QUESTIONS), _modifiers()])


def _answers(question: Question) -> str:
    rows = [
        (_link(name, "methods/"), line, *_needs(registry.get(name)))
        for name, line in question.answers.items()
    ]
    return f"## {question.title}\n\n{_table(COLUMNS, rows)}"


def _needs(spec: MethodSpec) -> tuple[str, ...]:
    facts = facts_of(spec)
    least, most = spec.experts
    several = f"{least} to {most}" if most else f"{least} or more"
    experts = str(least) if least == most else several
    return spec.base.value, experts, facts.kind, str(facts.passes)


def _modifiers() -> str:
    rows = []
    for name, line in MODIFIERS.answers.items():
        spec = modifiers.get(name)
        facts = facts_of_modifier(spec)
        needs = (spec.base.value, facts.kind, str(facts.passes))
        rows.append((_link(name, "methods/"), line, *needs))
    return f"## {MODIFIERS.title}\n\n{MODIFIED}{_table(MODIFIER_COLUMNS, rows)}"


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _link(name: str, folder: str = "") -> str:
    return f"[{name}]({folder}{name}.md)"


def page(spec: MethodSpec | ModifierSpec) -> str:
    """What `weightsmith methods NAME --markdown` prints, and a recipe."""
    printed = CliRunner().invoke(command_line, ["methods", spec.name, "--markdown"])
    if printed.exit_code != 0:
        raise SystemExit(printed.output)
    title, *rest = (line.rstrip() for line in printed.stdout.splitlines())
    text = re.sub(r"(?<=^- generalises: ).*", _linked, "\n".join(rest).strip(), flags=re.MULTILINE)
    question = question_of(spec.name)
    place = f"`{spec.name}` answers [{question}](../methods.md#{anchor(question)})."
    return f"{title}\n\n{place}\n\n{text}\n\n{''.join(example(spec))}"


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _linked(names: re.Match[str]) -> str:
    return ", ".join(map(_link, names[0].split(", ")))


def example(spec: MethodSpec | ModifierSpec) -> Iterator[str]:
    """A recipe of the digits family with the method, and before it the statistics that it takes."""
    needed = {key: example_of(p) for key, p in spec.parameters.items() if p.default is REQUIRED}
    recipe = _modified(spec, needed) if isinstance(spec, ModifierSpec) else _merged(spec, needed)
    if spec.statistics:
        yield _statistics(spec)
    written = yaml.dump({"weightsmith": 1, **recipe}, Dumper=_Indented, sort_keys=False)
    yield f"```yaml\n# {spec.name}.yaml\n{written}```\n"


def _merged(spec: MethodSpec, needed: Mapping[str, Any]) -> dict[str, Any]:
    least, most = spec.experts
    models = _models("expert-low", "expert-high", *(["base"] if least > 2 else []))[:most]
    if spec.measured_on is MeasuredOn.BASE:
        models += _measured(_models("base"), spec)
    elif spec.statistics:
        models = _measured(models, spec)
    return {
        "merge_method": spec.name,
        **({} if spec.base is Base.IGNORED else {"base_model": "base"}),
        **({"parameters": dict(needed)} if needed else {}),
        **EXAMPLES.get(spec.name, {}),
        "models": models,
    }


def _modified(spec: ModifierSpec, needed: Mapping[str, Any]) -> dict[str, Any]:
    modify = {"modify": [{spec.name: dict(needed)}]}
    if spec.base is Base.IGNORED:  # values are ranked, of which two make no middle
        models = _models("expert-low", "expert-high", "base")
        return {"merge_method": "soup", **modify, "models": models}
    models = _models("expert-low", "expert-high")
    if spec.statistics:
        models = _measured(models, spec)
    return {"merge_method": "task_arithmetic", "base_model": "base", **modify, "models": models}


def _models(*names: str) -> list[dict[str, str]]:
    return [{"model": name} for name in names]


def _measured(
    models: list[dict[str, str]], spec: MethodSpec | ModifierSpec
) -> list[dict[str, str]]:
    """Models with the files that `_statistics` writes."""
    kind = spec.statistics[0].partition(":")[0]
    return [model | {"statistics": f"{model['model']}.{kind}.safetensors"} for model in models]


def _statistics(spec: MethodSpec | ModifierSpec) -> str:
    wanted = spec.statistics[0]
    experts = 'expert in ("expert-low", "expert-high")'
    whose, over, weights, of = "", "each expert", 'f"{expert}/model.safetensors"', "expert"
    if spec.measured_on is not MeasuredOn.EXPERTS:
        whose, weights, of = " of the base", '"base/model.safetensors"', '"base"'
    if spec.measured_on is MeasuredOn.BASE:
        over, experts = "any task", 'base in ("base",)'
    return (
        STATISTICS.format(
            whose=whose,
            over=over,
            names=experts,
            weights=weights,
            label=experts.partition(" ")[0],
            of=of,
            measured=MEASURED[wanted],
            kind=wanted.partition(":")[0],
            metrics='\n        metrics={"loss": 0.5},' if wanted == registry.METRICS else "",
        )
        + "\n"
    )


class _Indented(yaml.SafeDumper):
    """Lists stand two spaces to the right of their key, as in all recipes of the documentation."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def main() -> int:
    """Write or check the pages."""
    current = {DOCS / path: text for path, text in pages().items()}
    there = {DOCS / "methods.md", *(DOCS / "methods").glob("*.md")}
    if sys.argv[1:] == ["--check"]:
        same = all(path.exists() and path.read_text() == text for path, text in current.items())
        return 0 if same and there <= set(current) else 1
    for path, text in current.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for path in there - set(current):
        path.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
