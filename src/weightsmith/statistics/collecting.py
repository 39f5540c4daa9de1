"""Collecting statistics of a model: the model and the data opened, one run, and a file for each kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from weightsmith.live import LiveModel, count_parts, load_model
from weightsmith.naming import natural_key
from weightsmith.progress import Progress, Silence
from weightsmith.publishing import check_file
from weightsmith.statistics.data_files import DataChoice, ReadData, files_of_data, read_data
from weightsmith.statistics.data_run import DataRun
from weightsmith.statistics.kept_parts import KeptParts
from weightsmith.statistics.samples import Samples, counted_labels
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
    device: str = "cpu",
    progress: Progress | None = None,
) -> Collected:
    """Collect statistics of a model over the first items of some data, and write a file for each kind.

    `what` names kinds: gram, channels, fisher, gradients (`gradients:8` with those of 8 items by themselves). `data` is
    a text file, JSON lines, an arrow file or a folder of them, a suite with the `task` of it, or Samples. `limit`
    bounds the items, `context` the tokens of each. `estimator` and `per` say whose gradients a Fisher is of: exact,
    mc:S or empirical; of a sequence or of a token. A network that takes more than `memory_bytes` runs block by block;
    what is finished of it is found again by the same call, even after a kill. With several kinds FILE.safetensors
    becomes FILE.KIND.safetensors.

    Raises UsageError for data that are none of the model's, OutputError for an output that must not be replaced,
    NonFiniteError where a loss is NaN, and what opening the model raises.
    """
    wanted = parse_wanted(what, estimator, per, seed)
    source = data if isinstance(data, Samples) else Path(data)
    choice = DataChoice(source, task, limit, context, seed)
    checkpoint = open_model(model)
    reads = (*checkpoint.inputs, *files_of_data(choice))
    places = _places(Path(out), wanted, reads)
    live = load_model(model, device=device, filled=False)
    read = read_data(live, choice)
    wanted = _settled(wanted, read, live)
    blocks = _takes_blocks(live, wanted, memory_bytes)
    collection = _Collection(checkpoint, live, read, wanted, reads, blocks)
    request = collection.request(batch_size)
    with KeptParts(expanded(out).absolute(), request) as parts:
        for samples, own in collection.runs():
            waiting = memory_bytes // _WAITING
            run = DataRun(live, samples, own, parts, batch_size, waiting, progress or Silence())
            collection.measure(run)
        files = tuple(collection.write(kind, places[kind], parts) for kind in wanted.kinds)
        parts.discard()
    has_squares = "fisher" in wanted.kinds
    return Collected(
        str(model),
        read.forward.name,
        wanted.estimator_text if has_squares else "",
        wanted.per if has_squares else "",
        blocks,
        files,
    )


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
    """With the estimator that suits the data, if none was asked for; raises UsageError where there are no losses."""
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


@dataclass(frozen=True, slots=True, eq=False)
class _Collection:
    checkpoint: Checkpoint
    model: LiveModel
    data: ReadData
    wanted: Wanted
    reads: tuple[Path, ...]
    blocks: bool

    def request(self, batch_size: int) -> str:
        """A digest of everything that decides the numbers."""
        digests = [self.data.forward.digest(), self.data.backward.digest()]
        said = [
            repr(self.wanted),
            checkpoint_fingerprint(self.checkpoint),
            self.blocks,
            batch_size,
            self.model.device,
        ]
        return hashlib.sha256(json.dumps([__version__, *said, *digests]).encode()).hexdigest()

    def runs(self) -> Iterator[tuple[Samples, Wanted]]:
        """The runs that it takes: one, or one for what passes and one for gradients."""
        if self.data.is_one or not (self.wanted.forward and self.wanted.backward):
            yield (self.data.backward if self.wanted.backward else self.data.forward), self.wanted
            return
        yield self.data.forward, replace(self.wanted, kinds=self.wanted.forward)
        yield self.data.backward, replace(self.wanted, kinds=self.wanted.backward)

    def measure(self, run: DataRun) -> None:
        """Run the model whole or block by block."""
        if self.blocks:
            run.by_blocks()
            return
        if all(run.parts.has(kind, 0) for kind in run.wanted.kinds):
            return
        run.model.fill()
        run.whole()

    def write(self, kind: str, place: Path, parts: KeptParts) -> CollectedFile:
        """Write the file of a kind; raises CompatibilityError where the network has nothing of it."""
        tensors: list[LazyTensor] = []
        rows: dict[str, int] = {}
        same: dict[str, str] = {}
        for part in parts.of(kind):
            tensors += part.tensors
            rows |= part.rows
            same |= part.same
        if not tensors:
            raise CompatibilityError(
                f"{self.model.name!r} is a {type(self.model.module).__name__}, which has nothing that {kind} "
                "statistics are of; ask for others."
            )
        tensors.sort(key=lambda tensor: natural_key(tensor.name))
        header = replace(self._header(kind), rows=rows, same=same)
        write_measured(place, tensors, header, self.reads)
        nbytes = sum(tensor.nbytes for tensor in tensors)
        return CollectedFile(kind, place, len(tensors), header.samples, nbytes)

    def _header(self, kind: str) -> StatisticsHeader:
        is_backward = kind in self.wanted.backward
        samples = self.data.backward if is_backward else self.data.forward
        count = len(samples.items)
        if kind == "fisher" and self.wanted.per == "token":
            count = sum(counted_labels(sample.labels) for sample in samples.items)
        return StatisticsHeader(
            kind=kind,
            name=self.checkpoint.name,
            digest=checkpoint_fingerprint(self.checkpoint),
            data=f"{samples.name}, {len(samples.items)} items, sha256:{samples.digest()[:16]}",
            samples=count,
            version=__version__,
            estimator=self.wanted.estimator_text if kind == "fisher" else "",
            per=self.wanted.per if kind == "fisher" else "",
            objective=samples.objective if is_backward else "",
        )
