"""Collecting statistics of a model: the model and the data opened, one run, and a file for each kind."""

from __future__ import annotations

import hashlib
import json
import math
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
    write_measured,
)
from weightsmith.errors import CompatibilityError, OutputError, UsageError
from weightsmith.live import LiveModel, count_parts, load_model, open_source
from weightsmith.naming import natural_key
from weightsmith.progress import Progress, Silence
from weightsmith.publishing import check_file
from weightsmith.statistics.adam_moments import take_moments
from weightsmith.statistics.data_files import DataChoice, ReadData, files_of_data, read_data
from weightsmith.statistics.data_run import FORWARD_SUMS, DataRun
from weightsmith.statistics.kept_parts import KeptParts
from weightsmith.statistics.repair_run import Parent, RepairRun
from weightsmith.statistics.samples import Samples, counted_labels
from weightsmith.statistics.trainer_files import files_of_trainer
from weightsmith.statistics.wanted import Wanted, parse_wanted
from weightsmith.tensors import LazyTensor, expanded, shown
from weightsmith.version import __version__

MEMORY_BYTES = 1 << 30
_ENDING = ".safetensors"
# Up to so many classes, and one prediction for an item, every class has its turn.
_MOST_EXACT = 128
_REPAIR = Wanted(("repair",))
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
    device: str = "cpu",
    parents: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Collected:
    """Collect statistics of a model over the first items of some data, and write a file for each kind.

    `what` names kinds: gram, channels, routing, fisher, gradients (`gradients:8` with those of 8 items by themselves),
    adam, whose data are a trainer's checkpoint (its optimizer.pt, or a folder of DeepSpeed), or repair, for the method
    of that name: its model was merged, and `parents` are the weights of the models that it was merged from, by name,
    where it has no batch norm. Else `data` is a text file, JSON lines, an arrow file or a folder of them, a suite with
    the `task` of it, or Samples. `limit` bounds the items, `context` the tokens of each. `estimator` and `per` say
    whose gradients a Fisher is of: exact, mc:S or empirical; of a sequence or of a token. A network that takes more
    than `memory_bytes` runs block by block; what is finished of it is found again by the same call, even after a kill.
    With several kinds FILE.safetensors becomes FILE.KIND.safetensors.

    Raises UsageError for data that are none of the model's, OutputError for an output that must not be replaced,
    NonFiniteError where a loss is NaN, and what opening the model raises.
    """
    wanted = parse_wanted(what, estimator, per, seed)
    shares = _shares(wanted, parents or {})
    source = data if isinstance(data, Samples) else Path(data)
    choice = DataChoice(source, task, limit, context, seed)
    checkpoint = open_model(model)
    opened = {name: open_model(name) for name in shares}
    behind = (path for parent in opened.values() for path in parent.inputs)
    reads = (*checkpoint.inputs, *behind, *_read_beside(wanted, choice))
    places = _places(Path(out), wanted, reads)
    live = load_model(model, device=device, filled=False)
    target = _Target(checkpoint, live, places, reads, expanded(out).absolute())
    if "adam" in wanted.kinds:
        return _adam(target, wanted, source)
    means = _Means(batch_size, memory_bytes, progress or Silence())
    if "repair" in wanted.kinds:
        return _repaired(target, choice, means, [(opened[n], n, shares[n]) for n in shares])
    return _measured(target, wanted, choice, means)


@dataclass(frozen=True, eq=False)
class _Target:
    """The model, and where what is collected of it goes."""

    checkpoint: Checkpoint
    model: LiveModel
    places: Mapping[str, Path]
    reads: tuple[Path, ...]
    out: Path

    @cached_property
    def digest(self) -> str:
        """The fingerprint of the model, which reads a little of each tensor."""
        return checkpoint_fingerprint(self.checkpoint)

    def header(self, kind: str, data: str, samples: int) -> StatisticsHeader:
        """The header of a file of a kind."""
        return StatisticsHeader(
            kind, self.checkpoint.name, self.digest, data, samples, version=__version__
        )

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
    wanted = _settled(wanted, data, model)
    blocks = _takes_blocks(model, wanted, means.memory_bytes)
    waiting = means.memory_bytes // _WAITING
    said = [repr(wanted), target.digest, blocks, means.batch_size, model.device]
    digests = [data.forward.digest, data.backward.digest]
    with KeptParts(target.out, _digest([__version__, *said, *digests])) as parts:
        for samples, own in _runs(data, wanted):
            run = DataRun(model, samples, own, parts, means.batch_size, waiting, means.progress)
            if blocks:
                run.by_blocks()
            elif not all(parts.has(kind, 0) for kind in own.kinds):
                model.fill()
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
    name = samples.described
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


def _repaired(
    target: _Target,
    choice: DataChoice,
    means: _Means,
    parents: Sequence[tuple[Checkpoint, str, float]],
) -> Collected:
    model = target.model
    samples = read_data(model, choice).forward
    blocks = _takes_blocks(model, _REPAIR, means.memory_bytes)
    goals = [(checkpoint_fingerprint(parent), share) for parent, _, share in parents]
    said = [target.digest, goals, blocks, means.batch_size, model.device, samples.digest]
    with KeptParts(target.out, _digest([__version__, "repair", *said])) as parts:
        run = RepairRun(
            model,
            samples,
            parts,
            blocks,
            means.batch_size,
            means.memory_bytes // _WAITING,
            means.progress,
        )
        run.run([Parent(open_source(name), share) for _, name, share in parents])
        named = ", ".join(f"{share:g} {parent.name}" for parent, _, share in parents)
        header = target.header("repair", samples.described, len(samples.items))
        file = target.write(replace(header, goals=named), parts)
        parts.discard()
    return Collected(model.name, samples.name, "", "", blocks, (file,))


def _shares(wanted: Wanted, parents: Mapping[str, float]) -> dict[str, float]:
    """The parents' weights, divided by their sum; raises UsageError where they are none, or nothing takes them."""
    if "repair" in wanted.kinds and len(wanted.kinds) > 1:
        raise UsageError("repair changes the model while it is measured; ask for it alone.")
    if parents and "repair" not in wanted.kinds:
        raise UsageError("Only repair has parents; leave them out.")
    total = math.fsum(parents.values())
    if parents and (not math.isfinite(total) or min(parents.values()) < 0 or total <= 0):
        listed = ", ".join(f"{weight:g}" for weight in parents.values())
        raise UsageError(
            f"The parents' weights are those of a mean, none below 0 and not all 0, but are {listed}."
        )
    return {name: weight / total for name, weight in parents.items()}


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


def _settled(wanted: Wanted, data: ReadData, model: LiveModel) -> Wanted:
    """With the estimator that suits the data, if none was asked for.

    Raises CompatibilityError where the network has nothing of a kind, UsageError where there are no losses.
    """
    for kind in wanted.forward:
        if FORWARD_SUMS[kind](model).is_empty:
            raise CompatibilityError(
                f"{model.name!r} is a {type(model.module).__name__}, which has nothing that {kind} statistics are of; "
                "ask for others."
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


def _takes_blocks(model: LiveModel, wanted: Wanted, memory_bytes: int) -> bool:
    """Whether weights, and the sums over gradients of them, do not fit into memory together."""
    numel = sum(tensor.numel for tensor in model.source.tensors.values())
    copies = 1 + 3 * len(wanted.backward)
    return 4 * numel * copies > memory_bytes and count_parts(model.module) > 0
