"""What a plan costs by the number of tensors: CPU seconds and peak memory of `weightsmith plan`.

    python benchmarks/plan_size.py                          # 10,000 and 100,000 tensors, TIES over three experts
    python benchmarks/plan_size.py --tensors 10000 --method linear --runs 5
    python benchmarks/plan_size.py --tensors 10000 --profile    # the functions that take longest

The checkpoints are those of a mixture of experts: real names, shapes and shards, and weights that are holes in sparse
files. A plan reads headers alone, so nothing notices.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import struct
import sys
import tempfile
import time
from pathlib import Path

import measure
import yaml

EXPERTS_PER_LAYER = 128
HIDDEN, INTERMEDIATE = 2048, 768
TENSORS_PER_SHARD = 1000
MODELS = ("base", "expert-1", "expert-2", "expert-3")
Tensors = list[tuple[str, tuple[int, ...]]]


def tensors_of(count: int) -> Tensors:
    """Names and shapes of at least `count` tensors, in whole layers."""
    layer: Tensors = [
        ("input_layernorm.weight", (HIDDEN,)),
        ("post_attention_layernorm.weight", (HIDDEN,)),
        ("self_attn.q_proj.weight", (2 * HIDDEN, HIDDEN)),
        ("self_attn.k_proj.weight", (512, HIDDEN)),
        ("self_attn.v_proj.weight", (512, HIDDEN)),
        ("self_attn.o_proj.weight", (HIDDEN, 2 * HIDDEN)),
        ("mlp.gate.weight", (EXPERTS_PER_LAYER, HIDDEN)),
    ]
    for expert in range(EXPERTS_PER_LAYER):
        layer += [
            (f"mlp.experts.{expert}.gate_proj.weight", (INTERMEDIATE, HIDDEN)),
            (f"mlp.experts.{expert}.up_proj.weight", (INTERMEDIATE, HIDDEN)),
            (f"mlp.experts.{expert}.down_proj.weight", (HIDDEN, INTERMEDIATE)),
        ]
    layers = -(-count // len(layer))
    body = [(f"model.layers.{i}.{name}", shape) for i in range(layers) for name, shape in layer]
    ends = [(name, (32000, HIDDEN)) for name in ("model.embed_tokens.weight", "lm_head.weight")]
    return [ends[0], *body, ("model.norm.weight", (HIDDEN,)), ends[1]]


def write_checkpoint(folder: Path, tensors: Tensors) -> None:
    """A checkpoint in bfloat16 whose weights are holes: files have their full size and take no space."""
    folder.mkdir(parents=True)
    shards = [tensors[i : i + TENSORS_PER_SHARD] for i in range(0, len(tensors), TENSORS_PER_SHARD)]
    index: dict[str, str] = {}
    for number, members in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header: dict[str, object] = {}
        end = 0
        for name, shape in members:
            start, end = end, end + 2 * _elements(shape)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
            index[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": max(int(n.split(".")[2]) for n in index if ".layers." in n) + 1,
        "num_experts": EXPERTS_PER_LAYER,
        "hidden_size": HIDDEN,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def write_recipe(folder: Path, method: str) -> Path:
    """A recipe that merges the experts of `folder` by a method with a base."""
    recipe = {
        "weightsmith": 1,
        "merge_method": method,
        "base_model": str(folder / MODELS[0]),
        "models": [{"model": str(folder / name)} for name in MODELS[1:]],
    }
    path = folder / f"{method}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def profile(recipe: Path, shown: int) -> None:
    """Print the functions in which planning spends most time."""
    from weightsmith.engine.planning.plan_making import make_plan
    from weightsmith.recipes import load

    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    make_plan(load(recipe))
    profiler.disable()
    statistics = pstats.Stats(profiler, stream=sys.stdout)
    statistics.sort_stats("tottime").print_stats(shown)
    statistics.sort_stats("cumtime").print_stats(shown)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tensors", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--method", default="ties")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    for count in given.tensors:
        with tempfile.TemporaryDirectory() as scratch:
            tensors = tensors_of(count)
            for name in MODELS:
                write_checkpoint(Path(scratch) / name, tensors)
            recipe = write_recipe(Path(scratch), given.method)
            if given.profile:
                profile(recipe, 40)
                continue
            command = [sys.executable, "-m", "weightsmith", "plan", recipe]
            log = Path(scratch) / "log.txt"
            cost = measure.middle([measure.run(command, log) for _ in range(given.runs)])
            print(
                f"{given.method}, {len(tensors)} tensors: {cost.cpu_s:.2f} s CPU, {cost.wall_s:.2f} s wall, "
                f"{cost.peak_mib:.0f} MiB"
            )


if __name__ == "__main__":
    main()
