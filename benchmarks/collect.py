"""What collecting costs: its time beside a run with hooks that do nothing, and its memory block by block.

    python benchmarks/collect.py time      # CPU-seconds of each kind of statistics, in turns
    python benchmarks/collect.py memory    # anonymous memory of SmolLM2-135M's shapes, block by block, each alone

Weights are random, of SmolLM2-135M's shapes (time: with 4 of its 30 layers), and tokens are bytes.
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

import torch
import transformers

import weightsmith
from weightsmith.live import load_model, quiet_library
from weightsmith.statistics import Sample, Samples, next_tokens

SMOLLM = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
KINDS = ("gram", "channels", "cross", "fisher", "gradients")
ITEMS, TOKENS, TURNS = 4, 128, 3


def checkpoint(folder: Path, layers: int) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMOLLM, num_hidden_layers=layers)
    with quiet_library():
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def samples(items: int) -> Samples:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 40_000, (items, TOKENS), generator=generator)
    found = [Sample({"input_ids": row}, row[1:], SMOLLM["vocab_size"]) for row in rows]
    return Samples("random tokens", found, "", next_tokens, is_text=True)


def plain(model, data: Samples, *, backward: bool) -> None:
    """The same items with hooks that do nothing, one by one where gradients are taken."""
    model.module.requires_grad_(backward)
    with model.watching(list(model.source.tensors), lambda _: None):
        batches = [[item] for item in data.items] if backward else [data.items]
        for batch in batches:
            inputs = {"input_ids": torch.stack([item.inputs["input_ids"] for item in batch])}
            with torch.set_grad_enabled(backward):
                logits = next_tokens(model, inputs)
                if backward:
                    labels = batch[0].labels[:, None]
                    value = logits[0].log_softmax(-1).gather(1, labels).sum()
                    parameters = list(model.module.parameters())
                    torch.autograd.grad(value, parameters, allow_unused=True)
    model.module.requires_grad_(False)


def measure_time(folder: Path) -> None:
    """CPU-seconds of further items: what reading the model and writing files takes is there for any number of them."""
    place = checkpoint(folder / "model", 4)
    live = load_model(place)
    few, many = samples(ITEMS), samples(4 * ITEMS)
    taken: dict[str, list[float]] = {}
    for _ in range(TURNS):
        for name, call in {
            "plain forward": lambda data: plain(live, data, backward=False),
            "plain forward and backward": lambda data: plain(live, data, backward=True),
            **{k: lambda data, k=k: collect(k, place, data, folder, 1 << 40) for k in KINDS},
            "all but cross": lambda data: collect("gram,channels,fisher,gradients", place, data, folder, 1 << 40),
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
        ratio = statistics.median(times) / statistics.median(taken[against])
        print(f"{name:28} {statistics.median(times):7.2f} CPU-s  {ratio:5.2f} x {against}")


def collect(kind: str, place: Path, data: Samples, folder: Path, memory: int) -> None:
    options = {"estimator": "empirical"} if "fisher" in kind else {}
    if kind == "cross":
        options["other"] = place
    out = folder / "o.safetensors"
    weightsmith.collect(kind, place, data=data, out=out, memory_bytes=memory, **options)


def anonymous_bytes() -> int:
    """The most anonymous memory that this process had."""
    status = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(
        int(line.split()[1]) for line in status.splitlines() if line.startswith("Anonymous:")
    )


def measure_memory(folder: Path) -> None:
    checkpoint(folder / "model", 30)
    for kind in KINDS:
        command = [sys.executable, __file__, "one", "--folder", str(folder), "--kind", kind]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(f"{kind:12} {json.loads(said)['peak'] / 1e6:6.0f} MB beside what importing takes")


def measure_one(folder: Path, kind: str) -> None:
    from threading import Thread

    # What importing the network takes is none of the statistics'.
    _ = transformers.LlamaForCausalLM
    peak, before, done = [0], anonymous_bytes(), []

    def watch() -> None:
        while not done:
            peak[0] = max(peak[0], anonymous_bytes())
            time.sleep(0.02)

    thread = Thread(target=watch)
    thread.start()
    try:
        collect(kind, folder / "model", samples(2), folder, 128 << 20)
    finally:
        done.append(True)
        thread.join()
    print(json.dumps({"peak": peak[0] - before}))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("what", choices=("time", "memory", "one"))
    options.add_argument("--folder", type=Path)
    options.add_argument("--kind")
    given = options.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if given.what == "one":
        measure_one(given.folder, given.kind)
        return
    with tempfile.TemporaryDirectory() as made:
        (measure_time if given.what == "time" else measure_memory)(Path(made))


if __name__ == "__main__":
    main()
