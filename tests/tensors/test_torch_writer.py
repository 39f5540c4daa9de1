"""Files of torch.save written without torch: torch, its strict loader and zip tools read them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch

from weightsmith.errors import OutputError
from weightsmith.tensors import DType, MemoryTensor, read_torch_file, write_torch_file


def _tensor(name: str, value: torch.Tensor, dtype: DType) -> MemoryTensor:
    data = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return MemoryTensor(name, dtype, tuple(value.shape), bytearray(data), name)


VALUES = {
    "linear.weight": (torch.arange(12.0).reshape(3, 4), DType.FLOAT32),
    "half": (torch.linspace(-2, 2, 7).bfloat16(), DType.BFLOAT16),
    "count": (torch.tensor([2**40]), DType.INT64),
    "mask": (torch.tensor([[True, False]]), DType.BOOL),
    "größe": (torch.zeros(0, 5, dtype=torch.float16), DType.FLOAT16),
}


def _written(path: Path) -> Path:
    with path.open("wb") as file:
        write_torch_file(file, [_tensor(name, *given) for name, given in VALUES.items()])
    return path


def test_torchs_strict_loader_gives_the_same_tensors(tmp_path):
    read = torch.load(_written(tmp_path / "x.pt"), weights_only=True)
    assert list(read) == list(VALUES)
    for name, (value, _) in VALUES.items():
        assert read[name].dtype is value.dtype
        assert torch.equal(read[name], value)


def test_a_file_can_be_mapped_and_its_checksums_hold(tmp_path):
    path = _written(tmp_path / "x.pt")
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert torch.equal(mapped["linear.weight"], VALUES["linear.weight"][0])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        offsets = [info.header_offset for info in archive.infolist() if "data/" in info.filename]
    assert len(offsets) == len(VALUES)


def test_numbers_begin_at_multiples_of_64_bytes_as_torchs_do(tmp_path):
    for tensor in read_torch_file(_written(tmp_path / "x.pt")):
        assert tensor.offset % 64 == 0


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    assert _written(tmp_path / "x.pt").read_bytes() == _written(tmp_path / "y.pt").read_bytes()


def test_a_dtype_without_a_storage_is_refused_before_anything_is_written():
    file = io.BytesIO()
    odd = MemoryTensor("w", DType.FLOAT8_E4M3FN, (1,), bytearray(1), "w")
    with pytest.raises(OutputError, match="cannot hold"):
        write_torch_file(file, [odd])
    assert not file.getvalue()
