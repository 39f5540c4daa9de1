"""Statistics of the whole model: which tensors they count, and in which precision these are compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.engine.outputs.storage import Target
from weightsmith.engine.planning.backends import choose_backend
from weightsmith.engine.planning.tiles import model_sample_runs, runs_by_tile, sample_step
from weightsmith.engine.planning.trace import StatisticMember
from weightsmith.engine.running.job_facts import JobSettings
from weightsmith.engine.running.model_scope import resolve_model_scope
from weightsmith.engine.running.scheduler import Scheduler
from weightsmith.engine.running.tensor_job import TensorJob
from weightsmith.graph.backends import native
from weightsmith.graph.backends.torch_memory import evaluate_model
from weightsmith.graph.graph import (
    Extent,
    Scope,
    Value,
    above,
    largest_share,
    source,
    statistic_of,
    walk,
    where,
)
from weightsmith.graph.model_statistics import ModelStatistic
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.memory import MemoryTensor

BACKENDS = ["torch", *(["native"] if native.available() else [])]
Tensors = dict[str, torch.Tensor]


def recipe(root: Path, density: float) -> dict[str, Any]:
    """TIES of one expert, trimmed over the whole model."""
    return {
        "weightsmith": 1,
        "merge_method": "ties",
        "base_model": str(root / "base"),
        "models": [{"model": str(root / "expert"), "parameters": {"density": density}}],
    }


def merged(root: Path, density: float, backend: str) -> Tensors:
    """The tensors of a merge on disk."""
    out = root / f"out-{backend}-{density}"
    weightsmith.merge(recipe(root, density), out, backend=backend)
    return load_file(out / "model.safetensors")


def mixed_family(root: Path) -> tuple[Tensors, Tensors]:
    """A base of zeros and an expert with a float32 tensor beside a float64 one, all magnitudes different."""
    numbers = torch.randperm(300_000, generator=torch.Generator().manual_seed(5)) + 1.0
    narrow, wide = numbers.reshape(2, 300, 500)
    expert = {"narrow": narrow, "wide": -wide.double()}
    base = {name: torch.zeros_like(tensor) for name, tensor in expert.items()}
    for name, tensors in (("base", base), ("expert", expert)):
        (root / name).mkdir()
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
    return base, expert


@pytest.mark.parametrize("backend", BACKENDS)
def test_magnitudes_of_float32_and_float64_tensors_are_compared_as_numbers(
    tmp_path: Path, backend: str
) -> None:
    base, expert = mixed_family(tmp_path)
    found = merged(tmp_path, 0.25, backend)
    for name, tensor in expert.items():
        assert found[name].dtype is base[name].dtype
        assert found[name].equal(torch.where(tensor.abs() > 225_000, tensor, 0.0))


def test_mixed_precisions_come_out_in_memory_as_on_disk(tmp_path: Path) -> None:
    base, expert = mixed_family(tmp_path)
    found = weightsmith.merge_state_dicts(
        "ties", [expert], base=base, per_expert=[{"density": 0.25}]
    )
    for name, tensor in merged(tmp_path, 0.25, BACKENDS[-1]).items():
        assert found[name].equal(tensor)


MODEL = ModelStatistic("merge", "threshold")


@pytest.mark.parametrize("extent", [Scope.TENSOR, MODEL])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cut_keeps_a_share_of_what_is_not_zero(backend: str, extent: Extent) -> None:
    """300,001 elements of which a third is zero, in tensors of two sizes, so that sampling is needed too."""
    numbers = torch.randperm(300_001, generator=torch.Generator().manual_seed(6)).float()
    numbers[numbers % 3 == 1] = 0.0
    parts = {"first": numbers[:1000], "second": numbers[1000:]}
    x = source(0)
    graphs = {n: where(above(x, largest_share(x, 0.25, extent, "nonzero")), x, 0.0) for n in parts}
    found = engine_results(graphs, parts, backend)
    in_memory = evaluate_model(graphs, {n: [t] for n, t in parts.items()})
    for name, part in parts.items():
        pool = numbers if extent is MODEL else part
        k = int(torch.count_nonzero(pool)) // 4
        threshold = pool.sort(descending=True).values[k - 1]
        assert found[name].equal(torch.where(part >= threshold, part, 0.0))
        assert found[name].equal(in_memory[name])


def engine_results(graphs: dict[str, Value], tensors: Tensors, backend: str) -> Tensors:
    """What the engine's jobs compute from one source per tensor."""
    settings = JobSettings(choose_backend(wanted=backend).load(), 1 << 16)
    jobs = []
    for name, graph in graphs.items():
        shape, data = tuple(tensors[name].shape), tensors[name].numpy().view(np.uint8).data
        stored = MemoryTensor(name, DType.FLOAT32, shape, data)
        members = {
            n: StatisticMember(s, name) for n in walk([graph]) if (s := statistic_of(n)) is not None
        }
        jobs.append(TensorJob(name, shape, (graph,), [stored], settings, members))
    scheduler = Scheduler(2)
    resolve_model_scope(jobs, scheduler)
    sinks = {job.name: _Bytes(4 * job.numel) for job in jobs}
    scheduler.run(job.compute([Target(DType.FLOAT32, sinks[job.name])]) for job in jobs)
    return {name: torch.frombuffer(sink.data, dtype=torch.float32) for name, sink in sinks.items()}


class _Bytes:
    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def write(self, start: int, data: memoryview) -> None:
        """Take float32 elements from `start` on."""
        self.data[4 * start : 4 * start + len(data)] = data


@pytest.mark.parametrize("backend", BACKENDS)
def test_tied_tensors_stay_equal_and_count_once(tmp_path: Path, backend: str) -> None:
    """Counted twice, each magnitude would be there twice, and a cut could fall between the two."""
    generator = torch.Generator().manual_seed(6)
    states: dict[str, Tensors] = {}
    for name in ("base", "expert"):
        shared = torch.randn(32, 16, generator=generator)
        own = torch.randn(16, 16, generator=generator)
        states[name] = {"encoder": shared, "own": own, "decoder": shared}
        (tmp_path / name).mkdir()
        torch.save(states[name], tmp_path / name / "pytorch_model.bin")
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "t5"}))
    deltas = {n: states["expert"][n] - states["base"][n] for n in ("encoder", "own")}
    for wanted in (101, 102, 301, 302):
        found = merged(tmp_path, (wanted + 0.5) / 768, backend)
        magnitudes = torch.cat([d.abs().flatten() for d in deltas.values()])
        cut = magnitudes.sort(descending=True).values[wanted - 1]
        for name, delta in deltas.items():
            kept = torch.where(delta.abs() >= cut, delta, 0.0)
            assert found[name].equal(states["base"][name] + kept)
        assert found["decoder"].equal(found["encoder"])


def test_the_plan_knows_matrices_from_vectors_of_the_same_formula(tmp_path: Path) -> None:
    """Memory is planned by tensor: a norm that sorts first says nothing about the matrices behind it."""
    shapes: dict[str, tuple[int, ...]] = {"a_norm": (64,), "b_weight": (64, 64)}
    for name in ("base", "expert"):
        (tmp_path / name).mkdir()
        tensors = {n: torch.ones(s) for n, s in shapes.items()}
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    made = weightsmith.plan(
        {
            "weightsmith": 1,
            "merge_method": "truncate",
            "base_model": str(tmp_path / "base"),
            "models": [{"model": str(tmp_path / "expert")}],
        }
    )
    assert {t.output.name: t.work.whole for t in made.tensors} == {
        "a_norm": False,
        "b_weight": True,
    }


@pytest.mark.parametrize("rows", [False, True])
def test_every_part_of_a_model_is_sampled_alike(rows: bool) -> None:
    """Runs of the tensors are the model's, whatever its tensors are: small ones are rarely met."""
    shapes = [(7,), (300, 1000), (50_000,), *[(999,)] * 200, (64, 5000)]
    step = 32 * 4096
    sampled, offset = [], 0
    for shape in shapes:
        numel = math.prod(shape)
        runs = model_sample_runs(shape, rows, offset, step)
        assert all(at >= 0 and count > 0 and at + count <= numel for at, count in runs)
        if rows:
            assert all(at % shape[-1] == count % shape[-1] == 0 for at, count in runs)
        else:
            assert all((offset + at) % step == 0 for at, _ in runs)
        sampled += [count for _, count in runs]
        offset += numel
    assert abs(len(sampled) - offset / step) <= 1
    assert sample_step(1 << 30) == step
    assert sample_step(1 << 20) == 4096  # all of it


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("extent", [Scope.TENSOR, ModelStatistic("merge", "threshold")])
def test_a_sample_is_computed_in_tiles_as_all_else_is(backend: str, extent: Extent) -> None:
    """One of 32 elements of a large tensor would take more memory at once than any tile."""
    tile, numbers = 1 << 18, np.random.default_rng(1).standard_normal(1 << 24, np.float32)
    counts: list[int] = []
    cut = largest_share(source(0), 0.2, extent)
    job = TensorJob(
        "w",
        numbers.shape,
        (where(above(source(0), cut), 1.0, 0.0),),
        [MemoryTensor("w", DType.FLOAT32, numbers.shape, bytearray(numbers.tobytes()))],
        JobSettings(_Counting(choose_backend(wanted=backend).load(), counts), tile),
        {cut: StatisticMember(extent, "w")} if isinstance(extent, ModelStatistic) else {},
    )
    scheduler = Scheduler(1)
    resolve_model_scope([job], scheduler)
    scheduler.run([job.resolve()])
    assert sum(counts) >= numbers.size * 33 // 32
    assert max(counts) == tile
    assert job.known[cut].magnitude == np.sort(np.abs(numbers))[-int(0.2 * numbers.size)]


class _Counting:
    """A backend that notes how many elements it is given at once."""

    name = "counting"

    def __init__(self, backend: Any, counts: list[int]) -> None:
        self._backend, self._counts = backend, counts

    def compile(self, spec: Any) -> Any:
        inner = self._backend.compile(spec)

        def run(buffers: Any, start: int, count: int, outs: Any = ()) -> Any:
            self._counts.append(count)
            return inner.run(buffers, start, count, outs)

        return SimpleNamespace(run=run)

    def linalg(self) -> Any:
        return self._backend.linalg()


def test_runs_fill_tiles_in_their_order() -> None:
    runs = [(0, 4), (10, 4), (20, 4), (30, 9), (40, 2), (50, 1)]
    assert list(runs_by_tile(runs, 8)) == [
        (0, [(0, 4), (10, 4)]),
        (8, [(20, 4)]),
        (12, [(30, 9)]),
        (21, [(40, 2), (50, 1)]),
    ]
    assert list(runs_by_tile([], 8)) == []


def test_densities_that_differ_by_tensor_have_cuts_of_their_own(tmp_path: Path) -> None:
    """Each counts its share of all tensors that have the same density."""
    names = ("model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight")
    numbers = torch.randperm(200, generator=torch.Generator().manual_seed(1)) + 1.0
    expert = dict(zip(names, numbers.reshape(2, 10, 10), strict=True))
    base = {name: torch.zeros(10, 10) for name in names}
    for folder, tensors in (("base", base), ("expert", expert)):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors", metadata={"format": "pt"})
    given = recipe(tmp_path, 0.0)
    given["models"][0]["parameters"]["density"] = [{"filter": "mlp", "value": 0.5}, {"value": 0.1}]
    weightsmith.merge(given, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert [int((found[name] != 0).sum()) for name in names] == [50, 10]
