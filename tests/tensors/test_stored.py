"""Reading ranges of stored tensors: right bytes, from any thread, and clear errors instead of signals."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.errors import CheckpointError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files import open_files
from weightsmith.tensors.files.open_files import OPEN_FILES, OpenFiles
from weightsmith.tensors.pickles.strided import (
    contiguous_strides,
    gather,
    is_contiguous,
    span_elements,
)
from weightsmith.tensors.stored import StoredTensor, read_runs

DATA = np.arange(1000, dtype=np.uint16)


@pytest.fixture
def tensor(tmp_path: Path) -> StoredTensor:
    file = tmp_path / "numbers"
    file.write_bytes(b"x" * 10 + DATA.tobytes())
    with OPEN_FILES.opened(file) as (_, identity):
        return StoredTensor("w", DType.UINT16, (40, 25), file, 10, None, identity)


def read(tensor: StoredTensor, start: int, stop: int) -> np.ndarray:
    buffer = bytearray((stop - start) * tensor.dtype.itemsize)
    tensor.read_into(start, stop, memoryview(buffer))
    return np.frombuffer(buffer, np.uint16)


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1000), (0, 0), (1000, 1000), (7, 8), (333, 666), (999, 1000)]
)
def test_any_range_is_read(tensor: StoredTensor, start: int, stop: int) -> None:
    np.testing.assert_array_equal(read(tensor, start, stop), DATA[start:stop])


def test_the_given_buffer_is_filled_whatever_its_format(tensor: StoredTensor) -> None:
    out = np.zeros((3, 25), np.uint16)
    tensor.read_into(25, 100, out.data)
    np.testing.assert_array_equal(out.ravel(), DATA[25:100])


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("strides", [None, (1, 40)])
def test_rows_are_gathered_in_one_call(
    tensor: StoredTensor,
    native: bool,
    strides: tuple[int, int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs, repeats and absent rows; with the library and without, contiguous or not."""
    if not native:
        monkeypatch.setattr("weightsmith.tensors.native_library.read_rows", lambda *_: 0)
    tensor = replace(tensor, strides=strides)
    table = DATA.reshape(40, 25) if strides is None else DATA.reshape(25, 40).T
    rows = np.array([3, 4, 5, -1, 0, 39, 38, 7, 7, -1, -1, 8])
    out = np.full((12, 25), 9, np.uint16)
    tensor.read_rows(rows, 25, out.data)
    np.testing.assert_array_equal(out, np.where(rows[:, None] >= 0, table[rows], 9))


@pytest.mark.parametrize(
    "runs",
    [
        [(0, 100), (300, 100), (800, 100)],
        [(0, 100), (300, 100), (900, 73)],
        [(50, 100), (300, 100)],
        [(50, 100), (350, 100), (250, 100), (25, 100)],
        [(120, 7)],
        [(0, 0), (5, 3)],
        [],
    ],
)
def test_runs_come_one_after_the_other(tensor: StoredTensor, runs: list[tuple[int, int]]) -> None:
    wanted = np.concatenate([read(tensor, 0, 0), *[read(tensor, s, s + n) for s, n in runs]])
    out = np.zeros_like(wanted)
    read_runs(tensor, runs, out.view(np.uint8).data)
    assert out.tolist() == wanted.tolist()


@pytest.mark.parametrize("rows", [[40], [-2], [0, 7, 40]])
def test_rows_outside_the_tensor_are_a_programming_error(
    tensor: StoredTensor, rows: list[int]
) -> None:
    with pytest.raises(ValueError, match="tensor 'w'"):
        tensor.read_rows(np.array(rows), 25, memoryview(bytearray(50 * len(rows))))


def test_rows_beyond_the_end_of_a_truncated_file_are_named(tensor: StoredTensor) -> None:
    short = replace(tensor, identity=None)
    os.truncate(tensor.file, 10 + 2 * 25 * 30)
    out = bytearray(2 * 25 * 3)
    with pytest.raises(CheckpointError, match="truncated"):
        short.read_rows(np.array([1, 35, 2]), 25, memoryview(out))


@pytest.mark.parametrize(
    ("start", "stop", "size"), [(-1, 1, 4), (0, 1001, 2002), (5, 4, 0), (0, 4, 7), (0, 4, 9)]
)
def test_a_range_or_buffer_that_does_not_fit_is_a_programming_error(
    tensor: StoredTensor, start: int, stop: int, size: int
) -> None:
    with pytest.raises(ValueError, match="tensor 'w'"):
        tensor.read_into(start, stop, memoryview(bytearray(size)))


def test_short_reads_are_continued(tensor: StoredTensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, offset: whole(fd, [buffers[0][:3]], offset)
    )
    np.testing.assert_array_equal(read(tensor, 0, 1000), DATA)


def test_a_disk_error_names_tensor_and_byte(
    tensor: StoredTensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError, match=r"tensor 'w' of .*numbers.* byte 12 .*Input/output"):
        read(tensor, 1, 2)


def test_a_file_truncated_while_it_is_read_gives_an_error_and_no_signal(
    tensor: StoredTensor,
) -> None:
    read(tensor, 0, 10)
    os.truncate(tensor.file, 100)
    with pytest.raises(CheckpointError, match=r"tensor 'w' .* ends at byte 100.*truncated"):
        read(tensor, 0, 1000)


@pytest.mark.parametrize("opened_before", [True, False])
def test_a_file_that_is_written_to_after_its_header_was_read_is_refused(
    tensor: StoredTensor, opened_before: bool
) -> None:
    if not opened_before:
        OPEN_FILES.close()
    with tensor.file.open("r+b") as file:
        file.write(b"y")
    os.utime(tensor.file, ns=(1, 1))
    with pytest.raises(CheckpointError, match="changed after its header was read"):
        read(tensor, 0, 1000)


def test_a_file_that_is_replaced_is_refused_once_it_must_be_opened_again(
    tensor: StoredTensor,
) -> None:
    other = tensor.file.with_name("other")
    other.write_bytes(tensor.file.read_bytes())
    status = tensor.file.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, tensor.file)
    OPEN_FILES.close()
    with pytest.raises(CheckpointError, match="changed"):
        read(tensor, 0, 1)


def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="named pipe"):
        read(StoredTensor("w", DType.UINT8, (1,), tmp_path / "pipe", 0), 0, 1)


@pytest.mark.parametrize(
    ("path", "kind"), [("/dev/zero", "device"), ("/tmp", "folder"), ("/nowhere/x", "No such file")]
)
def test_other_things_than_regular_files_are_refused(path: str, kind: str) -> None:
    with pytest.raises(CheckpointError, match=kind):
        read(StoredTensor("w", DType.UINT8, (1,), Path(path), 0), 0, 1)


def test_a_path_that_no_system_call_takes_is_refused() -> None:
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read(StoredTensor("w", DType.UINT8, (1,), Path("a\0b"), 0), 0, 1)


def test_links_are_followed_because_the_hub_cache_is_made_of_them(tensor: StoredTensor) -> None:
    link = tensor.file.with_name("link")
    link.symlink_to(tensor.file)
    np.testing.assert_array_equal(
        read(StoredTensor("w", DType.UINT16, (1000,), link, 10), 0, 1000), DATA
    )


def test_no_more_than_the_limit_of_descriptors_stays_open(tmp_path: Path) -> None:
    files = OpenFiles(limit=4)
    for i in range(20):
        (tmp_path / str(i)).write_bytes(bytes([i]))
    for i in [*range(20), *range(20)]:
        with files.opened(tmp_path / str(i)) as (descriptor, _):
            assert os.pread(descriptor, 1, 0) == bytes([i])
        assert len(files) <= 4
    files.close()
    assert len(files) == 0


def test_a_file_that_is_read_often_is_opened_once_and_nothing_leaks(tmp_path: Path) -> None:
    files = OpenFiles(limit=4)
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    before = len(os.listdir("/proc/self/fd"))
    seen = set()
    for _ in range(3):
        for name in "abc":
            with files.opened(tmp_path / name) as (descriptor, identity):
                seen.add(descriptor)
            with files.opened(tmp_path / name, identity) as (descriptor, _):
                seen.add(descriptor)
    assert len(seen) == 3
    assert len(os.listdir("/proc/self/fd")) == before + 3
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_descriptor_in_use_is_not_closed_under_its_reader(tmp_path: Path) -> None:
    files = OpenFiles(limit=1)
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    with files.opened(tmp_path / "a") as (a, _):
        with files.opened(tmp_path / "b") as (b, _):
            assert (os.pread(a, 1, 0), os.pread(b, 1, 0)) == (b"a", b"b")
        assert os.pread(a, 1, 0) == b"a"
    assert len(files) == 1
    files.close()


def test_the_process_wide_cache_is_bounded() -> None:
    assert open_files.LIMIT == 64


def test_many_threads_read_many_files_through_few_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightsmith.tensors.stored.OPEN_FILES", OpenFiles(limit=3))
    tensors = []
    for i in range(12):
        (tmp_path / str(i)).write_bytes((DATA + i).tobytes())
        tensors.append(StoredTensor(str(i), DType.UINT16, (1000,), tmp_path / str(i), 0))
    barrier = threading.Barrier(8)

    def work(seed: int) -> None:
        barrier.wait()
        generator = np.random.default_rng(seed)
        for _ in range(60):
            i, start = int(generator.integers(12)), int(generator.integers(1000))
            np.testing.assert_array_equal(read(tensors[i], start, 1000), (DATA + i)[start:])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


# Strided views --------------------------------------------------------------------------------------------------


@st.composite
def views(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """A strided view without repeats of a random base, and a range of its elements."""
    shape = draw(st.lists(st.integers(1, 6), min_size=0, max_size=4))
    base = np.arange(int(np.prod(shape)), dtype=np.uint32).reshape(shape)
    view = base.transpose(draw(st.permutations(range(len(shape)))))
    view = view[
        tuple(slice(draw(st.integers(0, n - 1)), None, draw(st.integers(1, 3))) for n in view.shape)
    ]
    start = draw(st.integers(0, view.size))
    return view, start, draw(st.integers(start, view.size))


@pytest.mark.parametrize("cheap_bytes", [0, 16, 65536])
@given(case=views())
def test_a_strided_view_is_read_in_c_order(
    case: tuple[np.ndarray, int, int], cheap_bytes: int
) -> None:
    view, start, stop = case
    base = view if view.base is None else view.base
    while base.base is not None:
        base = base.base
    flat = base.ravel()
    first = (view.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // 4
    strides = tuple(s // 4 for s in view.strides)
    longest = 0

    def fetch(at: int, buffer: memoryview) -> None:
        nonlocal longest
        longest = max(longest, len(buffer))
        words = len(buffer) // 4
        assert first + at + words <= flat.size
        buffer[:] = flat[first + at : first + at + words].tobytes()

    out = bytearray((stop - start) * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightsmith.tensors.pickles.strided._CHEAP_BYTES", cheap_bytes)
        gather(fetch, 4, view.shape, strides, start, stop, memoryview(out))
    np.testing.assert_array_equal(np.frombuffer(out, np.uint32), view.ravel()[start:stop])
    assert longest <= max(cheap_bytes, 2 * len(out))


@pytest.mark.parametrize("cheap_bytes", [0, 65536])
def test_every_range_of_a_permuted_tensor_is_read(
    cheap_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightsmith.tensors.pickles.strided._CHEAP_BYTES", cheap_bytes)
    flat = np.arange(24, dtype=np.uint32)
    view = flat.reshape(4, 2, 3).transpose(2, 0, 1)
    strides = tuple(s // 4 for s in view.strides)

    def fetch(at: int, buffer: memoryview) -> None:
        buffer[:] = flat[at : at + len(buffer) // 4].tobytes()

    for start in range(25):
        for stop in range(start, 25):
            out = bytearray((stop - start) * 4)
            gather(fetch, 4, view.shape, strides, start, stop, memoryview(out))
            assert np.frombuffer(out, np.uint32).tolist() == view.ravel()[start:stop].tolist()


def test_a_tile_of_a_large_transposed_matrix_is_read_without_its_whole_storage(
    tmp_path: Path,
) -> None:
    matrix = np.arange(2000 * 3000, dtype=np.uint16).reshape(3000, 2000)
    file = tmp_path / "matrix"
    matrix.tofile(file)
    tensor = StoredTensor("t", DType.UINT16, (2000, 3000), file, 0, (1, 2000))
    fetched = 0
    whole = os.preadv

    def count(fd: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal fetched
        fetched += len(buffers[0])
        assert len(buffers[0]) <= 65536
        return whole(fd, buffers, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", count)
        found = read(tensor, 100 * 3000, 101 * 3000 + 5)
    np.testing.assert_array_equal(found, matrix.T.ravel()[100 * 3000 : 101 * 3000 + 5])
    assert fetched < 2.2 * matrix.nbytes


@given(st.lists(st.integers(0, 4), max_size=4))
def test_contiguity_and_span_agree_with_numpy(shape: list[int]) -> None:
    array = np.empty(shape, np.uint8)
    assert is_contiguous(shape, contiguous_strides(shape))
    assert span_elements(shape, array.strides) == array.size
    turned = array.T
    assert is_contiguous(turned.shape, turned.strides) == turned.flags["C_CONTIGUOUS"]
