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
from itertools import accumulate
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


# Where a tensor begins among the numbers of its file, and its shape.
_Stretch = tuple[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """The outputs of a task's teacher, read an item at a time."""

    folder: Path
    name: str
    logits: Sequence[_Stretch]
    blocks: Sequence[Sequence[_Stretch]]

    def of(self, batch: SampleBatch, device: str) -> Outputs:
        """The outputs for a batch of items."""
        logits = self._stacked("logits", [self.logits[i] for i in batch.items], device)
        by_block = zip(*(self.blocks[i] for i in batch.items), strict=True)
        return Outputs(logits, [self._stacked("blocks", own, device) for own in by_block])

    def _stacked(self, ending: str, stretches: Sequence[_Stretch], device: str) -> Tensor:
        import torch

        path = self.folder / f"{self.name}.{ending}"
        rows = [
            np.fromfile(path, np.float32, math.prod(shape), offset=4 * start).reshape(shape)
            for start, shape in stretches
        ]
        return torch.from_numpy(np.stack(rows)).to(device)


def _stretches(shapes: Sequence[Sequence[int]]) -> list[_Stretch]:
    ends = accumulate((math.prod(shape) for shape in shapes), initial=0)
    return [(start, tuple(shape)) for start, shape in zip(ends, shapes, strict=False)]


def read_taught(folder: Path, name: str) -> Taught | None:
    """The outputs that are there for a task, None where they are not whole."""
    index = folder / f"{name}.json"
    if not index.is_file():
        return None
    known = json.loads(index.read_bytes())
    blocks = iter(_stretches([shape for own in known["blocks"] for shape in own]))
    by_item = [[next(blocks) for _ in own] for own in known["blocks"]]
    return Taught(folder, name, _stretches(known["logits"]), by_item)


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
