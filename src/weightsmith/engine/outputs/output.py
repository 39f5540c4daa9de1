"""What a merge makes, as the engine sees it: a model in a folder, a bundle of tasks, an adapter, or a kind to come.

Planning asks an `Output` which tensors are to be computed and what they take; running gives their tiles to its
`Store`; sealing asks it for the files beside the weights and for what goes on record. No other module of the engine
knows which kinds there are: `choice` picks one, and each has a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from weightsmith.engine.outputs.storage import PLAIN, Sink, Storage
from weightsmith.recipes.resolution.formula import OutputTensor
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files.layout import ShardLayout
from weightsmith.tensors.stored import LazyTensor

if TYPE_CHECKING:
    from weightsmith.engine.journal import Journal, TensorRecord
    from weightsmith.engine.manifest import Manifest, Merged
    from weightsmith.engine.plan import Plan
    from weightsmith.engine.progress import Progress


@dataclass(frozen=True, slots=True)
class MadeTensor:
    """One tensor to compute, and how it is stored."""

    tensor: OutputTensor
    storage: Storage = PLAIN

    @property
    def stored(self) -> tuple[str, DType, tuple[int, ...]]:
        """Name, dtype and shape in the file."""
        tensor, storage = self.tensor, self.storage
        return tensor.name, storage.dtype(tensor.dtype), storage.shape(tensor.shape)


# Tensors that are computed in one reading of what they are made of.
Reading = Sequence[MadeTensor]


class Store(Protocol):
    """Where a run puts the tensors of an output; entered for the time of the run. `folder` has room for scratch."""

    folder: Path

    def __enter__(self) -> Store: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def has(self, name: str) -> bool:
        """True if an earlier run may have left a tensor here."""
        ...

    def make_without_reading(self, progress: Progress) -> set[str]:
        """Make what needs no pass over the inputs, and name the tensors that are done with that."""
        ...

    def sink(self, name: str, advance: Callable[[int], None]) -> Sink:
        """Where the tiles of a tensor go; `advance` is told of bytes that were written."""
        ...

    def stored(self, name: str) -> LazyTensor:
        """A finished tensor, to be read back once nothing is written any more."""
        ...

    def written(self, name: str) -> LazyTensor:
        """A finished tensor, to be read back while others are written."""
        ...

    def tensor_done(self, name: str) -> None:
        """Note that all tiles of a tensor are written."""
        ...

    def finish(self) -> None:
        """Make everything durable, and nothing but it be there."""
        ...

    def digests(self, records: Mapping[str, TensorRecord]) -> dict[str, str]:
        """The digest of every stored tensor by its name in the files; `records` are those of the computed ones."""
        ...


class OneFile(Protocol):
    """An output that is one file, with its manifest inside."""

    def check(self, *, force: bool, reads: Sequence[Path]) -> Path:
        """The absolute place, before anything is computed; raises OutputError where it is not free."""
        ...

    def write(
        self, store: Store, manifest: Manifest, place: Path, *, force: bool, reads: Sequence[Path]
    ) -> None:
        """Write what a store holds, with the record."""
        ...


class Output(Protocol):
    """One kind of output, with all that is known of this one before anything is read.

    `readings` are the tensors to compute, in the order of the files. `is_resumable`: what is finished lies in the
    staging folder, where the next run and other machines find it. `merges_models`: inputs and result are models that
    can be compared tensor by tensor. `no_model` says, as a sentence, why the result cannot be opened as one model; it
    is empty where it can. `library` is what the model card names, None for that of the result's configuration.
    """

    @property
    def readings(self) -> Sequence[Reading]: ...

    @property
    def is_resumable(self) -> bool: ...

    @property
    def merges_models(self) -> bool: ...

    @property
    def no_model(self) -> str: ...

    @property
    def library(self) -> str | None: ...

    @property
    def more_inputs(self) -> Sequence[Path]:
        """Places that are read beside the checkpoints of the formulas."""
        ...

    def earlier_problem(self, place: Path, thorough: bool) -> str:
        """What stands against replacing what lies at a place; see `publishing.earlier.Problem`."""
        ...

    def one_file(self, out: Path) -> OneFile | None:
        """How the output is written as one file, where that is what a name asks for; else it is a folder."""
        ...

    @property
    def held_bytes(self) -> int:
        """Memory that the output takes while it is made, beside tiles and matrices."""
        ...

    def is_given(self, label: str) -> bool:
        """Whether a checkpoint of the formulas is an input that the recipe names."""
        ...

    def layout(self, shard_bytes: int) -> ShardLayout:
        """Where every computed tensor will lie."""
        ...

    def write_bytes(self, layout: ShardLayout) -> int:
        """Bytes of the weight files."""
        ...

    def store(self, plan: Plan, folder: Path) -> Store:
        """What takes the tensors of a run into its staging folder."""
        ...

    def store_to_compare(self, plan: Plan) -> Store:
        """What takes tensors that are computed again for their digests alone, and keeps no file."""
        ...

    def names_to_compare(self, recorded: Sequence[str]) -> Sequence[str]:
        """Names of stored tensors, in an order that spreads over the output; `recorded` are those on record."""
        ...

    def needed_for(self, names: Sequence[str]) -> set[str] | None:
        """The tensors to compute so that stored ones get their digests; None for all."""
        ...

    def merged(
        self, plan: Plan, records: Mapping[str, TensorRecord], store: Store, out: Path
    ) -> Merged:
        """What was read and written, for the record of an output that will appear at `out`."""
        ...

    def write_beside(
        self,
        plan: Plan,
        merged: Merged,
        records: Mapping[str, TensorRecord],
        journal: Journal,
        folder: Path,
    ) -> None:
        """Write the files that belong to the weights, durably; recipe, card and manifest are written for all kinds."""
        ...

    def check_opens(self, plan: Plan, merged: Merged, folder: Path) -> None:
        """Raise OutputError where the finished files do not read back as they must."""
        ...
