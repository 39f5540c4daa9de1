"""Torch files are read without torch, and every tensor has the bytes that torch.load gives."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightsmith.errors import CheckpointError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.pickles.pickle_reader import parse_torch_file, read_torch_file
from weightsmith.tensors.stored import StoredTensor


def raw_bytes(tensor: torch.Tensor) -> bytes:
    dense = torch.empty(tensor.numel(), dtype=tensor.dtype)
    dense.copy_(tensor.detach().reshape(-1))
    return dense.view(torch.uint8).numpy().tobytes() if dense.numel() else b""


def read(tensor: StoredTensor, start: int = 0, stop: int | None = None) -> bytes:
    stop = tensor.numel if stop is None else stop
    buffer = bytearray((stop - start) * tensor.dtype.itemsize)
    tensor.read_into(start, stop, memoryview(buffer))
    return bytes(buffer)


def check_same(path: Path, expected: Mapping[str, torch.Tensor]) -> None:
    found = read_torch_file(path)
    assert [tensor.name for tensor in found] == list(expected)
    for tensor in found:
        theirs = expected[tensor.name]
        assert (tensor.dtype.value, tensor.shape) == (str(theirs.dtype)[6:], tuple(theirs.shape))
        assert read(tensor) == raw_bytes(theirs), tensor


def of(dtype: DType, *shape: int) -> torch.Tensor:
    bits = torch.randint(0, 2, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8)
    return bits.view(getattr(torch, dtype.value))


BASE = torch.arange(2000.0).reshape(40, 50)
STATE = OrderedDict(
    matrix=BASE,
    transposed=BASE.t(),
    window=BASE[3:7, ::3],
    shifted=BASE.reshape(-1)[17:],
    permuted=torch.arange(60).reshape(3, 4, 5).permute(2, 0, 1),
    number=torch.tensor(1.5),
    number_inside=BASE[7, 7],
    empty=torch.zeros(0, 3),
    empty_inside=BASE[5:5],
    parameter=torch.nn.Parameter(torch.arange(6.0).bfloat16()),
    channels_last=torch.arange(48.0)
    .reshape(2, 3, 4, 2)
    .contiguous(memory_format=torch.channels_last),
    odd_strides=torch.arange(4.0).reshape(4, 1).as_strided((4, 1), (1, 99)),
)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_views_parameters_and_odd_shapes_have_the_bytes_torch_gives(
    tmp_path: Path, protocol: int, zipped: bool
) -> None:
    path = tmp_path / "x.bin"
    torch.save(STATE, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    check_same(path, STATE)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", DType)
def test_every_dtype_is_read(tmp_path: Path, dtype: DType, zipped: bool) -> None:
    path = tmp_path / "x.pt"
    state = {"w": of(dtype, 3, 4), "v": of(dtype, 7)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    check_same(path, state)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_range_of_any_view_is_read(tmp_path: Path, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    view = torch.arange(math.prod(shape)).reshape(shape)
    view = view.permute(data.draw(st.permutations(range(len(shape)))))
    view = view[
        tuple(
            slice(data.draw(st.integers(0, n - 1)), None, data.draw(st.integers(1, 2)))
            for n in view.shape
        )
    ]
    torch.save({"v": view}, tmp_path / "x.pt")
    (found,) = read_torch_file(tmp_path / "x.pt")
    start = data.draw(st.integers(0, found.numel))
    stop = data.draw(st.integers(start, found.numel))
    assert read(found, start, stop) == raw_bytes(view.reshape(-1)[start:stop])


def test_shared_storage_is_found_as_the_same_bytes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    weight = torch.randn(5, 4)
    torch.save({"embed": weight, "head": weight, "part": weight[1:]}, path)
    embed, head, part = read_torch_file(path)
    assert (embed.offset, embed.strides, embed.shape) == (head.offset, head.strides, head.shape)
    assert part.offset == embed.offset + 16
    check_same(path, {"embed": weight, "head": weight, "part": weight[1:]})


def test_the_state_dict_of_a_module_is_read_with_its_buffers(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict(), path
    )
    check_same(path, torch.load(path, weights_only=True))


def test_a_tensor_with_python_attributes_is_read_without_them(tmp_path: Path) -> None:
    weight = torch.arange(3.0)
    weight.note = "sharded"  # type: ignore[attr-defined]
    torch.save({"w": weight}, tmp_path / "x.pt")
    assert read(read_torch_file(tmp_path / "x.pt")[0]) == raw_bytes(weight)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_training_checkpoint_is_unwrapped_and_says_so(tmp_path: Path, key: str) -> None:
    module = torch.nn.Linear(3, 4)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(
        {key: module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3},
        tmp_path / "x.pt",
    )
    found = parse_torch_file(tmp_path / "x.pt")
    assert found.wrapper == key
    assert [tensor.name for tensor in found.tensors] == ["weight", "bias"]


def test_a_plain_state_dict_has_no_wrapper(tmp_path: Path) -> None:
    torch.save({"model": torch.ones(2)}, tmp_path / "x.pt")
    assert parse_torch_file(tmp_path / "x.pt").wrapper is None


TENSORS = {"w": torch.ones(2)}
NOT_STATE_DICTS: dict[str, tuple[Any, str]] = {
    "two wrappers": ({"model": TENSORS, "state_dict": TENSORS}, "cannot be told.*model, state_dict"),
    "other wrapper": ({"generator": TENSORS}, "cannot be told.*generator"),
    "nested deeper": ({"model": {"encoder": TENSORS}}, "cannot be told"),
    "no tensors": ({"epoch": 3}, "dicts of tensors: none"),
    "a tensor": (torch.ones(2), "holds a PickledTensor instead of a dict"),
    "a list": ([torch.ones(2)], "holds a list instead of a dict"),
    "mixed": ({"w": torch.ones(2), "epoch": 3}, "beside tensors it holds 'epoch', a int"),
    "number as name": ({3: torch.ones(2)}, "not printable text"),
    "control character": ({"a\x1b[31m": torch.ones(2)}, "not printable text"),
    "empty name": ({"": torch.ones(2)}, "not printable text"),
    "expanded": ({"w": torch.ones(1).expand(1000)}, "expanded"),
    "sliding window": ({"w": torch.ones(20).as_strided((10, 10), (1, 1))}, "needs more than the 20 elements"),
    "conjugate": ({"w": torch.ones(2, dtype=torch.complex64).conj()}, "conjugate"),
    "sparse": ({"w": torch.eye(3).to_sparse()}, "_rebuild_sparse_tensor"),
    "complex128": ({"w": torch.ones(2, dtype=torch.complex128)}, "ComplexDoubleStorage"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_STATE_DICTS)
def test_what_is_not_plainly_a_dict_of_tensors_is_refused_with_the_reason(
    tmp_path: Path, kind: str
) -> None:
    value, reason = NOT_STATE_DICTS[kind]
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_torch_file(tmp_path / "x.pt")
    assert "x.pt" in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_empty_state_dict_has_no_tensors(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "x.pt")
    assert read_torch_file(tmp_path / "x.pt") == []


def test_a_whole_module_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.bin"
    torch.save(
        {"w": torch.arange(10.0), "v": torch.arange(3)}, path, _use_new_zipfile_serialization=zipped
    )
    whole = path.read_bytes()
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"x\.bin"):
            read_torch_file(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_changed_byte_never_gives_another_error_than_ours(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.bin"
    torch.save(
        {"w": torch.arange(4.0).reshape(2, 2).t(), "v": torch.arange(3)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 2):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x51]) + whole[position + 1 :])
        try:
            for tensor in read_torch_file(path):
                read(tensor)
        except CheckpointError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "read",
    [
        lambda tensor, buffer: tensor.read_into(0, 1, buffer),
        lambda tensor, buffer: tensor.read_rows(np.array([0]), 1, buffer),
    ],
    ids=["read_into", "read_rows"],
)
def test_a_flipped_bit_anywhere_in_a_storage_is_found_before_any_of_it_is_used(
    tmp_path: Path, read: Any
) -> None:
    path = tmp_path / "x.bin"
    torch.save({"w": torch.arange(10.0), "v": torch.ones(3)}, path)
    tensor, _ = read_torch_file(path)
    content = bytearray(path.read_bytes())
    content[tensor.offset + 37] ^= 1
    path.write_bytes(content)
    damaged, sound = read_torch_file(path)
    buffer = memoryview(bytearray(4))
    with pytest.raises(CheckpointError, match=r"data/0.*CRC-32, so the file is damaged: fetch"):
        read(damaged, buffer)
    sound.read_into(0, 1, buffer)
    assert bytes(buffer) == np.float32(1).tobytes()


def test_a_flipped_bit_in_the_pickle_is_found_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"weight": torch.arange(10.0)}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"weight", b"height", 1))
    with pytest.raises(CheckpointError, match=r"data.pkl.*CRC-32"):
        read_torch_file(path)


def test_an_archive_without_crcs_is_read(tmp_path: Path) -> None:
    from torch.serialization import set_crc32_options

    set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(10.0)}, tmp_path / "x.bin")
    finally:
        set_crc32_options(True)
    (tensor,) = read_torch_file(tmp_path / "x.bin")
    buffer = bytearray(40)
    pickle.loads(pickle.dumps(tensor)).read_into(0, 10, memoryview(buffer))
    assert np.frombuffer(buffer, np.float32).tolist() == list(range(10))


def test_reading_loads_neither_torch_nor_the_pickle_module_of_anyone(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    program = (
        "import sys; from pathlib import Path; from weightsmith.tensors.pickles.pickle_reader import read_torch_file; "
        f"print(len(read_torch_file(Path({str(tmp_path / 'x.pt')!r}))), 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["1", "False"]
