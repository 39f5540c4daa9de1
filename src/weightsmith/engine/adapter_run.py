"""Running a plan whose result is an adapter: changes summed as factors or computed dense and cut, written, sealed."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.adapters.algebra import concatenated, spectrum
from weightsmith.adapters.algebra import zeros as no_change
from weightsmith.adapters.as_changes import Target
from weightsmith.adapters.bounds import CutChange, cut_matrix, cut_spectrum
from weightsmith.adapters.low_rank import Array, Factors, LowRankAdapter
from weightsmith.adapters.storing import KOHYA_WEIGHTS, write_into
from weightsmith.adapters.writing import adapter_files
from weightsmith.checkpoints import open_output
from weightsmith.deltas import read_matrix
from weightsmith.deltas.changes import LowRank, Matrix
from weightsmith.engine import manifest as manifests
from weightsmith.engine.adapter_plan import AdapterResult
from weightsmith.engine.in_memory import Forgotten, MemoryShards
from weightsmith.engine.manifest import BehindInput, Input, Manifest
from weightsmith.engine.plan import Plan
from weightsmith.engine.progress import Progress, Silence
from weightsmith.engine.run import check_expected, check_source, compute_tensors
from weightsmith.engine.scheduler import Scheduler
from weightsmith.engine.seal import RECIPE, adapter_card
from weightsmith.engine.staging import Staging
from weightsmith.publishing.earlier import check_free
from weightsmith.publishing.files import write_file
from weightsmith.publishing.records import header_digest, manifest_problem
from weightsmith.tensors.blas import use_one_thread
from weightsmith.tensors.digests import checkpoint_digest, digest_tensor
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.narrowing import narrow
from weightsmith.tensors.writer import sync_folder

_WEIGHTS = ".safetensors"


def run_adapter(
    plan: Plan,
    out: Path,
    *,
    force: bool,
    progress: Progress | None,
    expected: Mapping[str, str] | None = None,
    sources: Mapping[str, Mapping[str, str]] | None = None,
) -> Manifest:
    """What `run` does for a plan whose result is an adapter; an interrupted run starts afresh."""
    result = _result(plan)
    with Staging(out) as staging:
        if staging.published_plan() == plan.digest:
            staging.tidy()
            staging.discard()
            return manifests.read(out)
        earlier = check_free(out, manifest_problem, force=force)
        journal = staging.begin(plan.digest, True)
        staging.check_space(plan.write_bytes)
        telling = progress or Silence()
        made, losses = computed(plan, telling)
        telling.stage("writing the manifest")
        folder = staging.checkpoint
        _write(made, result, folder)
        digests = _digests(folder)
        check_expected(digests, expected)
        recipe = plan.recipe.dump()
        write_file(folder / RECIPE, recipe.encode())
        manifest = _manifest(plan, result, folder, out, digests, losses)
        for given in manifest.inputs.values():
            for name, digest in given.tensors.items():
                check_source(given.reference, name, digest, sources or {})
        card = adapter_card(plan, manifest, out.name, recipe)
        write_file(folder / "README.md", card.encode(errors="replace"))
        manifest = replace(manifest, files=manifests.small_file_digests(folder))
        content = manifest.to_json()
        write_file(folder / manifests.FILE_NAME, content)
        sync_folder(folder)
        journal.seal(hashlib.sha256(content).hexdigest())
        staging.publish(earlier)
        return manifest


def computed_digests(plan: Plan) -> dict[str, str]:
    """The digests of the tensors of an adapter that is computed again, by name in its file."""
    made, _ = computed(plan, Silence())
    with tempfile.TemporaryDirectory() as folder:
        _write(made, _result(plan), Path(folder))
        return _digests(Path(folder))


def computed(plan: Plan, progress: Progress) -> tuple[LowRankAdapter, dict[str, float]]:
    """The adapter that a plan makes, and by key the share of the norm that was cut from a change."""
    result = _result(plan)
    collected = _Collected(plan, result)
    progress.start(plan.layout.total_size, 0)
    use_one_thread()
    for name in result.sums:
        collected.add_sum(name)
        progress.advance(plan.layout.placement(name).nbytes, name)
    scheduler = Scheduler(plan.threads, plan.window)
    compute_tensors(plan, collected, Forgotten(), scheduler, set(result.sums), progress)
    return collected.adapter(), collected.ordered(collected.losses)


class _Collected(MemoryShards):
    """Takes the dense change of one tensor after the other, and keeps its factors."""

    def __init__(self, plan: Plan, result: AdapterResult) -> None:
        super().__init__(plan.layout, lazy=True)
        self._result = result
        targets = [result.targets[output.name] for output in plan.resolved.outputs]
        keys = (key for t in targets for key in [t.name, *(unit.key for unit in t.units)])
        self._order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        self.factors: dict[str, Factors] = {}
        self.whole: dict[str, Array] = {}
        self.losses: dict[str, float] = {}

    def add_sum(self, name: str) -> None:
        """The result of a tensor as the sum of its factors."""
        result = self._result
        changes = [
            (coefficient, result.loaded[label].adapter.factors)
            for label, coefficient in result.sums[name].items()
            if coefficient
        ]
        for unit in result.targets[name].units:
            parts = [(c, factors[unit.key].change) for c, factors in changes if unit.key in factors]
            change = concatenated(parts) if parts else no_change(*unit.change.shape)
            if not result.bound.is_open or change.rank > min(change.shape):
                change = self._kept(unit.key, cut_spectrum(spectrum(change), result.bound))
            self.factors[unit.key] = replace(unit, change=change)

    def tensor_done(self, name: str) -> None:
        """Decompose a finished change and let go of it."""
        tensor = self.taken(name)
        target = self._result.targets[name]
        dense = np.frombuffer(tensor.data, np.float32)
        if not target.units:
            self.whole[name] = dense.reshape(target.shape).copy()
            return
        bound = self._result.bound_of(name)
        for unit, matrix in zip(target.units, _matrices(dense, target), strict=True):
            change = self._kept(unit.key, cut_matrix(matrix, bound, unit.key))
            self.factors[unit.key] = replace(unit, change=change)

    def adapter(self) -> LowRankAdapter:
        """The result in memory."""
        result = self._result
        replaced = {
            name: narrow(read_matrix(original) + whole, DType.FLOAT32)
            for name, whole in self.ordered(self.whole).items()
            if (original := result.targets[name].original) is not None
        }
        added = {n: whole for n, whole in self.ordered(self.whole).items() if n not in replaced}
        return LowRankAdapter(
            self.ordered(self.factors), replaced, added, _reference(result), result.dtype
        )

    def ordered(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """The same in the order of the outputs, whatever thread was first."""
        return {key: found[key] for key in sorted(found, key=self._order.__getitem__)}

    def _kept(self, key: str, cut: CutChange) -> LowRank:
        """A change after its cut, what that lost being on record."""
        if cut.lost > 0.0:
            self.losses[key] = cut.lost
        return cut.change


def _matrices(dense: Array, target: Target) -> list[Matrix]:
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


def _write(made: LowRankAdapter, result: AdapterResult, folder: Path) -> None:
    """Put the adapter's files into an empty folder."""
    files = adapter_files(made, result.dialect, base=result.base)
    write_into(files, folder, KOHYA_WEIGHTS)


def _digests(folder: Path) -> dict[str, str]:
    return {name: digest_tensor(t) for name, t in open_output(folder).tensors.items()}


def _manifest(
    plan: Plan,
    result: AdapterResult,
    folder: Path,
    out: Path,
    outputs: Mapping[str, str],
    losses: Mapping[str, float],
) -> Manifest:
    from weightsmith import __version__

    inputs = {}
    for label, checkpoint in plan.resolved.checkpoints.items():
        if not result.is_given(label):
            continue
        one = result.loaded.get(label)
        digests = {} if one is None else {t.name: digest_tensor(t) for t in one.stored}
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
        shards={file.name: header_digest(file) for file in sorted(folder.glob(f"*{_WEIGHTS}"))},
        files=manifests.small_file_digests(folder),
        digest=checkpoint_digest(outputs),
        lost=losses,
    )


def _behind_base(result: AdapterResult, out: Path) -> tuple[BehindInput, ...]:
    """What the base is decoded with, as far as it is read: where an adapter replaces one of its tensors."""
    if result.base is None:
        return ()
    read = (t.original for t in result.targets.values() if t.original is not None)
    return manifests.behind_inputs(result.base, read, out)


def _result(plan: Plan) -> AdapterResult:
    assert plan.adapter is not None
    return plan.adapter
