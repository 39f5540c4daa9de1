"""Sums over the rows that modules read and give, taken as they pass: Gram matrices, and means of channels.

Sums that are small are float64, products of matrices float32. Modules that stand beside each other and read the same
tensor (queries, keys and values; gate and up) have one Gram matrix, which is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from weightsmith.errors import UsageError
from weightsmith.live import LiveModel, Passage
from weightsmith.statistics.expert_grams import ExpertGrams, expert_gram_bytes
from weightsmith.statistics.linear_maps import flat_rows, linear_maps, paths_below
from weightsmith.statistics.row_sums import add_gram, add_to, upper_of, zeros_to_sum
from weightsmith.statistics.sum_space import bytes_of_sum

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Statistics of some tensors: by stored names, with the rows behind each and who shares another's."""

    tensors: Mapping[str, Tensor]
    rows: Mapping[str, int] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)


class ForwardSums(Protocol):
    """What looks at the passages of a batch, and gives what it summed up of some modules."""

    @property
    def is_empty(self) -> bool:
        """Whether the network has nothing of the kind."""
        ...

    def begin(self) -> None:
        """A batch begins."""

    def see(self, passage: Passage) -> None:
        """Look at one call of a module."""

    def take(self, prefix: str) -> Measured:
        """What was summed up of the modules below a path, which is then forgotten."""


class SharedInputs:
    """Who was the first to read a tensor, among modules beside each other in one batch."""

    def __init__(self) -> None:
        self._leaders: dict[str, str] = {}
        self._recent: list[tuple[str, Any]] = []

    def begin(self) -> None:
        """Forget the tensors of the batch before."""
        self._recent.clear()

    def leader(self, path: str, tensor: Tensor) -> str:
        """The module that read the tensor first; raises UsageError where that was another one in an earlier batch."""
        parent = path.rpartition(".")[0]
        self._recent = [(p, t) for p, t in self._recent if p.rpartition(".")[0] == parent]
        found = next((p for p, t in self._recent if _is_same(t, tensor)), path)
        if found == path:
            self._recent.append((path, tensor))
        if self._leaders.setdefault(path, found) != found:
            raise UsageError(
                f"{path} reads what {found} reads in one batch and not in another, so their statistics cannot be told "
                "apart; collect over items one by one (--batch-size 1)."
            )
        return found


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one._version == other._version
    )


class GramSums:
    """X^T X / N of the rows X [N, D] that every linear map reads, as upper triangles.

    `with_experts`: those of experts that are one stack, too.
    """

    def __init__(self, model: LiveModel, *, with_experts: bool = True) -> None:
        self._maps = linear_maps(model)
        self._experts = ExpertGrams(model) if with_experts else None
        self._shared = SharedInputs()
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._followers: dict[str, str] = {}

    @property
    def is_empty(self) -> bool:
        """Whether there are no linear maps."""
        return not self._maps and (self._experts is None or self._experts.is_empty)

    def begin(self) -> None:
        """Begin a batch."""
        self._shared.begin()

    def see(self, passage: Passage) -> None:
        """Add the rows of a linear map, or of the experts of a mixture."""
        if self._experts is not None:
            self._experts.see(passage)
        own = self._maps.get(passage.module)
        if own is None:
            return
        tensor = passage.inputs[0].detach()
        leader = self._shared.leader(passage.module, tensor)
        if leader != passage.module:
            self._followers[passage.module] = leader
            return
        rows = own.rows(tensor).float()
        if passage.module not in self._sums:
            self._sums[passage.module] = zeros_to_sum((own.width, own.width), rows)
        add_gram(self._sums[passage.module], rows)
        self._rows[passage.module] = self._rows.get(passage.module, 0) + len(rows)

    def take(self, prefix: str) -> Measured:
        """The matrices of the maps below a path, with names of their first tensors."""
        tensors, rows, same = ({}, {}, {}) if self._experts is None else self._experts.take(prefix)
        for path in paths_below(self._sums, prefix):
            first, *others = self._maps[path].tensors
            rows[first] = self._rows[path]
            tensors[f"{first}::upper"] = upper_of(self._sums.pop(path) / rows[first])
            same |= dict.fromkeys(others, first)
        for path in paths_below(self._followers, prefix):
            leader = self._maps[self._followers.pop(path)].tensors[0]
            same |= dict.fromkeys(self._maps[path].tensors, leader)
        return Measured(tensors, rows, same)


def gram_bytes(model: LiveModel) -> int:
    """What the sums of a whole network's Gram matrices take at most: maps that read the same tensor share theirs."""
    own = sum(bytes_of_sum(one.width**2) for one in linear_maps(model).values())
    return own + expert_gram_bytes(model)


@dataclass(frozen=True, slots=True, eq=False)
class WatchedChannels:
    """A module with a weight for each channel: its stored tensor, and the axis of channels of what passes."""

    tensor: str
    axis: int


class ChannelSums:
    """Means over rows: |x| and x^2 of channels that a module reads, mean and variance of those that it gives."""

    def __init__(self, model: LiveModel) -> None:
        self._maps = {
            path: WatchedChannels(own.tensors[0], -1 if own.rows is flat_rows else 1)
            for path, own in linear_maps(model).items()
        }
        self._maps |= norms(model, self._maps)
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._rows: dict[str, int] = {}

    @property
    def is_empty(self) -> bool:
        """Whether there are neither linear maps nor norms."""
        return not self._maps

    def begin(self) -> None:
        """Begin a batch."""

    def see(self, passage: Passage) -> None:
        """Add what a module reads and gives."""
        own = self._maps.get(passage.module)
        if own is None:
            return
        given = by_channel(passage.inputs[0].detach(), own.axis)
        output = by_channel(passage.output.detach(), own.axis)
        sums = self._sums.setdefault(passage.module, {})
        for rows in pieces(given):
            add_to(sums, "input_magnitude", rows.abs_().sum(0))
            add_to(sums, "input_square", rows.square_().sum(0))
        for rows in pieces(output):
            add_to(sums, "output_mean", rows.sum(0))
            add_to(sums, "output_square", rows.square_().sum(0))
        self._rows[passage.module] = self._rows.get(passage.module, 0) + len(output)
        add_to(sums, "read", rows.new_tensor(float(len(given))))

    def take(self, prefix: str) -> Measured:
        """The means of the modules below a path."""
        tensors, rows = {}, {}
        for path in paths_below(self._sums, prefix):
            name, count, sums = self._maps[path].tensor, self._rows[path], self._sums.pop(path)
            read = sums["read"]
            mean = sums["output_mean"] / count
            variance = (sums["output_square"] / count - mean.square()).clamp(min=0)
            rows[name] = count
            for key, value in (
                ("input_magnitude", sums["input_magnitude"] / read),
                ("input_square", sums["input_square"] / read),
                ("output_mean", mean),
                ("output_variance", variance),
            ):
                tensors[f"{name}::{key}"] = value.float()
        return Measured(tensors, rows)


def norms(model: LiveModel, others: Mapping[str, Any]) -> dict[str, WatchedChannels]:
    """The modules that scale channels, one weight for each."""
    from torch import nn

    by_second_axis = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    found = {}
    for path, module in model.module.named_modules():
        weight = getattr(module, "weight", None)
        files = (
            model.names.files_of(f"{path}.weight") if f"{path}.weight" in model.names.owners else ()
        )
        if path not in others and getattr(weight, "ndim", 0) == 1 and len(files) == 1:
            found[path] = WatchedChannels(files[0], 1 if isinstance(module, by_second_axis) else -1)
    return found


def by_channel(tensor: Tensor, axis: int) -> Tensor:
    """What passes, as rows [N, C] of the channels on an axis, the last one or one in front of places."""
    return flat_rows(tensor if axis == -1 else tensor.movedim(axis, -1))


def pieces(rows: Tensor) -> Iterator[Tensor]:
    """Rows in float64, some at a time: arrays of their own, small enough to be taken from memory that was freed."""
    import torch

    step = max(1, _AT_ONCE // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        yield rows[start : start + step].to(torch.float64, copy=True)
