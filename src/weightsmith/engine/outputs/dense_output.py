"""A model in a folder of its own: shards, files of weights beside them, and the config source's other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from weightsmith.checkpoints import is_component_file, json_bytes, open_output
from weightsmith.engine.outputs.files_beside import by_file, write_torch_files
from weightsmith.engine.outputs.made_tensors import MadeTensor, Reading
from weightsmith.engine.outputs.memory_stores import DigestStore
from weightsmith.engine.outputs.shards import Shards
from weightsmith.engine.planning.plan import OneFile, Store
from weightsmith.engine.records.journal import Journal, TensorRecord
from weightsmith.engine.records.manifest import Merged
from weightsmith.engine.records.recording import inputs_read
from weightsmith.engine.records.state import write_state
from weightsmith.errors import OutputError
from weightsmith.publishing import manifest_problem, write_file
from weightsmith.recipes import OutputTensor
from weightsmith.tensors import DEFAULT_METADATA, SINGLE_FILE, ShardLayout, plan_layout

if TYPE_CHECKING:
    from weightsmith.engine.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class DenseFolder:
    """Every tensor of the result as it is, in shards of safetensors, whose main set has `metadata`.

    `single_file` is what the main set is called where it is one file.
    """

    readings: Sequence[Reading]
    metadata: Mapping[str, str] = field(default_factory=lambda: DEFAULT_METADATA)
    is_resumable: bool = True
    merges_models: bool = True
    no_model: str = ""
    library: str | None = None
    relation: str = "merge"
    single_file: str = SINGLE_FILE

    @classmethod
    def of(
        cls,
        tensors: Sequence[OutputTensor],
        metadata: Mapping[str, str] = DEFAULT_METADATA,
        single_file: str = SINGLE_FILE,
    ) -> DenseFolder:
        """The folder of these tensors, each computed in a reading of its own."""
        readings = tuple((MadeTensor(tensor),) for tensor in tensors)
        return cls(readings, metadata, single_file=single_file)

    @property
    def more_inputs(self) -> Sequence[Path]:
        """None: all that is read stands in formulas."""
        return ()

    def earlier_problem(self, place: Path, thorough: bool) -> str:
        """What its manifest says that is no longer so."""
        return manifest_problem(place, thorough)

    def one_file(self, out: Path) -> OneFile | None:
        """Always a folder."""
        return None

    @property
    def held_bytes(self) -> int:
        """Nothing: tiles go to their places as they come."""
        return 0

    def is_given(self, label: str) -> bool:
        """Always: every checkpoint is one that the recipe names."""
        return True

    def layout(self, shard_bytes: int) -> ShardLayout:
        """Shards in the order of the tensors, and the files beside them of those that lie in such."""
        main, files = by_file([made.stored for made in self._tensors()])
        return plan_layout(
            main,
            shard_bytes,
            beside=files,
            sharded_beside=[name for name in files if is_component_file(name)],
            metadata=self.metadata,
            single_file=self.single_file,
        )

    def write_bytes(self, layout: ShardLayout) -> int:
        """Those of all shards, headers included."""
        return layout.file_bytes

    def store(self, plan: Plan, folder: Path) -> Store:
        """Shards in the staging folder."""
        return Shards(plan.layout, folder)

    def store_to_compare(self, plan: Plan) -> Store:
        """Nothing but digests."""
        return DigestStore(plan.layout, {made.tensor.name: made for made in self._tensors()})

    def names_to_compare(self, recorded: Sequence[str]) -> Sequence[str]:
        """All that are computed, in the order of the files."""
        return [made.tensor.name for made in self._tensors()]

    def needed_for(self, names: Sequence[str]) -> set[str] | None:
        """Those tensors themselves."""
        return set(names)

    def merged(
        self, plan: Plan, records: Mapping[str, TensorRecord], store: Store, out: Path
    ) -> Merged:
        """What the tensors' records say."""
        return Merged(inputs_read(plan, records, out), store.digests(records))

    def write_beside(
        self,
        plan: Plan,
        merged: Merged,
        records: Mapping[str, TensorRecord],
        journal: Journal,
        folder: Path,
    ) -> None:
        """The config source's files as the plan has them, the index of the shards, and the state of a continual
        method.
        """
        assert plan.companions is not None
        write_torch_files(plan.layout, folder)
        for name, data in plan.companions.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(folder / name, data)
        if plan.companions.config is not None:
            write_file(folder / "config.json", json_bytes(plan.companions.config))
        for name, data in plan.layout.indices.items():
            write_file(folder / name, data)
        write_state(plan, records, journal, folder)

    def check_opens(self, plan: Plan, merged: Merged, folder: Path) -> None:
        """Read the finished folder's headers back and compare them with the layout."""
        found = {n: (t.dtype, t.shape) for n, t in open_output(folder).tensors.items()}
        placed = (p for shard in plan.layout.shards for p in shard.placements)
        if found != {p.name: (p.dtype, p.shape) for p in placed}:
            raise OutputError(
                f"The finished files in {str(folder)!r} do not read back as planned; the disk may be faulty, run again."
            )

    def _tensors(self) -> list[MadeTensor]:
        return [made for reading in self.readings for made in reading]
