"""What a tokenizer section costs: the same merge with and without one, and mergekit with it.

    python benchmarks/vocabularies.py                              # 0.4 B parameters, 128k tokens
    python benchmarks/vocabularies.py --hidden 2048 --layers 16    # about 1.2 B

Two Llama-shaped checkpoints in bfloat16 with byte-level BPE tokenizers of `--tokens` tokens. The second has the first's
tokens, of which 2,000 sit in other places and 1,000 are others. The merge without a section cannot be had for such a
pair, so its second model has the first one's tokenizer: same tensors, same sizes. Prints a line of Markdown for each
case, with the ratio of CPU seconds to the merge without a section.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from statistics import median

import cases
import numpy as np
from make_checkpoints import WORK
from measure import Cost, middle, run

_MOVED, _OTHER = 2000, 1000
_TILE = 1 << 20


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in a byte-level vocabulary."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [chr(0x100 + i) for i in range(256 - len(printing))]
    return [*map(chr, sorted(printing)), *others]


def tokenizer_document(tokens: int, seed: int) -> dict[str, object]:
    """A tokenizer.json whose tokens are merged from pairs of earlier ones; `seed` decides the last 1,000."""
    shared = np.random.default_rng(0)
    own = np.random.default_rng(seed)
    texts = byte_alphabet()
    known = set(texts)
    merges: list[list[str]] = []
    while len(texts) < tokens - 1:
        draw = shared if len(texts) < tokens - 1 - _OTHER else own
        first, second = draw.integers(0, min(len(texts), 4000), 2).tolist()
        text = texts[first] + texts[second]
        if text not in known:
            known.add(text)
            merges.append([texts[first], texts[second]])
            texts.append(text)
    order = np.arange(len(texts))
    if seed:
        moved = 300 + own.choice(len(texts) - 300, _MOVED, replace=False)
        order[moved] = own.permutation(moved)
    vocabulary = {texts[i]: int(order[i]) for i in range(len(texts))}
    end = {
        "id": len(texts),
        "content": "<|end|>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def make_checkpoint(folder: Path, tokens: int, hidden: int, layers: int, seed: int) -> None:
    """Write config and weights; numbers are random 16-bit patterns of the size of real weights."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    middle_size = 3 * hidden
    shapes = {"model.embed_tokens.weight": (tokens, hidden), "model.norm.weight": (hidden,)}
    for i in range(layers):
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (hidden // 4, hidden),
            "self_attn.v_proj": (hidden // 4, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (middle_size, hidden),
            "mlp.up_proj": (middle_size, hidden),
            "mlp.down_proj": (hidden, middle_size),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    shapes["lm_head.weight"] = (tokens, hidden)
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    draw = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, at // 2, _TILE):
            bits = draw.integers(0, 1 << 16, min(_TILE, at // 2 - start), np.uint16)
            # Sign and mantissa at random, exponents of 2^-8 to 2^-5.
            file.write(((bits & 0x81FF) | 0x3C00).astype("<u2").tobytes())
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokens,
        "hidden_size": hidden,
        "intermediate_size": middle_size,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 256,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": tokens - 1,
    }
    (folder / "config.json").write_text(json.dumps(config))


def write_tokenizer(folder: Path, tokens: int, seed: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    document = tokenizer_document(tokens, seed)
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False))
    flags = {
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
        "normalized": False,
        "special": True,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "added_tokens_decoder": {str(tokens - 1): {"content": "<|end|>", **flags}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make_family(work: Path, tokens: int, hidden: int, layers: int) -> None:
    """`a`; `b` with a tokenizer of its own; `c`, whose weights are b's and tokenizer is a's."""
    for name, weights, tokenizer in (("a", 1, 0), ("b", 2, 1), ("c", 2, 0)):
        folder = work / name
        if name == "c":
            folder.mkdir(exist_ok=True)
            for file in ("model.safetensors", "config.json"):
                if not (folder / file).exists():
                    (folder / file).hardlink_to(work / "b" / file)
        else:
            make_checkpoint(folder, tokens, hidden, layers, weights)
        if not (folder / "tokenizer.json").exists():
            write_tokenizer(folder, tokens, tokenizer)


def recipe(work: Path, other: str, source: str | None) -> str:
    """The mean of two models, in words that both tools read."""
    models = "".join(
        f"- model: {work / name}\n  parameters: {{weight: 0.5}}\n" for name in ("a", other)
    )
    section = "" if source is None else f"tokenizer: {{source: {source}}}\n"
    return f"merge_method: linear\nbase_model: {work / 'a'}\nmodels:\n{models}dtype: bfloat16\n{section}"


CASES = {
    "without": ("c", None),
    "identical": ("c", "union"),
    "base": ("b", "base"),
    "union": ("b", "union"),
}


def main() -> None:
    """Make the checkpoints, run all cases in turn, print the table."""
    parser = argparse.ArgumentParser(
        description="Time a merge with and without a tokenizer section."
    )
    parser.add_argument("--tokens", type=int, default=128_000)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--no-peer", action="store_true", help="leave mergekit out, which takes minutes"
    )
    chosen = parser.parse_args()
    work = WORK / f"vocabularies-{chosen.tokens}-{chosen.hidden}-{chosen.layers}"
    work.mkdir(parents=True, exist_ok=True)
    make_family(work, chosen.tokens, chosen.hidden, chosen.layers)
    costs: dict[str, list[Cost]] = {name: [] for name in CASES}
    for number in range(chosen.runs):
        for name in CASES:
            costs[name].append(timed(work, name, peer=False))
            print(f"run {number + 1}: {name} {costs[name][-1].cpu_s:.2f} s CPU", file=sys.stderr)
    theirs = (
        {}
        if chosen.no_peer
        else {name: timed(work, name, peer=True) for name in ("without", "union")}
    )
    report(costs, theirs)


def timed(work: Path, name: str, *, peer: bool) -> Cost:
    """One run of one case; what it wrote is removed."""
    file, out = work / f"{name}.yaml", work / "out"
    file.write_text(recipe(work, *CASES[name]))
    shutil.rmtree(out, ignore_errors=True)
    if peer:
        command = [cases.PARITY / "mergekit-yaml", file, out, "--quiet"]
        cost = run(command, work / "log", cases.mergekit_environment())
    else:
        command = [Path(sys.executable).with_name("weightsmith"), "merge", file, out, "--quiet"]
        cost = run(command, work / "log")
    shutil.rmtree(out)
    return cost


def report(costs: dict[str, list[Cost]], theirs: dict[str, Cost]) -> None:
    """A Markdown table: medians, and the median of the ratios of each round to its merge without a section."""
    print("| case | wall | CPU | memory | CPU / without | mergekit | mergekit / ours |")
    print("|---|---|---|---|---|---|---|")
    for name, runs in costs.items():
        own = middle(runs)
        pairs = zip(runs, costs["without"], strict=True)
        ratio = median(mine.cpu_s / plain.cpu_s for mine, plain in pairs)
        peer = theirs.get(name)
        other = ("-", "-")
        if peer is not None:
            other = f"{peer.wall_s:.1f} s, {peer.cpu_s:.1f} CPU", f"{peer.wall_s / own.wall_s:.1f}x"
        print(
            f"| {name} | {own.wall_s:.2f} s | {own.cpu_s:.2f} s | {own.anonymous_mib:.0f} + {own.file_mib:.0f} MiB "
            f"| {ratio:.2f} | {other[0]} | {other[1]} |"
        )


if __name__ == "__main__":
    main()
