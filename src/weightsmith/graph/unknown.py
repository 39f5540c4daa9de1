"""Numbers that are not known while a graph is built: what Python may and may not do with them.

A method is written in ordinary arithmetic, and arithmetic on such a number is a node of the graph. What Python itself
would have to know (a comparison, a whole number of rounds, a truth value) raises `NumberNotKnown`, so nobody has to
list which parameters of which methods are branched on. One question has an answer: a number that may be anything in an
interval is taken to equal no particular number, and `assuming` notes what was taken so.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

from weightsmith.errors import WeightsmithError

# (number, what it was taken not to equal)
Assumption = tuple[Any, Any]
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "negative": operator.neg,
    "absolute": abs,
}
_assumed: ContextVar[list[Assumption] | None] = ContextVar("assumed", default=None)


class NumberNotKnown(WeightsmithError):
    """Python needs the value of free numbers, by their `names`, which have none until a graph is evaluated."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(
            f"{', '.join(sorted(names))}: a free number has no value while a graph is built; give it one first."
        )
        self.names = names


@contextmanager
def assuming() -> Iterator[list[Assumption]]:
    """Note, while a graph is built, which unknown numbers were taken to differ from which others."""
    noted: list[Assumption] = []
    token = _assumed.set(noted)
    try:
        yield noted
    finally:
        _assumed.reset(token)


class Unknown:
    """What numbers of a graph answer to Python's questions; nodes compare by identity otherwise."""

    __slots__ = ()

    def unknown_names(self) -> frozenset[str]:
        """The free numbers that this one is made of alone; none where it needs tensors too, or nothing."""
        raise NotImplementedError

    def _refuse(self) -> NoReturn:
        names = self.unknown_names()
        if names:
            raise NumberNotKnown(names)
        raise TypeError("a number of a graph is known only after a pass")

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, (int, float, Unknown)) or not self.unknown_names():
            return NotImplemented
        noted = _assumed.get()
        if noted is not None:
            noted.append((self, other))
        elif not isinstance(other, Unknown):
            self._refuse()
        return False

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __bool__(self) -> bool:
        return bool(self != 0.0) if self.unknown_names() else True

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

    def __lt__(self, other: object) -> bool:
        self._refuse()

    def __le__(self, other: object) -> bool:
        self._refuse()

    def __gt__(self, other: object) -> bool:
        self._refuse()

    def __ge__(self, other: object) -> bool:
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
        return self._refuse() if spec else repr(self)
