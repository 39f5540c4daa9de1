"""Adam's second moments as trainers store them: by names, by numbers, or flat in the shards of DeepSpeed.

    optimizer.pt, optimizer.bin    {state: {number or name: {exp_avg_sq, step}}, param_groups}: torch, transformers, and
                                   FSDP's full states
    .metadata, __R_N.distcp        sharded states of FSDP (see `sharded_states`)
    global_step*/                  zero_pp_rank_R_mp_rank_00_optim_states.pt of every rank R, and the shapes of all
                                   parameters in mp_rank_00_model_states.pt: DeepSpeed's stages 1 to 3

Files are read by weightsmith's own pickle reader: nothing in them is run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import CheckpointError, CompatibilityError, UsageError
from weightsmith.statistics.trainers.sharded_states import (
    ShardedTensor,
    read_sharded_state,
    sharded_folder,
)
from weightsmith.tensors import (
    WORDS,
    LazyTensor,
    expanded,
    read_array,
    read_bytes,
    read_trainer_file,
    shown,
    widen,
)

Floats = NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]
_NAMES = ("optimizer.pt", "optimizer.bin")
_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
# What trainers put around a network, and its name before those of its parameters.
_WRAPPERS = ("_fsdp_wrapped_module.", "module.", "_orig_mod.", "_checkpoint_wrapped_module.")
# Names of parameters that transformers' trainer does not decay, which it numbers after all others.
_UNDECAYED = re.compile(
    r"bias|layernorm|rmsnorm|(?:^|\.)(?:layer_?)?norm\d*(?:$|\.)|_norm(?:$|\.)|ln_|LayerNorm",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, eq=False)
class SecondMoments:
    """Moments by the names of parameters, of so many steps; `correction` is 1 - beta_2^steps."""

    name: str
    steps: int
    correction: float
    moments: Iterator[tuple[str, Floats]]


def read_moments(place: Path, shapes: Shapes) -> SecondMoments:
    """Second moments of parameters of these names and shapes, in their order, from a file or folder of a trainer.

    Raises CheckpointError for files that are none of a trainer's, CompatibilityError for those of another network.
    """
    place = expanded(place)
    folder = _zero_folder(place)
    if folder is not None:
        return _from_zero(folder, shapes)
    folder = sharded_folder(place if place.is_dir() else place.parent)
    if folder is not None and (place.is_dir() or place.suffix == ".distcp"):
        return _of_state(*read_sharded_state(folder), shapes, folder)
    file = (
        place
        if place.is_file()
        else next((place / n for n in _NAMES if (place / n).is_file()), None)
    )
    if file is None:
        raise UsageError(
            f"{shown(place)} has no optimizer.pt, optimizer.bin, .metadata of FSDP or shards of DeepSpeed; give the "
            "folder that the trainer wrote."
        )
    return _from_state(file, shapes)


def files_of_trainer(place: Path) -> tuple[Path, ...]:
    """What is read there."""
    return (expanded(place),)


# By names and numbers.


def _from_state(file: Path, shapes: Shapes) -> SecondMoments:
    root = read_trainer_file(file)
    if isinstance(root, dict) and isinstance(root.get("optimizer"), dict):
        root = root["optimizer"]
    state, groups = (
        root.get(k) if isinstance(root, dict) else None for k in ("state", "param_groups")
    )
    if not isinstance(state, dict) or not isinstance(groups, list):
        raise CheckpointError(
            f"{shown(file)} holds no state of an optimiser; give a trainer's optimizer.pt."
        )
    return _of_state(state, groups, shapes, file)


def _of_state(
    state: Mapping[Any, Any], groups: Sequence[Any], shapes: Shapes, file: Path
) -> SecondMoments:
    found = {
        key: own for key, own in state.items() if isinstance(own, dict) and "exp_avg_sq" in own
    }
    if not found:
        raise CompatibilityError(
            f"{shown(file)} has no exp_avg_sq, so its optimiser was not Adam; its moments are of no use here."
        )
    named = _by_name(found, groups, shapes, file)
    first = next(iter(found.values()))
    steps = int(_number(first.get("step", 0)))
    moments = ((name, _array(own["exp_avg_sq"])) for name, own in named.items())
    return SecondMoments(file.name, steps, _correction(groups, steps), moments)


def _by_name(
    state: Mapping[Any, Any], groups: Sequence[Any], shapes: Shapes, file: Path
) -> dict[str, Any]:
    if all(isinstance(key, str) for key in state):
        named = {_unwrapped(key): own for key, own in state.items()}
        return _checked(named, shapes, file)
    for names in _numbered(groups, shapes):
        named = {names[key]: own for key, own in state.items() if key in names}
        if len(named) == len(state) and _fits(named, shapes):
            return named
    raise _of_another(
        file, f"{len(state)} parameters whose shapes are in none of the orders that trainers have"
    )


def _numbered(groups: Sequence[Any], shapes: Shapes) -> Iterator[dict[int, str]]:
    """The names that numbers may have: those stored beside them, all in order, or decayed ones first."""
    numbers = [number for group in groups for number in group.get("params", [])]
    stored = [_unwrapped(name) for group in groups for name in group.get("param_names") or []]
    names = list(shapes)
    by_decay = sorted(names, key=lambda name: bool(_UNDECAYED.search(name)))
    by_axes = sorted(names, key=lambda name: len(shapes[name]) < 2)
    for order in (stored, names, by_decay, by_axes):
        if len(order) == len(numbers):
            yield dict(zip(numbers, order, strict=True))


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _checked(named: dict[str, Any], shapes: Shapes, file: Path) -> dict[str, Any]:
    unknown = next((name for name in named if name not in shapes), None)
    if unknown is not None:
        raise _of_another(file, f"a parameter {shown(unknown)}, which the model has not")
    if not _fits(named, shapes):
        raise _of_another(file, "parameters of other shapes")
    return named


def _fits(named: Mapping[str, Any], shapes: Shapes) -> bool:
    return all(tuple(own["exp_avg_sq"].shape) == shapes[name] for name, own in named.items())


def _of_another(place: Path, what: str) -> CompatibilityError:
    return CompatibilityError(
        f"{shown(place)} is of another model: it has {what}; give the trainer's checkpoint of this one."
    )


def _correction(groups: Sequence[Any], steps: int) -> float:
    betas = groups[0].get("betas") if groups and isinstance(groups[0], dict) else None
    if not isinstance(betas, (list, tuple)) or len(betas) != 2 or steps < 1:
        return 1.0
    return 1.0 - float(betas[1]) ** steps


# DeepSpeed.


def _zero_folder(place: Path) -> Path | None:
    """The folder of a DeepSpeed checkpoint: the place itself, or the last of its steps."""
    if not place.is_dir():
        return None
    for folder in (
        place,
        *sorted(place.glob("global_step*"), key=lambda f: (len(f.name), f.name), reverse=True),
    ):
        if any(_RANK.fullmatch(file.name) for file in folder.iterdir()):
            return folder
    return None


def _from_zero(folder: Path, shapes: Shapes) -> SecondMoments:
    ranks = sorted((int(m[1]), f) for f in folder.iterdir() if (m := _RANK.fullmatch(f.name)))
    states = [read_trainer_file(file)["optimizer_state_dict"] for _, file in ranks]
    models = sorted(folder.glob("*mp_rank_00_model_states.pt"))
    try:
        groups = [
            {_unwrapped(name): tuple(shape) for name, shape in group.items()}
            for group in read_trainer_file(models[0])["param_shapes"]
        ]
        whole = int(_number(states[0].get("zero_stage", 2))) < 3
        key = "base_optimizer_state" if whole else "optimizer_state_dict"
        inner = [_base_state(state[key]) for state in states]
        steps = int(_number(inner[0][0].get("step", 0)))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{shown(folder)} is no checkpoint of DeepSpeed's ZeRO that is known here ({type(error).__name__})."
        ) from None
    named = {name: shape for group in groups for name, shape in group.items()}
    other = next((n for n, shape in named.items() if shapes.get(n) != shape), None)
    if other is not None:
        raise _of_another(folder, f"a parameter {shown(other)} of shape {list(named[other])}")
    moments = _flat(inner, groups) if whole else _partitioned(inner, groups)
    betas = states[0].get("param_groups") or _param_groups(states[0].get(key))
    return SecondMoments(folder.name, steps, _correction(betas, steps), moments)


def _param_groups(state: Any) -> Sequence[Any]:
    found = state.get("param_groups") if isinstance(state, dict) else None
    return found if isinstance(found, list) else ()


def _base_state(state: Any) -> list[Mapping[str, Any]]:
    """The states of the groups, each one flat tensor."""
    if isinstance(state, dict):
        state = state["state"]
        return [state[key] for key in sorted(state)]
    return list(state)


def _flat(
    ranks: Sequence[Sequence[Mapping[str, Any]]], groups: Sequence[Shapes]
) -> Iterator[tuple[str, Floats]]:
    """Stages 1 and 2: a group's parameters one after another, cut among the ranks."""
    for number, group in enumerate(groups):
        flat = np.concatenate([_array(rank[number]["exp_avg_sq"]).reshape(-1) for rank in ranks])
        at = 0
        for name, shape in group.items():
            count = math.prod(shape)
            yield name, flat[at : at + count].reshape(shape)
            at += count


def _partitioned(
    ranks: Sequence[Sequence[Mapping[str, Any]]], groups: Sequence[Shapes]
) -> Iterator[tuple[str, Floats]]:
    """Stage 3: every parameter cut among the ranks, filled up to the same length."""
    flats = [
        np.concatenate([_array(group["exp_avg_sq"]).reshape(-1) for group in rank])
        for rank in ranks
    ]
    at = 0
    for group in groups:
        for name, shape in group.items():
            count = math.prod(shape)
            own = -(-count // len(ranks))
            parts = [flat[at : at + own] for flat in flats]
            yield name, np.concatenate(parts)[:count].reshape(shape)
            at += own


def _array(tensor: LazyTensor | ShardedTensor) -> Floats:
    if isinstance(tensor, ShardedTensor):
        return tensor.read()
    words = np.frombuffer(read_bytes(tensor, 0, tensor.numel), WORDS[tensor.dtype.itemsize])
    return widen(words, tensor.dtype).astype(np.float32, copy=False).reshape(tensor.shape)


def _number(value: Any) -> float:
    if isinstance(value, ShardedTensor):
        return float(value.read().reshape(-1)[0]) if math.prod(value.shape) == 1 else 0.0
    return (
        float(value) if isinstance(value, (int, float)) else float(read_array(value).reshape(-1)[0])
    )
