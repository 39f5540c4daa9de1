"""Learning the free numbers of a recipe: the loop of steps, its log, and where it goes on after a stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from weightsmith.errors import NonFiniteError, UsageError
from weightsmith.learning.draws import drawn
from weightsmith.learning.learning_data import TaskData
from weightsmith.learning.objectives import Objective
from weightsmith.learning.optimisers import Optimiser, Slope
from weightsmith.learning.settings import LearningSettings
from weightsmith.learning.study import Study
from weightsmith.learning.teaching import Taught, ask_outputs
from weightsmith.live import LiveMerge, LiveModel
from weightsmith.progress import Progress
from weightsmith.statistics import SampleBatch, batched

if TYPE_CHECKING:
    import torch

# Seconds after which what was done is kept.
_KEPT_EVERY = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class TaskLosses:
    """The items of a task with their teacher's outputs, and the losses of some of them."""

    data: TaskData
    objective: Objective
    taught: Taught | None

    def asks(
        self, numbers: Sequence[int], device: str, told: Callable[[float], None]
    ) -> Iterator[Callable[[LiveModel], torch.Tensor]]:
        """Questions whose answers sum to the mean loss of some items, which are told of as they are asked."""
        items = self.data.samples.items
        chosen = [items[number] for number in numbers]
        for batch in batched(chosen, len(chosen), device):
            own = tuple(numbers[i] for i in batch.items)
            named = SampleBatch(own, batch.inputs, batch.labels)
            yield partial(self._ask, named, len(chosen), told)

    def _ask(
        self, batch: SampleBatch, of: int, told: Callable[[float], None], model: LiveModel
    ) -> torch.Tensor:
        blocks = self.objective.reads_blocks
        found = ask_outputs(model, self.data.samples, batch, blocks=blocks)
        labels = batch.labels
        if labels is not None and found.logits.shape[:-1] != labels.shape:
            raise UsageError(
                f"{self.data.name!r} has labels {list(labels.shape)} for logits {list(found.logits.shape)} of "
                f"{model.name!r}; give data made for it."
            )
        taught = None if self.taught is None else self.taught.of(batch, model.device)
        loss = self.objective.of(found, batch.labels, taught).sum() / of
        told(float(loss.detach()))
        return loss


@dataclass(slots=True)
class StudyState:
    """How far a run is: steps that are finished, their log, the best numbers on the validation data."""

    step: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, float] | None = None
    best_loss: float = math.inf
    best_step: int = 0
    worse: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """One run: what is learned, from what, how, and where it is kept."""

    merge: LiveMerge
    tasks: Sequence[TaskLosses]
    validation: Sequence[TaskLosses]
    settings: LearningSettings
    optimiser: Optimiser
    study: Study
    experts: int

    def run(self, progress: Progress) -> StudyState:
        """All steps that are left; what comes out does not depend on how often a run was stopped."""
        state = self._restored()
        stage = progress.begin("learning", self.settings.steps, "step")
        stage.advance(state.step)
        kept = time.monotonic()
        while self._goes_on(state):
            entry = self._step(state.step)
            state.log.append(entry)
            state.step += 1
            stage.advance(1, f"loss {entry['loss']:.5g}")
            if self.settings.until and entry.get("gap", math.inf) <= self.settings.until:
                state.reason = f"the duality gap is at most {self.settings.until:g}"
            if time.monotonic() - kept > _KEPT_EVERY:
                self._keep(state)
                kept = time.monotonic()
        self._keep(state)
        stage.end(state.reason)
        return state

    def _goes_on(self, state: StudyState) -> bool:
        """Whether another step is to be done, after measuring what is due."""
        is_last = state.step >= self.settings.steps or bool(state.reason)
        self._check(state, last=is_last)
        if is_last and not state.reason:
            state.reason = "all steps are done"
        return not state.reason

    def values(self) -> dict[str, float]:
        """The numbers as they are now."""
        return dict(zip(self.merge.numbers, self.optimiser.values(), strict=True))

    def _restored(self) -> StudyState:
        known = self.study.read()
        if known is None:
            return StudyState()
        self.optimiser.restore(known.pop("optimiser"))
        return StudyState(**known)

    def _keep(self, state: StudyState) -> None:
        content = {name: getattr(state, name) for name in state.__slots__}
        self.study.keep({**content, "optimiser": self.optimiser.state()})

    def _step(self, number: int) -> dict[str, Any]:
        import torch

        values = self.values()
        self.merge.set(values)
        losses, asks = self._asked(number)
        loss, gradient = self.merge.gradient(asks)
        slope = torch.tensor([gradient[name] for name in values], dtype=torch.float64)
        penalty, sign = self._penalty(values)
        self._require_finite(number, losses, slope)
        entry: dict[str, Any] = {
            "step": number,
            "loss": loss + penalty,
            "tasks": losses,
            "gradient": float(slope.norm()),
        }
        elsewhere = partial(self._loss_at, number)
        gap = self.optimiser.step(number, Slope(loss + penalty, slope + sign, elsewhere))
        return entry if gap is None else {**entry, "gap": gap}

    def _asked(
        self, number: int
    ) -> tuple[dict[str, float], list[Callable[[LiveModel], torch.Tensor]]]:
        """The questions of a step, and the losses of the tasks, which grow as they are answered."""
        losses = {task.data.name: 0.0 for task in self.tasks}

        def add(name: str, loss: float) -> None:
            losses[name] += loss

        asks: list[Callable[[LiveModel], torch.Tensor]] = []
        for place, task in enumerate(self.tasks):
            count = len(task.data.samples.items)
            chosen = drawn(self.settings.seed, place, count, number, self.settings.batch_size)
            told = partial(add, task.data.name)
            asks += task.asks(chosen, self.merge.model.device, told)
        return losses, asks

    def _loss_at(self, number: int, values: list[float]) -> float:
        """The loss of a step's items with other numbers, which the network then has."""
        import torch

        given = dict(zip(self.merge.numbers, values, strict=True))
        self.merge.set(given)
        _, asks = self._asked(number)
        with torch.no_grad():
            found = math.fsum(float(ask(self.merge.model)) for ask in asks)
        return found + self._penalty(given)[0]

    def _penalty(self, values: Mapping[str, float]) -> tuple[float, torch.Tensor]:
        import torch

        factor = self.settings.penalty * self.experts / max(len(values), 1)
        away = [values[name] - number.start for name, number in self.merge.numbers.items()]
        moved = torch.tensor(away, dtype=torch.float64)
        return factor * float(moved.abs().sum()), factor * moved.sign()

    def _require_finite(
        self, number: int, losses: Mapping[str, float], slope: torch.Tensor
    ) -> None:
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise NonFiniteError(
                    f"The loss of {name!r} is {loss} in step {number + 1}; lower the rate or the bounds of the free "
                    "numbers, or look at the data and at the models with `weightsmith evaluate`."
                )
        if not bool(slope.isfinite().all()):
            raise NonFiniteError(
                f"The gradient of step {number + 1} is NaN or infinite; lower the rate or the bounds of the free "
                "numbers."
            )

    def _check(self, state: StudyState, *, last: bool = False) -> None:
        """Measure the validation data where it is time for that, and end where nothing gets better any more."""
        import torch

        is_due = state.step % self.settings.check_every == 0 or last
        if not self.validation or not is_due or state.step in _checked(state.log):
            return
        values = self.values()
        self.merge.set(values)
        losses = {}
        with torch.no_grad():
            for task in self.validation:
                numbers = range(len(task.data.samples.items))
                asks = task.asks(numbers, self.merge.model.device, lambda _: None)
                losses[task.data.name] = math.fsum(float(ask(self.merge.model)) for ask in asks)
        loss = math.fsum(losses.values())
        state.log.append({"step": state.step, "validation": loss, "tasks": losses})
        if loss < state.best_loss:
            state.best, state.best_loss, state.best_step, state.worse = (
                values,
                loss,
                state.step,
                0,
            )
            return
        state.worse += 1
        if self.settings.patience is not None and state.worse >= self.settings.patience:
            state.reason = f"{state.worse} measurements on the validation data were no better"


def _checked(log: Sequence[Mapping[str, Any]]) -> set[int]:
    return {entry["step"] for entry in log if "validation" in entry}
