"""RegMean++: Gram matrices of every model of a merge, over what the layers that are merged already give.

Part by part of the network (embeddings, each block, the head): every expert's own part reads what the merged parts in
front of it give for that expert's data, its Gram matrices are taken, the part is merged with them, and the merged part
is run. What is written are ordinary statistics files, so the merge itself is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.adapters import Reference, located, open_model
from weightsmith.checkpoints import STATISTICS_KIND, Checkpoint, StatisticsHeader
from weightsmith.engine import LazyMerge, make_plan
from weightsmith.errors import CompatibilityError, OutputError, RecipeError, UsageError
from weightsmith.live import (
    Block,
    BlockRun,
    LiveModel,
    ModelSource,
    count_parts,
    load_model,
    open_source,
)
from weightsmith.progress import Progress, Silence
from weightsmith.publishing import check_file
from weightsmith.recipes import Recipe
from weightsmith.statistics.collected import WAITING, Collected, CollectionTarget, request_digest
from weightsmith.statistics.data_files import DataChoice, files_of_data, read_data
from weightsmith.statistics.data_steps import Asking, Step, grouped_steps
from weightsmith.statistics.forward_sums import GramSums
from weightsmith.statistics.kept_parts import KeptParts
from weightsmith.statistics.linear_maps import linear_maps, paths_below
from weightsmith.statistics.pending_grams import PendingGrams
from weightsmith.statistics.samples import Samples
from weightsmith.statistics.wanted import Wanted
from weightsmith.tensors import expanded
from weightsmith.version import __version__
from weightsmith.wording import counted, shown

if TYPE_CHECKING:
    from torch import Tensor

_GRAM = "gram"
_WANTED = Wanted((_GRAM,))
Data = str | Path | Samples


def collect_through(
    recipe: Recipe | Mapping[str, object] | str | Path,
    *,
    data: Data | Sequence[Data],
    task: str | Sequence[str] | None = None,
    limit: int = 256,
    context: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    memory_bytes: int = 1 << 30,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Collected:
    """Collect the Gram matrices that make a recipe's `regmean` RegMean++ (Nguyen et al. 2025, arXiv:2508.03121).

    Each of the recipe's `models:` names one file under `statistics:`; these are what is written. `data` and `task` are
    one for all models, or one for each in their order; otherwise as for `collect`. The network runs block by block:
    memory holds one block, its matrices and the activations up to a quarter of `memory_bytes`; what is finished is
    found again by the same call. Raises UsageError for a network without blocks and for data that do not fit,
    RecipeError for another form of recipe, CompatibilityError for models of several networks.
    """
    given = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    models = _models(given)
    choices = [
        DataChoice(
            source if isinstance(source, Samples) else Path(source), one, limit, context, seed
        )
        for source, one in zip(
            _for_each(data, len(models), "data"), _for_each(task, len(models), "task"), strict=True
        )
    ]
    reads = [path for model in models for path in model.checkpoint.inputs]
    reads += [path for choice in choices for path in files_of_data(choice)]
    for model in models:
        check_file(model.file, STATISTICS_KIND, reads)
    live = _network(models, device)
    samples = [_samples(live, *pair) for pair in zip(models, choices, strict=True)]
    live.swap(models[0].source)
    targets = [
        CollectionTarget(model.checkpoint, live, {_GRAM: model.file}, tuple(reads), model.file)
        for model in models
    ]
    said = [given.digest(), *(t.digest for t in targets), *(s.digest for s in samples), batch_size]
    with KeptParts(
        targets[0].out, request_digest([__version__, "through", *said, device])
    ) as parts:
        experts = [
            _Expert(model, target, own, parts.of_model(str(i)), PendingGrams(linear_maps(live)))
            for i, (model, target, own) in enumerate(zip(models, targets, samples, strict=True))
        ]
        _Through(given, live, experts, batch_size, memory_bytes // WAITING, parts.activations).run(
            progress or Silence()
        )
        through = f"the merge by {given.document.name or 'the recipe'} {given.digest()[:16]}"
        files = tuple(
            expert.target.write(replace(expert.header, through=through), expert.parts)
            for expert in experts
        )
        parts.discard()
    name = given.document.name or "the recipe"
    return Collected(
        name, ", ".join(dict.fromkeys(own.name for own in samples)), "", "", True, files
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    """A model of the recipe, and the file of its statistics, as the recipe calls both."""

    statistics: Reference
    checkpoint: Checkpoint
    source: ModelSource
    file: Path


@dataclass(frozen=True, slots=True, eq=False)
class _Expert:
    """A model with its data, and what is measured of it so far."""

    model: _Model
    target: CollectionTarget
    samples: Samples
    parts: KeptParts
    grams: PendingGrams

    @property
    def header(self) -> StatisticsHeader:
        """The header of the model's file, but for what its inputs went through."""
        return self.target.header(_GRAM, self.samples.described, len(self.samples.items))


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """A batch of an expert's data, by the expert's number."""

    expert: int
    step: Step


@dataclass(frozen=True, slots=True, eq=False)
class _Through:
    """The run: a live network that has, part by part, each expert's weights and then the merged ones."""

    recipe: Recipe
    live: LiveModel
    experts: Sequence[_Expert]
    batch_size: int
    memory_bytes: int
    folder: Path

    def run(self, progress: Progress) -> None:
        """Measure and merge one part of the network after the other."""
        merged = self._merge().tensors
        self._require_names(merged)
        batches = [
            _Batch(number, step)
            for number, expert in enumerate(self.experts)
            for group in grouped_steps(expert.samples, _WANTED, self.batch_size, self.live.device)
            for step in group
        ]
        asking = [Asking(self.live, expert.samples) for expert in self.experts]

        def ask(batch: _Batch) -> Tensor:
            return asking[batch.expert](batch.step)

        run = BlockRun(self.live, ask, batches, memory_bytes=self.memory_bytes, folder=self.folder)
        outside = {file for name in run.loose() for file in self.live.names.files_of(name)}
        self.live.put({name: merged[name] for name in outside})
        stage = progress.begin("collecting", len(batches) * count_parts(self.live.module), "batch")
        maps, seen = linear_maps(self.live), set[str]()
        with run:
            for place, block in enumerate(run.blocks()):
                if block.path in seen:
                    raise UsageError(
                        f"{self.live.name!r} runs {block.path} more than once, so it is not merged before all that "
                        "it reads; collect gram of each model by itself, without the recipe."
                    )
                seen.add(block.path)
                if paths_below(maps, block.path):
                    for number, expert in enumerate(self.experts):
                        own = [i for i, batch in enumerate(batches) if batch.expert == number]
                        self._measure(expert, place, block, own)
                self.live.put({name: merged[name] for name in block.tensors})
                for _ in block.batches():
                    stage.advance(1, block.path)
        stage.end()

    def _measure(self, expert: _Expert, place: int, block: Block, batches: Sequence[int]) -> None:
        """The Gram matrices of an expert's own block, which reads what the merged network gives for its data."""
        if not expert.parts.has(_GRAM, place):
            tensors = expert.model.source.tensors
            self.live.put({name: tensors[name] for name in block.tensors})
            sums = GramSums(self.live, with_experts=False)
            with block.watching(sums.see):
                for batch in batches:
                    sums.begin()
                    block.rehearse(batch)
            expert.parts.put(_GRAM, place, sums.take(block.path))
        expert.grams.add(expert.parts.part(_GRAM, place), block.tensors)

    def _merge(self) -> LazyMerge:
        """The merge, planned with matrices that are there as soon as they are measured."""
        pending = {}
        for number, expert in enumerate(self.experts):
            # A plan looks at the files of its inputs.
            file = self.folder / f"{number}.safetensors"
            file.touch()
            pending[expert.model.statistics] = expert.grams.checkpoint(expert.header, file)

        def opener(reference: Reference) -> Checkpoint:
            found = pending.get(reference)
            return open_model(located(reference, self.recipe.base_dir)) if found is None else found

        return LazyMerge(make_plan(self.recipe, opener=opener))

    def _require_names(self, merged: Mapping[str, object]) -> None:
        lacking = [name for name in self.live.source.tensors if name not in merged]
        if lacking:
            raise CompatibilityError(
                f"The recipe's result has no tensor {shown(lacking[0])}, which its models have, so its layers cannot "
                "be run like theirs; merge the models without changing what they are made of."
            )


# The recipe's models, and the data of each.


def _models(recipe: Recipe) -> list[_Model]:
    entries = recipe.document.models
    if not entries or any(
        not isinstance(entry.model, Reference)
        or len(entry.statistics or ()) != 1
        or not all(isinstance(one, Reference) for one in entry.statistics or ())
        for entry in entries
    ):
        raise RecipeError(
            "Gram matrices through a merge are collected for a recipe with `models:`, each a checkpoint with one file "
            "under `statistics:`, which is where they go; write it so."
        )
    found = [
        _model(recipe, entry.model, file)
        for entry in entries
        for file in entry.statistics or ()
        if isinstance(entry.model, Reference) and isinstance(file, Reference)
    ]
    if len({model.file for model in found}) < len(found):
        raise RecipeError("Two models of the recipe name the same statistics; give each its own.")
    return found


def _model(recipe: Recipe, model: Reference, statistics: Reference) -> _Model:
    reference = located(model, recipe.base_dir)
    file = expanded(located(statistics, recipe.base_dir).path)
    if recipe.base_dir is not None and not file.is_absolute() and not file.exists():
        file = recipe.base_dir / file
    if file.suffix != ".safetensors":
        raise OutputError(f"Statistics are safetensors files; give {shown(file)} that ending.")
    source = open_source(str(reference))
    return _Model(statistics, open_model(reference), source, file.absolute())


def _network(models: Sequence[_Model], device: str) -> LiveModel:
    """The network that all models have; raises CompatibilityError where they have several."""
    first = models[0].source
    live = load_model(first, device=device, filled=False)
    for model in models[1:]:
        if not live.takes(model.source):
            raise CompatibilityError(
                f"{model.source.name!r} and {first.name!r} have other configurations or tensors, so the blocks of one "
                "cannot read what those of the other give; merge models of one network."
            )
    if count_parts(live.module) == 0:
        raise UsageError(
            f"{first.name!r} is a {type(live.module).__name__} without a list of blocks that could be merged one by "
            "one; collect gram of each model by itself, without the recipe."
        )
    return live


def _samples(live: LiveModel, model: _Model, choice: DataChoice) -> Samples:
    """The data of a model, read with its own tokenizer."""
    live.swap(model.source)
    return read_data(live, choice).forward


def _for_each(given: Any, count: int, what: str) -> list[Any]:
    """One for each model, or the same for all of them."""
    each = [*given] if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if len(each) not in (1, count):
        raise UsageError(
            f"The recipe has {counted(count, 'model')}, but {len(each)} {what} are given; give one for all models, or "
            "one for each in their order."
        )
    return each if len(each) == count else each * count
