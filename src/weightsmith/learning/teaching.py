"""What teachers give for the items of their tasks: computed once, one teacher in memory at a time, and kept in files.

FOLDER/TASK.json       the shapes of every item's outputs; written last, so what it tells of is whole
FOLDER/TASK.logits     their logits, float32, one item after the other
FOLDER/TASK.blocks     the outputs of their blocks, likewise
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightsmith.errors import UsageError
from weightsmith.learning.learning_data import TaskData
from weightsmith.learning.objectives import Outputs
from weightsmith.live import LiveModel, block_modules
from weightsmith.progress import Progress
from weightsmith.publishing import write_file
from weightsmith.statistics import SampleBatch, Samples, batched

if TYPE_CHECKING:
    from torch import Tensor


def ask_outputs(model: LiveModel, samples: Samples, batch: SampleBatch, *, blocks: bool) -> Outputs:
    """What a model gives for a batch of items; with gradients where these are on."""
    assert samples.predictions is not None
    with _watched_blocks(model, blocks) as found:
        logits = samples.predictions(model, batch.inputs)
    if any(len(output) != len(batch.items) for output in found):
        raise UsageError(
            f"The blocks of {model.name!r} give no output for each item of {samples.name}; leave `hidden` out of the "
            "objective."
        )
    return Outputs(logits, tuple(found))


@contextmanager
def _watched_blocks(model: LiveModel, wanted: bool) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []

    def note(_: Any, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [m.register_forward_hook(note) for m in block_modules(model)] if wanted else []
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """The outputs of a task's teacher, read an item at a time."""

    folder: Path
    name: str
    logits: Sequence[tuple[int, ...]]
    blocks: Sequence[Sequence[tuple[int, ...]]]

    def of(self, batch: SampleBatch, device: str) -> Outputs:
        """The outputs for a batch of items."""
        import torch

        def stacked(ending: str, shapes: Sequence[tuple[int, ...]], starts: list[int]) -> Tensor:
            rows = [
                self._read(ending, start, shape)
                for start, shape in zip(starts, shapes, strict=True)
            ]
            return torch.from_numpy(np.stack(rows)).to(device)

        items = batch.items
        starts = _starts([math.prod(shape) for shape in self.logits])
        logits = stacked("logits", [self.logits[i] for i in items], [starts[i] for i in items])
        sizes = [[math.prod(shape) for shape in own] for own in self.blocks]
        firsts = _starts([sum(own) for own in sizes])
        blocks = []
        for number in range(len(self.blocks[items[0]]) if self.blocks else 0):
            own = [firsts[i] + sum(sizes[i][:number]) for i in items]
            blocks.append(stacked("blocks", [self.blocks[i][number] for i in items], own))
        return Outputs(logits, blocks)

    def _read(self, ending: str, start: int, shape: tuple[int, ...]) -> Any:
        count = math.prod(shape)
        path = self.folder / f"{self.name}.{ending}"
        return np.fromfile(path, np.float32, count, offset=4 * start).reshape(shape)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes, dtype=np.int64).tolist()]


def read_taught(folder: Path, name: str) -> Taught | None:
    """The outputs that are there for a task, None where they are not whole."""
    index = folder / f"{name}.json"
    if not index.is_file():
        return None
    known = json.loads(index.read_bytes())
    logits = [tuple(shape) for shape in known["logits"]]
    blocks = [[tuple(shape) for shape in own] for own in known["blocks"]]
    return Taught(folder, name, logits, blocks)


def teach(
    folder: Path,
    name: str,
    teacher: LiveModel,
    task: TaskData,
    *,
    blocks: bool,
    progress: Progress,
) -> Taught:
    """Have a teacher's outputs for all items of a task in files."""
    import torch

    items = task.samples.items
    known: dict[str, list[Any]] = {"logits": [], "blocks": []}
    stage = progress.begin(f"teaching {task.name}", len(items), "item")
    with (
        (folder / f"{name}.logits").open("wb") as logits,
        (folder / f"{name}.blocks").open("wb") as outputs,
        torch.no_grad(),
    ):
        for number, item in enumerate(items):
            (batch,) = batched([item], 1, teacher.device)
            found = ask_outputs(teacher, task.samples, batch, blocks=blocks)
            known["logits"].append(_write(logits, found.logits[0]))
            known["blocks"].append([_write(outputs, output[0]) for output in found.blocks])
            stage.advance(1, f"item {number + 1}")
    stage.end()
    write_file(folder / f"{name}.json", json.dumps(known).encode())
    taught = read_taught(folder, name)
    assert taught is not None
    return taught


def _write(file: Any, tensor: Tensor) -> list[int]:
    file.write(tensor.float().cpu().contiguous().numpy().tobytes())
    return list(tensor.shape)
