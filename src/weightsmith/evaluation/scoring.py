"""Evaluating a checkpoint or a recipe on a suite, task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from weightsmith.engine import Silence
from weightsmith.errors import ResourceError
from weightsmith.evaluation.batches import Told
from weightsmith.evaluation.cache import Cache, cache_key, default_folder, library_versions
from weightsmith.evaluation.classification import score_classification
from weightsmith.evaluation.generation import score_generation
from weightsmith.evaluation.harness import HarnessTask
from weightsmith.evaluation.language_scores import score_choice, score_language_modeling
from weightsmith.evaluation.live import LiveModel, load_model
from weightsmith.evaluation.retrieval import score_retrieval
from weightsmith.evaluation.scores import Evaluation, ItemScores, TaskScore
from weightsmith.evaluation.subjects import Subject, open_subject
from weightsmith.evaluation.suite import HARNESS, Suite, Task, load_suite
from weightsmith.recipes import Recipe
from weightsmith.tensors import expanded

Score = Callable[[Task, LiveModel, "int | None", Told], ItemScores]
_SCORE: Mapping[str, Score] = {
    "classification": score_classification,
    "language_modeling": score_language_modeling,
    "choice": score_choice,
    "generation": score_generation,
    "retrieval": score_retrieval,
}


class EvaluationProgress(Protocol):
    """What hears of an evaluation."""

    def stage(self, text: str) -> None:
        """What is going on beside tasks: reading or merging, loading."""

    def task(self, name: str, position: int, tasks: int) -> None:
        """A task begins, the `position`-th of `tasks`, from 1."""

    def advance(self, done: int, total: int) -> None:
        """Some of the rows that the present task puts through the network are done."""

    def finished(self, score: TaskScore, *, cached: bool) -> None:
        """A task is finished, and its scores are kept."""


class SilentEvaluation:
    """A progress that nobody hears."""

    def stage(self, text: str) -> None:
        """Ignore."""

    def task(self, name: str, position: int, tasks: int) -> None:
        """Ignore."""

    def advance(self, done: int, total: int) -> None:
        """Ignore."""

    def finished(self, score: TaskScore, *, cached: bool) -> None:
        """Ignore."""


def evaluate(
    subject: str | Path | Recipe | Subject,
    suite: str | Path | Suite,
    *,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    device: str = "cpu",
    batch_size: int | None = None,
    threads: int | None = None,
    memory_bytes: int | None = None,
    cache: bool | str | Path = True,
    progress: EvaluationProgress | None = None,
) -> Evaluation:
    """Score a checkpoint, or a recipe without writing its result, on the tasks of a suite.

    `subject` is a checkpoint folder, BUNDLE#TASK, Hub id, recipe file or Recipe; `suite` a suite file. `tasks` are the
    names of those to do (default: all), `limit` the most items of each. `device` is cpu, cuda or cuda:N. `batch_size`
    overrides that of the suite. `threads` and `memory_bytes` bound the merge of a recipe. With `cache` (or a folder for
    it) scores of the same weights, task and library versions are taken from there, and every finished task is kept
    there at once, so an interrupted evaluation goes on where it was.

    Raises a WeightsmithError whose sentence says what to do: for a suite, data or a head that is not as it must be, for
    a model that cannot do a task, and for what opening and merging checkpoints raise.
    """
    telling = progress or SilentEvaluation()
    chosen = suite if isinstance(suite, Suite) else load_suite(suite)
    chosen = chosen.only(tasks) if tasks else chosen
    chosen = chosen if limit is None else chosen.limited(limit)
    suite_digest = chosen.digest()
    if isinstance(subject, Subject):
        opened = subject
    else:
        telling.stage(f"reading {subject}")
        opened = open_subject(
            subject, threads=threads, memory_bytes=memory_bytes, progress=_Stages(telling)
        )
    folder = default_folder() if isinstance(cache, bool) else expanded(cache)
    run = _Run(opened, Cache(folder) if cache else None, device, batch_size, telling)
    items: dict[str, ItemScores] = {}
    scores: list[TaskScore] = []
    for position, task in enumerate(chosen.tasks, start=1):
        telling.task(task.name, position, len(chosen.tasks))
        found, cached = run.items(task)
        items[task.name] = found
        scores.append(TaskScore.of(found, task.group))
        telling.finished(scores[-1], cached=cached)
    return Evaluation(
        opened.name,
        opened.digest,
        chosen.name,
        suite_digest,
        tuple(scores),
        items,
        library_versions(),
        tuple(run.cached),
    )


class _Stages(Silence):
    """Hands the stages of a merge on."""

    def __init__(self, telling: EvaluationProgress) -> None:
        self._telling = telling

    def start(self, total_bytes: int, resumed_bytes: int) -> None:
        self._telling.stage("merging in memory")

    def stage(self, text: str) -> None:
        self._telling.stage(text)


class _Run:
    """One subject; its network is loaded when the first task needs it."""

    def __init__(
        self,
        subject: Subject,
        cache: Cache | None,
        device: str,
        batch_size: int | None,
        telling: EvaluationProgress,
    ) -> None:
        self._subject, self._cache, self._device = subject, cache, device
        self._batch_size, self._telling = batch_size, telling
        self._model: LiveModel | None = None
        self.cached: list[str] = []

    def items(self, task: Task) -> tuple[ItemScores, bool]:
        """The scores of a task's items, and whether they were kept from an earlier time."""
        harness = HarnessTask(task) if task.kind == HARNESS else None
        digest = task.digest() if harness is None else harness.digest()
        key = cache_key(self._subject.digest, digest, self._device)
        kept = None if self._cache is None else self._cache.find(key)
        if kept is not None:
            self.cached.append(task.name)
            return kept, True
        if self._cache is not None:
            self._cache.prepare()
        found = self._scored(task, harness)
        if self._cache is not None:
            self._cache.keep(key, found)
        return found, False

    def _scored(self, task: Task, harness: HarnessTask | None) -> ItemScores:
        if self._model is None:
            self._telling.stage(f"loading {self._subject.name}")
            self._model = load_model(self._subject, device=self._device)
        told = self._telling.advance
        try:
            if harness is not None:
                return harness.score(self._model, self._batch_size, told)
            return _SCORE[task.kind](task, self._model, self._batch_size, told)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            raise ResourceError(
                f"Memory ran out in task {task.name!r} on {self._device}; give a smaller --batch-size."
            ) from error
