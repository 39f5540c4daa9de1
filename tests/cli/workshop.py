"""A folder with one of everything that commands work on, made once, and a command line for every command."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from weightsmith.cli.main import execute
from weightsmith.evaluation.scores import Evaluation, ItemScores, TaskScore

SHAPES = {
    "model.embed_tokens.weight": (32, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.1.mlp.up_proj.weight": (12, 8),
    "model.layers.1.self_attn.q_proj.weight": (8, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (32, 8),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "vocab_size": 32,
    "tie_word_embeddings": False,
}
TIES = """\
weightsmith: 1
merge_method: ties
base_model: base
models:
  - {model: one, parameters: {weight: 0.5}}
  - {model: two, parameters: {weight: 0.25}}
parameters: {density: 0.5}
"""
FREE = "{lambda: {free: [0, 1.5], start: 0.3, per: layer}}"
EMR = """\
weightsmith: 1
merge_method: emr
base_model: base
models: [{model: one}, {model: two}]
"""
STACKED = """\
weightsmith: 1
merge_method: passthrough
slices:
  - sources: [{model: one, layer_range: [0, 2]}]
  - sources: [{model: two, layer_range: [0, 2]}]
"""
LAYER = "model.layers.1"
TENSOR = "model.norm.weight"


@dataclass(frozen=True)
class Line:
    """A command line; `names` are what a terminal of any width must show whole, `again` options of a second line."""

    command: str
    arguments: str
    names: tuple[str, ...] = ()
    again: str = ""


# What is written has a name of its own for each run, so that none is in the way of the next.
LINES = (
    Line("plan", "ties.yaml", ("base", "one", "two", "ties", "memory"), "free.yaml"),
    Line("plan --explain", "ties.yaml --explain model.norm.weight", ("density",)),
    Line("merge", "ties.yaml OUT --quiet", ("OUT",)),
    Line("verify", "merged --recompute 1", ("merged",)),
    Line("replay", "merged OUT --quiet", ("OUT",)),
    Line("rollback", "merged OUT --without two --quiet", ("OUT",)),
    Line("inspect", "one", ("layers", "mlp.up"), "compiled+one-lora --tensors"),
    Line("diff", "one two --base base", ("outside layers", LAYER), "one two"),
    Line("seams", "stacked.yaml", (LAYER, "one: 1", "two: 0")),
    Line("methods", "", ("task_arithmetic", "localize_and_stitch", "sparsify")),
    Line("methods NAME", "ties", ("density", "trim_scope", "mergekit"), "clip"),
    Line("adapter extract", "one base OUT --rank 2 --quiet", ("lm_head.weight", LAYER)),
    Line("adapter combine", "one-lora two-lora --out OUT --quiet --base base", (LAYER,)),
    Line("adapter resize", "one-lora OUT --rank 1 --base base --quiet", (LAYER,)),
    Line("adapter merge", "base one-lora OUT --quiet", ("OUT",)),
    Line("adapter merge --recipe", "base one-lora OUT --recipe", ("one-lora",)),
    Line("adapter convert", "one-lora OUT.safetensors --to kohya --base base", ("kohya",)),
    Line("adapter inspect", "one-lora --base base", (TENSOR, "lora")),
    Line("adapter basis create", "one-lora two-lora OUT.safetensors --base base", ("ratio",)),
    Line("adapter basis show", "basis.safetensors", ("one-lora", "two-lora")),
    Line("adapter basis extract", "basis.safetensors one-lora OUT --base base", ("OUT",)),
    Line("bundle create", "emr.yaml OUT --quiet", ("OUT",)),
    Line("bundle list", "library/tasks", ("one", "two", "emr")),
    Line("bundle extract", "library/tasks two OUT --quiet", ("OUT",)),
    Line("delta pack", "one --base base OUT --quiet", ("lossless", "OUT")),
    Line("delta show", "library/package-of-one --tensors", (TENSOR, "lossless")),
    Line("delta list", "library", ("package-of-one", "tasks#one", "tasks#two")),
    Line("delta dedupe", "empty", ("shared",)),
    Line("delta gc", "empty --dry-run", ("would be freed",)),
    Line("delta unpack", "library/package-of-one OUT --quiet", ("OUT",)),
    Line("delta materialise", "library package-of-one OUT --quiet", ("OUT",)),
    Line("testbed list", "", ("vision-tiny", "language-tiny", "smollm")),
    Line("testbed path", "vision-tiny", ("vision-tiny",)),
    Line(
        "compare",
        "old.json new.json --parents old.json --base base.json --gate negative_flips<0.5",
        ("greek", "negative_flips<0.5"),
        "old.json new.json",
    ),
)


def build(root: Path) -> None:
    """Fill the working folder `root`."""
    generator = np.random.default_rng(3)
    base = {n: generator.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
    _save(root / "base", base)
    for name in ("one", "two"):
        changed = {n: 0.1 * generator.standard_normal(a.shape) for n, a in base.items()}
        _save(root / name, {n: a + changed[n].astype(np.float32) for n, a in base.items()})
    _save(root / "compiled", {f"_orig_mod.{n}": a for n, a in base.items()})
    (root / "ties.yaml").write_text(TIES)
    (root / "free.yaml").write_text(TIES.replace("{density: 0.5}", FREE))
    (root / "emr.yaml").write_text(EMR)
    (root / "stacked.yaml").write_text(STACKED)
    (root / "library").mkdir()
    (root / "empty").mkdir()
    right = np.arange(100) < 80
    for name, number in (("old", 80), ("new", 79), ("base", 40)):
        _save_scores(root / f"{name}.json", name, np.arange(100) < number, right)
    for line in (
        "merge ties.yaml merged --quiet",
        "adapter extract one base one-lora --rank 2 --quiet",
        "adapter extract two base two-lora --rank 2 --quiet",
        "adapter basis create one-lora two-lora basis.safetensors --base base",
        "bundle create emr.yaml library/tasks --quiet",
        "delta pack one --base base library/package-of-one --quiet",
    ):
        with contextlib.redirect_stdout(io.StringIO()):
            assert execute(line.split()) == 0, line


def _save(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))


def _save_scores(file: Path, subject: str, right: np.ndarray, even: np.ndarray) -> None:
    ids = tuple(map(str, range(len(right))))
    slices = tuple("easy" if one else "hard" for one in even)
    answers = tuple("abcd"[int(r) + i % 3] for i, r in enumerate(right))
    scores = right.astype(np.float64)
    weights = np.ones(len(ids))
    items = ItemScores(
        "greek", "accuracy", ids, scores, weights, binary=True, answers=answers, slices=slices
    )
    graded = ItemScores("essay", "bleu", ids, 0.5 * scores, weights)
    tasks = {"greek": items, "essay": graded}
    found = Evaluation(subject, subject, "s", "s", tuple(map(TaskScore.of, tasks.values())), tasks)
    file.write_text(json.dumps(found.to_mapping()))
