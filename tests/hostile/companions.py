"""Configurations, tokenizers, adapters and weightsmith's own records, with every entry what it should not be."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .recipes import PATTERNS, changed, places
from .running import Input, Make, lazily
from .world import ADAPTER, CONFIG, PERCEPTRON, tokenizer

VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "0": 0,
    "-1": -1,
    "0.5": 0.5,
    "10^9": 10**9,
    "10^12": 10**12,
    "10^30": 10**30,
    "1e308": 1e308,
    "a text": "x",
    "an empty text": "",
    "a list": [],
    "numbers": [1, 2],
    "an object": {},
    "a deep object": {"a": {"b": [{"c": []}]}},
}
FEW = {"null": None, "-1": -1, "10^12": 10**12, "a text": "x", "a list": [1], "an object": {"a": 1}}
TEXTS: dict[str, bytes | Make] = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "null": b"null",
    "a number": b"5",
    "deep": lazily(lambda: b"[" * 200_000),
    "deep objects": lazily(lambda: b'{"a":' * 100_000),
    "digits": b'{"num_hidden_layers": ' + b"9" * 5000 + b"}",
    "NaN": b'{"a": NaN}',
    "not UTF-8": b'{"a": "\xff"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "the key twice": b'{"a": 1, "a": 2}',
    "a surrogate": b'{"model_type": "\\ud800"}',
    "60 MB of spaces": lazily(lambda: b" " * 60_000_000),
    "a pipe": os.mkfifo,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "a link out": lambda path: path.symlink_to("/etc/passwd"),
    "a folder": Path.mkdir,
    "a circle": lambda path: path.symlink_to(path.name),
}


def copied(source: str, file: str | None = None, content: bytes | Make | None = None) -> Make:
    """A copy of something of the world, with one file of it replaced."""

    def make(path: Path) -> None:
        shutil.copytree(path.parents[1] / source, path)
        if file is not None:
            (path / file).unlink(missing_ok=True)
            if callable(content):
                content(path / file)
            elif content is not None:
                (path / file).write_bytes(content)

    return make


def variants(document: Any, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A document with every entry changed or left out."""
    for place in places(document):
        words = ".".join(map(str, place))[:60]
        for name, value in values.items():
            yield f"{words} is {name}", changed(document, place, value)
        yield f"without {words}", changed(document, place, None, remove=True)


def resealed(document: dict[str, Any]) -> bytes:
    """The text of a record with a seal that fits, as whoever forges one would make it."""
    content = {key: value for key, value in document.items() if key != "seal"}
    body = json.dumps(content, indent=1).encode().removesuffix(b"\n}") + b",\n"
    return body + b' "seal": "sha256:' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def inputs() -> Iterator[Input]:
    yield from _configurations()
    yield from _tokenizers()
    yield from _adapters()
    yield from _records()


def _configurations() -> Iterator[Input]:
    recipe = "weightsmith: 1\nmerge_method: linear\nmodels: [{model: case/m}, {model: b}]\n"
    slices = "weightsmith: 1\nmerge_method: passthrough\nslices: [{sources: [{model: case/m, layer_range: [0, 2]}]}, {sources: [{model: case/m, layer_range: [1, 2]}]}]\n"
    extra = {
        **CONFIG,
        "num_nextn_predict_layers": 0,
        "attention_types": [[["global", "local"], 1]],
        "layer_types": ["full_attention", "full_attention"],
        "sliding_window_pattern": 2,
        "text_config": {"num_hidden_layers": 2},
    }
    for name, config in (*variants(extra, VALUES), *((n, t) for n, t in TEXTS.items())):
        content = (
            config if isinstance(config, bytes) or callable(config) else json.dumps(config).encode()
        )
        files = {"m": copied("a", "config.json", content), "r.yaml": recipe, "s.yaml": slices}
        for argv in (
            ("inspect", "{case}/m"),
            ("plan", "{case}/r.yaml"),
            ("plan", "{case}/s.yaml"),
            ("merge", "{case}/s.yaml", "{case}/out", "--quiet"),
        ):
            yield Input("configurations", f"{name}, {argv[0]} {argv[1][-6:]}", argv, files)


def _tokenizers() -> Iterator[Input]:
    recipe = "weightsmith: 1\nmerge_method: linear\nmodels: [{model: case/m}, {model: more}]\ntokenizer: {source: union, missing: mean}\n"
    small = tokenizer(0)
    small["model"]["vocab"] = dict(list(small["model"]["vocab"].items())[-11:])
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "added_tokens_decoder": {"259": {"content": "x", "special": True}},
        "chat_template": "{{ messages }}",
        "extra_ids": 3,
        "model_max_length": 64,
    }
    for name, document in variants(small, VALUES):
        files = {
            "m": copied("words", "tokenizer.json", json.dumps(document).encode()),
            "r.yaml": recipe,
        }
        yield Input("tokenizers", f"tokenizer.json: {name}", ("plan", "{case}/r.yaml"), files)
    for name, document in variants(settings, VALUES):
        files = {
            "m": copied("words", "tokenizer_config.json", json.dumps(document).encode()),
            "r.yaml": recipe,
        }
        yield Input(
            "tokenizers", f"tokenizer_config.json: {name}", ("plan", "{case}/r.yaml"), files
        )
    for file in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "generation_config.json",
        "chat_template.jinja",
        "tokenizer.model",
        "tekken.json",
        "vocab.json",
    ):
        for name, content in TEXTS.items():
            if name == "a folder":
                continue
            files = {
                "m": copied("words", file, content),
                "r.yaml": recipe,
                "c.yaml": recipe.partition("tokenizer")[0],
            }
            for argv in (
                ("plan", "{case}/r.yaml"),
                ("merge", "{case}/c.yaml", "{case}/out", "--quiet"),
                ("transplant", "words", "{case}/m", "{case}/out", "--quiet"),
                ("inspect", "{case}/m"),
            ):
                yield Input("tokenizers", f"{file}: {name}, {argv[0]}", argv, files)
    tekken = {
        "config": {
            "pattern": ".",
            "default_vocab_size": 2**31 - 1,
            "default_num_special_tokens": 2**31 - 257,
        },
        "vocab": [{"rank": i, "token_bytes": "AA=="} for i in range(256)],
    }
    for name, document in variants(tekken, FEW):
        files = {"m": copied("words", "tokenizer.json", None), "r.yaml": recipe}
        files["m/tekken.json"] = json.dumps(document).encode()
        if name.startswith(("vocab.", "without vocab.")) and ".0" not in name:
            continue
        yield Input("tokenizers", f"tekken.json: {name}", ("plan", "{case}/r.yaml"), files)
    template = (
        "{{ messages.__class__ }}",
        "{% for x in range(10**9) %}x{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{% include '/etc/passwd' %}",
        "{{ self }}",
        "{{" * 3000,
        "{% if %}",
        "{{ cycler.__init__.__globals__ }}",
    )
    for text in template:
        files = {"m": copied("words", "chat_template.jinja", text.encode()), "r.yaml": recipe}
        yield Input("tokenizers", f"a template {text[:30]!r}", ("plan", "{case}/r.yaml"), files)


def _adapters() -> Iterator[Input]:
    full = {
        **ADAPTER,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 4},
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "layers_to_transform": None,
        "init_lora_weights": True,
        "trainable_token_indices": None,
    }
    for name, document in (*variants(full, VALUES), *TEXTS.items()):
        content = (
            document
            if isinstance(document, bytes) or callable(document)
            else json.dumps(document).encode()
        )
        files = {"m": copied("lora", "adapter_config.json", content)}
        yield Input("adapters", f"{name}, inspect", ("adapter", "inspect", "{case}/m"), files)
        # A change that overflows is met while the merge goes on, which keeps what it has finished.
        yield Input(
            "adapters",
            f"{name}, merge",
            ("adapter", "merge", "base", "{case}/m", "{case}/out", "--quiet"),
            files,
            leaves="1e308" in name,
        )
        yield Input(
            "adapters",
            f"{name}, convert",
            ("adapter", "convert", "{case}/m", "{case}/x.safetensors", "--to", "kohya"),
            files,
        )
    for pattern in PATTERNS:
        for key in ("rank_pattern", "alpha_pattern"):
            files = {
                "m": copied(
                    "lora", "adapter_config.json", json.dumps({**full, key: {pattern: 2}}).encode()
                )
            }
            yield Input(
                "patterns", f"{pattern[:30]!r} in {key}", ("adapter", "inspect", "{case}/m"), files
            )
        files = {
            "m": copied(
                "lora",
                "adapter_config.json",
                json.dumps({**full, "target_modules": pattern}).encode(),
            )
        }
        yield Input(
            "patterns",
            f"{pattern[:30]!r} in target_modules",
            ("adapter", "inspect", "{case}/m"),
            files,
        )
    many = {**full, "rank_pattern": {f"layers.{i}.q_proj": 2 for i in range(20_000)}}
    files = {"m": copied("lora", "adapter_config.json", json.dumps(many).encode())}
    yield Input("patterns", "twenty thousand patterns", ("adapter", "inspect", "{case}/m"), files)
    for reference in (
        "base+{case}/m:1e39",
        "base+{case}/m:-1e308",
        "base+{case}/m:0",
        "base+{case}/m:nan",
        "base+{case}/m+{case}/m",
        "base+{case}/m:" + "9" * 400,
    ):
        recipe = f"weightsmith: 1\nmerge_method: linear\nmodels: [{{model: '{reference.replace('{case}', 'case')}'}}]\n"
        yield Input(
            "adapters",
            f"a model {reference}",
            ("plan", "{case}/r.yaml"),
            {"m": copied("lora"), "r.yaml": recipe},
        )
        yield Input(
            "adapters", f"{reference}, diff", ("diff", "base", reference), {"m": copied("lora")}
        )
    for scale in ("1e39", "1e308", "-1e400", "nan"):
        yield Input(
            "adapters",
            f"a scale of {scale}",
            ("adapter", "merge", "base", "lora", "{case}/out", f"--scale={scale}", "--quiet"),
            leaves=scale == "1e308",
        )


def _records() -> Iterator[Input]:
    def record(
        source: str, file: str, change: Callable[[dict[str, Any]], list[tuple[str, bytes]]]
    ) -> Iterator[tuple[str, Make]]:
        """A copy of what has a record, for every change of it; the record exists only once the world is built."""

        def numbered(number: int) -> Make:
            def make(path: Path) -> None:
                shutil.copytree(path.parents[1] / source, path)
                found = json.loads((path / file).read_bytes())
                made = change(found)
                if number < len(made):
                    (path / file).write_bytes(made[number][1])

            return make

        for number in range(_MOST_VARIANTS):
            yield str(number), numbered(number)

    def sealed(document: dict[str, Any]) -> list[tuple[str, bytes]]:
        return [(n, resealed(d)) for n, d in _shortened(document)]

    def plain(document: dict[str, Any]) -> list[tuple[str, bytes]]:
        return [(n, json.dumps(d).encode()) for n, d in _shortened(document)]

    manifest = "weightsmith-manifest.json"
    for number, make in record("merged", manifest, sealed):
        for argv in (
            ("verify", "{case}/m"),
            ("replay", "{case}/m", "{case}/out", "--quiet"),
            ("rollback", "{case}/m", "{case}/out", "--without", "a", "--quiet"),
        ):
            # A run that meets other bits than are on record keeps what it has finished.
            yield Input(
                "records", f"manifest, change {number}, {argv[0]}", argv, {"m": make}, leaves=True
            )
    for number, make in record("package", "weightsmith-delta.json", sealed):
        for argv in (
            ("delta", "show", "{case}/m"),
            ("delta", "unpack", "{case}/m", "{case}/out", "--quiet"),
            ("inspect", "{case}/m"),
        ):
            yield Input(
                "records", f"package, change {number}, {' '.join(argv[:2])[:12]}", argv, {"m": make}
            )
    for number, make in record("bundle", "weightsmith-bundle.json", plain):
        for argv in (
            ("bundle", "list", "{case}/m"),
            ("bundle", "extract", "{case}/m", "a", "{case}/out", "--quiet"),
        ):
            yield Input(
                "records", f"bundle, change {number}, {argv[1]}", argv, {"m": make}, leaves=True
            )
    for source, file, argvs in (
        ("merged", manifest, (("verify", "{case}/m"), ("replay", "{case}/m", "{case}/out"))),
        (
            "package",
            "weightsmith-delta.json",
            (("delta", "show", "{case}/m"), ("delta", "unpack", "{case}/m", "{case}/out")),
        ),
        (
            "bundle",
            "weightsmith-bundle.json",
            (("bundle", "list", "{case}/m"), ("bundle", "extract", "{case}/m", "a", "{case}/out")),
        ),
    ):
        for name, content in TEXTS.items():
            for argv in argvs:
                yield Input(
                    "records",
                    f"{file}: {name}, {' '.join(argv[:2])[:14]}",
                    argv,
                    {"m": copied(source, file, content)},
                )


# As many changes as the longest of the records has, and some of no effect for the others.
_MOST_VARIANTS = 260


def _shortened(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The changes of a record, of long lists and objects the first entry only."""

    def first(data: Any) -> Any:
        if isinstance(data, dict):
            many = len(data) > 14
            return {k: first(v) for k, v in (list(data.items())[:1] if many else data.items())}
        return [first(item) for item in data[:1]] if isinstance(data, list) else data

    small = first(document)
    for place in places(small):
        for name, value in FEW.items():
            yield f"{place} is {name}", changed(document, place, value)
        yield f"without {place}", changed(document, place, None, remove=True)


NETWORKS = {"llama": ("a", CONFIG), "perceptron": ("mlp", PERCEPTRON)}
