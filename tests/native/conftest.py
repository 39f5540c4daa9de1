"""One driver for both backends, and every instruction set this processor has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from weightsmith.graph.backends import native
from weightsmith.graph.backends.torch_backend import TorchBackend
from weightsmith.graph.passes import Backend, PassSpec, TileResult
from weightsmith.tensors.dtypes import DType

if not native.available():
    pytest.skip(native.why_not(), allow_module_level=True)

SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, 3.0e-41, -6e-8, 1e-30, 240.0, 448.0, 65504.0, 3e38)
SPECIAL += (math.inf, -math.inf, math.nan)


@dataclass(frozen=True)
class Answer:
    """What one pass over a whole tensor gave; `output` is the first of `outputs`."""

    output: torch.Tensor | None
    result: TileResult
    outputs: list[torch.Tensor]


def encode(values: Any, dtype: DType) -> memoryview:
    """Numbers as the raw bytes of a stored tensor."""
    stored = torch.as_tensor(values, dtype=torch.float64).to(getattr(torch, dtype.value))
    if not stored.numel():
        return memoryview(bytearray())
    return memoryview(
        bytearray(stored.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    )


def run(
    backend: Backend, spec: PassSpec, buffers: Sequence[memoryview | None], start: int = 0
) -> Answer:
    """One pass over one tile, which is the whole tensor unless buffers are shorter."""
    sizes = zip(buffers, spec.source_dtypes, strict=True)
    count = next((b.nbytes // d.itemsize for b, d in sizes if b is not None), math.prod(spec.shape))
    outs = [bytearray(count * dtype.itemsize) for _, dtype in spec.outputs]
    result = backend.compile(spec).run(buffers, start, count, [memoryview(out) for out in outs])
    dtypes = [getattr(torch, dtype.value) for _, dtype in spec.outputs]
    outputs = [
        torch.frombuffer(out, dtype=dtype) if out else torch.empty(0, dtype=dtype)
        for out, dtype in zip(outs, dtypes, strict=True)
    ]
    return Answer(outputs[0] if outputs else None, result, outputs)


def assert_same_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal bit patterns; any NaN equals any NaN."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    nan_a, nan_b = torch.isnan(a.double()), torch.isnan(b.double())
    assert torch.equal(nan_a, nan_b)
    differ = (a.view(width) != b.view(width)) & ~nan_a
    at = torch.nonzero(differ).flatten()[:5]
    assert not at.numel(), (
        f"{a.double()[at].tolist()} != {b.double()[at].tolist()} at {at.tolist()}"
    )


@pytest.fixture(params=range(native.load().level + 1), ids=lambda i: native.LEVELS[i])
def backend(request: pytest.FixtureRequest) -> native.NativeBackend:
    """The native backend at each instruction set."""
    return native.load(request.param)


@pytest.fixture
def reference() -> TorchBackend:
    """The backend that defines the bits."""
    return TorchBackend()


class Tools:
    """The functions above, for tests, which cannot import this file."""

    encode = staticmethod(encode)
    run = staticmethod(run)
    assert_same_bits = staticmethod(assert_same_bits)
    special = SPECIAL

    def values(self, seed: int, count: int, special_share: float = 0.2) -> np.ndarray:
        """Numbers of all sizes with special ones among them."""
        rng = np.random.default_rng(seed)
        numbers = rng.normal(size=count) * 10.0 ** rng.integers(-6, 3, size=count)
        chosen = rng.random(count) < special_share
        numbers[chosen] = rng.choice(np.array(self.special), size=int(chosen.sum()))
        return numbers


@pytest.fixture
def tools() -> Tools:
    """Encoding, running and comparing."""
    return Tools()
