"""The torch backend: passes run tile by tile on a device, with one rounding at the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightsmith.graph.backends.torch_interpreter import (
    Interpreter,
    collect_equal,
    collect_keys,
    count_keys,
    magnitude_keys,
    nonfinite,
    reduce_columns,
    reduce_piece,
    torch_dtype,
)
from weightsmith.graph.columns import ColumnPart
from weightsmith.graph.graph import Node, Scalar
from weightsmith.graph.passes import (
    Collect,
    Equal,
    Histogram,
    PassSpec,
    Request,
    TileResult,
    has_row_nodes,
    pass_roots,
)
from weightsmith.tensors import DType, piece_elements


def decode(buffer: memoryview, dtype: DType, work: torch.dtype, device: torch.device) -> Tensor:
    """Stored bytes as a flat tensor in work precision."""
    stored = (
        torch.frombuffer(buffer, dtype=torch_dtype(dtype))
        if len(buffer)
        else torch.empty(0, dtype=work)
    )
    return stored.to(device).to(work)


class TorchPass:
    """A pass over one tensor, run tile by tile."""

    def __init__(self, spec: PassSpec, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self._work = torch_dtype(spec.work)
        self._piece = piece_elements(spec.shape)
        roots = pass_roots(spec)
        self._interpreter = Interpreter(
            roots, spec.known, self._work, has_row_nodes(roots, spec.known)
        )

    def run(
        self,
        buffers: Sequence[memoryview | None],
        start: int,
        count: int,
        outs: Sequence[memoryview] = (),
    ) -> TileResult:
        """Compute one tile (see `TilePass.run`)."""
        sources = [
            None if b is None else decode(b, d, self._work, self._device)
            for b, d in zip(buffers, self._spec.source_dtypes, strict=True)
        ]
        row_length = self._spec.shape[-1] if self._spec.shape else 1
        with torch.inference_mode():
            result = TileResult([])
            roots, result.kept = self._interpreter.run_and_keep(
                sources, start, count, row_length, self._spec.kept
            )
            for (_, dtype), out in zip(self._spec.outputs, outs, strict=True):
                result.nonfinite_outputs.append(self._store(roots.pop(0), dtype, out, start))
            if self._spec.outputs:
                result.nonfinite_sources = [
                    (0, -1) if s is None else nonfinite(s, start) for s in sources
                ]
            for reduction, request in self._spec.reductions:
                taken = [roots.pop(0) for _ in range(2 if reduction.op == "dot" else 1)]
                result.partials.append(self._reduce(reduction, request, taken, start))
        return result

    def _store(self, value: Tensor, dtype: DType, out: memoryview, start: int) -> tuple[int, int]:
        """Round one output into its buffer; returns how many elements are not finite, and the first."""
        encoded = value.to(torch_dtype(dtype))
        if encoded.numel():
            torch.frombuffer(out, dtype=encoded.dtype).copy_(encoded)
        return nonfinite(encoded.to(self._work), start)

    def _reduce(
        self, reduction: Node, request: Request | None, values: list[Tensor], start: int
    ) -> Any:
        if isinstance(request, Histogram):
            return count_keys(magnitude_keys(values[0]), request)
        if isinstance(request, Equal):
            return collect_equal(magnitude_keys(values[0]), request, start)
        if isinstance(request, Collect):
            return collect_keys(magnitude_keys(values[0]), request, start)
        if isinstance(reduction, Scalar) and reduction.columns is not None:
            count = values[0].numel()
            bounds = reduction.columns.bounds(start, count, self._piece).tolist()
            sums = reduce_columns(reduction.op, values, reduction.columns, bounds)
            return ColumnPart(start, count, sums.cpu().numpy())
        pieces = [
            [v[at : at + self._piece] for v in values]
            for at in range(0, values[0].numel(), self._piece)
        ]
        return np.array(
            [float(reduce_piece(reduction.op, piece)) for piece in pieces], dtype=np.float64
        )


def use_one_thread() -> None:
    """Leave parallelism to the engine's workers: torch's own threads would change the order of sums."""
    torch.set_num_threads(1)


class TorchBackend:
    """Backend that runs passes with torch on one device."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.name = f"torch {torch.__version__} on {self.device.type}"

    def compile(self, spec: PassSpec) -> TorchPass:
        """Prepare a pass."""
        return TorchPass(spec, self.device)

    def linalg(self) -> Any:
        """torch itself."""
        return torch
