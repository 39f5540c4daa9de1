"""Writing a statistics file (see `weightsmith.checkpoints.formats.statistics`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.checkpoints.checkpoint import Checkpoint
from weightsmith.checkpoints.fingerprint import fingerprint
from weightsmith.checkpoints.formats.statistics_header import (
    METADATA_ENTRY,
    StatisticsHeader,
    checked,
)
from weightsmith.checkpoints.opening import open_checkpoint
from weightsmith.errors import UsageError
from weightsmith.graph import exact
from weightsmith.publishing import check_file, staged_file, write_sealed_tensors
from weightsmith.tensors import DType, LazyTensor, chunks_of, expanded, shown

# What the file is sealed as.
STATISTICS_KIND = "statistics"
FORMS = ("dense", "rows_columns", "low_rank", "blocks")
_DTYPES = {np.dtype(d.value): d for d in (DType.FLOAT16, DType.FLOAT32, DType.FLOAT64)}
_Array = NDArray[Any]


def write_statistics(
    path: str | Path,
    tensors: Mapping[str, Any],
    *,
    kind: str,
    of: Checkpoint | str | Path,
    data: str,
    samples: int,
    normalization: str = "mean",
    form: str = "dense",
    rank: int = 1,
    block: int = 0,
    means: bool = False,
    metrics: Mapping[str, float] | None = None,
    same: Mapping[str, str] | None = None,
) -> None:
    """Write statistics of the checkpoint `of` that were measured over `samples` samples of `data`.

    `tensors` maps names of the checkpoint's tensors to arrays (numpy, or torch), for kind gradients to sequences of
    one array per sample; already factored ones are given as `T::rows` and `T::columns`. `form` stores matrices of
    fisher and adam as row and column sums, as `rank` singular directions, or as means over `block` elements; tensors
    that are no matrix stay dense in the first two. `means` says that given rows and columns are means (Adafactor's)
    instead of sums. `same` maps tensors to those whose statistic is theirs too.
    The file appears whole or not at all, and replaces only statistics that this function wrote and nobody changed.
    Raises UsageError for what makes no statistics, and OutputError where the file may not or cannot be written.
    """
    from weightsmith.version import __version__

    if form not in FORMS or (form == "blocks") != (block > 0):
        raise UsageError(
            f"A statistics file has one of the forms {', '.join(FORMS)}, and `block` with blocks, not {form!r} with "
            f"blocks of {block}."
        )
    checkpoint = of if isinstance(of, Checkpoint) else open_checkpoint(of)
    metrics = dict(sorted((metrics or {}).items()))
    try:
        header = checked(
            StatisticsHeader(
                kind=kind,
                name=checkpoint.name,
                digest=fingerprint(checkpoint),
                data=data,
                samples=samples,
                normalization=normalization,
                metrics=metrics,
                same=dict(same or {}),
                means=means,
                block=block,
                version=__version__,
            )
        )
    except ValueError as problem:
        raise UsageError(f"Statistics cannot be written: {problem}.") from None
    if kind == "metrics":
        tensors = {"metrics": np.array([metrics[name] for name in metrics], np.float64)}
    unknown = [n for n in tensors if n.partition("::")[0] not in checkpoint.tensors]
    if unknown and kind != "metrics":
        raise UsageError(
            f"{checkpoint.identity} has no tensor {shown(unknown[0])} that a statistic could be of."
        )
    if kind == "gram" and form in ("rows_columns", "low_rank"):
        raise UsageError(f"Gram matrices cannot be written in the form {form}; leave `form` out.")
    for name, given in tensors.items():
        if isinstance(given, Sequence) and (kind != "gradients" or not given):
            raise UsageError(
                f"The statistic of {shown(name)} is a list of {len(given)}, but kind {kind} has "
                + ("one array per sample." if kind == "gradients" else "one array.")
            )
    made = [pair for name in tensors for pair in _stored(name, tensors[name], form, rank, block)]
    metadata = statistics_metadata(header)
    _write(Path(path), made, metadata, checkpoint.inputs)


def write_measured(
    path: str | Path, tensors: Sequence[LazyTensor], header: StatisticsHeader, reads: Sequence[Path]
) -> None:
    """Write tensors that lie in files already, under their names, with the header of what they are.

    They are copied piece by piece. `reads` is what the file must not replace; otherwise as `write_statistics`.
    """
    metadata = statistics_metadata(checked(header))
    entries = [(t.name, t.dtype, t.shape) for t in tensors]
    data = (memoryview(chunk) for tensor in tensors for chunk in chunks_of(tensor))
    _publish(Path(path), entries, data, metadata, reads)


def statistics_metadata(header: StatisticsHeader) -> dict[str, str]:
    """The metadata of a safetensors file that make it one of statistics."""
    return {METADATA_ENTRY: json.dumps(header.to_json(), sort_keys=True)}


def _stored(
    name: str, given: Any, form: str, rank: int, block: int
) -> Iterator[tuple[str, _Array]]:
    if isinstance(given, Sequence):
        yield from ((f"{name}::{k}", _array(name, one)) for k, one in enumerate(given))
        return
    array = _array(name, given)
    if form == "rows_columns" and array.ndim > 1:
        wide = array.astype(np.float64)
        yield f"{name}::rows", wide.sum(-1).astype(array.dtype)
        yield f"{name}::columns", wide.sum(-2).astype(array.dtype)
    elif form == "low_rank" and array.ndim == 2:
        found = exact(np, array.astype(np.float64)).leading(rank)
        yield f"{name}::left", found.scaled(found.left).astype(array.dtype)
        yield f"{name}::right", found.right.astype(array.dtype)
    elif form == "blocks":
        flat = array.reshape(-1).astype(np.float64)
        starts = np.arange(0, flat.size, block)
        sizes = np.minimum(block, flat.size - starts)
        means = np.add.reduceat(flat, starts) / sizes if flat.size else flat
        yield f"{name}::blocks:{','.join(map(str, array.shape))}", means.astype(array.dtype)
    else:
        yield name, array


def _array(name: str, given: Any) -> _Array:
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = given.numpy() if given.dtype.itemsize > 2 else given.float().numpy()
    array: _Array = np.ascontiguousarray(given).reshape(np.shape(given))
    if array.dtype not in _DTYPES:
        raise UsageError(f"The statistic of {shown(name)} holds {array.dtype}, not floats.")
    return array


def _write(
    path: Path,
    arrays: Sequence[tuple[str, _Array]],
    metadata: Mapping[str, str],
    reads: Sequence[Path],
) -> None:
    entries = [(name, _DTYPES[array.dtype], array.shape) for name, array in arrays]
    _publish(
        path,
        entries,
        (array.reshape(-1).view(np.uint8).data for _, array in arrays),
        metadata,
        reads,
    )


def _publish(
    path: Path,
    entries: Sequence[tuple[str, DType, tuple[int, ...]]],
    data: Iterable[memoryview],
    metadata: Mapping[str, str],
    reads: Sequence[Path],
) -> None:
    earlier = check_file(path, STATISTICS_KIND, reads)
    with staged_file(expanded(path).absolute()) as staged:
        write_sealed_tensors(
            staged.descriptor, staged.place, entries, data, metadata, STATISTICS_KIND
        )
        staged.publish(earlier)
