"""Matrix methods against the singular value decompositions that their papers' formulas ask for, done by LAPACK alone.

    python spectral.py [--experts 4] [--out results/spectral.json]

One process, one thread: first the bare decompositions of the task vectors (thin, gesdd, in float64 and in float32, with
nothing read, widened or written), then each method as a merge on disk. Figures are CPU seconds of the process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.tensors.blas import one_blas_thread

SHAPES = {
    "model.layers.0.self_attn.q_proj.weight": (1024, 1024),
    "model.layers.0.self_attn.o_proj.weight": (1024, 1024),
    "model.layers.0.mlp.up_proj.weight": (2816, 1024),
    "model.layers.0.mlp.down_proj.weight": (1024, 2816),
    "model.layers.0.input_layernorm.weight": (1024,),
}
Matrices = list[np.ndarray[Any, Any]]


def _each(taus: Matrices) -> Matrices:
    return taus


def _sum(taus: Matrices) -> Matrices:
    return [sum(taus[1:], taus[0])]


def _beside(taus: Matrices) -> Matrices:
    return [np.concatenate(taus, 1)]


def _folds(taus: Matrices) -> Matrices:
    return [sum(taus[1:i], taus[0]) for i in range(1, len(taus))]


def _bases(taus: Matrices, count: int) -> Matrices:
    """Stand-ins of the concatenated bases that are made orthogonal, min(m, n) columns each."""
    smaller = min(taus[0].shape)
    rng = np.random.default_rng(0)
    sides = [rng.normal(size=(side, smaller)).astype(taus[0].dtype) for side in taus[0].shape]
    return sides[:count]


def _merge_of_all(taus: Matrices) -> Matrices:
    return [*taus, *_bases(taus, 2)]


# What each formula decomposes, for one matrix and all task vectors.
DECOMPOSED: dict[str, Callable[[Matrices], Matrices]] = {
    "truncate": _each,
    "tsv_m": _merge_of_all,
    "resm": _merge_of_all,
    "iso_c": _sum,
    "iso_cts": lambda taus: [*_sum(taus), *_merge_of_all(taus)],
    "opcm": _folds,
    "knots": _beside,
    "doge": lambda taus: [*taus, *_bases(taus, 1)],
}


def write_family(folder: Path, experts: int) -> None:
    """A base and fine-tunes whose changes have falling spectra, in float32 as safetensors writes them."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    base = {name: (rng.normal(size=s) * 0.02).astype(np.float32) for name, s in SHAPES.items()}
    for index in range(experts + 1):
        tensors = dict(base)
        for name, shape in SHAPES.items():
            change = rng.normal(size=shape) * 1e-3
            if index and len(shape) == 2:
                falling = 1.0 / (1.0 + np.arange(shape[1]) / 30.0)
                tensors[name] = base[name] + (change * falling).astype(np.float32)
        place = folder / ("base" if index == 0 else f"e{index}")
        place.mkdir()
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of this process, all threads."""
    began = time.process_time()
    work()
    return time.process_time() - began


def bare(folder: Path, experts: int, method: str, dtype: type) -> float:
    """CPU seconds of the decompositions alone."""
    from safetensors.numpy import load_file

    base, *others = [
        load_file(folder / name / "model.safetensors")
        for name in ["base", *(f"e{i + 1}" for i in range(experts))]
    ]
    total = 0.0
    for name, shape in SHAPES.items():
        if len(shape) == 2:
            taus = [(other[name] - base[name]).astype(dtype) for other in others]
            for matrix in DECOMPOSED[method](taus):
                total += cpu(lambda a=matrix: np.linalg.svd(a, full_matrices=False))
    return total


def merged(folder: Path, experts: int, method: str, backend: str) -> float:
    """CPU seconds of the whole merge, from opening the inputs to the sealed folder."""
    import weightsmith

    recipe = {
        "weightsmith": 1,
        "merge_method": method,
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / f"e{i + 1}")} for i in range(experts)],
    }
    out = folder / "out"
    seconds = cpu(
        lambda: weightsmith.merge(recipe, out, threads=1, backend=backend, memory_bytes=4 << 30)
    )
    shutil.rmtree(out)
    return seconds


@one_blas_thread()
def main() -> None:
    """Measure every method and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_family(folder, options.experts)
        merged(folder, options.experts, "linear", options.backend)
        print(f"{'method':<10}{'merge':>8}{'gesdd64':>9}{'ratio':>7}{'gesdd32':>9}{'ratio':>7}")
        for method in DECOMPOSED:
            ours = merged(folder, options.experts, method, options.backend)
            wide = bare(folder, options.experts, method, np.float64)
            narrow = bare(folder, options.experts, method, np.float32)
            rows.append({"method": method, "merge_s": ours, "svd64_s": wide, "svd32_s": narrow})
            ratios = f"{wide:>9.2f}{ours / wide:>7.2f}{narrow:>9.2f}{ours / narrow:>7.2f}"
            print(f"{method:<10}{ours:>8.2f}{ratios}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
