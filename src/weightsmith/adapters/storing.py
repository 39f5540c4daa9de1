"""Putting an adapter's files in their place: whole, durable, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import CheckpointError, NonFiniteError, OutputError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.messages import shown
from weightsmith.tensors.narrowing import narrow
from weightsmith.tensors.safetensors_header import encode_header, parse_file
from weightsmith.tensors.widening import WORDS, widen
from weightsmith.tensors.writer import pwrite_all, sync_file, sync_folder, write_file

SUFFIX = ".safetensors"
# The files of an adapter's folder, and a merge's records beside them: what may be replaced when that is asked for.
KNOWN = (
    "README.md",
    "adapter_config.json",
    "adapter_model.bin",
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "weightsmith-manifest.json",
    "weightsmith-recipe.yaml",
)
# The key of the metadata of a file that holds a basis of several adapters.
BASIS = "weightsmith-basis"
_ADAPTER_KEYS = ("lora", ".alpha", "hada_", "lokr_", ".diff", "oft_", "w_norm", "b_norm")


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A tensor as it will lie in a file: `values` are rounded to `dtype` when they are written."""

    name: str
    values: NDArray[Any]
    dtype: DType


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """What an adapter consists of: one file of tensors, and small files beside it in a folder."""

    weights: str
    tensors: Sequence[Stored]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})
    papers: Mapping[str, bytes] = field(default_factory=dict)


def check_place(out: Path, *, force: bool) -> Path:
    """The absolute place of an output, once it is clear that something may be put there.

    Raises OutputError for a place that is taken, unless `force` and it is an adapter and nothing else, for a link, and
    for a folder above that does not exist.
    """
    out = Path(os.path.abspath(out.expanduser()))
    if out.is_symlink():
        raise OutputError(f"The output {shown(out)} is a symbolic link; name the real place.")
    if not out.parent.is_dir():
        raise OutputError(
            f"The folder {shown(out.parent)} for the output does not exist; create it first."
        )
    if not os.path.lexists(out):
        return out
    if not force:
        raise OutputError(
            f"The output {shown(out)} exists; choose another name, or give --force to replace it."
        )
    foreign = _foreign(out)
    if foreign is not None:
        raise OutputError(
            f"The output {shown(out)} holds {foreign!r}, which is no part of an adapter, so --force does not replace "
            "it; move that elsewhere."
        )
    return out


def put(files: Files, out: Path, *, force: bool = False) -> None:
    """Write an adapter: a file where `out` ends in .safetensors, else a folder.

    It is written beside its place, made durable and renamed, so that `out` is there whole or not at all; after an
    error nothing is left. Raises OutputError and ResourceError where it cannot be written, and NonFiniteError for
    numbers that are not finite or too large for their dtype.
    """
    out = check_place(out, force=force)
    staged = out.with_name(f".{out.name[:200]}.{secrets.token_hex(6)}.partial")
    try:
        if out.suffix == SUFFIX:
            _write_tensors(staged, files, out)
        else:
            _make_folder(staged)
            _write_tensors(staged / files.weights, files, out)
            for name in sorted(files.papers):
                write_file(staged / name, files.papers[name])
            sync_folder(staged)
        _publish(staged, check_place(out, force=force))
    finally:
        _remove(staged)
    sync_folder(out.parent)


def _write_tensors(path: Path, files: Files, out: Path) -> None:
    # Wider types first, so that each tensor is aligned to its elements; names give the rest of the order.
    tensors = sorted(files.tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    entries = [(t.name, t.dtype, t.values.shape) for t in tensors]
    header = encode_header(entries, dict(sorted(files.metadata.items())))
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise _failure(out, error) from error
    try:
        pwrite_all(descriptor, header, 0, path)
        offset = len(header)
        for tensor in tensors:
            words = _words(tensor)
            pwrite_all(descriptor, words.data, offset, path)
            offset += words.nbytes
        sync_file(descriptor, path)
    finally:
        os.close(descriptor)


def _words(tensor: Stored) -> NDArray[np.uint8]:
    narrowed = narrow(np.ascontiguousarray(tensor.values), tensor.dtype).reshape(-1)
    if not np.isfinite(widen(narrowed.view(WORDS[tensor.dtype.itemsize]), tensor.dtype)).all():
        what = "too large for" if np.isfinite(tensor.values).all() else "not finite in"
        raise NonFiniteError(
            f"Tensor {shown(tensor.name)} of the adapter holds numbers that are {what} {tensor.dtype}; "
            "store it as float32, or look for the damage in what it was made of."
        )
    return narrowed.view(np.uint8)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir()
    except OSError as error:
        raise _failure(folder, error) from error


def _publish(staged: Path, out: Path) -> None:
    """Give the finished file or folder its name; an earlier one comes back if that fails."""
    aside = staged.with_suffix(".replaced")
    try:
        if staged.is_dir() and out.exists():
            os.rename(out, aside)
            try:
                os.rename(staged, out)
            except BaseException:
                os.rename(aside, out)
                raise
        else:
            os.replace(staged, out)
    except OSError as error:
        raise _failure(out, error) from error
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _foreign(out: Path) -> str | None:
    """The name of something at `out` that is no adapter's, if any."""
    if out.is_dir():
        if out.suffix == SUFFIX:
            return out.name
        names = sorted(entry.name for entry in out.iterdir())
        return next((name for name in names if name not in KNOWN or (out / name).is_dir()), None)
    return None if out.suffix == SUFFIX and _is_adapter_file(out) else out.name


def _is_adapter_file(file: Path) -> bool:
    from weightsmith.checkpoints.weights import read_tensors

    try:
        if BASIS in parse_file(file).metadata:
            return True
        names = [tensor.name for tensor in read_tensors(file)]
    except (CheckpointError, OSError):
        return False
    return bool(names) and all(any(key in name for key in _ADAPTER_KEYS) for name in names)


def _failure(out: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(
        f"{shown(out)} cannot be written ({reason}): check the disk and its permissions."
    )
