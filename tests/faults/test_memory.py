"""The stated memory budget holds, whatever the size of the inputs, also with one tensor larger than it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import weightsmith
from weightsmith.engine.records.verify import verify_output
from weightsmith.graph.backends import native
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files.safetensors_header import encode_header

from .conftest import Bench, ended

MIB = 2**20


def write_large(
    folder: Path, shape: tuple[int, int], seed: int, name: str = "model.embed_tokens.weight"
) -> None:
    """One bfloat16 tensor, larger than memory budgets, of 16 MiB of numbers over and over."""
    folder.mkdir()
    header = encode_header([(name, DType.BFLOAT16, shape)])
    numbers = np.random.default_rng(seed).normal(0, 0.02, 4 * MIB).astype("<f4").view("<u4") >> 16
    block = numbers.astype("<u2").tobytes() * 2
    left = shape[0] * shape[1] * 2
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        while left > 0:
            left -= file.write(block[: min(left, len(block))])
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"})
    )


def recipe_of(root: Path, method: str) -> dict[str, Any]:
    """A merge of two experts, with a base where the method has one."""
    recipe: dict[str, Any] = {
        "weightsmith": 1,
        "merge_method": method,
        "models": [{"model": str(root / "e1")}, {"model": str(root / "e2")}],
        "dtype": "bfloat16",
    }
    if method != "linear":
        recipe["base_model"] = str(root / "base")
    if method == "slerp":
        recipe["models"].pop()
        recipe["parameters"] = {"t": 0.3}
    return recipe


def peak_anonymous(process: subprocess.Popen[str]) -> int:
    """Largest RssAnon of a process until it ends, sampled."""
    peak = 0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            break
        peak = max(
            [peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))]
        )
        time.sleep(0.002)
    return peak


def measured(bench: Bench, out: Path, **options: Any) -> int:
    """Run a merge with the tiles its budget allows, and return its peak."""
    process = bench.start(out, tile_elements=None, **options)
    peak = peak_anonymous(process)
    code, message = ended(process)
    assert code == 0, message
    return peak


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints with one tensor of 400 MB each."""
    root = tmp_path_factory.mktemp("large")
    for seed, name in enumerate(("base", "e1", "e2")):
        write_large(root / name, (25_600, 8_192), seed)
    yield root
    shutil.rmtree(root)


def report(name: str, peak: int, budget: int) -> None:
    """A line for who runs it with -s."""
    print(f"{name}: peak {peak / MIB:.0f} MiB of {budget / MIB:.0f} MiB")


@pytest.mark.faults
@pytest.mark.skipif(not native.available(), reason="no native kernels here")
@pytest.mark.parametrize(
    "method",
    [
        "linear",
        "slerp",
        "ties",
        "dare_ties",
        "della",
        "breadcrumbs",
        "model_stock",
        "karcher",
        "sce",
        "widen",
    ],
)
def test_a_tensor_larger_than_the_budget_with_native_kernels(
    large: Path, tmp_path: Path, method: str
) -> None:
    """400 MB per input within 128 MiB of anonymous memory."""
    bench = Bench(tmp_path, recipe_of(large, method), {})
    budget = 128 * MIB
    peak = measured(bench, tmp_path / "out", memory_bytes=budget, backend="native")
    report(method, peak, budget)
    assert verify_output(tmp_path / "out").ok
    shutil.rmtree(tmp_path / "out")
    assert peak < budget


@pytest.mark.faults
@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "della"])
def test_a_tensor_larger_than_the_budget_with_torch(
    large: Path, tmp_path: Path, method: str
) -> None:
    """The same within 512 MiB, most of which is torch itself."""
    bench = Bench(tmp_path, recipe_of(large, method), {})
    budget = 512 * MIB
    peak = measured(bench, tmp_path / "out", memory_bytes=budget, backend="torch")
    report(method, peak, budget)
    shutil.rmtree(tmp_path / "out")
    assert peak < budget


@pytest.mark.faults
@pytest.mark.skipif(not native.available(), reason="no native kernels here")
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_an_address_space_cap(large: Path, tmp_path: Path, method: str) -> None:
    """Data segments capped at the budget and what the threads' stacks reserve; the inputs are ten times as large."""
    bench = Bench(tmp_path, recipe_of(large, method), {})
    limits = {"RLIMIT_DATA": (128 + 64) * MIB, "RLIMIT_AS": 1024 * MIB}
    process = bench.start(
        tmp_path / "out",
        tile_elements=None,
        memory_bytes=128 * MIB,
        backend="native",
        limits=limits,
    )
    code, message = ended(process)
    assert code == 0, message
    assert verify_output(tmp_path / "out").ok
    shutil.rmtree(tmp_path / "out")


@pytest.mark.faults
@pytest.mark.parametrize("cap", [30, 60, 90])
def test_too_little_memory_is_a_sentence_and_the_run_can_go_on(bench: Bench, cap: int) -> None:
    """Whatever cannot be had: no output, and the same command ends it when there is room."""
    process = bench.start(limits={"RLIMIT_DATA": cap * MIB})
    _, message = process.communicate(timeout=120)
    assert process.returncode == 0 or message.strip()
    bench.check_after_a_fault()


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
def test_the_peak_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Eight times the bytes, the same memory (the quick form of the tests above)."""
    peaks = []
    for rows in (2_000, 16_000):
        root = tmp_path / str(rows)
        root.mkdir()
        for seed, name in enumerate(("base", "e1", "e2")):
            write_large(root / name, (rows, 2_048), seed)
        merge = Bench(root, recipe_of(root, "ties"), {})
        peaks.append(measured(merge, root / "out", memory_bytes=96 * MIB, backend="native"))
    assert max(peaks) < 96 * MIB
    assert peaks[1] < peaks[0] + 24 * MIB


@pytest.mark.faults
@pytest.mark.skipif(not native.available(), reason="no native kernels here")
@pytest.mark.parametrize("shape", [(40_000, 2_048), (512, 160_000)])
def test_numbers_per_column_stay_within_what_the_plan_predicts(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    """160 MB per input, in narrow matrices and in ones of which two rows are a piece."""
    for seed, name in enumerate(("base", "e1", "e2")):
        write_large(tmp_path / name, shape, seed, "model.layers.0.mlp.up_proj.weight")
    recipe = recipe_of(tmp_path, "widen")
    options: dict[str, Any] = {"threads": 2, "memory_bytes": 128 * MIB, "backend": "native"}
    predicted = weightsmith.plan(recipe, **options)
    peak = measured(Bench(tmp_path, recipe, {}), tmp_path / "out", **options)
    report(f"widen {shape}", peak, predicted.peak_bytes)
    assert peak <= predicted.peak_bytes + 8 * MIB


@pytest.mark.faults
@pytest.mark.skipif(not native.available(), reason="no native kernels here")
@pytest.mark.parametrize("shape", [(1024, 1024), (3000, 400)])
def test_matrix_methods_stay_within_what_the_plan_predicts(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    """Three matrices at a time, two of them being decomposed."""
    random = np.random.default_rng(1)
    for name in ("base", "e1", "e2"):
        (tmp_path / name).mkdir()
        matrices = {f"w{i}": random.normal(0, 0.02, shape).astype("<f4") for i in range(3)}
        save_file(matrices, tmp_path / name / "model.safetensors")
    recipe = recipe_of(tmp_path, "truncate")
    predicted = weightsmith.plan(recipe, threads=2, memory_bytes=400 * MIB, backend="native")
    bench = Bench(tmp_path, recipe, {})
    options = {"threads": 2, "memory_bytes": 400 * MIB, "backend": "native"}
    peak = measured(bench, tmp_path / "out", **options)
    report(f"truncate {shape}", peak, predicted.peak_bytes)
    assert peak <= predicted.peak_bytes
