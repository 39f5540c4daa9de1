"""Tasks of lm-evaluation-harness, through its library, with the score of every item.

Task files are looked for in the folder `include`, else among the library's own. They may run Python code of theirs, as
the library allows, so include only files that you trust. Data that is not there yet is downloaded by the library; set
HF_HUB_OFFLINE=1 and HF_DATASETS_OFFLINE=1 to forbid it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from typing import Any

import numpy as np

from weightsmith.errors import NonFiniteError, ResourceError, UsageError
from weightsmith.evaluation.metrics import Finish
from weightsmith.evaluation.scores import ItemScores
from weightsmith.evaluation.suite import Task
from weightsmith.evaluation.tokens import check_language_model
from weightsmith.live import LiveModel, asking_library, quiet_library
from weightsmith.naming import nearest
from weightsmith.progress import Counted, Progress, Silence
from weightsmith.wording import with_extra

# How the library turns the items of a metric into a score: those that are ratios of sums over items.
_MEANS = frozenset({"mean", "nanmean"})
_RATIOS: Mapping[str, Finish] = {
    "bits_per_byte": Finish.RATIO,
    "weighted_perplexity": Finish.EXPONENTIAL,
    "perplexity": Finish.EXPONENTIAL,
}
_BAR = re.compile(r"Running .*?(\d+)/(\d+) \[")
_BINARY = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"})


class HarnessTask:
    """One task of the library, with its documents loaded; its metric may be METRIC or METRIC,FILTER.

    Raises ResourceError if the library is missing, UsageError for a task that it does not have or cannot load.
    """

    def __init__(self, task: Task) -> None:
        if find_spec("lm_eval") is None:
            raise ResourceError(
                f"Task {task.name!r} needs lm-evaluation-harness; {with_extra('eval')}."
            )
        self.task = task
        with _quiet():
            self._manager, self._loaded = _load(task)
        asked, _, self.filter = (task.metric or "").partition(",")
        self.metric, self._aggregation, self._higher = self._chosen_metric(asked)

    def digest(self) -> str:
        """SHA-256 over the task's settings, its documents and the version of the library."""
        import lm_eval

        state = hashlib.sha256()
        settings = self._loaded.dump_config()
        settings.pop("metadata", None)
        text = json.dumps(
            [lm_eval.__version__, self.task.digest(), settings], default=repr, sort_keys=True
        )
        state.update(text.encode())
        for document in self._loaded.eval_docs:
            state.update(json.dumps(document, default=repr, sort_keys=True).encode())
        return state.hexdigest()

    def score(self, model: LiveModel, batch_size: int | None, progress: Progress) -> ItemScores:
        """The score of every item of the task.

        Raises NonFiniteError where the library's own score is no number.
        """
        check_language_model(model, self.task.name)
        with _quiet(progress), quiet_library():
            result = self._run(model, batch_size or self.task.batch_size or 8)
        kept = self._kept(result["samples"][self.task.task])
        pairs = [_pair(sample[self.metric]) for sample in kept.values()]
        values, weights = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
        finish = _RATIOS.get(self._aggregation, Finish.RATIO)
        if self._aggregation in _RATIOS:
            values = -values / (np.log(2) if self._aggregation == "bits_per_byte" else 1)
        if not np.isfinite(values).all():
            raise NonFiniteError(
                f"{model.name!r} gives NaN on task {self.task.name!r}; its weights are broken."
            )
        return ItemScores(
            self.task.name,
            self.metric,
            tuple(kept),
            values,
            weights,
            higher_is_better=self._higher,
            binary=self.metric in _BINARY and bool(np.isin(values, (0, 1)).all()),
            finish=finish,
            answers=self._answers(list(kept.values())),
            expected=tuple(str(sample["target"]) for sample in kept.values()),
        )

    def _answers(self, samples: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
        """Generated texts, or the number of the likeliest choice; None where the metric is about something else."""
        kind = self._loaded.OUTPUT_TYPE
        if kind == "generate_until":
            return tuple(str(sample["filtered_resps"][0]) for sample in samples)
        if kind == "multiple_choice" and self.metric == "acc":
            likelihoods = [[pair[0] for pair in sample["filtered_resps"]] for sample in samples]
            return tuple(str(int(np.argmax(own))) for own in likelihoods)
        return None

    def _kept(self, samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The samples by document, of the filter of answers that is asked for, else of the first one."""
        filters = list(dict.fromkeys(str(sample["filter"]) for sample in samples))
        chosen = self.filter or filters[0]
        if chosen not in filters:
            raise UsageError(
                f"Task {self.task.task!r} has no filter {chosen!r} of answers; it has {', '.join(filters)}."
            )
        own = [sample for sample in samples if sample["filter"] == chosen]
        return {str(s["doc_id"]): s for s in sorted(own, key=lambda s: int(s["doc_id"]))}

    def _run(self, model: LiveModel, batch_size: int) -> dict[str, Any]:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        tokenizer = model.tokenizer()
        said = f"lm-evaluation-harness could not run task {self.task.task!r} on {model.name!r}"
        with asking_library(said, "choose another task or model", UsageError):
            network = HFLM(
                pretrained=model.module,
                tokenizer=tokenizer,
                batch_size=batch_size,
                device=model.device,
                trust_remote_code=False,
            )
            result: dict[str, Any] = simple_evaluate(
                model=network,
                tasks=[self.task.task],
                task_manager=self._manager,
                num_fewshot=self.task.few_shot,
                limit=self.task.limit,
                log_samples=True,
                bootstrap_iters=0,
            )
        return result

    def _chosen_metric(self, asked: str) -> tuple[str, str, bool]:
        aggregations = {
            name: getattr(made, "__name__", str(made))
            for name, made in self._loaded.aggregation().items()
        }
        better = self._loaded.higher_is_better()
        name = asked or next(iter(aggregations), "")
        if name not in aggregations:
            near = nearest(name, aggregations)
            hint = f"did you mean {near!r}?" if near else f"it has {', '.join(aggregations)}."
            raise UsageError(f"Task {self.task.task!r} has no metric {name!r}; {hint}")
        if aggregations[name] not in _MEANS | _RATIOS.keys():
            raise UsageError(
                f"The metric {name!r} of task {self.task.task!r} is no mean over items ({aggregations[name]}), so its "
                f"items cannot be compared; choose one of {', '.join(sorted(aggregations))} that is."
            )
        return name, aggregations[name], bool(better[name])


def _load(task: Task) -> tuple[Any, Any]:
    from lm_eval.tasks import TaskManager, get_task_dict

    include = None if task.include is None else str(task.include)
    manager = TaskManager(include_path=include, include_defaults=include is None)
    known = list(manager.all_subtasks)
    if task.task not in known:
        near = nearest(str(task.task), known)
        hint = f"did you mean {near!r}?" if near else f"there are {len(known)}, none like it."
        raise UsageError(f"lm-evaluation-harness has no task {task.task!r} here; {hint}")
    said = f"lm-evaluation-harness could not load task {task.task!r}"
    with asking_library(said, "its data must be there, or be downloadable", UsageError):
        loaded = get_task_dict([task.task], manager)[task.task]
        documents = len(loaded.eval_docs)
    if not documents:
        raise UsageError(
            f"Task {task.task!r} of lm-evaluation-harness has no items; a score needs at least one."
        )
    return manager, loaded


def _pair(value: Any) -> tuple[float, float]:
    """The value and the weight of an item."""
    if isinstance(value, (list, tuple)):
        return float(value[0]), float(value[1])
    return float(value), 1.0


class _Bars(io.TextIOBase):
    """Takes what the library writes to stderr, and tells how far its bar of requests is."""

    def __init__(self, requests: Counted) -> None:
        self._requests = requests

    def write(self, text: str) -> int:
        bar = _BAR.search(text)
        if bar:
            self._requests.reach(int(bar[1]), int(bar[2]))
        return len(text)


@contextmanager
def _quiet(progress: Progress | None = None) -> Iterator[None]:
    """The library is quiet: what goes wrong is raised, and how far it is goes to `progress`."""
    requests = Counted(progress or Silence(), "request")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stderr(_Bars(requests)),
            redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
    requests.end()
