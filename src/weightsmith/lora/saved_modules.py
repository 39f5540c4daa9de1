"""Tensors of an adapter that are no product of factors: biases, norms and modules that are replaced whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.checkpoints import Checkpoint, Tying, own_head_name, vocabulary_embedding
from weightsmith.deltas import Matrix, read_matrix
from weightsmith.errors import CompatibilityError
from weightsmith.lora.base_tensors import base_tensor
from weightsmith.lora.low_rank_adapters import Array, LowRankAdapter
from weightsmith.lora.storing import StoredFactor
from weightsmith.tensors import NARROW, DType, fits, narrow, shown

BIAS = ".bias"
_HEAD = "lm_head.weight"


@dataclass(slots=True, eq=False)
class SavedModules:
    """Where each of them goes in a PEFT adapter.

    `lora_biases` are changes of biases by module; `biases` whole biases by tensor; `saved` all tensors of the modules
    in `modules`, which take the place of the base's.
    """

    lora_biases: dict[str, Array] = field(default_factory=dict)
    biases: dict[str, Array] = field(default_factory=dict)
    saved: dict[str, Array] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)


def decide_saved_modules(
    adapter: LowRankAdapter,
    base: Checkpoint | None,
    modules: Collection[str],
    *,
    takes_lora_bias: bool,
) -> SavedModules:
    """Decide for every bias, norm and replaced tensor how PEFT can keep it, `modules` being those with factors.

    A change of a bias becomes a `lora_bias` where `takes_lora_bias` and every module with factors has a bias, and else,
    as that of a norm, the base's tensor with the change in it. Raises CompatibilityError where that needs a base that
    is not given, or where a tensor cannot be kept.
    """
    found = SavedModules()
    replaced = dict(adapter.replaced)
    changes = {t: d for t, d in adapter.added.items() if t.removesuffix(BIAS) in modules}
    has_biases = set(adapter.added if base is None else base.tensors)
    is_lora = takes_lora_bias and all(m + BIAS in has_biases for m in modules)
    for target, change in sorted(adapter.added.items()):
        if is_lora and target in changes and target.endswith(BIAS):
            found.lora_biases[target.removesuffix(BIAS)] = change
        else:
            replaced[target] = narrow(whole(target, change.shape, base) + change, DType.FLOAT32)
    replaced.update(_tied(replaced, base))
    for target in sorted(replaced):
        _place(found, target, replaced, base, modules)
    _keep_alike(found, base, modules)
    return found


def whole(target: str, shape: tuple[int, ...], base: Checkpoint | None) -> Matrix:
    """The base's own tensor, in float64."""
    why = f"The change of {shown(target)} can only be kept as the changed tensor itself"
    return read_matrix(base_tensor(base, target, why, shape))


def tied_head(base: Checkpoint | None) -> tuple[str, str] | None:
    """The names of a tied base's embedding and of its head, which need not be stored; None for any other base."""
    if base is None or base.tying is not Tying.TIED:
        return None
    embedding = vocabulary_embedding(base.tensors, base.places)
    if embedding is None:
        return None
    # What stands before a head, as a BERT's transform, is none.
    return embedding, own_head_name(base) or _HEAD


def stored(name: str, values: NDArray[Any], dtypes: tuple[DType, ...]) -> StoredFactor:
    """A whole tensor in the first of `dtypes` that loses nothing, else in float32."""
    kept = [dtype for dtype in dtypes if dtype in NARROW and fits(values, dtype)]
    return StoredFactor(name, values, kept[0] if kept else DType.FLOAT32)


def _tied(replaced: Mapping[str, Array], base: Checkpoint | None) -> dict[str, Array]:
    """The other name of a tied embedding, which PEFT keeps apart, with the same values."""
    names = tied_head(base)
    if names is None:
        return {}
    embedding, head = names
    if embedding in replaced:
        other_names = [head, *_of_both_sides(embedding)]
        return {name: replaced[embedding] for name in other_names if name not in replaced}
    return {embedding: replaced[head]} if head in replaced else {}


def _of_both_sides(embedding: str) -> list[str]:
    """What encoder and decoder call the table that they share, which files have once (BART, T5)."""
    before, shared, rest = embedding.rpartition("shared.weight")
    if not shared or rest or (before and not before.endswith(".")):
        return []
    return [f"{before}{side}.embed_tokens.weight" for side in ("encoder", "decoder")]


def _place(
    found: SavedModules,
    target: str,
    replaced: Mapping[str, Array],
    base: Checkpoint | None,
    modules: Collection[str],
) -> None:
    module, _, leaf = target.rpartition(".")
    if module in modules:
        if leaf != "bias":
            raise CompatibilityError(
                f"The adapter both replaces {shown(target)} and has factors for it; one of them must go."
            )
        found.biases[f"{module}.base_layer{BIAS}"] = replaced[target]
        return
    if leaf == "bias" and f"{module}.weight" not in replaced:
        found.biases[target] = replaced[target]
        return
    if not module or any(other.startswith(f"{module}.") for other in modules):
        raise CompatibilityError(
            f"PEFT replaces whole modules, and that of {shown(target)} holds others with factors; "
            "leave this tensor out."
        )
    if module not in found.modules:
        found.modules.append(module)
        if base is not None:
            found.saved.update(_floats_below(base, module))
    found.saved[target] = replaced[target]


def _keep_alike(found: SavedModules, base: Checkpoint | None, modules: Collection[str]) -> None:
    """PEFT replaces every module whose path ends like one that is named: the others are saved as the base has them."""
    if base is None:
        return
    others = sorted({name.rpartition(".")[0] for name in base.tensors} - set(found.modules))
    for other in others:
        like = next((m for m in found.modules if other.endswith(m)), None)
        if like is None:
            continue
        if any(module == other or module.startswith(f"{other}.") for module in modules):
            raise CompatibilityError(
                f"PEFT would replace {shown(other)}, which has factors, together with {shown(like)}, as the path of "
                "the one ends with that of the other; leave one of them out."
            )
        found.saved.update(_floats_below(base, other))


def _floats_below(base: Checkpoint, module: str) -> dict[str, Array]:
    """The tensors of a module of the base; integers, such as a count of batches, stay as the base has them."""
    return {
        name: read_matrix(tensor).astype(np.float32)
        for name, tensor in base.tensors.items()
        if name.startswith(f"{module}.") and tensor.dtype.is_float
    }
