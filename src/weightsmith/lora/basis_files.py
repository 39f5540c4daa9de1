"""The basis of several adapters in one file, and an adapter out of it: `FILE#NAME`.

A safetensors file whose metadata `weightsmith-basis` is a sealed JSON text: form, labels, and for each tensor its
shape, rank, adapters and digests. For tensor X it holds `X::mean`, `X::directions` and `X::coefficients`, and
`X::replaced::3` or `X::added::3` whole where the third adapter replaces X or adds to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from weightsmith.deltas import LowRankChange, read_matrix
from weightsmith.errors import CheckpointError, Malformed, UsageError
from weightsmith.lora.low_rank_adapters import Array, Factors, FactorsKind
from weightsmith.lora.reversible import BasisForm, ReversibleBasis, TensorBasis
from weightsmith.lora.storing import BASIS, SUFFIX, Files, StoredFactor, check_place, put
from weightsmith.publishing import sealed, unsealed
from weightsmith.tensors import (
    DType,
    StoredTensor,
    count_in,
    counts_in,
    digest_tensor,
    listed_in,
    narrow,
    optional_text_in,
    parse_file,
    piece_digest,
    piece_elements,
    shown,
    tensor_digest,
    text_in,
)
from weightsmith.wording import fault

SCHEMA = 1
_PARTS = ("mean", "directions", "coefficients")


def write_basis(
    basis: ReversibleBasis, out: Path, *, force: bool = False, reads: Sequence[Path] = ()
) -> None:
    """Write a basis to a .safetensors file, whole or not at all; numbers are rounded to its dtype.

    `reads` are the adapters that it was made from. Raises UsageError for another ending, and OutputError and
    NonFiniteError as `storing.put` does.
    """
    out = check_basis(out, force=force, reads=reads)
    tensors = []
    for key, tensor in basis.tensors.items():
        values = (tensor.mean, tensor.directions, tensor.coefficients)
        for part, value in zip(_PARTS, values, strict=True):
            tensors.append(StoredFactor(f"{key}::{part}", value, basis.dtype))
    for kind, held in (("replaced", basis.replaced), ("added", basis.added)):
        for number, saved_modules in enumerate(held, start=1):
            for name, array in saved_modules.items():
                tensors.append(StoredFactor(f"{name}::{kind}::{number}", array, DType.FLOAT32))
    header = _header(basis, {t.name: _digest(t) for t in tensors})
    metadata = {"format": "pt", BASIS: sealed(header).decode()}
    put(Files("", tensors, metadata, kind="basis"), out, force=force, reads=reads)


def check_basis(out: Path, *, force: bool = False, reads: Sequence[Path] = ()) -> Path:
    """The absolute place of a basis, before the work for it; raises as `write_basis` does."""
    if out.suffix != SUFFIX:
        raise UsageError(f"A basis is one {SUFFIX} file; {shown(out)} does not end like that.")
    return check_place(out, force=force, reads=reads, kind="basis")


def open_basis(path: Path) -> ReversibleBasis:
    """Read a basis. Raises CheckpointError for a file that is none, or is damaged."""
    file = parse_file(path)
    if BASIS not in file.metadata:
        raise CheckpointError(
            f"{shown(path)} is no basis of adapters: give what `weightsmith adapter basis create` wrote."
        )
    try:
        header = unsealed(file.metadata[BASIS].encode())
        if header["schema"] != SCHEMA:
            raise Malformed(f"its schema is {header['schema']}, this version reads {SCHEMA}")
        return _read(header, {tensor.name: tensor for tensor in file.tensors})
    except (UsageError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{shown(path)}: the basis cannot be read ({fault(error)}); it is damaged, fetch it or make it again."
        ) from error


def _header(basis: ReversibleBasis, digests: Mapping[str, str]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "form": basis.form,
        "labels": list(basis.labels),
        "base": basis.base_reference,
        "dtype": str(basis.dtype),
        "tensors": {
            key: {
                "target": tensor.first.target,
                "part": tensor.first.part,
                "shape": list(tensor.first.shape),
                "matrix": list(tensor.first.change.shape),
                "kind": tensor.first.kind,
                "input_first": tensor.first.input_first,
                "rank": tensor.rank,
                "adapters": list(tensor.members),
            }
            for key, tensor in basis.tensors.items()
        },
        "digests": dict(sorted(digests.items())),
    }


def _read(header: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> ReversibleBasis:
    if set(stored) != set(header["digests"]):
        raise Malformed("its tensors are not those of its header")
    for name, tensor in stored.items():
        if digest_tensor(tensor) != header["digests"][name]:
            raise Malformed(f"{shown(name)} does not have the digest on record")
    tensors = {key: _tensor(key, facts, stored) for key, facts in header["tensors"].items()}
    labels = tuple(listed_in(header, "labels"))
    form = text_in(header, "form")
    if form not in get_args(BasisForm):
        raise Malformed(f"there is no form {shown(form)}")
    return ReversibleBasis(
        labels,
        cast("BasisForm", form),
        tensors,
        _saved_modules("replaced", len(labels), stored),
        _saved_modules("added", len(labels), stored),
        optional_text_in(header, "base"),
        DType.parse(header["dtype"]),
    )


def _tensor(key: str, facts: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> TensorBasis:
    mean, directions, coefficients = (read_matrix(stored[f"{key}::{part}"]) for part in _PARTS)
    rows, columns = counts_in(facts, "matrix")
    positions, p, size = directions.shape
    members, rank, shape = (
        counts_in(facts, "adapters"),
        count_in(facts, "rank"),
        counts_in(facts, "shape"),
    )
    part = None if facts["part"] is None else count_in(facts, "part")
    kind = text_in(facts, "kind")
    fits = mean.shape == (positions, size) and coefficients.shape == (positions, len(members), p)
    # An expert of a fused tensor has a matrix of its own.
    whole = math.prod(shape) == rows * columns * (1 if part is None else shape[0] if shape else 0)
    if not fits or not whole or positions * size != (rows + columns) * rank:
        raise Malformed(f"the shapes of {shown(key)} do not fit together")
    if part is not None and part >= shape[0]:
        raise Malformed(f"{shown(key)} has no expert {part}")
    if kind not in get_args(FactorsKind):
        raise Malformed(f"there is no kind {shown(kind)}")
    # Only the shape of this change counts: factors without directions take no memory.
    nothing = LowRankChange(np.zeros((rows, 0)), np.zeros((0, columns)))
    first = Factors(
        text_in(facts, "target"),
        nothing,
        shape,
        cast("FactorsKind", kind),
        bool(facts["input_first"]),
        part,
    )
    return TensorBasis(first, members, rank, mean, directions, coefficients)


def _saved_modules(
    kind: str, count: int, stored: Mapping[str, StoredTensor]
) -> tuple[Mapping[str, Array], ...]:
    found: list[dict[str, Array]] = [{} for _ in range(count)]
    for name, tensor in stored.items():
        target, _, number = name.rpartition(f"::{kind}::")
        if target:
            found[int(number) - 1][target] = read_matrix(tensor).astype(np.float32)
    return tuple(found)


def _digest(tensor: StoredFactor) -> str:
    """As `digest_tensor` gives it of what will lie in the file."""
    words = narrow(np.ascontiguousarray(tensor.values), tensor.dtype).reshape(-1)
    shape, step = tensor.values.shape, piece_elements(tensor.values.shape)
    pieces = (piece_digest(words[i : i + step].data) for i in range(0, len(words), step))
    return tensor_digest(tensor.dtype, shape, pieces)
