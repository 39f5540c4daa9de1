"""Running a plan whose result is an adapter: changes summed as factors or computed dense and cut, written, sealed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.adapters.algebra import concatenated, spectrum
from weightsmith.adapters.algebra import zeros as no_change
from weightsmith.adapters.as_changes import Target
from weightsmith.adapters.bounds import Bound, CutChange, cut_matrix, cut_spectrum
from weightsmith.adapters.lego import clustered
from weightsmith.adapters.low_rank import Array, Factors, LowRankAdapter
from weightsmith.adapters.storing import (
    KOHYA_WEIGHTS,
    SUFFIX,
    Files,
    earlier_problem,
    put,
    words,
    write_into,
)
from weightsmith.adapters.writing import adapter_files, check_output
from weightsmith.deltas import read_matrix
from weightsmith.deltas.changes import LowRank, Matrix
from weightsmith.engine import manifest as manifests
from weightsmith.engine.adapter_result import AdapterResult
from weightsmith.engine.in_memory import Forgotten, MemoryShards, MemoryTensor
from weightsmith.engine.manifest import BehindInput, Input, Manifest
from weightsmith.engine.plan import Plan
from weightsmith.engine.progress import Progress, Silence
from weightsmith.engine.run import check_expected, check_source, compute_tensors
from weightsmith.engine.scheduler import Scheduler
from weightsmith.engine.seal import RECIPE, adapter_card
from weightsmith.engine.staging import Staging
from weightsmith.errors import NonFiniteError
from weightsmith.publishing.earlier import check_free
from weightsmith.publishing.files import write_file
from weightsmith.publishing.records import MANIFEST_KEY, header_digest, manifest_problem
from weightsmith.tensors.blas import use_one_thread
from weightsmith.tensors.digests import checkpoint_digest, digest_tensor
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.messages import shown
from weightsmith.tensors.narrowing import narrow
from weightsmith.tensors.stored import LazyTensor
from weightsmith.tensors.writer import sync_folder


def run_adapter(
    plan: Plan,
    out: Path,
    *,
    force: bool,
    progress: Progress | None,
    expected: Mapping[str, str] | None = None,
    sources: Mapping[str, Mapping[str, str]] | None = None,
) -> Manifest:
    """What `run` does for a plan whose result is an adapter; an interrupted run starts afresh.

    A folder has its record beside the weights, and one file, whose name ends in .safetensors, in its metadata.
    """
    run = _Run(plan, progress or Silence(), expected, sources or {})
    if out.suffix == SUFFIX:
        return run.into_file(out, force=force)
    return run.into_folder(out, force=force)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of a plan, with what its tensors and its sources must be."""

    plan: Plan
    progress: Progress
    expected: Mapping[str, str] | None
    sources: Mapping[str, Mapping[str, str]]

    def into_folder(self, out: Path, *, force: bool) -> Manifest:
        """Write the adapter's files, recipe, card and manifest."""
        plan = self.plan
        with Staging(out, adapter_problem) as staging:
            if staging.published_plan() == plan.digest:
                staging.tidy()
                staging.discard()
                return manifests.read(out)
            earlier = check_free(out, adapter_problem, force=force)
            journal = staging.begin(plan.digest, True)
            staging.check_space(plan.write_bytes)
            files, manifest = self._made(out)
            folder = staging.checkpoint
            write_into(files, folder, KOHYA_WEIGHTS)
            write_file(folder / RECIPE, manifest.recipe.encode())
            card = adapter_card(plan, manifest, out.name, manifest.recipe)
            write_file(folder / "README.md", card.encode(errors="replace"))
            shards = {f.name: header_digest(f) for f in sorted(folder.glob(f"*{SUFFIX}"))}
            small = manifests.small_file_digests(folder)
            manifest = replace(manifest, shards=shards, files=small)
            content = manifest.to_json()
            write_file(folder / manifests.FILE_NAME, content)
            sync_folder(folder)
            journal.seal(hashlib.sha256(content).hexdigest())
            staging.publish(earlier)
            return manifest

    def into_file(self, out: Path, *, force: bool) -> Manifest:
        """Write one file, with its manifest in the metadata."""
        reads = self.plan.inputs
        place = check_output(out, _result(self.plan).dialect, force=force, reads=reads)
        files, manifest = self._made(place)
        record = {MANIFEST_KEY: manifest.to_json().decode()}
        put(replace(files, metadata={**files.metadata, **record}), place, force=force, reads=reads)
        return manifest

    def _made(self, out: Path) -> tuple[Files, Manifest]:
        """The files of the adapter, and what is on record of it but for the files themselves."""
        result = _result(self.plan)
        made, losses = computed(self.plan, self.progress)
        self.progress.stage("sealing")
        files = adapter_files(made, result.dialect, base=result.base)
        digests = _digests(files)
        check_expected(digests, self.expected)
        manifest = _manifest(self.plan, result, out, digests, losses)
        for given in manifest.inputs.values():
            for name, digest in given.tensors.items():
                check_source(given.reference, name, digest, self.sources)
        return files, manifest


def adapter_problem(place: Path, thorough: bool) -> str:
    """What stands against replacing what lies at the place of an adapter; see `earlier.Problem`."""
    if (place / manifests.FILE_NAME).is_file():
        return manifest_problem(place, thorough)
    return earlier_problem("adapter", place, thorough)


def computed_digests(plan: Plan) -> dict[str, str]:
    """The digests of the tensors of an adapter that is computed again, by name in its file."""
    made, _ = computed(plan, Silence())
    result = _result(plan)
    return _digests(adapter_files(made, result.dialect, base=result.base))


def computed(plan: Plan, progress: Progress) -> tuple[LowRankAdapter, dict[str, float]]:
    """The adapter that a plan makes, and by key the share of the norm that was cut from a change."""
    result = _result(plan)
    collected = _Collected(plan, result)
    progress.start(plan.layout.total_size, 0)
    use_one_thread()
    for name in result.settled:
        collected.settle(name)
        progress.advance(plan.layout.placement(name).nbytes, name)
    scheduler = Scheduler(plan.threads, plan.window)
    compute_tensors(plan, collected, Forgotten(), scheduler, result.settled, progress)
    return collected.adapter(), collected.ordered(collected.losses)


class _Collected(MemoryShards):
    """Takes one tensor after the other as it is computed, and keeps its factors."""

    def __init__(self, plan: Plan, result: AdapterResult) -> None:
        super().__init__(plan.layout, lazy=True)
        self._result = result
        targets = [result.targets[output.name] for output in plan.resolved.outputs]
        keys = (key for t in targets for key in [t.name, *(unit.key for unit in t.units)])
        coordinates = result.coordinates
        self.factors: dict[str, Factors] = {} if coordinates is None else coordinates.unmoved()
        self._order = {
            key: place for place, key in enumerate(dict.fromkeys([*keys, *self.factors]))
        }
        self.replaced: dict[str, Array] = {}
        self.added: dict[str, Array] = {}
        self.losses: dict[str, float] = {}

    def settle(self, name: str) -> None:
        """Take a tensor for which nothing is computed dense."""
        if name in self._result.sums:
            self._add_sum(name)
            return
        whole = self._result.kept[name]
        if whole is not None:
            self.replaced[name] = whole

    def _add_sum(self, name: str) -> None:
        """The result of a tensor as the sum of its factors."""
        result = self._result
        changes = [
            (coefficient, result.loaded[label].adapter.factors)
            for label, coefficient in result.sums[name].items()
            if coefficient
        ]
        bound = result.bound_of(name)
        for unit in result.targets[name].units:
            parts = [(c, factors[unit.key].change) for c, factors in changes if unit.key in factors]
            self.factors[unit.key] = replace(unit, change=self._reduced(unit, parts, bound))

    def _reduced(
        self, unit: Factors, parts: Sequence[tuple[float, LowRank]], bound: Bound
    ) -> LowRank:
        """A weighted sum of changes of no more ranks than the bound allows, nor than the matrix can have."""
        if not parts:
            return no_change(*unit.change.shape)
        lego = self._result.lego
        if lego is None:
            change = concatenated(parts)
        else:
            change, bound = clustered(parts, lego), replace(bound, rank=None)
        if bound.is_open and change.rank <= min(change.shape):
            return change
        return self._kept(unit.key, cut_spectrum(spectrum(change), bound))

    def tensor_done(self, name: str) -> None:
        """Decompose a finished change and let go of it."""
        tensor = self.taken(name)
        target = self._result.targets[name]
        made = np.frombuffer(
            tensor.data, np.float64 if tensor.dtype is DType.FLOAT64 else np.float32
        ).reshape(tensor.shape)
        if not target.units:
            self._keep_whole(target, made)
            return
        bound = self._result.bound_of(name)
        if target.in_space:
            self._leave_space(target, made, bound)
            return
        for unit, matrix in zip(target.units, _matrices(made, target), strict=True):
            change = self._kept(unit.key, cut_matrix(matrix, bound, unit.key))
            self.factors[unit.key] = replace(unit, change=change)

    def _keep_whole(self, target: Target, made: NDArray[Any]) -> None:
        if target.original is None:
            self.added[target.name] = made.astype(np.float32)
            return
        whole = read_matrix(target.original()) + made.reshape(target.shape)
        self.replaced[target.name] = narrow(whole, DType.FLOAT32)

    def _leave_space(self, target: Target, made: NDArray[Any], bound: Bound) -> None:
        coordinates = self._result.coordinates
        assert coordinates is not None
        if not np.isfinite(made).all():
            raise NonFiniteError(
                f"The combined change of {shown(target.name)} holds NaN or infinities."
            )
        cut = coordinates.leave(target.name, np.asarray(made, np.float64), bound)
        change = self._kept(target.name, cut)
        self.factors[target.name] = replace(target.units[0], change=change)

    def adapter(self) -> LowRankAdapter:
        """The result in memory."""
        result = self._result
        return LowRankAdapter(
            self.ordered(self.factors),
            self.ordered(self.replaced),
            self.ordered(self.added),
            _reference(result),
            result.dtype,
        )

    def ordered(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """The same in the order of the outputs, whatever thread was first."""
        return {key: found[key] for key in sorted(found, key=self._order.__getitem__)}

    def _kept(self, key: str, cut: CutChange) -> LowRank:
        """A change after its cut, what that lost being on record."""
        if cut.lost > 0.0:
            self.losses[key] = cut.lost
        return cut.change


def _matrices(dense: NDArray[Any], target: Target) -> list[Matrix]:
    rows, columns = target.units[0].change.shape
    stack = dense.reshape(len(target.units), rows, columns)
    return [np.asarray(matrix, np.float64) for matrix in stack]


def _reference(result: AdapterResult) -> str | None:
    """The base that the result names: by its Hub id, else as the adapters do."""
    if result.base is not None and result.base.hub_id is not None:
        return result.base.hub_id
    named = (one.adapter.base_reference for one in result.loaded.values())
    own = None if result.base is None else result.base.path.name
    return next((reference for reference in named if reference is not None), own)


def _digests(files: Files) -> dict[str, str]:
    """The digest of every tensor as it is stored."""
    tensors = (MemoryTensor(t.name, t.dtype, t.values.shape, words(t)) for t in files.tensors)
    return {tensor.name: digest_tensor(tensor) for tensor in tensors}


def _manifest(
    plan: Plan,
    result: AdapterResult,
    out: Path,
    outputs: Mapping[str, str],
    losses: Mapping[str, float],
) -> Manifest:
    """What is on record of a run, without the files."""
    from weightsmith import __version__

    inputs = {}
    for label, checkpoint in plan.resolved.checkpoints.items():
        if not result.is_given(label):
            continue
        one = result.loaded.get(label)
        read = _read_of_base(result) if one is None else one.stored
        digests = {tensor.name: digest_tensor(tensor) for tensor in read}
        inputs[label] = Input(
            reference=checkpoint.source,
            path=manifests.seen_from(out, checkpoint.path),
            hub_id=None,
            revision=None,
            digest=checkpoint_digest(digests),
            tensors=digests,
            behind=() if one is not None else _behind_base(result, out),
        )
    return Manifest(
        version=__version__,
        backend=plan.backend.kind,
        recipe=plan.recipe.dump(),
        recipe_digest=plan.recipe.digest(),
        seed=plan.resolved.seed,
        donor=plan.resolved.donor,
        inputs=inputs,
        outputs=outputs,
        shards={},
        files={},
        digest=checkpoint_digest(outputs),
        lost=losses,
    )


def _read_of_base(result: AdapterResult) -> list[LazyTensor]:
    """The tensors of the base that are read: those that an adapter replaces, unless they stay as they are there."""
    return [
        target.original()
        for name, target in result.targets.items()
        if target.original is not None and name not in result.kept
    ]


def _behind_base(result: AdapterResult, out: Path) -> tuple[BehindInput, ...]:
    """What the base is decoded with, as far as it is read."""
    if result.base is None:
        return ()
    return manifests.behind_inputs(result.base, _read_of_base(result), out)


def _result(plan: Plan) -> AdapterResult:
    assert plan.adapter is not None
    return plan.adapter
