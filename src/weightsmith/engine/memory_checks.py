"""What merges of tensors in memory refuse, as those of files do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from weightsmith.errors import NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor


def require_finite_inputs(states: Sequence[Mapping[str, Tensor]], names: Iterable[str]) -> None:
    """Raise NonFiniteError for NaN or infinity in a tensor that is merged."""
    for name in names:
        for position, state in enumerate(states):
            number, first = _nonfinite(state[name])
            if number:
                raise NonFiniteError(
                    f"{name!r} of state dict {position} holds {number} NaN or infinite value(s), the first at element "
                    f'{first}; mend it, or pass nonfinite="propagate" to let them through.'
                )


def require_finite_result(merged: Mapping[str, Tensor]) -> None:
    """Raise NonFiniteError for NaN or infinity in tensors that were merged from finite ones."""
    for name, tensor in merged.items():
        number, first = _nonfinite(tensor)
        if number:
            raise NonFiniteError(
                f"{name!r} would hold {number} NaN or infinite value(s), the first at element {first}, though its "
                f"inputs are finite: the result overflows {str(tensor.dtype).removeprefix('torch.')}; pass tensors "
                'of a wider dtype, use smaller weights, or pass nonfinite="propagate".'
            )


def comparable(tensor: Tensor) -> Tensor:
    """The same numbers in a dtype that torch compares, which it does with no float of 8 bits."""
    return tensor.float() if tensor.element_size() == 1 else tensor


def _nonfinite(tensor: Tensor) -> tuple[int, int]:
    """Number and first flat index of elements that are NaN or infinite."""
    if not tensor.is_floating_point() or tensor.is_meta:
        return 0, -1
    bad = ~comparable(tensor.detach().reshape(-1)).isfinite()
    if not bool(bad.any()):
        return 0, -1
    return int(bad.sum()), int(bad.nonzero()[0])
