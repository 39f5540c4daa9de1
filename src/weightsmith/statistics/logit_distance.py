"""How far models' logits are from each other, each expert's data in turn: what Sens-Merging weighs tasks by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from weightsmith.errors import UsageError
from weightsmith.live import IGNORED, LiveModel, load_model
from weightsmith.statistics.data_files import DataChoice, read_data
from weightsmith.statistics.samples import Samples, batched

# The authors calibrate on about so many items.
_ITEMS = 100
_BATCH = 8


def logit_distances(
    experts: Sequence[str | Path],
    data: Sequence[str | Path | Samples],
    *,
    tasks: Sequence[str] | None = None,
    limit: int = _ITEMS,
    context: int | None = None,
    device: str = "cpu",
) -> list[list[float]]:
    """g_ij = E_x mean_t ||z_i(x)_t - z_j(x)_t||_2 over the data of expert j, rows i, columns j, and 0 for i = j.

    The sum of row i is the `transfer` that method `sens` takes for expert i. `data` has the data of each expert in any
    of the forms that `collect` takes, `tasks` the task of each where they are suites, `limit` and `context` as there.
    z are logits [P, C] of an item, at the P predictions that have a label. Two models are in memory at a time, in
    float32. Raises UsageError where data or tasks are not one for each expert, or predict nothing, and what opening
    models and data raises.
    """
    for what, given in (("data", data), ("tasks", data if tasks is None else tasks)):
        if len(given) != len(experts):
            raise UsageError(
                f"Distances of logits take {what} for each of the {len(experts)} experts, not {len(given)}."
            )
    found = [[0.0] * len(experts) for _ in experts]
    for j, (own, source) in enumerate(zip(experts, data, strict=True)):
        place = source if isinstance(source, Samples) else Path(source)
        choice = DataChoice(place, None if tasks is None else tasks[j], limit, context)
        expert = load_model(str(own), device=device)
        for i, other in enumerate(experts):
            if i != j:
                found[i][j] = _distance(load_model(str(other), device=device), expert, choice)
    return found


def _distance(model: LiveModel, expert: LiveModel, choice: DataChoice) -> float:
    import torch

    ours, theirs = (read_data(one, choice).backward for one in (model, expert))
    if ours.predictions is None or theirs.predictions is None:
        raise UsageError(
            f"{expert.name!r} predicts nothing of {theirs.name}, so it has no logits there."
        )
    total = 0.0
    pairs = zip(
        batched(ours.items, _BATCH, model.device),
        batched(theirs.items, _BATCH, expert.device),
        strict=True,
    )
    with torch.no_grad():
        for mine, batch in pairs:
            gap = ours.predictions(model, mine.inputs) - theirs.predictions(expert, batch.inputs)
            lengths = torch.linalg.vector_norm(gap.double(), dim=-1)  # [B, P]
            counts = lengths * 0.0 + 1.0
            if batch.labels is not None:
                counts = (batch.labels != IGNORED).double()
            total += float(((lengths * counts).sum(1) / counts.sum(1).clamp(min=1.0)).sum())
    return total / len(theirs.items)
