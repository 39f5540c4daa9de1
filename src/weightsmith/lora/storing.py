"""Putting an adapter's files in their place: whole, durable, or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import NonFiniteError, OutputError
from weightsmith.publishing import (
    FOREIGN,
    MANIFEST,
    Recorded,
    StagedFile,
    StagingFolder,
    check_free,
    is_sealed_as,
    manifest_problem,
    staged_file,
    write_file,
    write_sealed_tensors,
)
from weightsmith.publishing import check_place as check_read
from weightsmith.tensors import WORDS, DType, narrow, parse_file, shown, widen

SUFFIX = ".safetensors"
# The key of the metadata of a file that holds a basis of several adapters.
BASIS = "weightsmith-basis"
# The key of the metadata with the SHA-256 of the files beside an adapter's weights.
BESIDE = "weightsmith_files"
# What an adapter of kohya's is called in a folder, beside the record of the merge that made it.
KOHYA_WEIGHTS = "adapter.safetensors"
# The weights of an adapter that is a folder.
_WEIGHTS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", KOHYA_WEIGHTS)
_CHANGED = f"{FOREIGN}, or was changed since"


@dataclass(frozen=True, slots=True, eq=False)
class StoredFactor:
    """A tensor as it will lie in a file: `values` are rounded to `dtype` when they are written."""

    name: str
    values: NDArray[Any]
    dtype: DType


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """What an adapter consists of: one file of tensors, and small files beside it in a folder.

    `kind` is what the file of tensors is sealed as: an adapter, or a basis of several.
    """

    weights: str
    tensors: Sequence[StoredFactor]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})
    companions: Mapping[str, bytes] = field(default_factory=dict)
    kind: str = "adapter"


def check_place(
    out: Path, *, force: bool, reads: Sequence[Path] = (), kind: str = "adapter"
) -> Path:
    """The absolute place of an output, once it is clear that something may be put there.

    `reads` is what it is made from. Raises OutputError for a place that is taken, unless `force` and it is an adapter
    (or basis) as weightsmith wrote it, for what is read, for a link, and for a folder above that does not exist.
    """
    out = _checked(out, reads)
    check_free(out, partial(earlier_problem, kind), force=force)
    return out


def put(files: Files, out: Path, *, force: bool = False, reads: Sequence[Path] = ()) -> None:
    """Write an adapter: a file where `out` ends in .safetensors, else a folder.

    It is written beside its place, made durable and renamed, so that `out` is there whole or not at all; after an
    error nothing is left. Raises OutputError and ResourceError where it cannot be written, and NonFiniteError for
    numbers that are not finite or too large for their dtype.
    """
    out, problem = _checked(out, reads), partial(earlier_problem, files.kind)
    if out.suffix == SUFFIX:
        earlier = check_free(out, problem, force=force)
        with staged_file(out) as staged:
            _write_tensors(staged, files, files.metadata)
            staged.publish(earlier)
        return
    with StagingFolder(out, problem) as staging:
        earlier = check_free(out, problem, force=force)
        staging.empty()
        staging.whole.mkdir()
        write_into(files, staging.whole)
        staging.publish(earlier)


def write_into(files: Files, folder: Path, weights: str = "") -> None:
    """Write an adapter's files into a folder that is weightsmith's own, its tensors as `weights` where they have no
    name.

    Raises what `put` does.
    """
    digests = {n: hashlib.sha256(data).hexdigest() for n, data in sorted(files.companions.items())}
    metadata = {**files.metadata, BESIDE: json.dumps(digests)} if digests else files.metadata
    with staged_file(folder / (files.weights or weights)) as staged:
        _write_tensors(staged, files, metadata)
        staged.replace()
    for name in sorted(files.companions):
        write_file(folder / name, files.companions[name])


def _checked(out: Path, reads: Sequence[Path]) -> Path:
    """The absolute place, if what is read and what kind of thing lies there do not stand against it."""
    out = check_read(out, reads)
    if out.suffix == SUFFIX and out.is_dir():
        raise OutputError(f"{shown(out)} is a folder; name a file.")
    return out


def earlier_problem(kind: str, place: Path, thorough: bool) -> str:
    """What stands against replacing an adapter, or a basis of several; see `publishing.earlier.Problem`."""
    if not place.is_dir():
        return "" if is_sealed_as(place, kind) else _CHANGED
    weights = next((name for name in _WEIGHTS if (place / name).is_file()), None)
    if kind != "adapter" or weights is None:
        return FOREIGN
    if (place / MANIFEST).is_file():
        return manifest_problem(place, thorough)
    if not is_sealed_as(place / weights, kind):
        return f"holds {shown(weights)}, which {_CHANGED}"
    beside = json.loads(parse_file(place / weights).metadata.get(BESIDE, "{}"))
    return Recorded(weights, beside).problem(place, thorough)


def _write_tensors(staged: StagedFile, files: Files, metadata: Mapping[str, str]) -> None:
    # Wider types first, so that each tensor is aligned to its elements; names give the rest of the order.
    tensors = sorted(files.tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    write_sealed_tensors(
        staged.descriptor,
        staged.place,
        [(t.name, t.dtype, t.values.shape) for t in tensors],
        (memoryview(words(tensor)) for tensor in tensors),
        dict(sorted(metadata.items())),
        files.kind,
    )


def words(tensor: StoredFactor) -> bytearray:
    """The bytes of a tensor as it is stored; raises NonFiniteError for numbers that its dtype does not have."""
    narrowed = narrow(np.ascontiguousarray(tensor.values), tensor.dtype).reshape(-1)
    if not np.isfinite(widen(narrowed.view(WORDS[tensor.dtype.itemsize]), tensor.dtype)).all():
        what = "too large for" if np.isfinite(tensor.values).all() else "not finite in"
        raise NonFiniteError(
            f"Tensor {shown(tensor.name)} of the adapter holds numbers that are {what} {tensor.dtype}; "
            "store it as float32, or look for the damage in what it was made of."
        )
    return bytearray(narrowed.view(np.uint8).data)
