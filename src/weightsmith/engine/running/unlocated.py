"""A NaN or infinity that was met while a tensor was computed, before it is known where it came from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from weightsmith.errors import NonFiniteError

_T = TypeVar("_T")


class Unlocated(NonFiniteError):
    """A NaN or infinity met while `tensor` was computed, before anybody has looked where it came from.

    `may_pass`: with `nonfinite: propagate` it would not have stopped the merge.
    """

    def __init__(self, message: str, tensor: str, *, may_pass: bool) -> None:
        super().__init__(message)
        self.tensor = tensor
        self.may_pass = may_pass

    def __reduce__(self) -> tuple[Callable[..., Unlocated], tuple[str, str]]:
        """Errors cross processes; `may_pass` has no place among the arguments of an exception."""
        return partial(Unlocated, may_pass=self.may_pass), (str(self), self.tensor)


def noting(tensor: str, call: Callable[[], _T]) -> _T:
    """What `call` returns; where it meets a NaN or infinity, the error notes at which output tensor."""
    try:
        return call()
    except NonFiniteError as error:
        raise Unlocated(str(error), tensor, may_pass=False) from error
