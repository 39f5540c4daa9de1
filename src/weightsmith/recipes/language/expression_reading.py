"""Expressions in recipes, read: `a + 0.5 * (b - base)` as coefficients of checkpoints and of calls of methods.

A tensor value has a *degree*, the sum of the coefficients of the checkpoints in it: a weight has degree 1 and a
delta degree 0. Only a weight can be written out or given to a method, so "add two models" is refused when it is read.
`free(0, 1.5, start=0.3)` is a coefficient or parameter that is to be found.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.graph import Scalar
from weightsmith.methods import modifiers, registry
from weightsmith.recipes.language.free_calls import (
    Amount,
    FreeCall,
    equals,
    extremes,
    free_calls,
    is_free_call,
    read_free_call,
    samples,
    syntax_of,
)
from weightsmith.recipes.language.modifier_calls import Modification, read_modifiers
from weightsmith.wording import literal, shown

_MOST_CHARACTERS = 20_000
# Sums of coefficients stay finite.
LARGEST = 1e300
_DEGREE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Name:
    """A checkpoint by its name in the expression."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A method applied to weights. Parameters and modifiers are as in `formula.Merge`.

    A method without a base has one here for its modifiers only.
    """

    method: str
    base: Combination | None
    experts: tuple[Combination, ...]
    shared: tuple[tuple[str, Any], ...]
    per_expert: tuple[tuple[tuple[str, Any], ...], ...]
    modifiers: tuple[Modification, ...] = ()


Atom = Name | Call


@dataclass(frozen=True, slots=True)
class Combination:
    """sum_i c_i x_i over distinct atoms in order of first appearance; its degree is the sum of the c_i."""

    terms: tuple[tuple[Amount, Atom], ...]

    @property
    def degree(self) -> float:
        """1 for a weight, 0 for a delta; with free numbers, where it is not 1, what it is for some values of them."""
        found = [math.fsum(amounts) for amounts in samples([c for c, _ in self.terms])]
        return next((degree for degree in found if not _is_one(degree)), found[0])

    def scaled(self, factor: Amount) -> Combination:
        """Every coefficient times a number."""
        return Combination(tuple((coefficient * factor, atom) for coefficient, atom in self.terms))

    def plus(self, other: Combination) -> Combination:
        """The sum, with equal atoms joined; those that cancel exactly are gone."""
        coefficients: dict[Atom, Amount] = {}
        for coefficient, atom in (*self.terms, *other.terms):
            coefficients[atom] = coefficients.get(atom, 0.0) + coefficient
        kept = ((c, atom) for atom, c in coefficients.items() if not equals(c, 0.0))
        return Combination(tuple(kept))


def _is_one(degree: float) -> bool:
    return abs(degree - 1.0) <= _DEGREE_TOLERANCE


def called_methods(combination: Combination) -> list[str]:
    """The methods that an expression calls, those inside calls included."""
    found: list[str] = []
    for _, atom in combination.terms:
        if isinstance(atom, Call):
            found.append(atom.method)
            for part in (*((atom.base,) if atom.base is not None else ()), *atom.experts):
                found += called_methods(part)
    return found


def measured_names(
    combination: Combination,
) -> list[tuple[str, registry.MethodSpec | modifiers.ModifierSpec]]:
    """The names whose statistics an expression takes, each with the method or modifier that weighs by them.

    Raises RecipeError where such an argument is computed, since nothing can have been measured on it, but for methods
    that go by metrics, which may be given as numbers.
    """
    found: list[tuple[str, registry.MethodSpec | modifiers.ModifierSpec]] = []
    for _, atom in combination.terms:
        if not isinstance(atom, Call):
            continue
        for part in (*((atom.base,) if atom.base is not None else ()), *atom.experts):
            found += measured_names(part)
        for spec in weighing(atom):
            is_base = spec.measured_on is registry.MeasuredOn.BASE
            measured = [atom.base] if is_base and atom.base is not None else atom.experts
            for i, part in enumerate(measured):
                name = sole_name(part)
                if name is not None:
                    found.append((name, spec))
                elif "metrics" not in spec.statistics:
                    which = "The base" if is_base else f"Argument {i + 1}"
                    raise RecipeError(
                        f"{which} that {spec.name} merges is computed by the expression, so no statistics can "
                        "be of it; merge it first, collect statistics of the result, and give that as a checkpoint."
                    )
    return found


def weighing(call: Call) -> list[registry.MethodSpec | modifiers.ModifierSpec]:
    """The method of a call and its modifiers, those of them that go by statistics."""
    method = registry.get(call.method)
    used = [modifiers.get(m.modifier) for m in call.modifiers]
    return [
        *([method] if method.statistics else []),
        *(modifier for modifier in used if modifier.statistics),
    ]


def scalars_in(combination: Combination) -> list[Scalar]:
    """Every coefficient and parameter of an expression that has free numbers in it."""
    found: list[Any] = []
    for coefficient, atom in combination.terms:
        found.append(coefficient)
        if isinstance(atom, Call):
            for part in (*((atom.base,) if atom.base is not None else ()), *atom.experts):
                found += scalars_in(part)
            modified = [m.parameters for m in atom.modifiers]
            for given in (atom.shared, *atom.per_expert, *modified):
                found += [value for _, value in given]
    return [number for number in found if isinstance(number, Scalar)]


def sole_name(combination: Combination) -> str | None:
    """The name of a combination that is a checkpoint as it is."""
    if not is_atom(combination):
        return None
    ((_, atom),) = combination.terms
    return atom.name if isinstance(atom, Name) else None


def is_atom(combination: Combination) -> bool:
    """Whether a combination is a checkpoint, or what a method gives, as it is."""
    terms = combination.terms
    return len(terms) == 1 and equals(terms[0][0], 1.0)


def parse_expression(
    text: str, names: Mapping[str, object], preset: str = "paper", called: str = "expression"
) -> Combination:
    """Read an expression over the given names: + - * / unary minus, numbers, parentheses, and calls of methods.

    `called` is what the names of its free numbers begin with. Raises RecipeError for anything else, for arithmetic that
    has no meaning for weights, and where the result is no weight.
    """
    invalid = [name for name in names if not name.isidentifier()]
    if invalid:
        raise RecipeError(
            f"The checkpoint name {invalid[0]!r} cannot be used in an expression; use letters, digits and _."
        )
    if len(text) > _MOST_CHARACTERS:
        raise RecipeError(
            f"The expression has more than {_MOST_CHARACTERS} characters; split it into recipes."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree, _ = syntax_of(text)
        frees = {node: f"{called}[{i}]" for i, node in enumerate(free_calls(tree))}
        value = _Reader(names, text, preset, frees).value(tree.body)
    except SyntaxError as problem:
        raise RecipeError(
            f"The expression {shown(text)} is malformed near character {problem.offset}; correct it there."
        ) from None
    except (RecursionError, MemoryError, ValueError):
        raise RecipeError("The expression is nested too deeply; split it into recipes.") from None
    if not isinstance(value, Combination):
        number = extremes(value)[0]
        raise RecipeError(f"The expression {shown(text)} is the number {number:g}, not a weight.")
    _require_weight(value, f"The expression {shown(text)}")
    return value


def _require_weight(value: Combination, what: str) -> None:
    degree = value.degree
    if _is_one(degree):
        return
    if abs(degree) <= _DEGREE_TOLERANCE:
        why = "is a delta, a difference of weights; add it to a weight"
    elif abs(degree - 2.0) <= _DEGREE_TOLERANCE:
        why = "adds two weights; average them, or add a difference such as (b - base) to one"
    elif 0 < degree < 1 or len(value.terms) == 1:
        why = f"scales a weight by {degree:g}; scale a difference such as (b - base) instead"
    else:
        why = f"has coefficients that sum to {degree:g}; those of a weight sum to 1"
    raise RecipeError(f"{what} {why}.")


class _Reader:
    def __init__(
        self,
        names: Mapping[str, object],
        text: str,
        preset: str,
        frees: Mapping[ast.Call, str],
    ) -> None:
        self._names = names
        self._text = text
        self._preset = preset
        self._frees = frees

    def value(self, node: ast.expr) -> Combination | Amount:
        """The value of a part of the expression; raises RecipeError where a number in it is no sensible one."""
        value = self._value(node)
        amounts = [c for c, _ in value.terms] if isinstance(value, Combination) else [value]
        if not all(abs(number) <= LARGEST for one in amounts for number in extremes(one)):
            raise self._error(node, "has a number that is too large")
        return value

    def _value(self, node: ast.expr) -> Combination | Amount:
        if isinstance(node, ast.Constant):
            return self._number(node.value)
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            operand = self.value(node.operand)
            factor = -1.0 if isinstance(node.op, ast.USub) else 1.0
            return operand.scaled(factor) if isinstance(operand, Combination) else factor * operand
        if isinstance(node, ast.BinOp):
            return self._binary(node)
        if isinstance(node, ast.Call) and is_free_call(node):
            return self._free(node)
        if isinstance(node, ast.Call):
            return Combination(((1.0, self._call(node)),))
        raise self._error(
            node, "is not allowed; use + - * /, numbers, names, parentheses and methods"
        )

    def _free(self, node: ast.Call) -> Scalar:
        made = self._free_call(node)
        if made.per_expert:
            raise self._error(
                node, "is one for each expert, which parameters of methods alone can be"
            )
        return made.node()

    def _free_call(self, node: ast.Call) -> FreeCall:
        try:
            return read_free_call(node, self._frees[node], self._plain_number)
        except RecipeError as problem:
            raise RecipeError(f"In the expression {shown(self._text)}, {problem}") from None

    def _plain_number(self, node: ast.expr) -> float:
        value = self.value(node)
        if isinstance(value, (Combination, Scalar)):
            raise self._error(node, "is no number that is written out")
        return value

    def _number(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RecipeError(
                f"The expression {shown(self._text)} holds {literal(value)}, which is not a number."
            )
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise RecipeError(
                f"The expression {shown(self._text)} holds a number that is too large."
            )
        return number

    def _name(self, name: str) -> Combination:
        if name not in self._names:
            from weightsmith.naming import nearest

            near = nearest(name, self._names)
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(self._names)}."
            raise RecipeError(
                f"The expression {shown(self._text)} uses {shown(name)}, which is not among `checkpoints:`; {hint}"
            )
        return Combination(((1.0, Name(name)),))

    def _binary(self, node: ast.BinOp) -> Combination | Amount:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(node.op, (ast.Add, ast.Sub)):
            factor = 1.0 if isinstance(node.op, ast.Add) else -1.0
            if isinstance(left, Combination) and isinstance(right, Combination):
                return left.plus(right.scaled(factor))
            if isinstance(left, Combination) or isinstance(right, Combination):
                raise self._error(
                    node, "adds a number to tensors; multiply a difference of models by it"
                )
            return left + factor * right
        if isinstance(node.op, ast.Mult):
            return self._product(node, left, right)
        if isinstance(node.op, ast.Div):
            if isinstance(right, Combination):
                raise self._error(node, "divides by a tensor; divide by numbers only")
            ends = extremes(right)
            if min(ends) <= 0 <= max(ends):
                raise self._error(node, "divides by zero")
            return left.scaled(1.0 / right) if isinstance(left, Combination) else left / right
        raise self._error(node, "is not allowed; use + - * /")

    def _product(
        self, node: ast.BinOp, left: Combination | Amount, right: Combination | Amount
    ) -> Combination | Amount:
        if isinstance(left, Combination) and isinstance(right, Combination):
            raise self._error(node, "multiplies two tensors; multiply by numbers only")
        if isinstance(left, Combination):
            return left.scaled(right)  # type: ignore[arg-type]
        return right.scaled(left) if isinstance(right, Combination) else left * right

    def _call(self, node: ast.Call) -> Call:
        if not isinstance(node.func, ast.Name):
            raise self._error(node, "is not a call of a method")
        spec = registry.get(node.func.id)
        keywords = {(k.arg or "").rstrip("_"): k.value for k in node.keywords}
        if "" in keywords or any(isinstance(a, ast.Starred) for a in node.args):
            raise self._error(node, "uses * or **; write every argument")
        weights = [self._weight(a, spec.name) for a in node.args]
        base: Combination | None = None
        if "base" in keywords:
            base = self._weight(keywords.pop("base"), spec.name)
        elif spec.base is registry.Base.REQUIRED and weights:
            base = weights.pop(0)
        if spec.base is registry.Base.REQUIRED and base is None:
            raise self._error(node, "needs a base as its first argument")
        where = f"expression {shown(self._text)}"
        modify: tuple[Modification, ...] = ()
        if "modify" in keywords:
            given = keywords.pop("modify")
            modify = read_modifiers(given, self._literal, has_base=base is not None, where=where)
        if spec.base is registry.Base.IGNORED and base is not None and not modify:
            raise self._error(node, f"gives a base, but {spec.name} has none")
        spec.check_expert_count(len(weights), where)
        parameters = {key: self._keyword(v, len(weights)) for key, v in keywords.items()}
        return replace(self._built(spec, base, tuple(weights), parameters), modifiers=modify)

    def _weight(self, node: ast.expr, method: str) -> Combination:
        value = self.value(node)
        if not isinstance(value, Combination):
            raise self._error(
                node, f"is a number, but {method} merges weights; give parameters by name"
            )
        _require_weight(value, f"An argument of {method} in the expression {shown(self._text)}")
        return value

    def _keyword(self, node: ast.expr, experts: int) -> Any:
        if isinstance(node, ast.Call) and is_free_call(node):
            made = self._free_call(node)
            return made.nodes(experts) if made.per_expert else made.node()
        return self._literal(node)

    def _literal(self, node: ast.expr) -> Any:
        if isinstance(node, (ast.List, ast.Tuple)):
            return [self._literal(item) for item in node.elts]
        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, str)):
            return node.value
        value = self.value(node)
        if isinstance(value, Combination):
            raise self._error(node, "is a tensor where a parameter's value belongs")
        if isinstance(value, Scalar):
            return value
        return int(value) if value.is_integer() and abs(value) < 2**53 else value

    def _built(
        self,
        spec: registry.MethodSpec,
        base: Combination | None,
        experts: tuple[Combination, ...],
        parameters: Mapping[str, Any],
    ) -> Call:
        shared: list[tuple[str, Any]] = []
        own: list[list[tuple[str, Any]]] = [[] for _ in experts]
        where = f"expression {shown(self._text)}"
        for key, given in parameters.items():
            parameter = spec.parameters.get(key)
            if parameter is None:
                known = ", ".join(spec.parameters)
                raise RecipeError(f"{where}: method {spec.name} has no {key!r}; it has {known}.")
            if not parameter.per_expert:
                shared.append((key, self._checked(parameter, given)))
                continue
            values = given if isinstance(given, list) else [given] * len(experts)
            if len(values) != len(experts):
                raise RecipeError(
                    f"{where}: {key} has {len(values)} values for {len(experts)} models; give one "
                    "each."
                )
            for assigned, value in zip(own, values, strict=True):
                assigned.append((key, self._checked(parameter, value)))
        per_expert = tuple(tuple(assigned) for assigned in own)
        return Call(spec.name, base, experts, tuple(shared), per_expert)

    def _checked(self, parameter: registry.Parameter, given: Any) -> Any:
        where = f"expression {shown(self._text)}"
        for number in extremes(given) if isinstance(given, Scalar) else ():
            parameter.check(number, where, self._preset)
        return parameter.check(given, where, self._preset)

    def _error(self, node: ast.expr, what: str) -> RecipeError:
        part = shown(ast.unparse(node))[1:-1]
        return RecipeError(f"In the expression {shown(self._text)}, `{part}` {what}.")
