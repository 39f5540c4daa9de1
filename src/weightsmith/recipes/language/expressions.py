"""Arithmetic on checkpoints as operators in Python; `expression_reading` reads the text that they make.

base, a, b = checkpoint("base"), checkpoint("a"), checkpoint("b")
recipe = Recipe.from_expression(base + 0.5 * (a - base) + 0.5 * (b - base))
recipe = Recipe.from_expression(methods.ties(base, a, b, density=0.3))
recipe = Recipe.from_expression(base + free(0, 1.5, start=0.3) * (a - base))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.methods import registry
from weightsmith.recipes.language.expression_reading import LARGEST
from weightsmith.wording import literal


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


def free(low: float, high: float, *, start: float, per: str | None = None) -> Expression:
    """A number in [low, high] that is to be found, as an operand or as a parameter of a method.

    `per="expert"` makes it one for each expert of the method.
    """
    numbers = [repr(_plain(number)) for number in (low, high)]
    word = "" if per is None else f", per={per}"
    return Expression(f"free({', '.join(numbers)}, start={_plain(start)!r}{word})", is_number=True)


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
    if not abs(number) <= LARGEST:
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
    if not abs(number) <= LARGEST:
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
