"""Recipes with every key holding what it should not, broken YAML, and everything that grows when it is expanded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .running import Input
from .world import BUNDLE, OK, TIES

VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus one": -1,
    "a fraction": 0.5,
    "huge": 10**30,
    "infinity": float("inf"),
    "nan": float("nan"),
    "no text": "",
    "a text": "x",
    "long": "x" * 3000,
    "list": [],
    "numbers": [1, 2],
    "mapping": {},
    "pair": {"a": 1},
    "deep": [[[[[[{"a": [{}]}]]]]]],
    "control": "\x1b[31mx\u202e",
    "a path": "../../etc/passwd",
}

FULL: dict[str, Any] = {
    "weightsmith": 1,
    "name": "all",
    "semantics": "paper",
    "merge_method": "ties",
    "base_model": "base",
    "models": [
        {"model": "a", "parameters": {"weight": 1.0, "density": [0.2, 0.8]}},
        {
            "model": {"model": {"path": "b"}},
            "parameters": {"weight": {"value": 0.5, "filter": "mlp"}, "density": 0.5},
        },
    ],
    "donor": "base",
    "parameters": {"lambda": 0.9},
    "rules": [
        {
            "match": {"role": "attention", "layers": [0, 1], "name": "q_proj", "glob": "*"},
            "parameters": {"density": 1.0},
        }
    ],
    "modify": [{"clip": {}}],
    "then": [{"lines": {"alpha": 0.5}}],
    "assert": [
        {"finite": True},
        {"norm_ratio": {"low": 0.0, "high": 10.0}},
        {"equal": {"to": "base", "match": {"role": "norm"}}},
    ],
    "dtype": "float32",
    "out_dtype": "float16",
    "tokenizer": {
        "source": "base",
        "pad_to_multiple_of": 8,
        "missing": {"rule": "mean"},
        "tokens": {"x": {"source": "a", "force": True}},
    },
    "chat_template": "chatml",
    "seed": 1,
    "shard_size": "1GB",
    "nonfinite": "error",
    "missing": "error",
    "untie": False,
}
SLICES: dict[str, Any] = {
    "merge_method": "slerp",
    "base_model": "a",
    "slices": [
        {
            "sources": [
                {"model": "a", "layer_range": [0, 2]},
                {"model": "b", "layer_range": [0, 2]},
            ],
            "parameters": {"t": 0.5},
        }
    ],
}
MODULES: dict[str, Any] = {
    "weightsmith": 1,
    "modules": {
        "default": {
            "merge_method": "linear",
            "models": [{"model": "a"}, {"model": "b"}],
            "match": {"glob": "*"},
            "prefix": "model",
        }
    },
}
EXPRESSION: dict[str, Any] = {
    "weightsmith": 1,
    "expression": "x + 0.5 * (y - x)",
    "checkpoints": {"x": "a", "y": "b"},
    "statistics": {"x": ["s.safetensors"]},
}
ADAPTERS: dict[str, Any] = {
    "weightsmith": 1,
    "merge_method": "linear",
    "models": [{"model": "lora"}, {"model": "lora2"}],
    "adapter": {"rank": 2, "energy": 0.9, "error": 0.1, "dialect": "peft"},
}

TEXTS: dict[str, str | bytes] = {
    "nothing": "",
    "spaces": " \n\t\n",
    "a comment": "# only a comment\n",
    "a number": "5",
    "a list": "- a\n- b\n",
    "a text": "text",
    "a tab": "a:\n\tb: 1\n",
    "open bracket": "a: [1, 2\n",
    "open quote": "a: 'x\n",
    "open brace": "{" * 400,
    "two mappings": OK + "---\n" + OK,
    "an anchor that is none": "a: *b\n",
    "an anchor in itself": "a: &a [*a]\n",
    "merge of itself": "a: &a {<<: *a}\n",
    "twice": OK + "merge_method: ties\n",
    "a date": "weightsmith: 2024-01-01\n" + OK,
    "base 60": OK + "seed: 1:30\n",
    "python tag": OK + "x: !!python/object/apply:os.system [ls]\n",
    "binary": OK + "x: !!binary aGk=\n",
    "a set": "!!set {a, b}\n",
    "deep lists": "a: " + "[" * 20_000,
    "deep maps": "".join(" " * i + "a:\n" for i in range(300)),
    "deep flow": "{a: " * 10_000,
    "a bomb": "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 9)}]\n" for i in range(12)
    ),
    "many numbers": f"a: [{', '.join(['1'] * 150_000)}]\n",
    "many keys": "".join(f"k{i}: 1\n" for i in range(60_000)),
    "5000 digits": OK + f"seed: {'9' * 5000}\n",
    "hexadecimal": OK + f"seed: 0x{'f' * 9000}\n",
    "a long key": OK + f"{'k' * 900}: 1\n",
    "nul": b"a: \x00\n",
    "latin": "a: \xe9".encode("latin-1"),
    "utf-16": "a: 1\n".encode("utf-16"),
    "bom": b"\xef\xbb\xbf" + OK.encode(),
    "crlf": OK.replace("\n", "\r\n"),
    "surrogate": 'a: "\\ud800"\n',
    "surrogate key": OK + '"\\ud800": 1\n',
    "escape": 'merge_method: "\\e[31mred"\n',
    "directive": "%YAML 9.9\n---\n" + OK,
    "unknown directive": "%FOO bar\n---\n" + OK,
    "html": "<html><body>404</body></html>\n",
    "json": '{"weightsmith": 1}',
    "toml": "[a]\nb = 1\n",
    "moe": "base_model: base\ngate_mode: hidden\nexperts: [{source_model: a, positive_prompts: [x]}]\n",
    "evolve": "genome: {models: [a]}\ntasks: []\n",
}

FRAME = "weightsmith: 1\nmerge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [%s, %s]}]}]\n"
GROWING: dict[str, str] = {
    "layers to 10^12": FRAME % (0, 10**12),
    "layers from 10^12": FRAME % (10**12, 2 * 10**12),
    "layers to 10^30": FRAME % (0, 10**30),
    "layers the other way": FRAME % (2, 1),
    "layers below 0": FRAME % (-5, 1),
    "no layers": FRAME % (1, 1),
    "ranges of other lengths": "merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nslices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 1]}]}]\n",
    "a thousand slices": "weightsmith: 1\nmerge_method: passthrough\nslices:\n"
    + "  - {sources: [{model: a, layer_range: [0, 2]}]}\n" * 1000,
    "ten thousand slices": "weightsmith: 1\nmerge_method: passthrough\nslices:\n"
    + "  - {sources: [{model: a, layer_range: [0, 2]}]}\n" * 10_000,
    "three thousand of one model": "weightsmith: 1\nmerge_method: linear\nmodels:\n"
    + "  - {model: a}\n" * 3000,
    "padding": OK + "tokenizer: {source: a, pad_to_multiple_of: 1000000000}\n",
    "padding of words": "weightsmith: 1\nmerge_method: linear\nmodels: [{model: words}, {model: more}]\ntokenizer: {source: union, pad_to_multiple_of: 65536}\n",
    "layers of a rule": OK + "rules: [{match: {layers: [0, 1000000000000]}, keep: a}]\n",
    "shard of a byte": OK + "shard_size: 1\n",
    "shard of nothing": OK + "shard_size: 0\n",
    "shards without end": OK + "shard_size: 99999999999999999999GB\n",
    "a gradient": "weightsmith: 1\nmerge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: ["
    + ", ".join(["1"] * 20_000)
    + "]}\n",
    "modify a thousand times": TIES.replace("merge_method", "weightsmith: 1\nmerge_method")
    + "modify: ["
    + ", ".join(["clip"] * 1000)
    + "]\n",
    "then a thousand times": OK + "then: [" + ", ".join(["{lines: {alpha: 0.5}}"] * 1000) + "]\n",
    "many rules": OK
    + "rules:\n"
    + "  - {match: {name: 'q_proj$'}, parameters: {weight: 1}}\n" * 3000,
}

PATTERNS = (
    "([a-z0-9_.]+)+!",
    "(a|a)*!",
    "(.*)*!",
    "(.*.*.*.*.*.*.*)!",
    "(?:(?:.?){60}){60}!",
    "(?=(.*)+!)x",
    "(",
    "[",
    "*",
    "(?P<a>x)(?P=a)",
    r"(x)\1",
    "a{99999999999}",
    "(?:a{1000}){1000}",
    "(" * 200 + ")" * 200,
    "x" * 90_000,
    "(?i)" * 50,
    "\\",
    "(?<=a+)b",
    "|" * 5000,
)
EXPRESSIONS = (
    "",
    "x",
    "x + y",
    "x - y",
    "x * y",
    "x / y",
    "x / 0",
    "2 * x",
    "x ** 2",
    "x + 1",
    "nan * x",
    "x +",
    "(x",
    "x)",
    "x y",
    "lambda: x",
    "x if y else x",
    "[x for x in y]",
    "__import__('os')",
    "x.__class__",
    "x['a']",
    "'x'",
    "f'{x}'",
    "1e400 * x",
    "(1e308*1e308)*(x-y)+x",
    "x / 1e-320",
    "ties(x)",
    "ties(x, y, density='a')",
    "ties(x, y, density=1e400)",
    "no_such(x, y)",
    "linear(x, y, weight=[1, 2, 3])",
    "linear(*x)",
    "linear(**x)",
    "x" + " + x" * 3000,
    "(" * 2000 + "x" + ")" * 2000,
    "-" * 5000 + "x",
    "x + 0.5 * (y - x)\n",
    "x\n+\ny",
    "é",
    "x # c",
    "x; y",
    "x, y",
    "x := y",
    "\x00",
    "linear(" * 300 + "x" + ")" * 300,
    "9" * 5000 + " * x",
    "0x" + "f" * 5000 + " * x",
    "x + " + "0.1 * (y - x) + " * 900 + "0 * x",
)
SETS = (
    "",
    "=",
    "x",
    "a=",
    "seed=" + "9" * 5000,
    "seed=[",
    "seed=&a [*a]",
    ".".join("a" * 9000) + "=1",
    "models.99=1",
    "models." + "9" * 5000 + "=1",
    "models.0.x.y.z=1",
    "..=1",
    "merge_method=no_such",
    "weightsmith=2",
    "models=5",
    "parameters.weight=1e400",
    "seed=!!python/name:os.system",
    "parameters.weight=" + "[" * 5000,
    "name=\x1b[31m",
    "seed=2024-01-01",
    "expression=x",
    "\udcff=1",
    "models.0.model=/dev/zero",
)


def places(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a document."""
    steps = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for step, value in steps:
        yield (*at, step)
        yield from places(value, (*at, step))


def changed(data: Any, place: tuple[Any, ...], value: Any, *, remove: bool = False) -> Any:
    """A copy of a document with another value at a place, or without it."""
    step, *rest = place
    copy = dict(data) if isinstance(data, dict) else list(data)
    if rest:
        copy[step] = changed(data[step], tuple(rest), value, remove=remove)
    elif remove:
        del copy[step]
    else:
        copy[step] = value
    return copy


def written(data: Any) -> str:
    """A document as YAML, which JSON is but for numbers that are none; much faster than PyYAML writes it."""
    text = json.dumps(data)
    return text.replace("-Infinity", "-.inf").replace("Infinity", ".inf").replace("NaN", ".nan")


def inputs() -> Iterator[Input]:
    yield from _changed_documents()
    for name, text in {**TEXTS, **GROWING}.items():
        for command in ("plan", "merge"):
            yield _recipe("recipes", f"{name}, {command}", text, command)
    for text in EXPRESSIONS:
        recipe = yaml.safe_dump(
            {"weightsmith": 1, "expression": text, "checkpoints": {"x": "a", "y": "b"}},
            allow_unicode=True,
        )
        yield _recipe("expressions", f"{text[:30]!r}", recipe)
    for pattern in PATTERNS:
        rules = [{"match": {"name": pattern}, "parameters": {"weight": 1}}]
        yield _recipe(
            "patterns",
            f"{pattern[:30]!r} in a rule",
            OK + yaml.safe_dump({"rules": rules}, width=10**6),
        )
    for text in SETS:
        yield Input("overrides", f"{text[:30]!r}", ("plan", "ok.yaml", f"--set={text}"))
    yield from _nested()
    yield from _other_files()


def _recipe(
    group: str, name: str, text: str | bytes, command: str = "plan", **options: Any
) -> Input:
    argv = (
        ["plan", "{case}/r.yaml"]
        if command == "plan"
        else ["merge", "{case}/r.yaml", "{case}/out", "--quiet"]
    )
    return Input(group, name, tuple(argv), {"r.yaml": text}, **options)


def _changed_documents() -> Iterator[Input]:
    documents = {
        "models": FULL,
        "slices": SLICES,
        "modules": MODULES,
        "expression": EXPRESSION,
        "adapters": ADAPTERS,
    }
    for document, data in documents.items():
        for place in places(data):
            words = ".".join(map(str, place))
            for name, value in VALUES.items():
                text = written(changed(data, place, value))
                yield _recipe("recipes", f"{document}: {words} is {name}", text)
            text = written(changed(data, place, None, remove=True))
            yield _recipe("recipes", f"{document}: without {words}", text)
            if isinstance(place[-1], str):
                wrong = changed(
                    changed(data, place, None, remove=True), (*place[:-1], place[-1] + "x"), 1
                )
                yield _recipe("recipes", f"{document}: {words} misspelt", written(wrong))


def _nested() -> Iterator[Input]:
    def chain(length: int) -> dict[str, str]:
        return {
            f"r{i}.yaml": f"weightsmith: 1\nmerge_method: linear\nmodels: [{{model: {'a' if i + 1 == length else f'r{i + 1}.yaml'}}}]\n"
            for i in range(length)
        }

    for length in (15, 40, 400, 2000):
        yield Input(
            "nested", f"a chain of {length} recipes", ("plan", "{case}/r0.yaml"), chain(length)
        )
    itself = "weightsmith: 1\nmerge_method: linear\nmodels: [{model: r.yaml}]\n"
    yield Input(
        "nested",
        "a recipe in itself",
        ("plan", "{case}/r.yaml"),
        {"r.yaml": itself},
        may=frozenset(),
    )
    pair = {"r.yaml": itself.replace("r.yaml", "s.yaml"), "s.yaml": itself}
    yield Input(
        "nested", "two recipes in each other", ("plan", "{case}/r.yaml"), pair, may=frozenset()
    )
    wide = {
        "r.yaml": "weightsmith: 1\nmerge_method: linear\nmodels:\n"
        + "  - {model: s.yaml}\n" * 3000,
        "s.yaml": OK,
    }
    yield Input("nested", "one recipe three thousand times", ("plan", "{case}/r.yaml"), wide)
    doubling = {
        f"r{i}.yaml": f"weightsmith: 1\nmerge_method: linear\nmodels: [{{model: r{i + 1}.yaml}}, {{model: r{i + 1}.yaml}}]\n"
        for i in range(14)
    }
    yield Input(
        "nested", "recipes that double", ("plan", "{case}/r0.yaml"), {**doubling, "r14.yaml": OK}
    )
    named = "---\n".join(
        f"name: m{i}\nmerge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {'a' if i == 999 else f'm{i + 1}'}}}]\n"
        for i in range(1000)
    )
    yield Input(
        "nested", "a chain of a thousand documents", ("plan", "{case}/r.yaml"), {"r.yaml": named}
    )
    for model in (
        "no.yaml",
        "ok.yaml",
        "/dev/zero.yaml",
        "~/x.yaml",
        "r.yaml+lora",
        "../case/r.yaml",
    ):
        yield _recipe(
            "nested",
            f"a model {model!r}",
            f"weightsmith: 1\nmerge_method: linear\nmodels: [{{model: {model!r}}}]\n",
        )


def _other_files() -> Iterator[Input]:
    def sparse(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(1 << 40)

    kinds = {
        "a terabyte": sparse,
        "a pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "a link in a circle": lambda path: path.symlink_to(path.name),
        "a link to zeros": lambda path: path.symlink_to("/dev/zero"),
        "a link to nothing": lambda path: path.symlink_to("missing"),
    }
    for name, make in kinds.items():
        for argv in (
            ("plan", "{case}/r.yaml"),
            ("merge", "{case}/r.yaml", "{case}/out"),
            ("report", "{case}/r.yaml", "-o", "{case}/r.html"),
            ("seams", "{case}/r.yaml"),
            ("evaluate", "{case}/r.yaml", "--suite", "colours.yaml", "--quiet"),
            ("evaluate", "mlp", "--suite", "{case}/r.yaml", "--quiet"),
            ("bundle", "create", "{case}/r.yaml", "{case}/out"),
        ):
            yield Input(
                "files", f"{name} for {' '.join(argv[:2])}", argv, {"r.yaml": make}, may=frozenset()
            )
    for method in (
        "ties",
        "dare_ties",
        "della",
        "slerp",
        "model_stock",
        "fisher",
        "regmean",
        "opcm",
        "passthrough",
        "truncate",
    ):
        yield _recipe(
            "recipes",
            f"{method} with nothing it needs",
            f"weightsmith: 1\nmerge_method: {method}\nmodels: [{{model: a}}]\n",
        )
    yield _recipe("recipes", "a bundle of one", BUNDLE.replace(", {model: b}", ""))
