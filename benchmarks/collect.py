"""What collecting costs: its time beside a run with hooks that do nothing, and its memory block by block.

    python benchmarks/collect.py time --layers 4            # CPU-seconds of each kind, in turns
    python benchmarks/collect.py time --layers 4 --blocks   # the same, block by block
    python benchmarks/collect.py memory                     # memory block by block, each kind alone
    python benchmarks/collect.py memory --shape llama-1b --kinds gram fisher

Weights are random, in bfloat16 files, of the shapes of SmolLM2-135M or Llama-3.2-1B; an item has `--tokens` drawn ones.
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
from threading import Thread
from typing import Any

import torch
import transformers

import weightsmith
from weightsmith.live import LiveModel, load_model, quiet_library
from weightsmith.statistics import Sample, Samples, next_tokens
from weightsmith.statistics.samples import batched

SHAPES: dict[str, dict[str, Any]] = {
    "smollm": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "num_hidden_layers": 30,
    },
    "llama-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_hidden_layers": 16,
    },
}
ALL = {
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
KINDS = ("gram", "channels", "cross", "fisher", "gradients")
ITEMS, TURNS = 4, 3
# So little that everything runs block by block, a quarter of it for activations.
LITTLE = 128 << 20


def checkpoint(folder: Path, shape: str, layers: int | None) -> Path:
    torch.manual_seed(0)
    own = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    config = transformers.LlamaConfig(**own, **ALL, dtype="bfloat16")
    with quiet_library():
        network = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        network.save_pretrained(folder)
    return folder


def samples(given: argparse.Namespace, items: int) -> Samples:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 40_000, (items, given.tokens), generator=generator)
    classes = SHAPES[given.shape]["vocab_size"]
    found = [Sample({"input_ids": row}, row[1:], classes) for row in rows]
    return Samples("random tokens", found, "", next_tokens, is_text=True)


def plain(model: LiveModel, data: Samples, *, backward: bool) -> None:
    """The same batches with hooks that do nothing: items one by one where gradients are taken."""
    model.module.requires_grad_(backward)
    with model.watching(list(model.source.tensors), lambda _: None):
        for batch in batched(data.items, 1 if backward else 8, "cpu"):
            with torch.set_grad_enabled(backward):
                logits = next_tokens(model, batch.inputs)
                if backward:
                    value = logits[0].log_softmax(-1).gather(1, batch.labels[0, :, None]).sum()
                    parameters = list(model.module.parameters())
                    torch.autograd.grad(value, parameters, allow_unused=True)
    model.module.requires_grad_(False)


def measure_time(given: argparse.Namespace) -> None:
    """CPU-seconds of further items: what reading the model and writing files takes is there for any number of them."""
    place = checkpoint(given.folder / "model", given.shape, given.layers)
    live = load_model(place)
    few, many = samples(given, ITEMS), samples(given, given.times * ITEMS)
    memory = LITTLE if given.blocks else 1 << 40
    taken: dict[str, list[float]] = {}
    for _ in range(TURNS):
        for name, call in {
            "plain forward": lambda data: plain(live, data, backward=False),
            "plain forward and backward": lambda data: plain(live, data, backward=True),
            **{k: lambda data, k=k: collect(k, place, data, memory) for k in given.kinds},
        }.items():
            seconds = []
            for data in (few, many):
                started = time.process_time()
                call(data)
                seconds.append(time.process_time() - started)
            taken.setdefault(name, []).append(seconds[1] - seconds[0])
    for name, times in taken.items():
        is_forward = name in ("gram", "channels", "cross")
        against = "plain forward" if is_forward else "plain forward and backward"
        ratios = sorted(own / other for own, other in zip(times, taken[against], strict=True))
        print(
            f"{name:28} {statistics.median(times):7.2f} CPU-s  {statistics.median(ratios):5.2f} x {against} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def collect(kind: str, place: Path, data: Samples, memory: int) -> int:
    """The bytes of the statistics."""
    options = {"estimator": "empirical"} if "fisher" in kind else {}
    if kind == "cross":
        options["other"] = place
    out = place.parent / "o.safetensors"
    made = weightsmith.collect(kind, place, data=data, out=out, memory_bytes=memory, **options)
    return sum(file.nbytes for file in made.files)


def measure_memory(given: argparse.Namespace) -> None:
    checkpoint(given.folder / "model", given.shape, given.layers)
    for kind in given.kinds:
        command = [sys.executable, __file__, "one", "--folder", given.folder, "--kinds", kind]
        command += ["--shape", given.shape, "--tokens", str(given.tokens)]
        said = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        found = json.loads(said.stdout)
        print(
            f"{kind:12} {found['peak'] / 1e6:6.0f} MB beside what importing takes and mapped sums (at most "
            f"{found['mapped'] / 1e6:.0f} MB); the statistics are {found['statistics'] / 1e6:.0f} MB"
        )


def measure_one(given: argparse.Namespace) -> None:
    """The most memory, sampled, of collecting one kind over two items."""
    # What importing the network takes is none of the statistics'.
    _ = transformers.LlamaForCausalLM
    peak, mapped, done = [0], [0], []
    before, files = memory_of("RssAnon"), memory_of("RssFile")

    def watch() -> None:
        while not done:
            peak[0] = max(peak[0], memory_of("RssAnon"))
            mapped[0] = max(mapped[0], memory_of("RssFile") - files)
            time.sleep(0.005)

    thread = Thread(target=watch)
    thread.start()
    try:
        written = collect(given.kinds[0], given.folder / "model", samples(given, 2), LITTLE)
    finally:
        done.append(True)
        thread.join()
    print(json.dumps({"peak": peak[0] - before, "mapped": mapped[0], "statistics": written}))


def memory_of(kind: str) -> int:
    """Bytes of this process that are in memory: RssAnon, what is its own; RssFile, what is of files."""
    status = Path("/proc/self/status").read_text()
    (found,) = (line.split()[1] for line in status.splitlines() if line.startswith(f"{kind}:"))
    return 1024 * int(found)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("what", choices=("time", "memory", "one"))
    options.add_argument("--shape", choices=tuple(SHAPES), default="smollm")
    options.add_argument("--layers", type=int, help="instead of the shape's own")
    options.add_argument("--kinds", nargs="+", default=[*KINDS])
    options.add_argument("--tokens", type=int, default=128)
    options.add_argument("--times", type=int, default=4, help="items of the longer of two runs")
    options.add_argument("--blocks", action="store_true")
    options.add_argument("--folder", type=Path)
    given = options.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if given.what == "one":
        measure_one(given)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        given.folder = Path(made)
        (measure_time if given.what == "time" else measure_memory)(given)


if __name__ == "__main__":
    main()
