"""A network run from its beginning up to one call of a part, with what earlier calls gave in their place.

The network's own code decides what a block is given (positions, masks, what an encoder gave), whatever its
architecture: it is run as it stands, and only the calls of its parts are answered from what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as trees

from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.live.blocks.block_structure import Part
from weightsmith.live.blocks.kept_outputs import Hand, KeptOutputs, OutputDropped, as_kept
from weightsmith.live.blocks.kept_tensors import MissingWeight, WeightGuard, guarded, real

Ask = Callable[[Any], torch.Tensor]


class _Reached(BaseException):
    """The call that was wanted is there; no error, so nothing on the way may catch it."""

    def __init__(self, part: Part) -> None:
        self.part = part


@dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """The output of a call, and what `ask` gave if that call was the last one."""

    output: Any
    result: torch.Tensor | None


class Replay:
    """Runs `ask` on batches up to calls of parts, which are numbered in the order in which they come.

    `catching` is around all that runs. `calls` are the parts of the calls that are known. Raises UsageError for a
    network that cannot be run so.
    """

    def __init__(
        self,
        name: str,
        ask: Ask,
        batches: Sequence[Any],
        kept: KeptOutputs,
        catching: AbstractContextManager[Any],
    ) -> None:
        self._name, self._ask, self._batches, self._kept = name, ask, batches, kept
        self._catching = catching
        self.calls: list[Part] = []
        self._batch = self._count = self._target = 0
        self._looks_only = False
        self._output: Any = None
        self._hand: Hand = as_kept
        self._guard = WeightGuard()

    @contextmanager
    def installed(self, parts: Sequence[Part]) -> Iterator[None]:
        """Have calls of the parts come here."""
        own = {id(part.module): part.module.__dict__.get("forward") for part in parts}
        for part in parts:
            part.module.forward = self._answering(part, part.module.forward)
        try:
            yield
        finally:
            for part in parts:
                before = own[id(part.module)]
                if before is None:
                    del part.module.forward
                else:
                    part.module.forward = before

    def look(self, call: int) -> Part | None:
        """The part of a call, nothing of which is run; None where the network is at its end before it."""
        self._looks_only = True
        try:
            self._run(0, call, as_kept)
        except _Reached as reached:
            return reached.part
        finally:
            self._looks_only = False
        return None

    def step(self, batch: int, call: int, hand: Hand = as_kept) -> Stepped:
        """Run one call on a batch, and go on to the next one, or to the end."""
        result = None
        try:
            result = self._finished(self._run(batch, call, hand))
        except _Reached:
            pass
        except OutputDropped:
            # Only what comes behind the call, and is of no matter here, may lack what it reads.
            if self._output is None:
                raise
        # What is kept here would hold the graph, and the weights in it, until the next step.
        output, self._output, self._hand = self._output, None, as_kept
        if output is None:
            raise self._refused("it makes fewer calls on one batch than on another")
        return Stepped(output[0], result)

    def finish(self, batch: int) -> torch.Tensor:
        """What `ask` gives for a batch, every call being known."""
        return self._finished(self._run(batch, len(self.calls), as_kept))

    def _finished(self, result: Any) -> torch.Tensor:
        found: torch.Tensor = real(result)
        return found

    def _run(self, batch: int, call: int, hand: Hand) -> Any:
        self._batch, self._target, self._count, self._hand = batch, call, 0, hand
        try:
            with self._catching, self._guard:
                return self._ask(self._batches[batch])
        except CompatibilityError as error:
            if isinstance(error.__cause__, MissingWeight):
                raise self._refused("it reads weights past the blocks that hold them") from error
            raise

    def _answering(self, part: Part, forward: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*given: Any, **named: Any) -> Any:
            call = self._count
            self._count += 1
            if call < self._target:
                self._require_order(part, call)
                return self._kept.output(self._batch, call, self._hand)
            if call > self._target:
                raise _Reached(part)
            if self._looks_only:
                # What the part will be given must be there.
                real((given, named))
                raise _Reached(part)
            return self._computed(part, forward, real(given), real(named))

        return answer

    def _computed(
        self,
        part: Part,
        forward: Callable[..., Any],
        given: tuple[Any, ...],
        named: Mapping[str, Any],
    ) -> Any:
        self._require_order(part, self._target)
        inputs = [leaf for leaf in trees.tree_leaves((given, named)) if _is_tensor(leaf)]
        versions = [tensor._version for tensor in inputs]
        # What a part computes with is the same on every batch.
        self._guard.is_resting = self._batch > 0
        try:
            output = forward(*given, **named)
        finally:
            self._guard.is_resting = False
        if versions != [tensor._version for tensor in inputs]:
            raise self._refused(f"{part.path} writes into what it is given")
        self._output = (output,)
        # What comes behind may write into what it takes for its own.
        return guarded(output)

    def _require_order(self, part: Part, call: int) -> None:
        if call < len(self.calls) and self.calls[call] is not part:
            raise self._refused("its blocks come in another order on other batches")

    def _refused(self, reason: str) -> UsageError:
        return UsageError(
            f"The network of {self._name!r} cannot be run block by block ({reason}); run it whole."
        )


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)
