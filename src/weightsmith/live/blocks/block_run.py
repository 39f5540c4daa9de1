"""A model run block by block: one block's weights in memory at a time, for all batches, then the next one's.

    with BlockRun(model, model.logits, batches) as run:
        for block in run.blocks():
            ...                      # its weights are there: attach hooks, look at it
            block.run()              # all batches go through it
        for logits in run.outputs():
            ...

What comes out is what the whole network gives, to the bit. Activations wait in memory up to a budget, in files beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from weightsmith.live.blocks.activations import ActivationStore
from weightsmith.live.blocks.block_structure import Part, find_parts
from weightsmith.live.blocks.freed_memory import give_memory_back
from weightsmith.live.blocks.kept_outputs import KeptOutputs, OutputDropped, as_kept
from weightsmith.live.blocks.replay import Ask, Replay
from weightsmith.live.gradient_catching import GradientCatcher
from weightsmith.live.live_model import LiveModel
from weightsmith.live.watching import Watch, Watched

_Asked = TypeVar("_Asked")
MEMORY_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A part whose weights are in memory, before the batches went through it.

    `tensors` are the names of its stored tensors, `is_repeated` tells blocks from what lies around them (embeddings,
    norms, heads). A module that is called twice in a forward comes twice.
    """

    path: str
    module: Any
    tensors: tuple[str, ...]
    is_repeated: bool
    _model: LiveModel
    _steps: Iterator[int]
    _rehearse: Callable[[int], None]

    def watching(self, told: Watch) -> Watched:
        """Tell of what goes into and out of the modules of this block, and of no other that shares a tensor with it."""
        prefix = f"{self.path}."
        inside = {
            tensor: tuple(p for p in self._model.users(tensor) if f"{p}.".startswith(prefix))
            for tensor in self.tensors
        }
        return Watched(self._model.module, inside, told)

    def batches(self) -> Iterator[int]:
        """Run one batch after the other, and say which one went through, so that hooks can be read between them."""
        return self._steps

    def run(self) -> None:
        """Run all batches that did not go through yet."""
        for _ in self._steps:
            pass

    def rehearse(self, batch: int) -> None:
        """Run a batch with the weights that are there now, and keep nothing of what it gives; as often as one likes."""
        self._rehearse(batch)


class BlockRun:
    """A run of `ask` (such as `model.logits`) on batches, in a context that lets go of weights and files at its end.

    `memory_bytes` is for activations, and `folder` where those beyond it go. Weights that are in memory already stay
    there. `with_gradients` computes as a network in training does and drops nothing, for the way back
    (`BlockGradients`). What one that is `lasting` keeps is in files that stay in the folder, and `state` tells another
    process what it needs to go on from there. Raises UsageError for a network that cannot be run block by block, as
    soon as that shows.
    """

    def __init__(
        self,
        model: LiveModel,
        ask: Ask,
        batches: Sequence[Any],
        *,
        memory_bytes: int = MEMORY_BYTES,
        folder: Path | None = None,
        with_gradients: bool = False,
        lasting: bool = False,
    ) -> None:
        self.model, self.batches = model, batches
        self._with_gradients = self._keep_all = with_gradients
        self._parts = find_parts(model.name, model.module)
        self.store = ActivationStore(memory_bytes, folder, lasting=lasting)
        self.kept = KeptOutputs(self.store)
        self.catcher = GradientCatcher()
        catching = self.catcher if with_gradients else nullcontext()
        self.replay = Replay(model.name, ask, batches, self.kept, catching)
        self._entered: list[Any] = []

    def __enter__(self) -> BlockRun:
        around = self._around()
        around.__enter__()
        self._entered.append(around)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered.pop().__exit__(kind, error, trace)

    @property
    def calls(self) -> Sequence[Part]:
        """The parts in the order of their calls, as far as they are known."""
        return self.replay.calls

    def blocks(self) -> Iterator[Block]:
        """Every part in the order of its calls, with its weights, before the batches go through it.

        A run that was restored begins behind those that ran before.
        """
        call = len(self.replay.calls)
        while (part := self._look(call)) is not None:
            self.replay.calls.append(part)
            with self.holding(part):
                block = self._block(part, call)
                yield block
                block.run()
            self._forget(call - 1)
            call += 1

    def run(self) -> None:
        """Run all blocks that did not run yet."""
        for block in self.blocks():
            block.run()

    def outputs(self) -> Iterator[torch.Tensor]:
        """What `ask` gives for every batch, after all blocks ran."""
        for batch in range(len(self.batches)):
            if ("result", batch) in self.store:
                yield self.store.get(("result", batch))
            else:
                yield self._available(partial(self._finish, batch))

    def state(self, calls: int) -> dict[str, Any] | None:
        """What a lasting run is behind its first calls, as JSON; None where a block gives something that has no form.

        After it was kept, `store.settle` removes the files of what came before.
        """
        outputs = self.kept.to_json(calls)
        if outputs is None:
            return None
        return {
            "calls": [part.path for part in self.calls[:calls]],
            "keeps_all": self._keep_all,
            "outputs": outputs,
            "store": self.store.to_json(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where another run of the same network, question and batches was, by the `state` of it."""
        parts = {part.path: part for part in self._parts}
        self.replay.calls.extend(parts[path] for path in state["calls"])
        self._keep_all = state["keeps_all"]
        self.kept.restore(state["outputs"])
        self.store.restore(state["store"])

    @contextmanager
    def holding(self, part: Part) -> Iterator[None]:
        """Have the weights of a part in memory."""
        residency = self.model.residency
        placed = set(residency.placed)
        names = [name for name in residency.names_of(part.module) if name not in placed]
        residency.place(names, self.model.source, self.model.names)
        try:
            with self._trained(residency.names_of(part.module)):
                yield
        finally:
            residency.release(names)
            give_memory_back()

    def loose(self) -> list[str]:
        """The weights of modules around lists, which are no part of any block and stay in memory."""
        inside = {
            name for part in self._parts for name in self.model.residency.names_of(part.module)
        }
        return [name for name in self.model.residency.names if name not in inside]

    @contextmanager
    def _around(self) -> Iterator[None]:
        residency = self.model.residency
        placed = set(residency.placed)
        loose = [name for name in self.loose() if name not in placed]
        residency.place(loose, self.model.source, self.model.names)
        try:
            installed = self.replay.installed(self._parts)
            with self.model.lending(), installed, self._trained(self.loose()):
                yield
        finally:
            residency.release(loose)
            self.store.close()

    def _trained(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Have weights require gradients, if the run has any."""
        return self.catcher.training(self.model.parameters(names) if self._with_gradients else {})

    def _block(self, part: Part, call: int) -> Block:
        steps = self._through(call)
        files = (
            file
            for name in self.model.residency.names_of(part.module)
            for file in self.model.names.files_of(name)
        )
        tensors = tuple(dict.fromkeys(files))
        return Block(
            part.path,
            part.module,
            tensors,
            part.stack is not None,
            self.model,
            steps,
            partial(self._rehearsed, call),
        )

    def _rehearsed(self, call: int, batch: int) -> None:
        with torch.no_grad():
            self.replay.step(batch, call)

    def _through(self, call: int) -> Iterator[int]:
        for batch in range(len(self.batches)):
            self._step(batch, call)
            yield batch

    def _step(self, batch: int, call: int) -> None:
        """Run a call and keep what it gave, or what the network gave with it as the last one."""
        hand = self.kept.as_leaf if self._with_gradients else as_kept
        with torch.set_grad_enabled(self._with_gradients):
            stepped = self.replay.step(batch, call, hand)
        if stepped.result is None:
            self.kept.keep(batch, call, stepped.output)
        else:
            self.store.put(("result", batch), stepped.result)

    def _look(self, call: int) -> Part | None:
        if not self.batches or ("result", 0) in self.store:
            return None
        with torch.no_grad():
            return self._available(partial(self.replay.look, call))

    def _finish(self, batch: int) -> torch.Tensor:
        with torch.no_grad():
            return self.replay.finish(batch)

    def _available(self, asked: Callable[[], _Asked]) -> _Asked:
        """What is asked for; where it reads what was dropped, everything is computed again and kept."""
        try:
            return asked()
        except OutputDropped:
            self._keep_all = True
            self._compute_dropped()
            return asked()

    def _compute_dropped(self) -> None:
        for call, part in enumerate(self.replay.calls):
            dropped = [i for i in range(len(self.batches)) if not self.kept.has(i, call)]
            if dropped:
                with self.holding(part):
                    for batch in dropped:
                        self._step(batch, call)

    def _forget(self, call: int) -> None:
        """Drop what a block gave once the next one of its list has it; what others give may be read by anyone."""
        if self._keep_all or call < 0:
            return
        own, following = self.replay.calls[call], self.replay.calls[call + 1]
        if own.stack is not None and own.stack == following.stack:
            for batch in range(len(self.batches)):
                self.kept.drop(batch, call)
