"""On a GPU a merge gives what it gives on the CPU: bit for bit where no sum over a tensor decides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
SHAPES = {
    "model.layers.0.mlp.up_proj.weight": (1500, 512),
    "model.norm.weight": (512,),
    "scale": (),
}
# Their numbers come from additions, multiplications, comparisons and the counter-based generator alone.
EXACT = ["linear", "task_arithmetic", "ties", "dare_ties", "breadcrumbs", "della"]
SUMMED = ["slerp", "model_stock", "karcher", "sce", "truncate"]


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A base and three experts as single files."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    save_file({n: t.bfloat16() for n, t in base.items()}, tmp_path / "base.safetensors")
    for number in range(3):
        moved = {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        save_file({n: t.bfloat16() for n, t in moved.items()}, tmp_path / f"e{number}.safetensors")
    return tmp_path


def merged(family: Path, method: str, device: str) -> dict[str, torch.Tensor]:
    """The tensors of a merge computed on a device."""
    count = 1 if method == "slerp" else 3
    recipe: dict[str, object] = {
        "weightsmith": 1,
        "merge_method": method,
        "models": [{"model": str(family / f"e{i}.safetensors")} for i in range(count)],
        "parameters": {"t": 0.3}
        if method == "slerp"
        else {"rank": 8}
        if method == "truncate"
        else {},
        "dtype": "bfloat16",
    }
    if method not in ("linear", "karcher"):
        recipe["base_model"] = str(family / "base.safetensors")
    out = family / f"{method}-{device}"
    weightsmith.merge(recipe, out, device=device, backend="torch")
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("method", EXACT)
def test_elementwise_results_are_the_same_bits(family: Path, method: str) -> None:
    """Nothing is fused on the GPU either."""
    on_cpu, on_gpu = merged(family, method, "cpu"), merged(family, method, "cuda")
    assert all(torch.equal(on_cpu[name], on_gpu[name]) for name in on_cpu)


@pytest.mark.parametrize("method", SUMMED)
def test_results_with_sums_agree_to_a_unit_in_the_last_place(family: Path, method: str) -> None:
    """Sums run in another order there."""
    on_cpu, on_gpu = merged(family, method, "cpu"), merged(family, method, "cuda")
    for name in on_cpu:
        torch.testing.assert_close(on_gpu[name], on_cpu[name], rtol=2**-7, atol=1e-6)


def test_the_same_device_gives_the_same_bits_twice(family: Path) -> None:
    """Also where sums decide."""
    first = merged(family, "model_stock", "cuda")
    (family / "model_stock-cuda").rename(family / "first")
    second = merged(family, "model_stock", "cuda")
    assert all(torch.equal(first[name], second[name]) for name in first)
