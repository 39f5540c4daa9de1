"""Time the kernels of both backends on one tile: nanoseconds of CPU time per element, on one thread.

    python benchmarks/kernels.py [--levels] [--torch]

Each case is one pass over a tile of 256 Ki bfloat16 elements of a base and up to four experts. Medians of process
CPU time, since wall time on a shared machine says little. `--levels` adds columns for lower instruction sets,
`--torch` one for the torch backend.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from weightsmith.errors import WeightsmithError
from weightsmith.graph import graph
from weightsmith.graph.backends import native
from weightsmith.graph.graph import Node, Scalar, Threshold, Value
from weightsmith.graph.passes import (
    Backend,
    Collect,
    Histogram,
    PassSpec,
    Request,
    ThresholdPoint,
    has_row_nodes,
    reduction_levels,
)
from weightsmith.graph.site import Site
from weightsmith.methods.parts import registry
from weightsmith.tensors.dtypes import DType

ROW = 4096
TILE = 1 << 18
SHAPE = (TILE // ROW, ROW)
EXPERTS = 4
SITE = Site("model.layers.0.mlp.up_proj.weight", SHAPE, "mlp", 0, 16, 0, tuple("abcd"))
Cases = dict[str, PassSpec]


def tile_sources(rng: np.random.Generator) -> list[memoryview]:
    """A base with standard deviation 0.02 and experts 0.002 away from it, as bfloat16 bytes."""
    base = rng.normal(0, 0.02, TILE).astype(np.float32)
    experts = [base + rng.normal(0, 0.002, TILE).astype(np.float32) for _ in range(EXPERTS)]
    return [
        memoryview(((x.view(np.uint32) + 0x8000) >> 16).astype(np.uint16).tobytes())
        for x in (base, *experts)
    ]


def output_spec(name: str, experts: Sequence[Value], base: Value, **shared: Any) -> PassSpec:
    """The last pass of a method, its reductions given plausible results."""
    spec = registry.get(name)
    values: dict[str, Any] = {}
    required = [k for k, p in spec.parameters.items() if p.default is registry.REQUIRED]
    shared = dict.fromkeys(required, 0.4) | shared
    for key in ("weight", "density"):
        if key in spec.parameters and spec.parameters[key].per_expert:
            values[key] = 0.5
    method = spec.build(shared, [values] * len(experts), where="benchmark")
    value = method.combine(None if spec.base is registry.Base.IGNORED else base, experts, SITE)
    known: dict[Node, Any] = {}
    for level in reduction_levels([value]):
        known.update({node: _plausible(node) for node in level})
    return PassSpec(SHAPE, _dtypes(), ((value, DType.BFLOAT16),), (), known)


def _plausible(node: Scalar | Threshold) -> Any:
    if isinstance(node, Threshold):
        return ThresholdPoint(_key(0.0027), TILE // 2, 0.0027)
    return 1.0


def _key(magnitude: float) -> int:
    return int(np.float32(magnitude).view(np.int32))


def _dtypes() -> tuple[DType, ...]:
    return (DType.BFLOAT16,) * (EXPERTS + 1)


def cases() -> Cases:
    """The passes to time."""
    base = graph.source(EXPERTS)
    experts = [graph.source(i) for i in range(EXPERTS)]
    deltas = [e - base for e in experts]
    gram = [graph.dot(deltas[i], deltas[j]) for i in range(EXPERTS) for j in range(i, EXPERTS)]
    cuts = [graph.largest_share(d, 0.2) for d in deltas]

    def measured(nodes: Sequence[Scalar | Threshold], request: Request | None) -> PassSpec:
        return PassSpec(SHAPE, _dtypes(), reductions=tuple((n, request) for n in nodes))

    found: Cases = {
        "linear of 4": output_spec("linear", experts, base),
        "Gram of 4 deltas (10 dots)": measured(gram, None),
        "histogram of 4 deltas": measured(cuts, Histogram(0, 15)),
        "collect of 4 deltas (2 %)": measured(cuts, Collect(_key(0.00253), _key(0.0026), 1 << 16)),
        "row rank of 1 delta": PassSpec(
            SHAPE, _dtypes(), ((graph.row_rank(deltas[0]), DType.BFLOAT16),)
        ),
    }
    for name in registry.names():
        if name == "linear":
            continue
        try:
            limit = registry.get(name).experts[1] or EXPERTS
            found[f"{name}: last pass"] = output_spec(name, experts[: min(limit, EXPERTS)], base)
        except WeightsmithError as error:
            print(f"(not timed: {name}: {error})")
    return found


def nanoseconds(
    backend: Backend, spec: PassSpec, buffers: list[memoryview], seconds: float
) -> float:
    """Median CPU time of one tile, per element."""
    outs = [memoryview(bytearray(TILE * 2)) for _ in spec.outputs]
    compiled = backend.compile(spec)
    run: Callable[[], Any] = lambda: compiled.run(buffers, 0, TILE, outs)  # noqa: E731
    run()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < stop:
        before = time.process_time()
        run()
        times.append(time.process_time() - before)
    return statistics.median(times) / TILE * 1e9


def compile_microseconds(backend: Backend, spec: PassSpec) -> float:
    """Median time to compile a pass and run it on a tiny tensor whose program is cached."""
    small = PassSpec((16,), spec.source_dtypes, spec.outputs, spec.reductions, spec.known)
    buffers = [memoryview(bytes(32))] * (EXPERTS + 1)
    outs = [memoryview(bytearray(32)) for _ in spec.outputs]
    times = []
    for _ in range(50):
        before = time.perf_counter()
        backend.compile(small).run(buffers, 0, 16, outs)
        times.append(time.perf_counter() - before)
    return statistics.median(times) * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--levels", action="store_true", help="also lower instruction sets")
    parser.add_argument("--torch", action="store_true", help="also the torch backend")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=0.2, help="time per case and backend")
    options = parser.parse_args()
    backends: dict[str, Backend] = {"native": native.load()}
    if options.levels:
        backends |= {name: native.load(level) for level, name in enumerate(native.LEVELS[:-1])}
    if options.torch:
        import torch

        from weightsmith.graph.backends.torch_backend import TorchBackend

        torch.set_num_threads(1)
        backends["torch"] = TorchBackend()
    buffers = tile_sources(np.random.default_rng(0))
    buffers.append(buffers.pop(0))
    print(native.describe())
    print(
        f"{'ns per element':36}" + "".join(f"{name:>10}" for name in backends) + f"{'call us':>10}"
    )
    for name, spec in cases().items():
        if options.only not in name:
            continue
        if any(node.op == "whole" for node in graph.walk([value for value, _ in spec.outputs])):
            continue  # the engine computes whole matrices
        figures = [nanoseconds(b, spec, buffers, options.seconds) for b in backends.values()]
        rows = has_row_nodes([value for value, _ in spec.outputs], spec.known)
        call = "" if rows else f"{compile_microseconds(backends['native'], spec):10.0f}"
        print(f"{name:36}" + "".join(f"{f:10.2f}" for f in figures) + call, flush=True)


if __name__ == "__main__":
    main()
