"""The formula of one output tensor, with every source and every number in it."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.engine import Plan, PlannedTensor
from weightsmith.errors import UsageError
from weightsmith.findings import Finding, Severity
from weightsmith.methods import modifiers, registry
from weightsmith.naming import nearest
from weightsmith.recipes import (
    Cast,
    Formula,
    Leaf,
    MeasuredLeaves,
    Merge,
    Modification,
    Same,
    Sum,
)
from weightsmith.tensors import StoredTensor, shown
from weightsmith.vocabularies import AlignedRows

_GIVEN, _DEFAULT = "given", "default"


@dataclass(frozen=True, slots=True)
class Explanation:
    """How one output tensor comes about.

    `formula` is a tree of plain data: every node has a `kind` (tensor, method, sum, round, same), a tensor its
    file and byte, a method its parameters with where each is from. `lines` are the same as text. `findings` are the
    plan's errors and warnings.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    layer: int | None
    layers: int
    position: float
    action: str
    passes: int
    read_bytes: int
    tied_to: str | None
    formula: Mapping[str, Any]
    lines: tuple[str, ...]
    findings: tuple[Finding, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "role": self.role,
            "layer": self.layer,
            "layers": self.layers,
            "position": self.position,
            "action": self.action,
            "passes": self.passes,
            "read_bytes": self.read_bytes,
            "tied_to": self.tied_to,
            "formula": self.formula,
            "findings": [finding.to_mapping() for finding in self.findings],
        }


def explain_tensor(plan: Plan, name: str) -> Explanation:
    """The explanation of the output tensor `name`; raises UsageError, with the nearest name, if there is none."""
    planned = _find(plan, name)
    output = planned.output
    formula = _mapping(plan, output.formula)
    return Explanation(
        name=output.name,
        shape=output.shape,
        dtype=output.dtype.value,
        role=output.place.role,
        layer=output.place.layer,
        layers=output.place.layers,
        position=output.place.depth,
        action=planned.work.action.value,
        passes=planned.work.passes,
        read_bytes=planned.work.read_bytes,
        tied_to=output.tied_to,
        formula=formula,
        lines=(f"output = {_head(formula)}", *_body(formula, 1)),
        findings=tuple(f for f in plan.findings if f.severity is not Severity.NOTE),
    )


def _find(plan: Plan, name: str) -> PlannedTensor:
    by_name = {tensor.output.name: tensor for tensor in plan.tensors}
    if name in by_name:
        return by_name[name]
    near = nearest(name, by_name)
    first = shown(next(iter(by_name), ""))
    hint = (
        f"did you mean {shown(near)}?" if near else f"the first of its {len(by_name)} is {first}."
    )
    raise UsageError(f"The output has no tensor {shown(name)}; {hint}")


# The tree ---------------------------------------------------------------------------------------------------------


def _mapping(plan: Plan, formula: Formula) -> dict[str, Any]:
    if isinstance(formula, Leaf):
        return _tensor(plan, formula)
    if isinstance(formula, Cast):
        return {"kind": "round", "dtype": formula.dtype.value, "of": _mapping(plan, formula.inner)}
    if isinstance(formula, Same):
        return {"kind": "same", "tensors": [_tensor(plan, leaf) for leaf in formula.leaves]}
    if isinstance(formula, Sum):
        return {
            "kind": "sum",
            "terms": [{"times": c, "of": _mapping(plan, f)} for c, f in formula.terms],
        }
    return _method(plan, formula)


def _tensor(plan: Plan, leaf: Leaf) -> dict[str, Any]:
    stored = plan.leaf(leaf)
    facts: dict[str, Any] = {
        "kind": "tensor",
        "checkpoint": plan.resolved.checkpoints[leaf.checkpoint].source,
        "tensor": leaf.tensor,
        "shape": list(stored.shape),
        "dtype": stored.dtype.value,
    }
    source = stored.source if isinstance(stored, AlignedRows) else stored
    if isinstance(source, StoredTensor):
        facts |= {"file": str(source.file), "byte": source.offset}
    if isinstance(stored, AlignedRows):
        facts["aligned"] = _aligned(plan, leaf, stored)
    return facts


def _aligned(plan: Plan, leaf: Leaf, table: AlignedRows) -> dict[str, Any]:
    """Where the rows of a table in the order of the target vocabulary come from: numbers of rows."""
    outcome = plan.resolved.vocabulary
    reports = () if outcome is None else outcome.tables
    place = (leaf.checkpoint, leaf.tensor)
    facts: dict[str, Any] = {"vocabulary": None if outcome is None else outcome.source}
    report = next((r for r in reports if (r.checkpoint, r.tensor) == place), None)
    if report is None:
        own = int((table.rows >= 0).sum())
        return {**facts, "own": own, "others": len(table.rows) - own}
    rows = {
        "in place": report.in_place,
        "moved": report.moved,
        "borrowed": report.borrowed,
        "named under tokens": report.chosen,
        **{f"by {rule}": count for rule, count in report.rules.items()},
        "zero": report.zero,
        "of no token": report.padding,
    }
    return facts | {origin: count for origin, count in rows.items() if count}


def _method(plan: Plan, merge: Merge) -> dict[str, Any]:
    spec = registry.get(merge.method)
    defaults = spec.defaults(merge.preset)
    shared = dict(merge.shared)
    parameters = {
        key: _value(shared.get(key, defaults[key]), _GIVEN if key in shared else _DEFAULT)
        for key, parameter in spec.parameters.items()
        if not parameter.per_expert
    }
    is_of_base = spec.measured_on is registry.MeasuredOn.BASE
    experts: list[dict[str, Any]] = []
    for expert, label, given in zip(merge.experts, merge.labels, merge.per_expert, strict=True):
        own = dict(given)
        values = {
            key: _value(
                own.get(key, shared.get(key, defaults[key])),
                _GIVEN if key in own or key in shared else _DEFAULT,
            )
            for key, parameter in spec.parameters.items()
            if parameter.per_expert
        }
        facts: dict[str, Any] = {"label": label, "parameters": values, "of": _mapping(plan, expert)}
        if merge.statistics and not is_of_base:
            facts["statistics"] = _measured(plan, (merge.statistics[len(experts)],))
        experts.append(facts)
    return {
        "kind": "method",
        "method": spec.name,
        "title": spec.title,
        "paper": spec.paper,
        "preset": merge.preset,
        "rule": formula_of(spec),
        "parameters": parameters,
        "base": None if merge.base is None else _mapping(plan, merge.base),
        "experts": experts,
        "modifiers": [
            _modifier(modification) | ({"statistics": _measured(plan, own)} if own else {})
            for modification, own in zip(merge.modifiers, merge.modifier_statistics, strict=True)
        ],
        "origin": None if merge.origin is None else _mapping(plan, merge.origin),
        **({"statistics": _measured(plan, merge.statistics)} if is_of_base else {}),
    }


def _measured(plan: Plan, statistics: Sequence[MeasuredLeaves]) -> list[dict[str, Any]]:
    return [_mapping(plan, leaf) for stored in statistics for leaf in stored.leaves]


def _modifier(modification: Modification) -> dict[str, Any]:
    spec = modifiers.get(modification.modifier)
    given = dict(modification.parameters)
    return {
        "modifier": spec.name,
        "title": spec.title,
        "paper": spec.paper,
        "rule": formula_of(spec),
        "parameters": {
            key: _value(given.get(key, p.default), _GIVEN if key in given else _DEFAULT)
            for key, p in spec.parameters.items()
        },
    }


def _value(value: Any, origin: str) -> dict[str, Any]:
    plain = value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
    return {"value": plain, "from": origin}


def formula_of(spec: registry.MethodSpec | modifiers.ModifierSpec) -> list[str]:
    """The formula in the docstring of a method or modifier: its indented lines.

    Where the formula ends the docstring nothing is indented less, so it is the second paragraph.
    """
    lines = inspect.cleandoc(spec.implementation.__doc__ or "").splitlines()
    indented = [i for i, line in enumerate(lines) if line.startswith("    ")]
    first = indented[0] if indented else lines.index("") + 1 if "" in lines else len(lines)
    pad = "    " if indented else ""
    block = itertools.takewhile(lambda line: not line or line.startswith(pad), lines[first:])
    return "\n".join(line.removeprefix(pad).rstrip() for line in block).rstrip().splitlines()


# The text ---------------------------------------------------------------------------------------------------------


def _head(node: Mapping[str, Any]) -> str:
    kind = node["kind"]
    if kind == "tensor":
        place = f" ({node['file']}, byte {node['byte']})" if "file" in node else ""
        rows = _aligned_words(node["aligned"]) if "aligned" in node else ""
        return (
            f"{node['checkpoint']}: {node['tensor']} {node['shape']} {node['dtype']}{place}{rows}"
        )
    if kind == "method":
        return f"{node['method']}, {node['title']} ({node['paper']}), preset {node['preset']}"
    if kind == "round":
        return f"rounded to {node['dtype']}:"
    return "the sum of:" if kind == "sum" else "the first of these, which must be equal:"


def _aligned_words(facts: Mapping[str, Any]) -> str:
    counts = ", ".join(
        f"{count} {origin}" for origin, count in facts.items() if origin != "vocabulary"
    )
    return f", rows aligned to {facts['vocabulary']}: {counts}"


def _body(node: Mapping[str, Any], depth: int) -> Iterator[str]:
    pad = "  " * depth
    kind = node["kind"]
    if kind == "method":
        yield from (f"{pad}  {line}".rstrip() for line in node["rule"])
        yield from _parts(node, depth)
    elif kind == "round":
        yield pad + _head(node["of"])
        yield from _body(node["of"], depth + 1)
    elif kind == "sum":
        for term in node["terms"]:
            yield f"{pad}{term['times']:g} x {_head(term['of'])}"
            yield from _body(term["of"], depth + 1)
    elif kind == "same":
        yield from (pad + _head(leaf) for leaf in node["tensors"])


def _parts(node: Mapping[str, Any], depth: int) -> Iterator[str]:
    pad = "  " * depth
    if node["base"] is not None:
        yield f"{pad}base = {_head(node['base'])}"
        yield from _body(node["base"], depth + 1)
    for number, expert in enumerate(node["experts"], start=1):
        yield f"{pad}expert {number} = {_head(expert['of'])}"
        if expert["parameters"]:
            yield f"{pad}  {_assignments(expert['parameters'])}"
        yield from _body(expert["of"], depth + 1)
    if node["base"] is None and node["origin"] is not None:
        yield f"{pad}base of the task vectors = {_head(node['origin'])}"
        yield from _body(node["origin"], depth + 1)
    for modifier in node["modifiers"]:
        yield f"{pad}experts modified by {modifier['modifier']}, {modifier['title']} ({modifier['paper']})"
        yield from (f"{pad}  {line}".rstrip() for line in modifier["rule"])
        if modifier["parameters"]:
            yield f"{pad}  with {_assignments(modifier['parameters'])}"
    if node["parameters"]:
        yield f"{pad}with {_assignments(node['parameters'])}"


def _assignments(parameters: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{key} = {_number(v['value'])}{_origin(v['from'])}" for key, v in parameters.items()
    )


def _number(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _origin(origin: str) -> str:
    return "" if origin == _GIVEN else " (default)"
