"""What merges of tensors in memory refuse, as those of files do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from weightsmith.errors import NonFiniteError, UsageError
from weightsmith.wording import literal, shown

if TYPE_CHECKING:
    from torch import Tensor


def require_arguments(
    method: object,
    experts: object,
    base: object,
    parameters: object,
    per_expert: object,
    modify: object,
    seed: object,
    preset: object,
    labels: object,
) -> None:
    """Raise UsageError for arguments of `merge_state_dicts` that are not what its signature says.

    `parameters` and `per_expert` may be None, and `labels` empty.
    """
    if not isinstance(method, str):
        raise UsageError(f"A method is given by its name, not as {_kind(method)}.")
    states = _listed(experts, "experts", "state dicts, one for each model")
    for position, state in enumerate(states):
        _require_state(state, f"state dict {position}")
    if base is not None:
        _require_state(base, "the base")
    if not (parameters is None or isinstance(parameters, Mapping)):
        raise UsageError(
            f"parameters maps names to values, as in {{'weight': 1.0}}, and is not {_kind(parameters)}."
        )
    if per_expert is not None:
        own = _listed(
            per_expert, "per_expert", "mappings from names to values, one for each expert"
        )
        for one in own:
            if not isinstance(one, Mapping):
                raise UsageError(
                    f"per_expert lists mappings such as {{'weight': 0.5}}, but holds {_kind(one)}."
                )
        if own and len(own) != len(states):
            raise UsageError(
                f"per_expert holds {len(own)} for {len(states)} experts; give one mapping for each."
            )
    for step in _listed(modify, "modify", "modifiers"):
        if not isinstance(step, (str, Mapping)):
            raise UsageError(
                f"modify lists names of modifiers, or {{name: parameters}}, but holds {_kind(step)}."
            )
        if isinstance(step, Mapping) and not all(
            isinstance(name, str) and isinstance(given, Mapping) for name, given in step.items()
        ):
            raise UsageError(
                f"A modifier is written as {{'clip': {{'limit': 2}}}}, not as {literal(step)}."
            )
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise UsageError(f"seed is a whole number from 0 to 2^64 - 1, not {literal(seed)}.")
    if not isinstance(preset, str):
        raise UsageError(f"A preset is given by its name, not as {_kind(preset)}.")
    if labels != ():
        names = _listed(labels, "labels", "names, one for each expert")
        if len(names) != len(states) or len(set(map(str, names))) != len(names):
            raise UsageError(
                f"labels are {len(states)} different names, one for each expert, not {literal(labels)}."
            )
        if not all(isinstance(name, str) for name in names):
            raise UsageError(f"labels are texts, not {literal(labels)}.")


def _listed(given: object, name: str, what: str) -> Sequence[object]:
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise UsageError(f"{name} is a list of {what}, not {_kind(given)}.")
    return given


def _require_state(state: object, place: str) -> None:
    import torch

    if not isinstance(state, Mapping):
        raise UsageError(
            f"{place[0].upper()}{place[1:]} is {_kind(state)}; pass what `model.state_dict()` gives."
        )
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise UsageError(f"Tensors are called by texts, but {place} has {literal(name)}.")
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(
                f"{shown(name)} of {place} is {_kind(tensor)} and no tensor of torch; pass what "
                "`model.state_dict()` gives."
            )
        if tensor.layout is not torch.strided:
            raise UsageError(
                f"{shown(name)} of {place} is sparse; pass it as `to_dense()` gives it."
            )


def _kind(given: object) -> str:
    """What was given instead, by its type's name."""
    return f"a value of type {type(given).__name__}"


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
