"""Suites, data, heads, networks and saved results."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .companions import FEW, NETWORKS, VALUES, copied, variants
from .companions import TEXTS as JSON_TEXTS
from .recipes import TEXTS, changed, places
from .recipes import VALUES as YAML_VALUES
from .running import Input, Make, lazily

TASK: dict[str, Any] = {
    "name": "colour",
    "kind": "classification",
    "data": "../colours.npz",
    "metric": "accuracy",
    "limit": 4,
    "batch_size": 2,
    "group": "own",
}
WORDS: dict[str, Any] = {
    "name": "text",
    "kind": "language_modeling",
    "data": "../text.jsonl",
    "metric": "perplexity",
    "field": "text",
    "context": 16,
    "stride": 8,
    "limit": 2,
}
KINDS = (
    "classification",
    "language_modeling",
    "choice",
    "generation",
    "retrieval",
    "harness",
    "none",
    "",
)


def evaluate(suite: str, subject: str = "mlp") -> tuple[str, ...]:
    """A command line that evaluates."""
    return ("evaluate", subject, "--suite", suite, "--quiet", "--no-cache")


def npz(**arrays: Any) -> bytes:
    """An archive of arrays."""
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def members(method: int = zipfile.ZIP_STORED, **data: bytes) -> bytes:
    """An archive with members of any bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in data.items():
            archive.writestr(f"{name}.npy", content)
    return made.getvalue()


def npy(array: Any) -> bytes:
    """One array as numpy stores it."""
    made = io.BytesIO()
    np.save(made, array, allow_pickle=True)
    return made.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    """An array with any header."""
    line = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + data


X, Y = np.zeros((6, 8), np.float32), np.arange(6) % 3


def bomb(path: Path) -> None:
    """Four gigabytes of zeros in four megabytes."""
    shape = (134_217_728, 8)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("inputs.npy", "w", force_zip64=True) as file:
            file.write(header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"))
            chunk = bytes(1 << 24)
            for _ in range(256):
                file.write(chunk)
        archive.writestr("labels.npy", npy(np.zeros(shape[0], np.uint8)))


ARRAYS: dict[str, bytes | Make] = {
    "nothing": b"",
    "no archive": b"x" * 50,
    "an empty archive": members(),
    "an npy alone": npy(X),
    "no labels": npz(inputs=X),
    "an empty member": members(inputs=b"", labels=npy(Y)),
    "objects": members(inputs=npy(np.array([{}, 1], object)), labels=npy(Y)),
    "objects as labels": members(inputs=npy(X), labels=npy(np.array([None] * 6, object))),
    "records": npz(inputs=np.zeros(6, [("a", "f4")]), labels=Y),
    "a header that lies": members(
        inputs=header(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 8), }", bytes(64)
        ),
        labels=npy(Y),
    ),
    "a header that overflows": members(
        inputs=header(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 8), }"
        ),
        labels=npy(Y),
    ),
    "a negative shape": members(
        inputs=header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8), }", bytes(32)),
        labels=npy(Y),
    ),
    "a header of code": members(
        inputs=header("__import__('os').system('touch ran')"), labels=npy(Y)
    ),
    "a deep header": members(
        inputs=b"\x93NUMPY\x02\x00" + (60_000).to_bytes(4, "little") + b"(" * 60_000, labels=npy(Y)
    ),
    "version 9": members(inputs=b"\x93NUMPY\x09\x00" + bytes(30), labels=npy(Y)),
    "truncated": npz(inputs=X, labels=Y)[:-200],
    "whole numbers": npz(inputs=X.astype(int), labels=Y),
    "complex": npz(inputs=X.astype(complex), labels=Y),
    "texts": npz(inputs=np.array([["a"] * 8] * 6), labels=Y),
    "float64 that overflows": npz(inputs=X.astype(float) + 1e300, labels=Y),
    "NaN": npz(inputs=np.full_like(X, np.nan), labels=Y),
    "infinity": npz(inputs=np.full_like(X, np.inf), labels=Y),
    "no items": npz(inputs=X[:0], labels=Y[:0]),
    "a scalar": npz(inputs=np.float32(1), labels=np.int64(1)),
    "one axis": npz(inputs=X[0], labels=Y),
    "other lengths": npz(inputs=X, labels=Y[:3]),
    "labels of two axes": npz(inputs=X, labels=np.zeros((6, 2), int)),
    "labels too large": npz(inputs=X, labels=Y + 10**9),
    "labels below 0": npz(inputs=X, labels=Y - 5),
    "labels of floats": npz(inputs=X, labels=Y + 0.5),
    "labels of other names": npz(inputs=X, labels=np.array(["mauve"] * 6)),
    "names of classes": npz(inputs=X, labels=Y, classes=np.array(["x", "y", "z"])),
    "too few classes": npz(inputs=X, labels=Y, classes=np.array(["x"])),
    "other widths": npz(inputs=X[:, :3], labels=Y),
    "no width": npz(inputs=X[:, :0], labels=Y),
    "five axes": npz(inputs=X.reshape(6, 2, 2, 2, 1), labels=Y),
    "by columns": npz(inputs=np.asfortranarray(X), labels=Y),
    "other byte order": npz(inputs=X.astype(">f4"), labels=Y),
    "float16": npz(inputs=X.astype(np.float16), labels=Y),
    "four gigabytes of zeros": bomb,
    "a pipe": os.mkfifo,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a circle": lambda path: path.symlink_to(path.name),
}
LINES: dict[str, bytes | Make] = {
    "nothing": b"",
    "spaces": b" \n\n",
    "no JSON": b"{\n",
    "a list": b"[]\n",
    "a number": b"5\n",
    "another field": b'{"txt": "a"}\n',
    "a number as text": b'{"text": 5}\n',
    "null": b'{"text": null}\n',
    "an empty text": b'{"text": ""}\n',
    "a surrogate": b'{"text": "\\ud800"}\n',
    "not UTF-8": b'{"text": "\xff"}\n',
    "nul": b'{"text": "\\u0000"}\n',
    "deep": b'{"text": ' + b"[" * 100_000 + b"\n",
    "digits": b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n",
    "a long text": b'{"text": "' + b"a" * 200_000 + b'"}\n',
    "a line of 80 MB": lazily(lambda: b'{"text": "' + b"a" * 80_000_000 + b'"}\n'),
    "a bom": b'\xef\xbb\xbf{"text": "a"}\n',
    "no newline": b'{"text": "ab"}',
    "carriage returns": b'{"text": "a"}\r{"text": "b"}\r',
    "a pipe": os.mkfifo,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
}


def inputs() -> Iterator[Input]:
    yield from _suites()
    yield from _data()
    yield from _results()
    yield from _families()


def _suites() -> Iterator[Input]:
    suite = {"suite": "s", "tasks": [TASK]}
    for place in places(suite):
        for name, value in YAML_VALUES.items():
            text = yaml.safe_dump(changed(suite, place, value), allow_unicode=True)
            yield Input(
                "suites",
                f"{'.'.join(map(str, place))} is {name}",
                evaluate("{case}/s.yaml"),
                {"s.yaml": text},
            )
        text = yaml.safe_dump(changed(suite, place, None, remove=True))
        yield Input(
            "suites",
            f"without {'.'.join(map(str, place))}",
            evaluate("{case}/s.yaml"),
            {"s.yaml": text},
        )
    for name, text in TEXTS.items():
        yield Input("suites", name, evaluate("{case}/s.yaml"), {"s.yaml": text}, may=frozenset())
    for kind in KINDS:
        for key in (
            "data",
            "head",
            "include",
            "task",
            "until",
            "context",
            "stride",
            "max_new_tokens",
            "few_shot",
            "slice",
            "field",
        ):
            for value in ("x", "../colours.npz", "/dev/zero", 10**12, -1, [], ["a"]):
                if kind == "harness" and key in ("task", "include"):
                    continue
                task = {"name": "t", "kind": kind, "data": "../colours.npz", key: value}
                text = yaml.safe_dump({"tasks": [task]})
                yield Input(
                    "suites",
                    f"{kind}: {key} is {value!r}",
                    evaluate("{case}/s.yaml"),
                    {"s.yaml": text},
                )
    twice = yaml.safe_dump({"tasks": [TASK, TASK]})
    yield Input(
        "suites",
        "two tasks of one name",
        evaluate("{case}/s.yaml"),
        {"s.yaml": twice},
        may=frozenset(),
    )
    many = yaml.safe_dump({"tasks": [{**TASK, "name": f"t{i}", "limit": 1} for i in range(300)]})
    yield Input("suites", "three hundred tasks", evaluate("{case}/s.yaml"), {"s.yaml": many})


def _data() -> Iterator[Input]:
    suite = "tasks: [{name: c, kind: classification, data: d.npz}]\n"
    for name, content in ARRAYS.items():
        yield Input(
            "data", f"npz: {name}", evaluate("{case}/s.yaml"), {"s.yaml": suite, "d.npz": content}
        )
    sliced = suite.replace("data:", "slice: part, data:")
    for name, part in (
        ("missing", None),
        ("short", Y[:2]),
        ("objects", np.array([{}] * 6, object)),
        ("numbers", Y),
    ):
        data = npz(inputs=X, labels=Y, **({} if part is None else {"part": part}))
        yield Input(
            "data",
            f"npz: slices {name}",
            evaluate("{case}/s.yaml"),
            {"s.yaml": sliced, "d.npz": data},
        )
    heads: dict[str, bytes] = {"no file": b"", "no header": b"x" * 30}
    for name, content in heads.items():
        headed = suite.replace("data:", "head: h.safetensors, data:")
        files = {"s.yaml": headed, "d.npz": npz(inputs=X, labels=Y), "h.safetensors": content}
        yield Input("data", f"head: {name}", evaluate("{case}/s.yaml"), files)


def _results() -> Iterator[Input]:
    for number in range(220):

        def make(path: Path, number: int = number) -> None:
            document = json.loads((path.parents[1] / "one.json").read_bytes())
            made = list(_first(document))
            if number < len(made):
                path.write_text(json.dumps(made[number]))
            else:
                shutil.copy(path.parents[1] / "one.json", path)

        yield Input(
            "results",
            f"change {number}, compare",
            ("compare", "{case}/x.json", "two.json"),
            {"x.json": make},
        )
        if number % 8 == 0:
            argv = ("report", "--evaluation", "{case}/x.json", "-o", "{case}/r.html")
            yield Input("results", f"change {number}, report", argv, {"x.json": make})
    for name, content in JSON_TEXTS.items():
        yield Input(
            "results",
            f"{name}, compare",
            ("compare", "{case}/x.json", "two.json"),
            {"x.json": content},
        )
        for option in ("--evaluation", "--league"):
            argv = ("report", option, "{case}/x.json", "-o", "{case}/r.html")
            yield Input("results", f"{name}, report {option}", argv, {"x.json": content})
    for gate in (
        "",
        "x",
        "accuracy",
        "accuracy>",
        "accuracy>x",
        "accuracy>1e400",
        "accuracy>nan",
        "no_such<1",
        "accuracy.none>0",
        "accuracy=1",
        ">1",
        "accuracy>" + "9" * 5000,
        "a" * 5000 + "<1",
        "\x1b[31m<1",
    ):
        yield Input(
            "results",
            f"a gate {gate[:20]!r}",
            ("compare", "one.json", "two.json", f"--gate={gate}"),
        )


def _first(document: dict[str, Any]) -> Iterator[Any]:
    for place in places(document):
        if any(isinstance(step, int) and step > 0 for step in place):
            continue
        for value in FEW.values():
            yield changed(document, place, value)
        yield changed(document, place, None, remove=True)


def _families() -> Iterator[Input]:
    record = {"family": "f", "digest": "x", "tasks": {"t": {}}}
    league = (
        "league",
        "--family",
        "{case}/f",
        "--methods",
        "linear",
        "--out",
        "{case}/o",
        "--quiet",
    )
    for name, document in (*variants(record, FEW), *JSON_TEXTS.items()):
        content = (
            document
            if isinstance(document, bytes) or callable(document)
            else json.dumps(document).encode()
        )
        if name == "a folder":
            continue
        yield Input("families", name, league, {"f/family.json": content}, may=frozenset())


def networks() -> Iterator[Input]:
    """Networks whose configuration is wrong, which torch and transformers are asked about."""
    for network, (source, config) in NETWORKS.items():
        suite = "colours.yaml" if network == "perceptron" else "small.yaml"
        more = (
            {}
            if network == "perceptron"
            else {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
                "dtype": "float32",
                "num_labels": 2,
                "attention_bias": False,
                "head_dim": 4,
                "layer_types": None,
            }
        )
        for name, document in (*variants({**config, **more}, VALUES), *JSON_TEXTS.items()):
            content = (
                document
                if isinstance(document, bytes) or callable(document)
                else json.dumps(document).encode()
            )
            files = {"m": copied(source, "config.json", content)}
            yield Input("networks", f"{network}: {name}", evaluate(suite, "{case}/m"), files)
    for name, content in LINES.items():
        for kind, field in (
            ("language_modeling", ""),
            ("choice", ""),
            ("generation", ""),
            ("retrieval", ""),
        ):
            suite = f"tasks: [{{name: t, kind: {kind}, data: d.jsonl{field}}}]\n"
            yield Input(
                "networks",
                f"jsonl: {name}, {kind}",
                evaluate("{case}/s.yaml", "base"),
                {"s.yaml": suite, "d.jsonl": content},
            )
    for place in places({"tasks": [WORDS]}):
        for value in YAML_VALUES.values():
            text = yaml.safe_dump(changed({"tasks": [WORDS]}, place, value), allow_unicode=True)
            yield Input(
                "networks",
                f"{place} is {str(value)[:20]!r}",
                evaluate("{case}/s.yaml", "base"),
                {"s.yaml": text},
            )
