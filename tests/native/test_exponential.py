"""exp and log of floats: the bits of the library's double, rounded once, for numbers all over the format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from weightsmith.graph import graph
from weightsmith.graph.graph import source
from weightsmith.graph.passes import PassSpec
from weightsmith.tensors.dtypes import DType


@pytest.mark.parametrize(
    ("function", "golden"), [(graph.exp, np.exp), (graph.log, np.log)], ids=["exp", "log"]
)
def test_every_part_of_the_format_is_rounded_as_the_library_rounds(
    backend: Any, tools: Any, function: Callable[..., Any], golden: Callable[..., Any]
) -> None:
    patterns = np.arange(0, 1 << 32, 16411, dtype=np.uint64).astype(np.uint32)
    buffer = patterns.view(np.uint8)
    spec = PassSpec(patterns.shape, (DType.FLOAT32,), ((function(source(0)), DType.FLOAT32),))
    found = tools.run(backend, spec, [buffer]).output
    with np.errstate(all="ignore"):
        expected = golden(patterns.view(np.float32).astype(np.float64)).astype(np.float32)
    tools.assert_same_bits(found, torch.from_numpy(expected))
