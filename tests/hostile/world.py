"""What the command lines of the corpus find beside them: small valid things of every kind that weightsmith reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from .running import Runner

HIDDEN, VOCABULARY = 16, 272
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
    "bos_token_id": 256,
    "eos_token_id": 257,
}
PERCEPTRON = {
    "model_type": "digits-mlp",
    "num_inputs": 8,
    "hidden_size": 6,
    "num_hidden_layers": 2,
    "num_labels": 3,
    "id2label": {"0": "red", "1": "green", "2": "blue"},
}
ADAPTER = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "base",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "v_proj"],
    "lora_dropout": 0.0,
    "bias": "none",
}
OK = "weightsmith: 1\nmerge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 2}}]\n"
TIES = "merge_method: ties\nbase_model: base\nmodels:\n  - {model: a, parameters: {weight: 1, density: 0.5}}\n  - {model: b, parameters: {weight: 1, density: 0.5}}\n"
FREE = """\
weightsmith: 1
merge_method: linear
models: [{model: mlp}, {model: mlp2}]
parameters: {weight: {free: [0, 1], start: 0.5, per: expert}}
"""
BUNDLE = "weightsmith: 1\nmerge_method: tall_masks\nbase_model: base\nmodels: [{model: a}, {model: b}]\nbundle: {base: stored}\n"
SUITE = "suite: small\ntasks:\n  - {name: text, kind: language_modeling, data: text.jsonl, metric: bits_per_byte, context: 16}\n"
COLOURS = "suite: colours\ntasks:\n  - {name: colour, kind: classification, data: colours.npz, metric: accuracy}\n"


def llama(seed: int) -> dict[str, np.ndarray]:
    """Eleven tensors in each of two layers... of a llama small enough for thousands of runs."""
    generator = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{at}.self_attn.k_proj.weight": (HIDDEN // 2, HIDDEN),
            f"{at}.self_attn.v_proj.weight": (HIDDEN // 2, HIDDEN),
            f"{at}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{at}.mlp.gate_proj.weight": (24, HIDDEN),
            f"{at}.mlp.up_proj.weight": (24, HIDDEN),
            f"{at}.mlp.down_proj.weight": (HIDDEN, 24),
            f"{at}.input_layernorm.weight": (HIDDEN,),
            f"{at}.post_attention_layernorm.weight": (HIDDEN,),
        }
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    base = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        values = base.normal(0, 0.1, shape) + (1 if len(shape) == 1 else 0)
        change = generator.normal(0, 0.01, shape) if seed else 0
        tensors[name] = (values + change).astype(np.float32)
    return tensors


def perceptron(seed: int) -> dict[str, np.ndarray]:
    """A network of the digits family."""
    generator = np.random.default_rng([7, seed])
    shapes = {
        "model.embed.weight": (6, 8),
        "model.embed.bias": (6,),
        "model.layers.0.weight": (6, 6),
        "model.layers.0.bias": (6,),
        "model.layers.1.weight": (6, 6),
        "model.layers.1.bias": (6,),
        "classifier.weight": (3, 6),
        "classifier.bias": (3,),
    }
    return {
        name: generator.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()
    }


def adapter_tensors(seed: int) -> dict[str, np.ndarray]:
    """Factors of rank 2 for two modules of each layer."""
    generator = np.random.default_rng([9, seed])
    found = {}
    for layer in range(2):
        for module, rows in (("q_proj", HIDDEN), ("v_proj", HIDDEN // 2)):
            at = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            found[f"{at}.lora_A.weight"] = generator.normal(0, 0.1, (2, HIDDEN)).astype(np.float32)
            found[f"{at}.lora_B.weight"] = generator.normal(0, 0.1, (rows, 2)).astype(np.float32)
    return found


def tokenizer(extra: int) -> dict[str, Any]:
    """A tokenizer.json of whole words with byte tokens, `extra` words more than the other's."""
    vocab = {f"<0x{i:02X}>": i for i in range(256)}
    vocab |= {"<s>": 256, "</s>": 257, "<unk>": 258}
    vocab |= {f"word{i}": 259 + i for i in range(8 + extra)}
    added = [
        {
            "id": vocab[t],
            "content": t,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for t in ("<s>", "</s>", "<unk>")
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }


def save(
    folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any], name: str = "model"
) -> None:
    """A folder of weights and configuration."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
    file = "adapter_config.json" if name == "adapter_model" else "config.json"
    (folder / file).write_text(json.dumps(config))


def build(root: Path, runner: Runner) -> None:
    """Fill a folder; what weightsmith writes is written by weightsmith."""
    for seed, name in enumerate(("base", "a", "b")):
        save(root / name, llama(seed), CONFIG)
    for name, extra in (("words", 0), ("more", 4)):
        save(root / name, llama(3 + extra), CONFIG)
        (root / name / "tokenizer.json").write_text(json.dumps(tokenizer(extra)))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        }
        (root / name / "tokenizer_config.json").write_text(json.dumps(settings))
    for seed, name in enumerate(("mlp", "mlp2")):
        save(root / name, perceptron(seed), PERCEPTRON)
    for seed, name in enumerate(("lora", "lora2")):
        save(root / name, adapter_tensors(seed), ADAPTER, "adapter_model")
    recipes = {
        "ok.yaml": OK,
        "ties.yaml": TIES,
        "bundle.yaml": BUNDLE,
        "free.yaml": FREE,
        "small.yaml": SUITE,
        "colours.yaml": COLOURS,
    }
    for name, text in recipes.items():
        (root / name).write_text(text)
    (root / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"a small text {i}"}) + "\n" for i in range(4))
    )
    generator = np.random.default_rng(4)
    np.savez(
        root / "colours.npz",
        inputs=generator.normal(size=(12, 8)).astype(np.float32),
        labels=np.arange(12) % 3,
    )
    (root / "garbage").write_bytes(generator.bytes(4096))
    (root / "empty").write_bytes(b"")
    (root / "folder").mkdir()
    (root / "library").mkdir()
    (root / "loop").symlink_to("loop")
    (root / "nowhere").symlink_to("missing")
    os.mkfifo(root / "pipe")
    for argv in MADE:
        answer = runner.run(tuple(argv), root)
        assert answer.code == 0, (argv, answer)


MADE = (
    "merge ok.yaml merged --quiet".split(),
    "delta pack a package --base base --quiet".split(),
    "delta pack a library/one --base base --quiet".split(),
    "bundle create bundle.yaml bundle --quiet".split(),
    "adapter basis create lora lora2 basis.safetensors".split(),
    "evaluate mlp --suite colours.yaml --save one.json --quiet".split(),
    "evaluate mlp2 --suite colours.yaml --save two.json --quiet".split(),
)

# A valid use of every command, from which others are made by changing one thing; {case} is an empty folder.
CONTROLS: dict[str, str] = {
    "plan": "plan ok.yaml",
    "merge": "merge ok.yaml {case}/out --quiet",
    "untie": "untie words {case}/out --quiet",
    "verify": "verify merged",
    "replay": "replay merged {case}/out --quiet",
    "rollback": "rollback merged {case}/out --without a --quiet",
    "inspect": "inspect base",
    "diff": "diff a b",
    "seams": "seams ok.yaml",
    "methods": "methods ties",
    "adapter basis create": "adapter basis create lora lora2 {case}/basis.safetensors",
    "adapter basis extract": "adapter basis extract basis.safetensors lora {case}/out",
    "adapter basis show": "adapter basis show basis.safetensors",
    "adapter combine": "adapter combine lora lora2 --out {case}/out --quiet",
    "adapter convert": "adapter convert lora {case}/out.safetensors --to kohya",
    "adapter extract": "adapter extract a base {case}/out --rank 2 --quiet",
    "adapter inspect": "adapter inspect lora",
    "adapter merge": "adapter merge base lora {case}/out --quiet",
    "adapter resize": "adapter resize lora {case}/out --rank 1 --quiet",
    "bundle create": "bundle create bundle.yaml {case}/out --quiet",
    "bundle extract": "bundle extract bundle a {case}/out --quiet",
    "bundle list": "bundle list bundle",
    "delta dedupe": "delta dedupe {case}",
    "delta gc": "delta gc {case}",
    "delta list": "delta list library",
    "delta materialise": "delta materialise library one {case}/out --quiet",
    "delta pack": "delta pack a {case}/out --base base --quiet",
    "delta show": "delta show package",
    "delta unpack": "delta unpack package {case}/out --quiet",
    "transplant": "transplant words more {case}/out --quiet",
    "testbed build": "testbed build nothing",
    "testbed list": "testbed list",
    "testbed path": "testbed path vision-tiny",
    "evaluate": "evaluate mlp --suite colours.yaml --quiet",
    "collect": "collect fisher mlp --data colours.yaml --out {case}/out.safetensors --quiet",
    "learn": "learn free.yaml --data colours.yaml --steps 1 --out {case}/out.yaml --quiet",
    "compare": "compare one.json two.json",
    "league": "league --family nothing --methods linear",
    "report": "report ok.yaml -o {case}/out.html",
}
# What a control ends with where that is not 0: there is no such family, none is built, and the models differ.
ENDS = {"diff": 1, "testbed path": 1, "testbed build": 2, "league": 2}
