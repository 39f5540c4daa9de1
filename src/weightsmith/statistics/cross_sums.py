"""Moments of what two networks read and give on the same data, module by module: what aligns the units of the one with
those of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from weightsmith.errors import UsageError
from weightsmith.live import ActivationStore, LiveModel, Passage
from weightsmith.statistics.forward_sums import Measured, SharedInputs, by_channel, norms, pieces
from weightsmith.statistics.linear_maps import LinearMap, flat_rows, linear_maps, paths_below
from weightsmith.statistics.row_sums import add_to, zeros_to_sum

if TYPE_CHECKING:
    from torch import Tensor

Rows = Callable[["Tensor"], "Tensor"]
_INPUT, _OUTPUT = "input", "output"


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A module by the stored tensors of its weight, and how rows are made of what it reads, and of what it gives."""

    tensors: tuple[str, ...]
    read: Rows
    given: Rows | None


class CrossSums:
    """Moments over the N rows x that modules of a network read, and y that those of another read in their place:

        input_cross   E[x y^T] [D, D']     input_mean   E[x]      input_mean_with     E[y]
                                           input_square E[x^2]    input_square_with   E[y^2]

    and the same of what linear maps give. Covariances are E[x y^T] - E[x] E[y]^T, correlations these over the standard
    deviations. Means and squares are float64 sums, products of matrices float32.
    """

    def __init__(self, model: LiveModel, other: LiveModel, store: ActivationStore) -> None:
        self._names = model.name, other.name
        theirs = _modules(other)
        self._modules = {path: own for path, own in _modules(model).items() if path in theirs}
        self._theirs = {path: theirs[path] for path in self._modules}
        self._store = store
        self._shared = SharedInputs(), SharedInputs()
        # Of the batch: the module whose input each one read, and how often modules were called in each network.
        self._leaders: dict[tuple[str, int], str] = {}
        self._calls: tuple[dict[str, int], dict[str, int]] = {}, {}
        self._sums: dict[tuple[str, str], dict[str, Tensor]] = {}
        self._rows: dict[tuple[str, str], int] = {}
        self._followers: dict[str, str] = {}

    @property
    def is_empty(self) -> bool:
        """Whether the networks have no modules of the same paths."""
        return not self._modules

    def begin(self) -> None:
        """Begin a batch; raises UsageError where one network called a module that the other did not."""
        self._require_same_calls()
        for shared, calls in zip(self._shared, self._calls, strict=True):
            shared.begin()
            calls.clear()
        for path, call in self._leaders:
            for side in (_INPUT, _OUTPUT):
                self._store.drop((path, call, side))
        self._leaders.clear()

    def see(self, passage: Passage) -> None:
        """Keep what a module of the first network reads and gives until the other's does."""
        own = self._modules.get(passage.module)
        if own is None:
            return
        call = _count(self._calls[0], passage.module)
        tensor = passage.inputs[0].detach()
        leader = self._shared[0].leader(passage.module, tensor)
        self._leaders[passage.module, call] = leader
        if leader == passage.module:
            self._store.put((leader, call, _INPUT), _copied(own.read(tensor)))
        if own.given is not None:
            rows = own.given(passage.output.detach())
            self._store.put((passage.module, call, _OUTPUT), _copied(rows))

    def see_other(self, passage: Passage) -> None:
        """Add what a module of the other network reads and gives, beside what the first one's did."""
        path, own = passage.module, self._theirs.get(passage.module)
        if own is None:
            return
        call = _count(self._calls[1], path)
        if (path, call) not in self._leaders:
            raise self._unlike(f"{self._names[1]!r} calls {path} where {self._names[0]!r} does not")
        tensor = passage.inputs[0].detach()
        leader = self._leaders[path, call]
        if self._shared[1].leader(path, tensor) == leader != path:
            self._followers[path] = leader
        else:
            self._add(path, _INPUT, self._store.get((leader, call, _INPUT)), own.read(tensor))
        if own.given is not None:
            rows = own.given(passage.output.detach())
            self._add(path, _OUTPUT, self._store.get((path, call, _OUTPUT)), rows)

    def _add(self, path: str, side: str, x: Tensor, rows: Tensor) -> None:
        y = rows.float()
        if len(x) != len(y):
            raise self._unlike(f"{path} has {len(x)} rows in the one and {len(y)} in the other")
        sums = self._sums.setdefault((path, side), {})
        if not sums:
            sums["cross"] = zeros_to_sum((x.shape[1], y.shape[1]), y)
        sums["cross"] += x.T @ y
        for ending, all_rows in (("", x), ("_with", y)):
            for some in pieces(all_rows):
                add_to(sums, f"mean{ending}", some.sum(0))
                add_to(sums, f"square{ending}", some.square_().sum(0))
        self._rows[path, side] = self._rows.get((path, side), 0) + len(x)

    def take(self, prefix: str) -> Measured:
        """The moments of the modules below a path."""
        self._require_same_calls()
        tensors: dict[str, Tensor] = {}
        rows: dict[str, int] = {}
        same: dict[str, str] = {}
        inside = set(paths_below(dict.fromkeys(path for path, _ in self._sums), prefix))
        for path, side in [key for key in self._sums if key[0] in inside]:
            first, *others = self._modules[path].tensors
            rows[first] = count = self._rows.pop((path, side))
            same |= dict.fromkeys(others, first)
            for word, total in self._sums.pop((path, side)).items():
                tensors[f"{first}::{side}_{word}"] = (total / count).float()
        for path in paths_below(self._followers, prefix):
            first = self._modules[self._followers.pop(path)].tensors[0]
            same |= dict.fromkeys(self._modules[path].tensors, first)
        return Measured(tensors, rows, same)

    def _require_same_calls(self) -> None:
        ours, theirs = self._calls
        missing = next((path for path in ours if ours[path] != theirs.get(path)), None)
        if missing is not None:
            raise self._unlike(
                f"{self._names[0]!r} calls {missing} where {self._names[1]!r} does not"
            )

    def _unlike(self, how: str) -> UsageError:
        return UsageError(
            f"What {self._names[0]!r} and {self._names[1]!r} compute on the same data cannot be compared row by row: "
            f"{how}; give two models of one architecture."
        )


def _modules(model: LiveModel) -> dict[str, _Seen]:
    """Linear maps and norms by their paths; what a head over a vocabulary gives are no units."""
    maps = linear_maps(model)
    head = None if model.plain else model.module.get_output_embeddings()
    found = {
        path: _Seen(
            own.tensors,
            own.rows,
            None if model.module.get_submodule(path) is head else _rows_given(own),
        )
        for path, own in maps.items()
    }
    for path, norm in norms(model, maps).items():
        found[path] = _Seen((norm.tensor,), partial(by_channel, axis=norm.axis), None)
    return found


def _rows_given(own: LinearMap) -> Rows:
    return partial(by_channel, axis=-1 if own.rows is flat_rows else 1)


def _copied(rows: Tensor) -> Tensor:
    """Rows in float32 that nobody else writes into: networks may add to what they gave."""
    import torch

    return rows.to(dtype=torch.float32, copy=True)


def _count(calls: dict[str, int], path: str) -> int:
    """The number of this call of a module."""
    calls[path] = calls.get(path, 0) + 1
    return calls[path]
