"""Gram matrices of experts that are one stack in memory: of each expert, over the tokens that are routed to it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weightsmith.live import LiveModel, Passage
from weightsmith.statistics.linear_maps import flat_rows, paths_below
from weightsmith.statistics.mixtures import Mixture, mixtures
from weightsmith.statistics.row_sums import add_gram, upper_of, zeros_to_sum
from weightsmith.statistics.sum_space import bytes_of_sum

if TYPE_CHECKING:
    from torch import Tensor

Taken = tuple[dict[str, "Tensor"], dict[str, int], dict[str, str]]


class ExpertGrams:
    """X_e^T X_e / N_e of the N_e rows X_e that every stack of matrices multiplies for expert e, zero where N_e is 0.

    An expert's second matrix reads what the expert made of its first one, which no module is given: the experts' own
    code is run once more on the tokens, their products looked at.
    """

    def __init__(self, model: LiveModel) -> None:
        self._model = model
        self._mixtures = mixtures(model)
        self._sums: dict[str, dict[tuple[str, int], Tensor]] = {}
        self._rows: dict[str, dict[tuple[str, int], int]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether there are no such mixtures."""
        return not self._mixtures

    def see(self, passage: Passage) -> None:
        """Add the rows of a mixture's experts."""
        own = self._mixtures.get(passage.module)
        if own is None:
            return
        sums = self._sums.setdefault(passage.module, {})
        counts = self._rows.setdefault(passage.module, {})

        def add(stack: str, expert: int, rows: Tensor) -> None:
            key = stack, expert
            if key not in sums:
                sums[key] = zeros_to_sum((rows.shape[1], rows.shape[1]), rows)
            add_gram(sums[key], rows.float())
            counts[key] = counts.get(key, 0) + len(rows)

        _look(own, (*passage.inputs, *passage.named_inputs.values()), add)

    def take(self, prefix: str) -> Taken:
        """Tensors, rows and who has those of another, of the mixtures below a path."""
        tensors: dict[str, Tensor] = {}
        rows: dict[str, int] = {}
        same: dict[str, str] = {}
        for path in paths_below(self._sums, prefix):
            count, sums, counts = (
                self._mixtures[path].count,
                self._sums.pop(path),
                self._rows.pop(path),
            )
            for stack in dict.fromkeys(stack for stack, _ in sums):
                grams = [_mean(sums, counts, (stack, e)) for e in range(count)]
                numbers = [counts.get((stack, e), 0) for e in range(count)]
                self._store(f"{path}.{stack}", grams, numbers, (tensors, rows, same))
        return tensors, rows, same

    def _store(
        self, name: str, grams: Sequence[Tensor], numbers: Sequence[int], taken: Taken
    ) -> None:
        """Under the names of the files, which hold experts one by one or all together."""
        import torch

        tensors, rows, same = taken
        width = len(grams[0])
        leaders: dict[int | None, str] = {}
        for file, expert in self._experts_of(name, width).items():
            leader = leaders.setdefault(expert, file)
            if leader != file:
                same[file] = leader
            elif expert is None:
                tensors[f"{file}::upper"] = torch.stack([upper_of(gram) for gram in grams])
                tensors[f"{file}::tokens"] = torch.tensor(numbers, dtype=torch.float32)
                rows[file] = sum(numbers)
            else:
                tensors[f"{file}::upper"] = upper_of(grams[expert])
                rows[file] = numbers[expert]

    def _experts_of(self, name: str, width: int) -> Mapping[str, int | None]:
        """The files of a stack whose matrices have so many inputs: of one expert, or (None) of all of them."""
        import torch

        shape = self._model.module.get_parameter(name).shape
        numbers = torch.arange(shape[0], dtype=torch.float32)
        found: dict[str, int | None] = {}
        # Files are told apart by what becomes of a stack whose every element is the number of its expert.
        marked = self._model.names.to_files({name: numbers[:, None, None].expand(shape)})
        for file, own in marked.items():
            if width not in own.shape[-2:]:
                continue
            first, last = int(own.min()), int(own.max())
            if first == last and own.ndim == 2:
                found[file] = first
            elif own.ndim == 3 and torch.equal(own[:, 0, 0], numbers):
                found[file] = None
        return found


def expert_gram_bytes(model: LiveModel) -> int:
    """What the sums of the experts of all mixtures take at most, as if the longer side of a matrix were its inputs."""
    stacks = (
        stack.shape
        for mixture in mixtures(model).values()
        for stack in mixture.experts.parameters(recurse=False)
        if stack.ndim == 3
    )
    return sum(count * bytes_of_sum(max(sides) ** 2) for count, *sides in stacks)


def _mean(
    sums: Mapping[tuple[str, int], Tensor],
    counts: Mapping[tuple[str, int], int],
    key: tuple[str, int],
) -> Tensor:
    """An expert's mean, or zeros like those of the other experts of its stack."""
    if key in sums:
        return sums[key] / counts[key]
    return next(total for (stack, _), total in sums.items() if stack == key[0]).mul(0)


def _look(own: Mixture, given: Sequence[Tensor], add: Callable[[str, int, Tensor], None]) -> None:
    """Run a mixture's experts, and add the rows that each matrix of its stacks multiplies."""
    import torch
    from torch.overrides import TorchFunctionMode

    stacks = {
        stack.untyped_storage().data_ptr(): (name, math.prod(stack.shape[1:]))
        for name, stack in own.experts.named_parameters(recurse=False)
        if stack.ndim == 3
    }
    products = {torch.nn.functional.linear, *_products(torch), *_products(torch.Tensor)}

    class Looking(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
        ) -> Any:
            if func in products and args[1].ndim == 2:
                own_stack = stacks.get(args[1].untyped_storage().data_ptr())
                if own_stack is not None:
                    name, each = own_stack
                    add(name, args[1].storage_offset() // each, flat_rows(args[0].detach()))
            return func(*args, **(kwargs or {}))

    # transformers has faster ways to the same numbers around it, which copy what they multiply.
    plain = inspect.unwrap(type(own.experts).forward)
    with torch.no_grad(), Looking():
        plain(own.experts, *(tensor.detach() for tensor in given))


def _products(of: Any) -> Iterator[Any]:
    """The functions of torch, or the methods of its tensors, that multiply two matrices."""
    return (getattr(of, name) for name in ("matmul", "mm", "__matmul__") if hasattr(of, name))
