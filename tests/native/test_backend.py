"""The border to Python: what is refused, what is shared, and that threads do not disturb each other."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weightsmith.errors import UsageError
from weightsmith.graph import graph
from weightsmith.graph.backends import native
from weightsmith.graph.backends.program import list_pass
from weightsmith.graph.graph import source
from weightsmith.graph.passes import PassSpec
from weightsmith.tensors import native_library
from weightsmith.tensors.dtypes import DType

F32 = DType.FLOAT32
SUM = PassSpec((64,), (F32, F32), ((source(0) * 0.25 + source(1), F32),))


def test_the_backend_names_its_instruction_set() -> None:
    assert native.why_not() == ""
    assert native.describe() == native.load().name
    assert native.describe() in {f"native ({level})" for level in native.LEVELS}
    assert native.load().linalg() is np


def test_a_missing_library_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native_library, "LIBRARY", tmp_path / "_native.so")
    native_library.open_library.cache_clear()
    try:
        assert not native.available()
        assert "not built" in native.why_not()
        with pytest.raises(UsageError, match="not built"):
            native.load()
        (tmp_path / "_native.so").write_bytes(b"not a library")
        native_library.open_library.cache_clear()
        assert "cannot be loaded" in native.describe()
    finally:
        native_library.open_library.cache_clear()


def test_torch_is_never_imported() -> None:
    code = "import sys; from weightsmith.graph import native; native.load(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("sizes", [(64, 63), (64, 65), (64, None)])
def test_a_source_of_the_wrong_size_is_refused(sizes: tuple[int | None, ...]) -> None:
    buffers = [None if s is None else memoryview(bytes(4 * s)) for s in sizes]
    with pytest.raises(UsageError, match="Source 1 of a tile of 64 elements"):
        native.load().compile(SUM).run(buffers, 0, 64, [memoryview(bytearray(256))])


@pytest.mark.parametrize("sizes", [[], [252], [260], [256, 256]])
def test_outputs_of_the_wrong_number_or_size_are_refused(sizes: list[int]) -> None:
    views = [memoryview(bytearray(size)) for size in sizes]
    with pytest.raises(UsageError, match="output buffer"):
        native.load().compile(SUM).run([memoryview(bytes(256))] * 2, 0, 64, views)


def test_a_read_only_output_is_refused() -> None:
    with pytest.raises(UsageError, match="read-only"):
        native.load().compile(SUM).run(
            [memoryview(bytes(256))] * 2, 0, 64, [memoryview(bytes(256))]
        )


def test_integer_tensors_and_unknown_nodes_are_refused() -> None:
    backend = native.load()
    with pytest.raises(UsageError, match="int64"):
        backend.compile(PassSpec((4,), (DType.INT64,), ((source(0), F32),)))
    with pytest.raises(UsageError, match="int8"):
        backend.compile(PassSpec((4,), (F32,), ((source(0), DType.INT8),)))
    with pytest.raises(UsageError, match="'whole'"):
        backend.compile(PassSpec((4,), (F32,), ((graph.whole(lambda _, x: x, source(0)), F32),)))
    threshold = graph.largest(source(0), 1)
    with pytest.raises(UsageError, match="not yet known"):
        backend.compile(PassSpec((4,), (F32,), ((graph.above(source(0), threshold) * 1.0, F32),)))


def test_tensors_that_differ_in_numbers_only_share_a_program() -> None:
    def spec(weight: float, seed: int) -> PassSpec:
        kept = graph.uniform((seed, 7)) < 0.5
        return PassSpec(
            (64,), (F32, F32), ((graph.where(kept, source(0) * weight, source(1)), F32),)
        )

    listings = [list_pass(spec(0.25, 1)), list_pass(spec(0.75, 2)), list_pass(spec(0.5, 1))]
    assert listings[0].structure == listings[1].structure
    assert listings[0].numbers != listings[1].numbers
    # Here the weight and the threshold are one number, which is another program.
    assert listings[0].structure != listings[2].structure


def test_equal_subexpressions_are_computed_once_and_zeros_of_two_signs_are_not_equal() -> None:
    def delta() -> Any:
        return source(0) - source(1)

    one = list_pass(PassSpec((4,), (F32, F32), ((delta() * delta(), F32),)))
    assert [op for op, _, _ in one.entries] == ["source", "source", "sub", "mul"]
    zeros = list_pass(PassSpec((4,), (F32,), ((source(0) / 0.0 + source(0) / -0.0, F32),)))
    assert [op for op, _, _ in zeros.entries].count("div") == 2


def test_a_known_whole_matrix_is_read_from_where_the_tile_lies(backend: Any, tools: Any) -> None:
    matrix = graph.whole(lambda _, x: x, source(0))
    known = {matrix: np.arange(5000.0).reshape(50, 100)}
    spec = PassSpec((50, 100), (F32,), ((matrix + source(0), F32),), (), known)
    found = tools.run(backend, spec, [tools.encode(np.ones(70), F32)], start=1200).output
    assert found.tolist() == [1201.0 + i for i in range(70)]


def test_many_registers_and_small_blocks_give_the_same_numbers(
    backend: Any, reference: Any, tools: Any
) -> None:
    dtypes = (DType.FLOAT16,) * 40
    values = [source(i) for i in range(40)]
    output = graph.add_all(
        [a * b for a, b in zip(values, values[::-1], strict=True)]
    ) / graph.add_all(values)
    buffers = [tools.encode(tools.values(i, 2500), DType.FLOAT16) for i in range(40)]
    spec = PassSpec((2500,), dtypes, ((output, DType.BFLOAT16),))
    tools.assert_same_bits(*(tools.run(b, spec, buffers).output for b in (backend, reference)))


def test_threads_share_a_compiled_pass() -> None:
    compiled = native.load().compile(
        PassSpec((1 << 18,), (F32,), ((graph.exp(source(0)) * 3.0, F32),))
    )

    def one(i: int) -> bytes:
        buffer = memoryview(np.full(20000, i / 10, dtype=np.float32)).cast("B")
        out = bytearray(80000)
        compiled.run([buffer], 0, 20000, [memoryview(out)])
        return bytes(out)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, list(range(20)) * 4))
    expected = [
        (np.float32(np.exp(np.float64(np.float32(i / 10)))) * np.float32(3)) for i in range(20)
    ]
    assert found == [np.full(20000, x, np.float32).tobytes() for x in expected] * 4
