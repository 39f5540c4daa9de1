"""What a step of learning costs: its time beside a plain forward and backward, and its memory.

    python benchmarks/learn.py [--experts 8] [--full] [--items 4] [--tokens 256] [--steps 4]

A base with random weights of the shape of SmolLM2-135M in bfloat16, and adapters of rank 8 on all its linear layers
(`--full`: whole fine-tunes), each an expert with a free weight for every tensor. Seconds are CPU time of one process on
one thread with warm files; memory is anonymous memory beyond that of importing torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import transformers
from collect import checkpoint, memory_of, samples
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.learning import learn
from weightsmith.live import LiveModel, load_model
from weightsmith.statistics import batched, next_tokens

_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_RANK = 8


def write_adapter(base: dict[str, torch.Tensor], folder: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    factors = {}
    for name, tensor in base.items():
        if name.rsplit(".", 2)[-2] in _LINEAR:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            out, into = tensor.shape
            factors[f"{stem}.lora_A.weight"] = torch.randn(_RANK, into, generator=generator)
            factors[f"{stem}.lora_B.weight"] = 1e-3 * torch.randn(out, _RANK, generator=generator)
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _RANK, "target_modules": [*_LINEAR]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))


def write_models(given: argparse.Namespace) -> dict[str, Any]:
    """The recipe over a base and its experts."""
    base = checkpoint(given.folder / "base", "smollm", None)
    weights = load_file(base / "model.safetensors")
    models = []
    for number in range(given.experts):
        folder = given.folder / str(number)
        if given.full:
            shutil.copytree(base, folder)
            generator = torch.Generator().manual_seed(number)
            own = {
                name: w + 1e-3 * torch.randn(w.shape, generator=generator).to(w.dtype)
                for name, w in weights.items()
            }
            save_file(own, folder / "model.safetensors", {"format": "pt"})
            models.append({"model": str(folder)})
        else:
            write_adapter(weights, folder, number)
            models.append({"model": f"{base}+{folder}"})
    number = {"free": [0, 1], "start": 0.3, "per": ["expert", "tensor"]}
    return {
        "weightsmith": 1,
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": models,
        "parameters": {"weight": number},
    }


def plain(model: LiveModel, given: argparse.Namespace) -> float:
    """CPU seconds of a forward and backward over a step's items."""
    batches = list(batched(samples(given, given.items).items, given.items, "cpu"))
    model.module.requires_grad_(True)
    started = time.process_time()
    for batch in batches:
        logs = next_tokens(model, batch.inputs).float().log_softmax(-1)
        (-(logs.exp() * logs).sum(-1).mean(1).sum() / given.items).backward()
    taken = time.process_time() - started
    model.module.zero_grad(set_to_none=True)
    model.module.requires_grad_(False)
    return taken


def learned(given: argparse.Namespace, recipe: dict[str, Any], steps: int) -> float:
    """CPU seconds of so many steps, with all that is around them."""
    started = time.process_time()
    out = given.folder / "learned.yaml"
    data = samples(given, given.items)
    learn(recipe, data=data, out=out, steps=steps, batch_size=given.items, threads=1)
    out.unlink()
    (given.folder / "learned.learning.json").unlink()
    return time.process_time() - started


def measure_memory(given: argparse.Namespace, recipe: dict[str, Any]) -> None:
    """The most memory, sampled, of two steps."""
    _ = transformers.LlamaForCausalLM
    peak, done, before = [0], [], memory_of("RssAnon")

    def watch() -> None:
        while not done:
            peak[0] = max(peak[0], memory_of("RssAnon"))
            time.sleep(0.005)

    thread = Thread(target=watch)
    thread.start()
    try:
        learned(given, recipe, 2)
    finally:
        done.append(True)
        thread.join()
    print((peak[0] - before) / 1e6)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--experts", type=int, default=8)
    options.add_argument("--full", action="store_true")
    options.add_argument("--items", type=int, default=4)
    options.add_argument("--tokens", type=int, default=256)
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--shape", default="smollm", help=argparse.SUPPRESS)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if given.folder is not None:
        measure_memory(given, json.loads((given.folder / "recipe.json").read_text()))
        return
    with tempfile.TemporaryDirectory() as made:
        given.folder = Path(made)
        recipe = write_models(given)
        (given.folder / "recipe.json").write_text(json.dumps(recipe))
        plan = weightsmith.plan(recipe)
        assert plan.free is not None
        network = load_model(given.folder / "base")
        size = sum(p.numel() * p.element_size() for p in network.module.parameters())
        forward = statistics.median(plain(network, given) for _ in range(3))
        del network
        few, many = (learned(given, recipe, steps) for steps in (1, 1 + given.steps))
        step = (many - few) / given.steps
        words = ["--experts", given.experts, "--items", given.items, "--tokens", given.tokens]
        command = [sys.executable, __file__, "--folder", given.folder, *words]
        said = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        share = step / forward
        print(
            f"{given.experts} experts, {len(plan.free.numbers):,} numbers, {given.items} items of {given.tokens} "
            f"tokens: step {step:.2f} CPU-s, {share:.2f} x a plain forward and backward ({forward:.2f} CPU-s); "
            f"memory {float(said.stdout):.0f} MB, model and gradient {2 * size / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    main()
