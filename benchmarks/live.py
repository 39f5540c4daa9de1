"""What models that run cost: memory block by block, time of swaps, and of a league.

    python benchmarks/live.py blocks [--dtype bfloat16] [--stored float32] [--backward] [--layers 30]
    python benchmarks/live.py swap [--stored float32]
    python benchmarks/live.py league [--against OTHER_CHECKOUT/src] [--rounds 3]

`blocks` runs a random model of the shape of SmolLM2-135M block by block and tells how far its process went beyond the
memory that it had after importing torch and transformers. `swap` compares exchanging weights in one network with
loading them anew, in CPU time. `league` measures a league on a random family of ViTs in processes of their own, in
turns with another checkout of this project if one is named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SMOLLM = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
METHODS = ("linear", "task_arithmetic", "ties")
BATCHES, TOKENS = 16, 256


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument(
        "what", choices=["blocks", "swap", "league", "_write", "_blocks", "_league"]
    )
    options.add_argument("--dtype", default="float32")
    options.add_argument("--stored", default="bfloat16")
    options.add_argument("--backward", action="store_true")
    options.add_argument("--layers", type=int, default=30)
    options.add_argument("--against", type=Path)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--place", type=Path)
    given = options.parse_args()
    steps = {
        "blocks": measure_blocks,
        "swap": measure_swaps,
        "league": measure_leagues,
        "_write": write_llama,
        "_blocks": run_blocks,
        "_league": run_league,
    }
    print(json.dumps(steps[given.what](given)))


def in_a_process(arguments: list[str], source: Path | None = None) -> Any:
    """What this script prints when it is run by itself, with the package of another checkout if one is named."""
    own = os.environ.get("PYTHONPATH", "") if source is None else str(source)
    ended = subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": own, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    return json.loads(ended.stdout.splitlines()[-1])


def write_llama(given: argparse.Namespace) -> dict[str, Any]:
    """A random checkpoint of the shape of SmolLM2-135M."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from weightsmith.live import quiet_library

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMOLLM, num_hidden_layers=given.layers))
    with quiet_library():
        model.to(getattr(torch, given.stored)).save_pretrained(given.place)
    return {}


def measure_blocks(given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as made:
        common = ["--place", made, "--layers", str(given.layers), "--stored", given.stored]
        in_a_process(["_write", *common])
        more = ["--backward"] if given.backward else []
        found = in_a_process(["_blocks", *common, "--dtype", given.dtype, *more])
    return {"stored": given.stored, "computed": given.dtype, "backward": given.backward, **found}


def run_blocks(given: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers

    _ = transformers.LlamaForCausalLM
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    from weightsmith.live import BlockGradients, BlockRun, load_model

    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 49152, (BATCHES, 1, TOKENS), generator=generator)
    live = load_model(given.place, dtype=given.dtype, filled=False)
    begun = time.process_time()

    def ask(row: torch.Tensor) -> torch.Tensor:
        return live.loss({"input_ids": row}, row)

    norms = 0
    with BlockRun(live, ask, list(rows), memory_bytes=2**25, with_gradients=given.backward) as run:
        run.run()
        losses = [loss.item() for loss in run.outputs()]
        if given.backward:
            for part in BlockGradients(run).parts():
                norms += sum(len(gradients) for _, gradients in part.batches())
    found = {
        "loss": statistics.mean(losses),
        "gradients": norms,
        "spilled_mb": round(run.store.spilled_bytes / 1e6, 1),
        "imports_mb": round(before / 1e6),
        "beyond_imports_mb": round((status("VmHWM") - before) / 1e6),
        "cpu_s": round(time.process_time() - begun, 1),
    }
    live.fill()
    live.module.requires_grad_(given.backward)
    begun, whole = time.process_time(), []
    for row in rows:
        with torch.set_grad_enabled(given.backward):
            loss = ask(row)
        if given.backward:
            live.module.zero_grad()
            loss.backward()
        whole.append(loss.item())
    return {
        **found,
        "whole_cpu_s": round(time.process_time() - begun, 1),
        "same_losses": whole == losses,
    }


def status(key: str) -> int:
    """A size of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def measure_swaps(given: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of both ways, in turns."""
    from weightsmith.live import load_model

    loads, swaps = [], []
    with tempfile.TemporaryDirectory() as made:
        common = ["--layers", str(given.layers), "--stored", given.stored, "--place", made]
        in_a_process(["_write", *common])
        live = load_model(made)
        for _ in range(given.rounds):
            begun = time.process_time()
            load_model(made)
            loads.append(time.process_time() - begun)
            begun = time.process_time()
            live.swap(made)
            swaps.append(time.process_time() - begun)
    return {
        "stored": given.stored,
        "load_cpu_s": round(statistics.median(loads), 3),
        "swap_cpu_s": round(statistics.median(swaps), 3),
    }


def measure_leagues(given: argparse.Namespace) -> dict[str, Any]:
    sources = {"this": None, **({"against": given.against} if given.against else {})}
    spent: dict[str, list[float]] = {name: [] for name in sources}
    rows = {}
    with tempfile.TemporaryDirectory() as made:
        write_family(Path(made))
        for _ in range(given.rounds):
            for name, source in sources.items():
                found = in_a_process(["_league", "--place", made], source)
                spent[name].append(found["cpu_s"])
                rows[name] = found
    return {
        "cpu_s": {name: round(statistics.median(own), 2) for name, own in spent.items()},
        "evaluations": rows["this"]["evaluations"],
        "same_scores": len({json.dumps(own["scores"]) for own in rows.values()}) == 1,
    }


def run_league(given: argparse.Namespace) -> dict[str, Any]:
    """The second league of a process, whose libraries are loaded."""
    import weightsmith

    place = given.place
    for _ in range(2):
        begun = time.process_time()
        with tempfile.TemporaryDirectory() as kept:
            table = weightsmith.league(
                [place / f"expert{i}" for i in range(3)],
                place / "suite.yaml",
                base=place / "base",
                methods=METHODS,
                out=kept,
                with_cost=False,
            )
            measured = len(list(Path(kept).glob("entries/*.json")))
    scores = [row.to_mapping() for row in table.rows]
    return {"cpu_s": time.process_time() - begun, "evaluations": measured, "scores": scores}


def write_family(folder: Path) -> None:
    """A random base, three experts near it, and images for each expert; of the size of the test-bed `vision`."""
    import numpy as np
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    from weightsmith.live import quiet_library

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=24,
        patch_size=6,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        num_labels=4,
    )
    model = ViTForImageClassification(config)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for number in range(4):
        state = {n: t + 0.02 * number * torch.randn(t.shape) for n, t in base.items()}
        model.load_state_dict(state)
        with quiet_library():
            model.save_pretrained(folder / ("base" if number == 0 else f"expert{number - 1}"))
    generator, tasks = np.random.default_rng(0), []
    for number in range(3):
        name = f"expert{number}"
        pixels = generator.standard_normal((100, 1, 24, 24)).astype(np.float32)
        np.savez(folder / f"{name}.npz", inputs=pixels, labels=generator.integers(4, size=100))
        tasks.append({"name": name, "kind": "classification", "data": f"{name}.npz"})
    (folder / "suite.yaml").write_text(json.dumps({"suite": "random", "tasks": tasks}))


if __name__ == "__main__":
    main()
