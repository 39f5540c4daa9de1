"""Make Llama-shaped synthetic checkpoints: a base and fine-tunes of it, as Hugging Face folders in bfloat16.

    python benchmarks/make_checkpoints.py small            # benchmarks/work/small/{base,expert-1..4}

The base is Gaussian with the spread of real initialisations. A fine-tune is the base plus Laplace noise on 30 % of its
entries, rounded to bfloat16: as in a light fine-tuning, most entries do not move, and those that do land on the grid.
Entries are drawn 16 random bits at a time through tables of quantiles, tile by tile, so that making the 0.35 B family
takes seconds and little memory. The same name always gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WORK = Path(__file__).parent / "work"
FINE_TUNES = 4
CHANGED_SHARE = 0.3
NOISE_SCALE = 1.5e-3
TILE = 1 << 20


@dataclass(frozen=True, slots=True)
class Size:
    """The shape of one family of checkpoints."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    shards: int
    vocabulary: int = 32000

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes in the order of the model."""
        h, m, kv = self.hidden, self.intermediate, self.hidden // self.heads * self.key_value_heads
        layer = {
            "input_layernorm.weight": (h,),
            "mlp.down_proj.weight": (h, m),
            "mlp.gate_proj.weight": (m, h),
            "mlp.up_proj.weight": (m, h),
            "post_attention_layernorm.weight": (h,),
            "self_attn.k_proj.weight": (kv, h),
            "self_attn.o_proj.weight": (h, h),
            "self_attn.q_proj.weight": (h, h),
            "self_attn.v_proj.weight": (kv, h),
        }
        body = [
            (f"model.layers.{i}.{rest}", shape)
            for i in range(self.layers)
            for rest, shape in layer.items()
        ]
        head = [("model.embed_tokens.weight", (self.vocabulary, h))]
        return [*head, *body, ("model.norm.weight", (h,)), ("lm_head.weight", (self.vocabulary, h))]

    def config(self) -> dict[str, object]:
        """A `LlamaConfig` of this shape."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }


SIZES = {
    "tiny": Size(hidden=512, intermediate=896, layers=8, heads=8, key_value_heads=4, shards=2),
    "small": Size(hidden=1024, intermediate=3328, layers=22, heads=16, key_value_heads=4, shards=3),
    "1b": Size(hidden=2048, intermediate=5632, layers=22, heads=32, key_value_heads=4, shards=3),
}


def make_family(name: str, folder: Path = WORK, fine_tunes: int = FINE_TUNES) -> list[Path]:
    """The folders of a family, base first; those that are complete already are kept."""
    size = SIZES[name]
    names = ["base", *(f"expert-{i}" for i in range(1, fine_tunes + 1))]
    paths = [folder / name / n for n in names]
    for expert, path in enumerate(paths):
        if not (path / "config.json").exists():
            make_checkpoint(path, size.tensors(), size.config(), size.shards, expert)
    return paths


def make_checkpoint(
    path: Path,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    config: dict[str, object],
    shards: int,
    expert: int,
) -> None:
    """Write one checkpoint; `expert` 0 is the base. The configuration comes last and marks the folder as complete."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    numbered = [(number, name, shape) for number, (name, shape) in enumerate(tensors)]
    index: dict[str, str] = {}
    parts = split(numbered, shards)
    for part, members in enumerate(parts, start=1):
        file = (
            f"model-{part:05d}-of-{len(parts):05d}.safetensors"
            if len(parts) > 1
            else "model.safetensors"
        )
        write_shard(path / file, members, expert)
        index.update({name: file for _, name, _ in members})
    if len(parts) > 1:
        total = sum(2 * count_elements(shape) for _, shape in tensors)
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
        (path / "model.safetensors.index.json").write_text(text)
    (path / "config.json").write_text(json.dumps(config, indent=1))


Numbered = tuple[int, str, tuple[int, ...]]


def split(tensors: Sequence[Numbered], shards: int) -> list[list[Numbered]]:
    """Consecutive parts of about equal bytes."""
    total = sum(count_elements(shape) for _, _, shape in tensors)
    parts: list[list[Numbered]] = [[]]
    filled = 0
    for tensor in tensors:
        if filled >= total * len(parts) / shards:
            parts.append([])
        parts[-1].append(tensor)
        filled += count_elements(tensor[2])
    return parts


def write_shard(path: Path, tensors: Sequence[Numbered], expert: int) -> None:
    """One safetensors file, written tile by tile."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for _, name, shape in tensors:
        nbytes = 2 * count_elements(shape)
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for number, name, shape in tensors:
            for tile in tensor_tiles(number, name, count_elements(shape), expert):
                file.write(tile.data)


def tensor_tiles(number: int, name: str, elements: int, expert: int) -> Iterator[np.ndarray]:
    """The bfloat16 bits of a tensor, tile by tile."""
    table = NORM if name.endswith("norm.weight") else GAUSSIAN
    base = np.random.SFC64([number, 0])
    noise = np.random.SFC64([number, expert])
    for start in range(0, elements, TILE):
        count = min(TILE, elements - start)
        values = table[draw(base, count)]
        if expert:
            values = rounded(values).astype(np.uint32)
            values <<= 16
            values = values.view(np.float32)
            values += NOISE[draw(noise, count)]
        yield rounded(values)


def draw(generator: np.random.SFC64, count: int) -> np.ndarray:
    """`count` random 16-bit words."""
    words = generator.random_raw(-(-count // 4))
    return np.asarray(words).view(np.uint16)[:count]


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 values as bfloat16 bits, to nearest even."""
    bits = values.view(np.uint32)
    odd = bits >> 16
    odd &= 1
    odd += 0x7FFF
    odd += bits
    odd >>= 16
    return odd.astype(np.uint16)


def count_elements(shape: Sequence[int]) -> int:
    """Product of the lengths."""
    count = 1
    for length in shape:
        count *= length
    return count


def _gaussian_quantiles(spread: float) -> np.ndarray:
    # 2^16 equally likely values, from a fixed sample: exact quantiles would need scipy.
    sample = np.random.Generator(np.random.SFC64(7)).standard_normal(1 << 16)
    return (spread * sample).astype(np.float32)


def _noise_quantiles() -> np.ndarray:
    share = (np.arange(1 << 16) + 0.5) / (1 << 16)
    inside = np.clip((share - (1 - CHANGED_SHARE)) / CHANGED_SHARE, 1e-9, 1 - 1e-9) - 0.5
    laplace = -NOISE_SCALE * np.sign(inside) * np.log1p(-2 * np.abs(inside))
    return np.where(share > 1 - CHANGED_SHARE, laplace, 0.0).astype(np.float32)


GAUSSIAN = _gaussian_quantiles(0.02)
NORM = (1 + _gaussian_quantiles(0.05)).astype(np.float32)
NOISE = _noise_quantiles()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make synthetic checkpoints for the benchmark.")
    parser.add_argument("size", choices=sorted(SIZES))
    parser.add_argument("--fine-tunes", type=int, default=FINE_TUNES)
    parser.add_argument("--folder", type=Path, default=WORK)
    chosen = parser.parse_args()
    began = time.perf_counter()
    for path in make_family(chosen.size, chosen.folder, chosen.fine_tunes):
        print(path)
    print(f"{time.perf_counter() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
