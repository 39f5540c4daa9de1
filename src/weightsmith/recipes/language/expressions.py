"""Arithmetic on checkpoints: `a + 0.5 * (b - base)`, as text in recipes and as operators in Python.

A tensor value has a *degree*, the sum of the coefficients of the checkpoints in it: a weight has degree 1 and a
delta degree 0. Only a weight can be written out or given to a method, so "add two models" is refused when it is read.

    base, a, b = checkpoint("base"), checkpoint("a"), checkpoint("b")
    recipe = Recipe.from_expression(base + 0.5 * (a - base) + 0.5 * (b - base))
    recipe = Recipe.from_expression(methods.ties(base, a, b, density=0.3))
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.methods import registry
from weightsmith.recipes.language.modifier_calls import Modification, read_modifiers
from weightsmith.wording import literal, shown

_MOST_CHARACTERS = 20_000
# Sums of coefficients stay finite.
_LARGEST = 1e300
_DEGREE_TOLERANCE = 1e-9
_LAMBDA = re.compile(r"\blambda\s*=")


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

    terms: tuple[tuple[float, Atom], ...]

    @property
    def degree(self) -> float:
        """1 for a weight, 0 for a delta."""
        return math.fsum(coefficient for coefficient, _ in self.terms)

    def scaled(self, factor: float) -> Combination:
        """Every coefficient times a number."""
        return Combination(tuple((coefficient * factor, atom) for coefficient, atom in self.terms))

    def plus(self, other: Combination) -> Combination:
        """The sum, with equal atoms joined; those that cancel exactly are gone."""
        coefficients: dict[Atom, float] = {}
        for coefficient, atom in (*self.terms, *other.terms):
            coefficients[atom] = coefficients.get(atom, 0.0) + coefficient
        return Combination(tuple((c, atom) for atom, c in coefficients.items() if c != 0.0))


def called_methods(combination: Combination) -> list[str]:
    """The methods that an expression calls, those inside calls included."""
    found: list[str] = []
    for _, atom in combination.terms:
        if isinstance(atom, Call):
            found.append(atom.method)
            for part in (*((atom.base,) if atom.base is not None else ()), *atom.experts):
                found += called_methods(part)
    return found


def measured_names(combination: Combination) -> list[tuple[str, str]]:
    """The names whose statistics an expression takes, each with the method that weighs by them.

    Raises RecipeError where such an argument is computed, since nothing can have been measured on it, but for methods
    that go by metrics, which may be given as numbers.
    """
    found: list[tuple[str, str]] = []
    for _, atom in combination.terms:
        if not isinstance(atom, Call):
            continue
        for part in (*((atom.base,) if atom.base is not None else ()), *atom.experts):
            found += measured_names(part)
        kinds = registry.get(atom.method).statistics
        for i, expert in enumerate(atom.experts if kinds else ()):
            name = sole_name(expert)
            if name is not None:
                found.append((name, atom.method))
            elif "metrics" not in kinds:
                raise RecipeError(
                    f"Argument {i + 1} that {atom.method} merges is computed by the expression, so no statistics can "
                    "be of it; merge it first, collect statistics of the result, and give that as a checkpoint."
                )
    return found


def sole_name(combination: Combination) -> str | None:
    """The name of a combination that is a checkpoint as it is."""
    ((coefficient, atom),) = combination.terms if len(combination.terms) == 1 else ((0.0, None),)
    return atom.name if isinstance(atom, Name) and coefficient == 1.0 else None


def parse_expression(text: str, names: Mapping[str, object], preset: str = "paper") -> Combination:
    """Read an expression over the given names: + - * / unary minus, numbers, parentheses, and calls of methods.

    Raises RecipeError for anything else, for arithmetic that has no meaning for weights, and where the result is no
    weight.
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
            # On one line, since a newline would end it; characters keep their places.
            line = " ".join(text.splitlines()).strip()
            tree = ast.parse(_LAMBDA.sub("lambda_=", line), mode="eval")
        value = _Reader(names, text, preset).value(tree.body)
    except SyntaxError as problem:
        raise RecipeError(
            f"The expression {shown(text)} is malformed near character {problem.offset}; correct it there."
        ) from None
    except (RecursionError, MemoryError, ValueError):
        raise RecipeError("The expression is nested too deeply; split it into recipes.") from None
    if not isinstance(value, Combination):
        raise RecipeError(f"The expression {shown(text)} is the number {value:g}, not a weight.")
    _require_weight(value, f"The expression {shown(text)}")
    return value


def _require_weight(value: Combination, what: str) -> None:
    degree = value.degree
    if abs(degree - 1.0) <= _DEGREE_TOLERANCE:
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
    def __init__(self, names: Mapping[str, object], text: str, preset: str) -> None:
        self._names = names
        self._text = text
        self._preset = preset

    def value(self, node: ast.expr) -> Combination | float:
        """The value of a part of the expression; raises RecipeError where a number in it is no sensible one."""
        value = self._value(node)
        numbers = [c for c, _ in value.terms] if isinstance(value, Combination) else [value]
        if not all(abs(number) <= _LARGEST for number in numbers):
            raise self._error(node, "has a number that is too large")
        return value

    def _value(self, node: ast.expr) -> Combination | float:
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
        if isinstance(node, ast.Call):
            return Combination(((1.0, self._call(node)),))
        raise self._error(
            node, "is not allowed; use + - * /, numbers, names, parentheses and methods"
        )

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

    def _binary(self, node: ast.BinOp) -> Combination | float:
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
            if right == 0:
                raise self._error(node, "divides by zero")
            return left.scaled(1.0 / right) if isinstance(left, Combination) else left / right
        raise self._error(node, "is not allowed; use + - * /")

    def _product(
        self, node: ast.BinOp, left: Combination | float, right: Combination | float
    ) -> Combination | float:
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
        parameters = {key: self._literal(value) for key, value in keywords.items()}
        return replace(self._built(spec, base, tuple(weights), parameters), modifiers=modify)

    def _weight(self, node: ast.expr, method: str) -> Combination:
        value = self.value(node)
        if not isinstance(value, Combination):
            raise self._error(
                node, f"is a number, but {method} merges weights; give parameters by name"
            )
        _require_weight(value, f"An argument of {method} in the expression {shown(self._text)}")
        return value

    def _literal(self, node: ast.expr) -> Any:
        if isinstance(node, (ast.List, ast.Tuple)):
            return [self._literal(item) for item in node.elts]
        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, str)):
            return node.value
        value = self.value(node)
        if isinstance(value, Combination):
            raise self._error(node, "is a tensor where a parameter's value belongs")
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
                shared.append((key, parameter.check(given, where, self._preset)))
                continue
            values = given if isinstance(given, list) else [given] * len(experts)
            if len(values) != len(experts):
                raise RecipeError(
                    f"{where}: {key} has {len(values)} values for {len(experts)} models; give one "
                    "each."
                )
            for assigned, value in zip(own, values, strict=True):
                assigned.append((key, parameter.check(value, where, self._preset)))
        per_expert = tuple(tuple(assigned) for assigned in own)
        return Call(spec.name, base, experts, tuple(shared), per_expert)

    def _error(self, node: ast.expr, what: str) -> RecipeError:
        part = shown(ast.unparse(node))[1:-1]
        return RecipeError(f"In the expression {shown(self._text)}, `{part}` {what}.")


@dataclass(frozen=True, repr=False)
class Expression:
    """An expression built with Python operators; `Recipe.from_expression` makes a recipe of it.

    Nothing is read before that. `text` has a placeholder `{path}` for each model; `statistics` are pairs of a model's
    path and a file of what was measured on it.
    """

    text: str
    paths: tuple[str, ...] = field(default=())
    is_number: bool = False
    statistics: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        """The expression with the paths of its models in quotes."""
        text = self.text
        for path in dict.fromkeys(self.paths):
            text = text.replace(_placeholder(path), repr(path))
        return text

    def __add__(self, other: Expression) -> Expression:
        return _joined(self, "+", other)

    def __sub__(self, other: Expression) -> Expression:
        return _joined(self, "-", other)

    def __mul__(self, other: float) -> Expression:
        return _joined(self, "*", other)

    def __rmul__(self, other: float) -> Expression:
        return _joined(_lifted(other), "*", self)

    def __truediv__(self, other: float) -> Expression:
        return _joined(self, "/", other)

    def __neg__(self) -> Expression:
        return replace(self, text=f"(-{self.text})")

    def written(self) -> dict[str, Any]:
        """The keys of a recipe: the text over short names, the path of each name, and files of statistics by name."""
        distinct = dict.fromkeys(self.paths)
        names = {path: f"m{i}" for i, path in enumerate(distinct, 1)}
        text = self.text
        for path, name in names.items():
            text = text.replace(_placeholder(path), name)
        keys = {"expression": text, "checkpoints": {name: path for path, name in names.items()}}
        measured: dict[str, list[str]] = {}
        for path, file in dict.fromkeys(self.statistics):
            measured.setdefault(names[path], []).append(file)
        return keys | ({"statistics": measured} if measured else {})


def checkpoint(path: object, statistics: object = ()) -> Expression:
    """A checkpoint as an operand, by path or Hub id, with the file or files of statistics that were measured on it."""
    given = () if statistics is None else statistics
    files = given if isinstance(given, (list, tuple)) else [given]
    measured = tuple((str(path), str(file)) for file in files)
    return Expression(_placeholder(str(path)), (str(path),), statistics=measured)


class _Methods:
    """Every method as a function of expressions: `methods.ties(base, a, b, density=0.3)`.

    A parameter whose name is a Python keyword takes an underscore: `lambda_=0.5`.
    """

    def __getattr__(self, name: str) -> Callable[..., Expression]:
        if name.startswith("__"):
            raise AttributeError(name)
        spec = registry.get(name)

        def apply(*weights: Expression, **parameters: Any) -> Expression:
            for weight in weights:
                if not isinstance(weight, Expression):
                    raise RecipeError(
                        f"Method {spec.name} merges checkpoints, not {literal(weight)}; open them first, and give "
                        "parameters by name."
                    )
            given = [w.text for w in weights]
            operands = list(weights)
            for key, value in parameters.items():
                if isinstance(value, Expression):
                    given.append(f"{key}={value.text}")
                    operands.append(value)
                else:
                    given.append(f"{key}={_plain(value)!r}")
            return _over(f"{spec.name}({', '.join(given)})", operands)

        return apply


methods = _Methods()


def _placeholder(path: str) -> str:
    # Hexadecimal, so that no path can look like another part of the expression.
    return f"<{path.encode().hex()}>"


def _plain(value: object) -> object:
    """A value without what a library adds to it, as numpy does to the numbers that it computes."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, Real):
        listed = getattr(value, "tolist", None)
        return value if listed is None else _plain(listed())
    number = _python_number(value)
    if not abs(number) <= _LARGEST:
        raise RecipeError(
            f"A parameter of an expression cannot be {literal(number)}; give a finite number."
        )
    return number


def _python_number(given: Real) -> int | float:
    return int(given) if isinstance(given, Integral) else float(given)


def _lifted(operand: object) -> Expression:
    if isinstance(operand, Expression):
        return operand
    if isinstance(operand, bool) or not isinstance(operand, Real):
        raise RecipeError(
            f"{literal(operand)} cannot be combined with a checkpoint; use numbers and other checkpoints."
        )
    number = _python_number(operand)
    if not abs(number) <= _LARGEST:
        raise RecipeError(
            f"A checkpoint cannot be combined with {literal(number)}; use a finite number."
        )
    return Expression(repr(number), is_number=True)


def _joined(left: Expression, operator: str, right: object) -> Expression:
    other = _lifted(right)
    return _over(f"({left.text} {operator} {other.text})", [left, other])


def _over(text: str, operands: Sequence[Expression]) -> Expression:
    paths = tuple(path for o in operands for path in o.paths)
    return Expression(text, paths, statistics=tuple(s for o in operands for s in o.statistics))
