"""Collecting statistics of a model: the model and the data opened, one run, and a file for each kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from weightsmith.adapters import open_model
from weightsmith.checkpoints import (
    STATISTICS_KIND,
    Checkpoint,
    StatisticsHeader,
    checkpoint_fingerprint,
    tensors_fingerprint,
    write_measured,
)
from weightsmith.errors import CompatibilityError, OutputError, UsageError
from weightsmith.live import LiveModel, count_parts, load_model
from weightsmith.naming import natural_key
from weightsmith.progress import Progress, Silence
from weightsmith.publishing import check_file
from weightsmith.statistics.adam_moments import take_moments
from weightsmith.statistics.data_files import DataChoice, ReadData, files_of_data, read_data
from weightsmith.statistics.data_run import DataRun, forward_sums
from weightsmith.statistics.factor_gradients import AdapterGradients, adapter_gradients
from weightsmith.statistics.kept_parts import KeptParts
from weightsmith.statistics.samples import Samples, counted_labels
from weightsmith.statistics.trainer_files import files_of_trainer
from weightsmith.statistics.wanted import Wanted, parse_wanted
from weightsmith.tensors import LazyTensor, expanded, shown
from weightsmith.version import __version__

MEMORY_BYTES = 1 << 30
_ENDING = ".safetensors"
# Up to so many classes, and one prediction for an item, every class has its turn.
_MOST_EXACT = 128
# Of the memory, what is for activations that wait for the next block.
_WAITING = 4


@dataclass(frozen=True, slots=True)
class CollectedFile:
    """A statistics file that was written: its kind, tensors, and samples behind them."""

    kind: str
    path: Path
    tensors: int
    samples: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What was collected of a model over some data; `blocks` tells whether it ran block by block."""

    model: str
    data: str
    estimator: str
    per: str
    blocks: bool
    files: tuple[CollectedFile, ...]

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        files = [
            {
                "kind": file.kind,
                "path": str(file.path),
                "tensors": file.tensors,
                "samples": file.samples,
                "bytes": file.nbytes,
            }
            for file in self.files
        ]
        return {
            "model": self.model,
            "data": self.data,
            "estimator": self.estimator or None,
            "per": self.per or None,
            "block_by_block": self.blocks,
            "files": files,
        }


def collect(
    what: str | Sequence[str],
    model: str | Path,
    *,
    data: str | Path | Samples,
    out: str | Path,
    task: str | None = None,
    estimator: str | None = None,
    per: str = "sequence",
    limit: int = 256,
    context: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    memory_bytes: int = MEMORY_BYTES,
    other: str | Path | None = None,
    factors: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Collected:
    """Collect statistics of a model over the first items of some data, and write a file for each kind.

    `what` names kinds: gram, channels, routing, cross (moments of what this model and `other` read and give on the same
    data), fisher, gradients (`gradients:8` with those of 8 items by themselves), or adam, whose data are a trainer's
    checkpoint (its optimizer.pt, or a folder of DeepSpeed). Else `data` is a text file, JSON lines, an arrow file or a
    folder of them, a suite with the `task` of it, or Samples. `limit` bounds the items, `context` the tokens of each.
    With `factors` gradients are of what the adapter of BASE+ADAPTER stores, by the names in its file.
    `estimator` and `per` say whose gradients a Fisher is of: exact, mc:S or empirical; of a sequence or of a token. A
    network that takes more than `memory_bytes` runs block by block; the same call goes on behind what is finished of
    it, even after a kill. Weights of any dtype are computed with in float32, or in bfloat16 where `dtype` says so; sums
    are float32 and float64 either way. With several kinds FILE.safetensors becomes FILE.KIND.safetensors.

    Raises UsageError for data that are none of the model's, OutputError for an output that must not be replaced,
    NonFiniteError where a loss is NaN, and what opening the model raises.
    """
    wanted = parse_wanted(what, estimator, per, seed, factors=factors)
    _require_other(wanted, other)
    source = data if isinstance(data, Samples) else Path(data)
    choice = DataChoice(source, task, limit, context, seed)
    checkpoint = open_model(model)
    compared = None if other is None else open_model(other)
    inputs = (*checkpoint.inputs, *(() if compared is None else compared.inputs))
    reads = (*inputs, *_read_beside(wanted, choice))
    places = _places(Path(out), wanted, reads)
    live = load_model(model, device=device, dtype=dtype, filled=False)
    target = _Target(checkpoint, live, places, reads, expanded(out).absolute(), dtype)
    if other is not None and compared is not None:
        beside = load_model(other, device=device, dtype=dtype, filled=False)
        target = replace(target, other=_Other(compared, beside))
    if factors:
        target = replace(target, adapter=adapter_gradients(checkpoint))
    if "adam" in wanted.kinds:
        return _adam(target, wanted, source)
    return _measured(
        target, wanted, choice, _Means(batch_size, memory_bytes, progress or Silence())
    )


@dataclass(frozen=True, eq=False)
class _Other:
    """The model that another is compared with."""

    checkpoint: Checkpoint
    model: LiveModel

    @cached_property
    def digest(self) -> str:
        """Its fingerprint."""
        return checkpoint_fingerprint(self.checkpoint)


@dataclass(frozen=True, eq=False)
class _Target:
    """The model, and where what is collected of it goes."""

    checkpoint: Checkpoint
    model: LiveModel
    places: Mapping[str, Path]
    reads: tuple[Path, ...]
    out: Path
    dtype: str
    other: _Other | None = None
    adapter: AdapterGradients | None = None

    @cached_property
    def digest(self) -> str:
        """The fingerprint of the model, which reads a little of each tensor."""
        return checkpoint_fingerprint(self.checkpoint)

    def header(self, kind: str, data: str, samples: int) -> StatisticsHeader:
        """The header of a file of a kind."""
        header = StatisticsHeader(
            kind, self.checkpoint.name, self.digest, data, samples, version=__version__
        )
        if kind == "cross" and self.other is not None:
            name, digest = self.other.checkpoint.name, self.other.digest
            header = replace(header, other_name=name, other_digest=digest)
        if self.adapter is not None:
            base = self.adapter.base
            header = replace(
                header,
                name=self.adapter.name,
                digest=tensors_fingerprint(self.adapter.tensors),
                other_name=base.name,
                other_digest=checkpoint_fingerprint(base),
            )
        return header if self.dtype == "float32" else replace(header, dtype=self.dtype)

    def write(self, header: StatisticsHeader, parts: KeptParts) -> CollectedFile:
        """Write the file of a kind."""
        tensors: list[LazyTensor] = []
        rows: dict[str, int] = {}
        same: dict[str, str] = {}
        for part in parts.of(header.kind):
            tensors += part.tensors
            rows |= part.rows
            same |= part.same
        tensors.sort(key=lambda tensor: natural_key(tensor.name))
        place = self.places[header.kind]
        write_measured(place, tensors, replace(header, rows=rows, same=same), self.reads)
        nbytes = sum(tensor.nbytes for tensor in tensors)
        return CollectedFile(header.kind, place, len(tensors), header.samples, nbytes)


@dataclass(frozen=True, slots=True, eq=False)
class _Means:
    """With what it is collected."""

    batch_size: int
    memory_bytes: int
    progress: Progress


def _measured(target: _Target, wanted: Wanted, choice: DataChoice, means: _Means) -> Collected:
    model = target.model
    data = read_data(model, choice)
    other = None if target.other is None else target.other.model
    wanted = _settled(wanted, data, model, other)
    blocks = _takes_blocks(model, wanted, means.memory_bytes, other)
    waiting = means.memory_bytes // _WAITING
    said = [repr(wanted), target.digest, blocks, means.batch_size, model.device, target.dtype]
    said.append("" if target.other is None else target.other.digest)
    digests = [data.forward.digest, data.backward.digest]
    with KeptParts(target.out, _digest([__version__, *said, *digests])) as parts:
        for samples, own in _runs(data, wanted):
            beside = other if "cross" in own.kinds else None
            run = DataRun(
                model,
                samples,
                own,
                parts,
                means.batch_size,
                waiting,
                means.progress,
                beside,
                target.adapter,
            )
            if blocks:
                run.by_blocks()
            elif not all(parts.has(kind, 0) for kind in own.kinds):
                for network in (model, beside):
                    if network is not None:
                        network.fill()
                run.whole()
        headers = (_header(target, kind, data, wanted) for kind in wanted.kinds)
        files = tuple(target.write(header, parts) for header in headers)
        parts.discard()
    estimator = wanted.estimator_text if "fisher" in wanted.kinds else ""
    per = wanted.per if estimator else ""
    return Collected(model.name, data.forward.name, estimator, per, blocks, files)


def _runs(data: ReadData, wanted: Wanted) -> Iterator[tuple[Samples, Wanted]]:
    """The runs that it takes: one, or one for what passes and one for gradients."""
    if data.is_one or not (wanted.forward and wanted.backward):
        yield (data.backward if wanted.backward else data.forward), wanted
        return
    yield data.forward, replace(wanted, kinds=wanted.forward)
    yield data.backward, replace(wanted, kinds=wanted.backward)


def _header(target: _Target, kind: str, data: ReadData, wanted: Wanted) -> StatisticsHeader:
    is_backward = kind in wanted.backward
    samples = data.backward if is_backward else data.forward
    count = len(samples.items)
    name = f"{samples.name}, {count} items, sha256:{samples.digest[:16]}"
    if kind == "fisher" and wanted.per == "token":
        count = sum(counted_labels(sample.labels) for sample in samples.items)
    header = target.header(kind, name, count)
    if kind == "fisher":
        header = replace(header, estimator=wanted.estimator_text, per=wanted.per)
    return replace(header, objective=samples.objective if is_backward else "")


def _adam(target: _Target, wanted: Wanted, source: Path | Samples) -> Collected:
    if len(wanted.kinds) > 1 or isinstance(source, Samples):
        raise UsageError(
            "adam is read from a trainer's checkpoint, and everything else measured over data; ask for it alone."
        )
    with KeptParts(target.out, _digest(["adam"])) as parts:
        parts.begin_anew()
        taken = take_moments(target.model, source, parts)
        data = f"the trainer's {shown(taken.name)}, second moments after {taken.steps} steps"
        file = target.write(target.header("adam", data, max(taken.steps, 1)), parts)
        parts.discard()
    return Collected(target.model.name, data, "", "", False, (file,))


def _read_beside(wanted: Wanted, choice: DataChoice) -> tuple[Path, ...]:
    if "adam" in wanted.kinds and not isinstance(choice.source, Samples):
        return files_of_trainer(choice.source)
    return files_of_data(choice)


def _digest(said: Sequence[object]) -> str:
    """A digest of everything that decides the numbers."""
    return hashlib.sha256(json.dumps(list(said)).encode()).hexdigest()


def _places(out: Path, wanted: Wanted, reads: Sequence[Path]) -> dict[str, Path]:
    """Where the file of each kind will be; raises OutputError where something is in the way."""
    if out.suffix != _ENDING:
        raise OutputError(
            f"Statistics are safetensors files; give {shown(out)} the ending {_ENDING}."
        )
    kinds = wanted.kinds
    several = len(kinds) > 1
    found = {k: out.with_name(f"{out.stem}.{k}{_ENDING}") if several else out for k in kinds}
    for place in found.values():
        check_file(place, STATISTICS_KIND, reads)
    return found


def _require_other(wanted: Wanted, other: str | Path | None) -> None:
    """Raise UsageError where a model is compared with none, or with one that nothing is asked of."""
    if "cross" in wanted.kinds and other is None:
        raise UsageError(
            "cross are moments of two models on the same data; give the other one with --with MODEL."
        )
    if "cross" not in wanted.kinds and other is not None:
        raise UsageError(
            f"Only cross is of two models, and {', '.join(wanted.kinds)} of one; ask for cross, or leave out "
            f"{shown(other)}."
        )


def _settled(wanted: Wanted, data: ReadData, model: LiveModel, other: LiveModel | None) -> Wanted:
    """With the estimator that suits the data, if none was asked for.

    Raises CompatibilityError where the network has nothing of a kind, UsageError where there are no losses.
    """
    for kind in wanted.forward:
        if forward_sums(kind, model, other).is_empty:
            beside = "" if kind != "cross" or other is None else f" beside {other.name!r}"
            raise CompatibilityError(
                f"{model.name!r} is a {type(model.module).__name__}, which has nothing that {kind} statistics are of"
                f"{beside}; ask for others."
            )
    samples = data.backward
    if wanted.backward and (
        samples.predictions is None or not all(counted_labels(s.labels) for s in samples.items)
    ):
        raise UsageError(
            f"{' and '.join(wanted.backward)} need losses, but {model.name!r} is {model.kind.value}, and "
            f"{samples.name} gives it nothing to predict; give texts with labels, or queries with documents."
        )
    if "fisher" not in wanted.kinds or wanted.estimator:
        return wanted
    first = samples.items[0]
    is_small = counted_labels(first.labels) == 1 and first.classes <= _MOST_EXACT
    return (
        replace(wanted, estimator="exact") if is_small else replace(wanted, estimator="mc", draws=1)
    )


def _takes_blocks(
    model: LiveModel, wanted: Wanted, memory_bytes: int, other: LiveModel | None
) -> bool:
    """Whether weights, and the sums over gradients of them, do not fit into memory together.

    What is summed up of two models is about as large as their weights.
    """
    numel = sum(tensor.numel for tensor in model.source.tensors.values())
    copies = 1 + 3 * len(wanted.backward) + (3 if other is not None else 0)
    return 4 * numel * copies > memory_bytes and count_parts(model.module) > 0
