"""Ten values of one free number: in a network that is built once, against ten merges, loads and evaluations.

    python benchmarks/swap.py vision --family FOLDER [--limit 100]
    python benchmarks/swap.py smollm [--texts 4] [--tokens 64] [--layers 30]

`vision` takes the test-bed of that name (`weightsmith testbed build vision`) or a random family of its size, `smollm` a
base and two experts with random weights of the shape of SmolLM2-135M in bfloat16. The number is the factor of task
arithmetic, one for all tensors and one of a single layer. Seconds are wall time of one process on one thread, in turns,
with libraries loaded; `commands` starts the command line anew for every merge and evaluation, as people do. Scores and
weights must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from live import SMOLLM, write_family

VALUES = tuple(round(0.1 + 0.1 * i, 1) for i in range(10))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("what", choices=["vision", "smollm"])
    options.add_argument("--family", type=Path)
    options.add_argument("--limit", type=int)
    options.add_argument("--texts", type=int, default=1)
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--layers", type=int, default=30)
    options.add_argument("--commands", action="store_true")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        base, experts, suite = (
            vision(given, place) if given.what == "vision" else smollm(given, place)
        )
        for per in (None, "layer"):
            row = measure(given, place, base, experts, suite, per)
            print(
                json.dumps({"what": given.what, "number": per or "all tensors", **row}), flush=True
            )


def vision(given: argparse.Namespace, place: Path) -> tuple[Path, list[Path], Path]:
    """The test-bed, or a random family of its size."""
    if given.family is None:
        write_family(place)
        return place / "base", [place / f"expert{i}" for i in range(3)], place / "suite.yaml"
    family = given.family
    return family / "base", sorted((family / "experts").iterdir()), family / "suite.validation.yaml"


def smollm(given: argparse.Namespace, place: Path) -> tuple[Path, list[Path], Path]:
    """A base and two experts near it, with a tokenizer of words, and texts of a length."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tokenizers import Tokenizer, models, pre_tokenizers
    from weightsmith.live import quiet_library

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMOLLM, num_hidden_layers=given.layers))
    words = {f"w{i}": i for i in range(SMOLLM["vocab_size"])}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0", eos_token="w0")
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folders = [place / name for name in ("base", "one", "two")]
    for number, folder in enumerate(folders):
        state = {n: t + 0.002 * number * torch.randn(t.shape) for n, t in own.items()}
        if number:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict(state)
        with quiet_library():
            model.bfloat16().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        model.float()
    generator = np.random.default_rng(0)
    rows = generator.integers(3, SMOLLM["vocab_size"], (given.texts, given.tokens))
    lines = [json.dumps({"text": " ".join(f"w{i}" for i in row)}) for row in rows]
    (place / "texts.jsonl").write_text("\n".join(lines))
    task = {"name": "texts", "kind": "language_modeling", "data": "texts.jsonl"}
    (place / "suite.yaml").write_text(json.dumps({"suite": "random", "tasks": [task]}))
    return folders[0], folders[1:], place / "suite.yaml"


def measure(
    given: argparse.Namespace,
    place: Path,
    base: Path,
    experts: list[Path],
    suite: Path,
    per: str | None,
) -> dict[str, Any]:
    """Seconds of ten values both ways, after one value that is not counted."""
    import torch

    import weightsmith
    from weightsmith.live import LiveMerge, load_model

    number = {"free": [0, 1.5], "start": 0.3} | ({"per": per} if per else {})
    recipe = {
        "weightsmith": 1,
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(expert)} for expert in experts],
        "parameters": {"lambda": number},
    }
    spent = dict.fromkeys(("plan", "swap", "score", "merge", "load_and_score"), 0.0)

    def timed(key: str, do: Callable[[], Any]) -> Any:
        begun = time.process_time()
        found = do()
        spent[key] += time.process_time() - begun
        return found

    def scores(subject: Any) -> Mapping[str, float]:
        found = weightsmith.evaluate(subject, suite, cache=False, limit=given.limit)
        return {score.task: score.value for score in found.scores}

    merge = timed("plan", lambda: LiveMerge(weightsmith.plan(recipe, threads=1)))
    started = {name: one.start for name, one in merge.numbers.items()}
    changed = next(name for name in started if per is None or "layer 1" in name)
    same = True
    scores(merge)
    for step, value in enumerate(VALUES):
        values = {**started, changed: value}
        touched = timed("swap", lambda values=values: merge.set(values))
        own = timed("score", lambda: scores(merge))
        out = place / f"{per}-{step}"
        timed(
            "merge",
            lambda values=values, out=out: weightsmith.merge(recipe, out, values=values, threads=1),
        )
        other = timed("load_and_score", lambda out=out: scores(out))
        state, loaded = merge.model.module.state_dict(), load_model(out).module.state_dict()
        same &= own == other and all(torch.equal(state[n], loaded[n]) for n in loaded)
    ways = {
        "swap": spent["swap"] + spent["score"],
        "merge and load": spent["merge"] + spent["load_and_score"],
    }
    if given.commands:
        ways["commands"] = as_commands(given, place, recipe, suite, {**started, changed: 0.7}, out)
    return {
        "tensors": len(touched),
        "same": same,
        "each_s": {key: round(value / len(VALUES), 3) for key, value in spent.items()},
        "times_faster": {
            key: round(value / ways["swap"], 1) for key, value in ways.items() if key != "swap"
        },
    }


def as_commands(
    given: argparse.Namespace,
    place: Path,
    recipe: Mapping[str, Any],
    suite: Path,
    values: Mapping[str, float],
    out: Path,
) -> float:
    """Seconds that ten values take with a process for each merge and each evaluation; two are timed."""
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    (place / "values.json").write_text(json.dumps(values))
    command = [sys.executable, "-m", "weightsmith"]
    merging = [*command, "merge", str(place / "recipe.yaml"), str(out), "--force", "--threads", "1"]
    scoring = [*command, "evaluate", str(out), "--suite", str(suite), "--no-cache"]
    scoring += ["--limit", str(given.limit)] if given.limit is not None else []
    begun = children_s()
    for _ in range(2):
        for line in ([*merging, "--values", str(place / "values.json")], scoring):
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(line, check=True, capture_output=True, env=environment)
    return (children_s() - begun) / 2 * len(VALUES)


def children_s() -> float:
    """CPU seconds of the processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
