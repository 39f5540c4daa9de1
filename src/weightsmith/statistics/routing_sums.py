"""What routers of mixtures choose, and how alike the outputs of their experts are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from weightsmith.live import LiveModel, Passage
from weightsmith.statistics.forward_sums import Measured
from weightsmith.statistics.linear_maps import paths_below
from weightsmith.statistics.mixtures import Mixture, mixtures
from weightsmith.statistics.row_sums import add_to

if TYPE_CHECKING:
    from torch import Tensor

# Elements of all experts' outputs at a time.
_AT_ONCE = 1 << 24


class RoutingSums:
    """Of every mixture with experts e = 1 ... E over N tokens x that are routed:

        chosen      share of the tokens that go to e             weights      mean weight of e, 0 where it is not chosen
        outputs     E_x f_e(x) [E, D]                            similarity   E_x cos(f_e(x), f_f(x)) [E, E]

    For the latter two every expert is run on every token.
    """

    def __init__(self, model: LiveModel) -> None:
        self._mixtures = mixtures(model)
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._rows: dict[str, int] = {}

    @property
    def is_empty(self) -> bool:
        """Whether there are no mixtures."""
        return not self._mixtures

    def begin(self) -> None:
        """Begin a batch."""

    def see(self, passage: Passage) -> None:
        """Add what a mixture's experts are given."""
        own = self._mixtures.get(passage.module)
        if own is None:
            return
        given = (*passage.inputs, *passage.named_inputs.values())
        hidden, index, weights = (tensor.detach() for tensor in given)
        sums = self._sums.setdefault(passage.module, {})
        for key, value in (*_routed(index, weights, own.count), *_alike(own, hidden)):
            add_to(sums, key, value)
        self._rows[passage.module] = self._rows.get(passage.module, 0) + len(hidden)

    def take(self, prefix: str) -> Measured:
        """The means of the mixtures below a path."""
        tensors, rows = {}, {}
        for path in paths_below(self._sums, prefix):
            name, count = self._mixtures[path].tensor, self._rows.pop(path)
            rows[name] = count
            for key, total in self._sums.pop(path).items():
                tensors[f"{name}::{key}"] = (total / count).float()
        return Measured(tensors, rows)


def _routed(index: Tensor, weights: Tensor, count: int) -> Iterator[tuple[str, Tensor]]:
    """How many tokens each expert has, and their weights, of index and weights [N, K]."""
    import torch

    places = index.reshape(-1)
    for key, values in (("chosen", torch.ones_like(weights)), ("weights", weights)):
        total = torch.zeros(count, dtype=torch.float64, device=weights.device)
        yield key, total.index_add_(0, places, values.reshape(-1).double())


def _alike(own: Mixture, hidden: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Sums of all experts' outputs on tokens [N, D], and of the cosines between them."""
    import torch
    from torch.nn import functional

    # Called by its forward, the module tells no one.
    step = max(1, _AT_ONCE // max(own.count * hidden.shape[1], 1))
    for start in range(0, len(hidden), step):
        tokens = hidden[start : start + step]
        ones = tokens.new_ones((len(tokens), 1))
        with torch.no_grad():
            outputs = torch.stack(
                [
                    own.experts.forward(tokens, torch.full_like(ones, e, dtype=torch.long), ones)
                    for e in range(own.count)
                ]
            ).float()
        yield "outputs", outputs.double().sum(1)
        unit = functional.normalize(outputs, dim=2).transpose(0, 1)  # [N, E, D]
        yield "similarity", (unit @ unit.transpose(1, 2)).double().sum(0)
