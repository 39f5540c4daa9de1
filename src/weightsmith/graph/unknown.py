"""Numbers that are not known while a graph is built: what Python may and may not do with them.

A method is written in ordinary arithmetic, and arithmetic on such a number is a node of the graph. Where Python
compares numbers, a `Path` answers for the values that the graph is first built for, and notes what it said: the graph
is right for all values for which the answers are the same. What Python would need the number itself for (a whole number
of rounds, a key of a table) raises `NumberNotKnown`. So nobody has to list what the methods do with their parameters.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn, Protocol

from weightsmith.errors import WeightsmithError

_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "negative": operator.neg,
    "absolute": abs,
}


class NumberNotKnown(WeightsmithError):
    """Python needs the value of free numbers, by their `names`, which have none until a graph is evaluated."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(
            f"{', '.join(sorted(names))}: a free number has no value while a graph is built; give it one first."
        )
        self.names = names


class Path(Protocol):
    """What answers for unknown numbers, by the `values` of free numbers."""

    @property
    def values(self) -> Mapping[str, float]: ...

    def decide(self, comparison: Callable[[Any, Any], Any], number: Any, other: Any) -> bool:
        """Whether a comparison of an unknown number with another one, or with a known one, holds."""
        ...


_path: ContextVar[Path | None] = ContextVar("path", default=None)


@contextmanager
def following(path: Path) -> Iterator[None]:
    """Let a path answer for unknown numbers while a graph is built."""
    token = _path.set(path)
    try:
        yield
    finally:
        _path.reset(token)


def followed() -> Path | None:
    """The path that answers for unknown numbers here."""
    return _path.get()


class Unknown:
    """What numbers of a graph answer to Python's questions; those that need a pass are compared by identity only."""

    __slots__ = ()
    __hash__ = object.__hash__

    def unknown_names(self) -> frozenset[str]:
        """The free numbers that this one is made of alone; none where it needs tensors too, or nothing."""
        raise NotImplementedError

    def _refuse(self) -> NoReturn:
        names = self.unknown_names()
        if names:
            raise NumberNotKnown(names)
        raise TypeError("a number of a graph is known only after a pass")

    def _decide(self, comparison: Callable[[Any, Any], Any], other: object) -> bool:
        path = _path.get()
        if path is None or not self.unknown_names():
            self._refuse()
        return path.decide(comparison, self, other)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        is_number = isinstance(other, (int, float))
        if not is_number and not (isinstance(other, Unknown) and other.unknown_names()):
            return NotImplemented
        if not self.unknown_names() or (_path.get() is None and not is_number):
            return NotImplemented
        return self._decide(operator.eq, other)

    def __bool__(self) -> bool:
        return bool(self != 0.0) if self.unknown_names() else True

    def __lt__(self, other: object) -> bool:
        return self._decide(operator.lt, other)

    def __le__(self, other: object) -> bool:
        return self._decide(operator.le, other)

    def __gt__(self, other: object) -> bool:
        return self._decide(operator.gt, other)

    def __ge__(self, other: object) -> bool:
        return self._decide(operator.ge, other)

    def __float__(self) -> float:
        self._refuse()

    def __int__(self) -> int:
        self._refuse()

    def __index__(self) -> int:
        self._refuse()

    def __round__(self, digits: int | None = None) -> NoReturn:
        self._refuse()

    def __pow__(self, other: object) -> NoReturn:
        self._refuse()

    def __rpow__(self, other: object) -> NoReturn:
        self._refuse()

    def __floordiv__(self, other: object) -> NoReturn:
        self._refuse()

    def __mod__(self, other: object) -> NoReturn:
        self._refuse()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Arithmetic with one of numpy's own numbers."""
        own = _ARITHMETIC.get(ufunc.__name__)
        if own is None or method != "__call__" or any(getattr(i, "ndim", 0) for i in inputs):
            self._refuse()
        return own(*[i if isinstance(i, Unknown) else float(i) for i in inputs])

    def __array__(self, *arguments: Any, **options: Any) -> NoReturn:
        self._refuse()

    def __format__(self, spec: str) -> str:
        return self._refuse() if spec or self.unknown_names() else repr(self)
