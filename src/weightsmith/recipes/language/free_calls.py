"""Free numbers in expressions: `free(0, 1.5, start=0.3)`, or with `per=expert` as a parameter of a method.

They are named by their order in the text, `expression[0]` being the first.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from weightsmith.errors import RecipeError
from weightsmith.graph import FreeNumber, Scalar, followed, free, free_in, valued

_LAMBDA = re.compile(r"\blambda\s*=")
_SPELLED_LAMBDA = re.compile(r"\blambda_\s*=")
# A number, or one that is to be found.
Amount = float | Scalar


def syntax_of(text: str) -> tuple[ast.Expression, str]:
    """The syntax of an expression, and the line that its places are counted in.

    Raises what `ast.parse` does.
    """
    # On one line, since a newline would end it; characters keep their places.
    line = _LAMBDA.sub("lambda_=", " ".join(text.splitlines()).strip())
    return ast.parse(line, mode="eval"), line


def is_free_call(node: ast.AST) -> bool:
    """Whether a part of an expression is a free number."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "free"


def free_calls(tree: ast.AST) -> list[ast.Call]:
    """The free numbers of an expression, in the order of the text."""
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and is_free_call(n)]
    return sorted(found, key=lambda node: node.col_offset)


@dataclass(frozen=True, slots=True)
class FreeCall:
    """A free number of an expression; `per_expert`: it stands for one of each expert."""

    name: str
    low: float
    high: float
    start: float
    per_expert: bool

    def node(self) -> Scalar:
        """The number itself."""
        return free(FreeNumber(self.name, self.low, self.high, self.start))

    def nodes(self, experts: int) -> list[Scalar]:
        """One for each expert."""
        return [free(number) for number in self.numbers(experts)]

    def numbers(self, experts: int) -> list[FreeNumber]:
        """One for each expert."""
        names = [f"{self.name}[expert {i + 1}]" for i in range(experts)]
        return [FreeNumber(name, self.low, self.high, self.start) for name in names]


def read_free_call(node: ast.Call, name: str, number: Callable[[ast.expr], float]) -> FreeCall:
    """What a free number of an expression says; `number` reads a number. Raises RecipeError for anything strange."""
    given = {str(keyword.arg): keyword.value for keyword in node.keywords}
    per = given.pop("per", None)
    word = per.id if isinstance(per, ast.Name) else getattr(per, "value", None)
    text = ast.unparse(node)
    if len(node.args) != 2 or set(given) != {"start"}:
        raise RecipeError(f"`{text}` is not of the form free(LOW, HIGH, start=NUMBER).")
    if per is not None and word != "expert":
        raise RecipeError(
            f"`{text}`: per is `expert` in expressions, whose numbers are the same for all tensors; write a recipe "
            "with `models:` for others."
        )
    low, high, start = (number(part) for part in (*node.args, given["start"]))
    if not low < high:
        raise RecipeError(f"`{text}`: [{low:g}, {high:g}] is no interval [low, high].")
    if not low <= start <= high:
        raise RecipeError(f"`{text}`: start lies outside of [{low:g}, {high:g}].")
    return FreeCall(name, low, high, start, per is not None)


def filled_text(text: str, name: str, values: Mapping[str, float]) -> str:
    """An expression with a value in the place of each free number; `name` is what their names begin with."""
    tree, line = syntax_of(text)
    data = line.encode()
    calls = free_calls(tree)
    for i, call in reversed(list(enumerate(calls))):
        assert call.end_col_offset is not None
        written = _written(f"{name}[{i}]", values).encode()
        data = data[: call.col_offset] + written + data[call.end_col_offset :]
    return _SPELLED_LAMBDA.sub("lambda=", data.decode())


def _written(name: str, values: Mapping[str, float]) -> str:
    if name in values:
        return _spelled(values[name])
    own = [_spelled(value) for key, value in values.items() if key.startswith(f"{name}[expert ")]
    return f"[{', '.join(own)}]"


def _spelled(value: float) -> str:
    return f"({value!r})" if value < 0 else repr(value)


def extremes(amount: Amount) -> list[float]:
    """What an amount may be: itself, or what it is at the ends and at the start of its free numbers."""
    if not isinstance(amount, Scalar):
        return [amount]
    numbers = free_in([amount]).values()
    ends = ("low", "start", "high")
    return [float(valued(amount, {n.name: getattr(n, end) for n in numbers})) for end in ends]


def equals(amount: Amount, number: float) -> bool:
    """Whether an amount is a number; one that is to be found is none, unless a path is followed where it is."""
    if isinstance(amount, Scalar) and followed() is None:
        return False
    return amount == number


def samples(amounts: list[Amount]) -> list[list[float]]:
    """The amounts at the values of the path that is followed, else at a few that have nothing to do with each other."""
    nodes = [amount for amount in amounts if isinstance(amount, Scalar)]
    numbers = list(free_in(nodes).values())
    path = followed()
    if path is not None:
        given = [{n.name: path.values.get(n.name, n.start) for n in numbers}]
    else:
        given = [_spread(numbers, share) for share in (0.145898, 0.527864, 0.909830)]
    return [
        [float(valued(a, values)) if isinstance(a, Scalar) else a for a in amounts]
        for values in given
    ]


def _spread(numbers: Sequence[FreeNumber], share: float) -> dict[str, float]:
    """Values between the bounds, those of one number far from those of the next."""
    return {
        number.name: number.low + (number.high - number.low) * ((share + 0.618034 * i) % 1.0)
        for i, number in enumerate(numbers)
    }
