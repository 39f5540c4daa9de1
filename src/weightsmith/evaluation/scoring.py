"""Evaluating a checkpoint or a recipe on a suite, task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from weightsmith.errors import ResourceError
from weightsmith.evaluation.cache import Cache, cache_key, default_folder, library_versions
from weightsmith.evaluation.classification import score_classification
from weightsmith.evaluation.generation import score_generation
from weightsmith.evaluation.harness import HarnessTask
from weightsmith.evaluation.language_scores import score_choice, score_language_modeling
from weightsmith.evaluation.retrieval import score_retrieval
from weightsmith.evaluation.scores import Evaluation, ItemScores, TaskScore
from weightsmith.evaluation.subjects import Subject, merge_as_subject, open_subject
from weightsmith.evaluation.suite import HARNESS, Suite, Task, load_suite
from weightsmith.live import KeptNetwork, LiveMerge, LiveModel
from weightsmith.progress import Progress, Silence
from weightsmith.recipes import Recipe
from weightsmith.tensors import expanded
from weightsmith.wording import counted

Score = Callable[[Task, LiveModel, "int | None", Progress], ItemScores]
_SCORE: Mapping[str, Score] = {
    "classification": score_classification,
    "language_modeling": score_language_modeling,
    "choice": score_choice,
    "generation": score_generation,
    "retrieval": score_retrieval,
}


def evaluate(
    subject: str | Path | Recipe | Subject | LiveMerge,
    suite: str | Path | Suite,
    *,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    device: str = "cpu",
    batch_size: int | None = None,
    threads: int | None = None,
    memory_bytes: int | None = None,
    cache: bool | str | Path = True,
    progress: Progress | None = None,
    network: KeptNetwork | None = None,
) -> Evaluation:
    """Score a checkpoint, or a recipe without writing its result, on the tasks of a suite.

    `subject` is a checkpoint folder, BUNDLE#TASK, Hub id, recipe file, Recipe, or a merge that runs (`live.LiveMerge`),
    which is scored as it is, on its own device; `suite` a suite file. `tasks` are the
    names of those to do (default: all), `limit` the most items of each. `device` is cpu, cuda or cuda:N. `batch_size`
    overrides that of the suite. `threads` and `memory_bytes` bound the merge of a recipe. With `cache` (or a folder for
    it) scores of the same weights, task and library versions are taken from there, and every finished task is kept
    there at once, so an interrupted evaluation goes on where it was. Calls that are given one `network` build it once
    for all subjects whose weights fit it.

    Raises a WeightsmithError whose sentence says what to do: for a suite, data or a head that is not as it must be, for
    a model that cannot do a task, and for what opening and merging checkpoints raise.
    """
    telling = progress or Silence()
    chosen = suite if isinstance(suite, Suite) else load_suite(suite)
    chosen = chosen.only(tasks) if tasks else chosen
    chosen = chosen if limit is None else chosen.limited(limit)
    suite_digest = chosen.digest()
    model = None
    if isinstance(subject, LiveMerge):
        opened, model = merge_as_subject(subject, device), subject.model
    elif isinstance(subject, Subject):
        opened = subject
    else:
        telling.say(f"reading {subject}")
        opened = open_subject(subject, threads=threads, memory_bytes=memory_bytes, progress=telling)
    folder = default_folder() if isinstance(cache, bool) else expanded(cache)
    kept = Cache(folder) if cache else None
    run = _Run(opened, kept, device, batch_size, network or KeptNetwork(), model)
    items: dict[str, ItemScores] = {}
    scores: list[TaskScore] = []
    scoring = telling.begin("scoring", len(chosen.tasks), "task")
    for task in chosen.tasks:
        stage = scoring.begin(task.name)
        found, cached = run.items(task, stage)
        items[task.name] = found
        scores.append(TaskScore.of(found, task.group))
        stage.end(_result(scores[-1]), kept=cached)
    scoring.end()
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


def _result(score: TaskScore) -> str:
    return f"{score.metric} {score.value:.4f}  {counted(score.items, 'item')}"


class _Run:
    """One subject; its network is loaded when the first task needs it."""

    def __init__(
        self,
        subject: Subject,
        cache: Cache | None,
        device: str,
        batch_size: int | None,
        network: KeptNetwork,
        model: LiveModel | None = None,
    ) -> None:
        self._subject, self._cache, self._device = subject, cache, device
        self._batch_size, self._network = batch_size, network
        self._model = model
        self.cached: list[str] = []

    def items(self, task: Task, progress: Progress) -> tuple[ItemScores, bool]:
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
        found = self._scored(task, harness, progress)
        if self._cache is not None:
            self._cache.keep(key, found)
        return found, False

    def _scored(self, task: Task, harness: HarnessTask | None, progress: Progress) -> ItemScores:
        if self._model is None:
            progress.say(f"loading {self._subject.name}")
            self._model = self._network.model_of(self._subject, self._device)
        try:
            if harness is not None:
                return harness.score(self._model, self._batch_size, progress)
            return _SCORE[task.kind](task, self._model, self._batch_size, progress)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            raise ResourceError(
                f"Memory ran out in task {task.name!r} on {self._device}; give a smaller --batch-size."
            ) from error
