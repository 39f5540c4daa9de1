"""What a collection is of, how it is made, and what comes out of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from weightsmith.checkpoints import (
    Checkpoint,
    StatisticsHeader,
    checkpoint_fingerprint,
    tensors_fingerprint,
    write_measured,
)
from weightsmith.live import LiveModel, count_parts
from weightsmith.naming import natural_key
from weightsmith.progress import Progress
from weightsmith.statistics.factor_gradients import AdapterGradients
from weightsmith.statistics.forward_sums import gram_bytes
from weightsmith.statistics.kept_parts import KeptParts
from weightsmith.statistics.wanted import Wanted
from weightsmith.tensors import LazyTensor
from weightsmith.version import __version__

# Of the memory, what is for activations that wait for the next block.
WAITING = 4


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


@dataclass(frozen=True, eq=False)
class ComparedModel:
    """The model that another is compared with."""

    checkpoint: Checkpoint
    model: LiveModel

    @cached_property
    def digest(self) -> str:
        """Its fingerprint."""
        return checkpoint_fingerprint(self.checkpoint)


@dataclass(frozen=True, eq=False)
class CollectionTarget:
    """The model, and where what is collected of it goes.

    `dtype` is what it computes in, `other` what it is compared with, and `adapter` the one whose tensors' gradients are
    collected in the place of those of weights.
    """

    checkpoint: Checkpoint
    model: LiveModel
    places: Mapping[str, Path]
    reads: tuple[Path, ...]
    out: Path
    dtype: str = "float32"
    other: ComparedModel | None = None
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
class CollectionMeans:
    """With what it is collected."""

    batch_size: int
    memory_bytes: int
    progress: Progress


def request_digest(said: Sequence[object]) -> str:
    """A digest of everything that decides the numbers."""
    return hashlib.sha256(json.dumps(list(said)).encode()).hexdigest()


def takes_blocks(
    model: LiveModel, wanted: Wanted, memory_bytes: int, other: LiveModel | None = None
) -> bool:
    """Whether weights, and the sums over gradients and inputs of them, do not fit into memory together.

    What is summed up of two models is about as large as their weights.
    """
    numel = sum(tensor.numel for tensor in model.source.tensors.values())
    copies = 1 + 3 * len(wanted.backward) + (3 if other is not None else 0)
    needed = 4 * numel * copies + (gram_bytes(model) if "gram" in wanted.kinds else 0)
    return needed > memory_bytes and count_parts(model.module) > 0
