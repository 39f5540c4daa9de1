"""Tables on disk for the tests of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from weightsmith.tensors.files.safetensors_header import read_header
from weightsmith.tensors.stored import LazyTensor
from weightsmith.vocabularies.token_tables import TokenTable


def stored(folder: Path, name: str, values: torch.Tensor | np.ndarray) -> LazyTensor:
    """A tensor in a file of its own, opened from its header."""
    tensor = torch.as_tensor(np.asarray(values)) if isinstance(values, np.ndarray) else values
    path = folder / f"{name}.safetensors"
    save_file({name: tensor.contiguous()}, path)
    return read_header(path)[0]


def table(folder: Path, name: str, values: torch.Tensor | np.ndarray) -> TokenTable:
    """The same as a table with rows along axis 0."""
    return TokenTable(stored(folder, name, values))


def read(tensor: LazyTensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
    """A range of elements as torch sees its bytes; the whole tensor, in its shape, by default."""
    end = tensor.numel if stop is None else stop
    buffer = bytearray((end - start) * tensor.dtype.itemsize)
    tensor.read_into(start, end, memoryview(buffer))
    dtype = getattr(torch, str(tensor.dtype))
    found = torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
    return found.reshape(tensor.shape) if stop is None else found
