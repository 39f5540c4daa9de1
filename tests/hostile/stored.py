"""What weightsmith stored or other trainers did: adapters' factors, statistics, bases, leagues and libraries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from weightsmith.checkpoints import open_checkpoint
from weightsmith.checkpoints.fingerprint import fingerprint
from weightsmith.publishing.sealing import sealed
from weightsmith.tensors.files.safetensors_header import parse_file

from .companions import FEW, copied, variants
from .companions import TEXTS as JSON_TEXTS
from .running import Input, Make

Factors = dict[str, np.ndarray]
_Q = "base_model.model.model.layers.0.self_attn.q_proj"
_DIGEST = "the digest of a"
_KOHYA = "lora_unet_model_layers_0_self_attn_q_proj"
ROW: dict[str, Any] = {
    "name": "ties",
    "setting": "default",
    "parameters": {},
    "rank": None,
    "normalized": {"value": 0.9, "low": 0.8, "high": 1.0},
    "retained": None,
    "mean": None,
    "general": None,
    "unseen": None,
    "cost": {"cpu_seconds": 1.0, "peak_bytes": 1},
    "scores": [],
}
LEAGUE: dict[str, Any] = {
    "schema": 1,
    "family": "tiny",
    "digest": "0",
    "split": "test",
    "experts": ["a", "b"],
    "ended": "finished",
    "rows": [ROW],
    "left_out": [{"method": "fisher", "reason": "none"}],
}


def _with(**tensors: np.ndarray) -> Callable[[Factors], Factors]:
    """Factors with some replaced or added; `q_A` and `q_B` are those of one module."""
    return lambda own: own | {_named(name): tensor for name, tensor in tensors.items()}


def _named(name: str) -> str:
    return {"q_A": f"{_Q}.lora_A.weight", "q_B": f"{_Q}.lora_B.weight"}.get(
        name, f"{_Q}.{name.replace('__', '.')}"
    )


def _filled(value: float) -> Callable[[Factors], Factors]:
    return lambda own: {name: np.full_like(t, value) for name, t in own.items()}


def _cast(dtype: Any) -> Callable[[Factors], Factors]:
    return lambda own: {name: t.astype(dtype) for name, t in own.items()}


def _left_out(part: str) -> Callable[[Factors], Factors]:
    return lambda own: {name: t for name, t in own.items() if part not in name}


def _renamed(old: str, new: str) -> Callable[[Factors], Factors]:
    return lambda own: {name.replace(old, new): t for name, t in own.items()}


def _ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


FACTORS: dict[str, Callable[[Factors], Factors]] = {
    "none": _left_out(""),
    "A alone": _left_out("lora_B"),
    "B alone": _left_out("lora_A"),
    "ranks that differ": _with(q_A=_ones(3, 16)),
    "a rank of 0": _with(q_A=_ones(0, 16), q_B=_ones(16, 0)),
    "a rank above the matrix": _with(q_A=_ones(400, 16), q_B=_ones(16, 400)),
    "rows of no tensor": _with(q_B=_ones(17, 2)),
    "columns of no tensor": _with(q_A=_ones(2, 15)),
    "one axis": _with(q_A=_ones(16)),
    "no axis": _with(q_A=np.array(1, np.float32)),
    "three axes": _with(q_A=_ones(2, 4, 4)),
    "a kernel": _with(q_A=_ones(2, 16, 3, 3), q_B=_ones(16, 2, 1, 1)),
    "nothing": _with(q_A=_ones(2, 0)),
    "NaN": _filled(float("nan")),
    "infinity": _filled(float("inf")),
    "3e38": _filled(3e38),
    "1e-45": _filled(1e-45),
    "whole numbers": _cast(np.int64),
    "bytes": _cast(np.uint8),
    "bool": _cast(bool),
    "float64": _cast(np.float64),
    "float16": _cast(np.float16),
    "an unknown part": _with(lora_C__weight=_ones(2, 2)),
    "a magnitude": _with(lora_magnitude_vector=_ones(16)),
    "a magnitude of another length": _with(lora_magnitude_vector=_ones(3)),
    "a magnitude of NaN": _with(lora_magnitude_vector=_ones(16) * np.nan),
    "a bias": _with(lora_B__bias=_ones(16)),
    "a bias of another length": _with(lora_B__bias=_ones(5)),
    "a whole weight": _with(weight=_ones(16, 16)),
    "a whole weight of another shape": _with(weight=_ones(4, 4)),
    "an adapter's name within": _renamed("lora_A.weight", "lora_A.default.weight"),
    "no such module": _renamed("self_attn", "self_atn"),
    "a negative layer": _renamed("layers.0", "layers.-1"),
    "a layer of many digits": _renamed("layers.0", "layers." + "9" * 5000),
    "no prefix": _renamed("base_model.model.", ""),
    "the prefix twice": _renamed("base_model.model.", "base_model.model.base_model.model."),
    "empty module names": _renamed(f"{_Q}.", ""),
    "controls": _renamed("q_proj", "q\x1b[2J\u202e"),
    "a path": _renamed("model.layers.0", "../../etc"),
    "kohya's and PEFT's": lambda own: own | {f"{_KOHYA}.lora_down.weight": _ones(2, 16)},
}
KOHYA: dict[str, Factors] = {
    "whole": {},
    "down alone": {"lora_up.weight": None},  # type: ignore[dict-item]
    "alpha NaN": {"alpha": np.array(np.nan, np.float32)},
    "alpha infinite": {"alpha": np.array(np.inf, np.float32)},
    "alpha 0": {"alpha": np.array(0, np.float32)},
    "alpha negative": {"alpha": np.array(-3e38, np.float32)},
    "alpha of two": {"alpha": _ones(2)},
    "alpha of none": {"alpha": _ones(0)},
    "alpha a whole number": {"alpha": np.array(4, np.int64)},
    "a core": {"lora_mid.weight": _ones(2, 2, 3, 3)},
    "a core that does not fit": {"lora_mid.weight": _ones(5, 5, 3, 3)},
    "half of LoHa": {"hada_w1_a": _ones(16, 2)},
    "LoHa beside": {f"hada_w{i}_{p}": _ones(2, 2) for i in (1, 2) for p in "ab"},
    "LoKr of other sizes": {"lokr_w1": _ones(3, 3), "lokr_w2": _ones(5, 5)},
    "LoKr of nothing": {"lokr_w1": _ones(0, 0), "lokr_w2": _ones(16, 16)},
    "a huge LoKr": {"lokr_w1": _ones(4000, 1), "lokr_w2": _ones(1, 4000)},
    "a change": {"diff": _ones(16, 16)},
    "a change of another shape": {"diff": _ones(3)},
    "OFT": {"oft_blocks": _ones(2, 2, 2)},
    "dora": {"dora_scale": _ones(16, 1)},
    "dora of another shape": {"dora_scale": _ones(2, 2, 2)},
    "unknown": {"lora_sideways.weight": _ones(2, 2)},
}


def inputs() -> Iterator[Input]:
    yield from _factors()
    yield from _statistics()
    yield from _bases()
    yield from _leagues()
    yield from _libraries()


def _factors() -> Iterator[Input]:
    commands = (
        ("adapter", "inspect", "{case}/m"),
        ("adapter", "inspect", "{case}/m", "--base", "base"),
        ("adapter", "merge", "base", "{case}/m", "{case}/out", "--quiet"),
        ("adapter", "convert", "{case}/m", "{case}/x.safetensors", "--to", "kohya"),
        ("adapter", "resize", "{case}/m", "{case}/out", "--rank", "1", "--quiet"),
        ("adapter", "combine", "{case}/m", "lora2", "--out", "{case}/out", "--quiet"),
        ("adapter", "combine", "{case}/m", "lora2", "--out", "{case}/out", "--method", "ties"),
        ("adapter", "basis", "create", "{case}/m", "lora2", "{case}/b.safetensors"),
        ("diff", "base", "base+{case}/m"),
    )
    for name, change in FACTORS.items():

        def make(path: Path, change: Callable[[Factors], Factors] = change) -> None:
            copied("lora")(path)
            file = path / "adapter_model.safetensors"
            save_file(change(load_file(file)), file)

        for argv in commands:
            # Numbers that are none are met while a merge goes on, which keeps what it has finished.
            yield Input(
                "factors",
                f"{name}, {' '.join(argv[:3])}",
                argv,
                {"m": make},
                leaves=name in ("NaN", "infinity", "3e38"),
            )
    for name, more in KOHYA.items():
        own = {"lora_down.weight": _ones(2, 16), "lora_up.weight": _ones(16, 2), **more}
        tensors = {f"{_KOHYA}.{part}": t for part, t in own.items() if t is not None}
        for argv in commands:
            line = tuple(word.replace("{case}/m", "{case}/k.safetensors") for word in argv)
            if "kohya" in line:
                line = (*line[:-1], "peft")
                line = tuple(word.replace("x.safetensors", "x") for word in line)
            yield Input(
                "factors",
                f"kohya: {name}, {' '.join(argv[:3])}",
                line,
                {"k.safetensors": _saved(tensors)},
            )


def _saved(tensors: Factors, metadata: dict[str, str] | None = None) -> Make:
    return lambda path: save_file(tensors, path, metadata=metadata)


def _measured(tensors: Factors, header: bytes) -> Make:
    """Statistics of the model `a`."""

    def make(path: Path) -> None:
        digest = fingerprint(open_checkpoint(path.parents[1] / "a"))
        text = header.decode("utf-8", "replace").replace(_DIGEST, digest)
        save_file(tensors, path, metadata={"weightsmith_statistics": text})

    return make


def _statistics() -> Iterator[Input]:
    header = {
        "schema": 1,
        "kind": "fisher",
        "of": {"name": "a", "digest": _DIGEST},
        "data": "d",
        "samples": 4,
        "normalization": "mean",
        "weightsmith": "0.1.0",
        "metrics": {"x": 1.0},
        "same": {"lm_head.weight": "model.embed_tokens.weight"},
        "means": False,
        "block": 0,
    }
    tensors = {"model.norm.weight": _ones(16)}
    methods = {"fisher": "fisher", "regmean": "gram", "metrics_weighted": "metrics"}
    for method, kind in methods.items():
        recipe = (
            f"weightsmith: 1\nmerge_method: {method}\nmodels: [{{model: a, statistics: case/s.safetensors}}, "
            "{model: a, statistics: case/s.safetensors}]\n"
        )
        for name, document in (*variants({**header, "kind": kind}, FEW), *JSON_TEXTS.items()):
            if callable(document):
                continue
            text = document if isinstance(document, bytes) else json.dumps(document).encode()
            files: dict[str, Any] = {"r.yaml": recipe, "s.safetensors": _measured(tensors, text)}
            yield Input("statistics", f"{method}: {name}", ("plan", "{case}/r.yaml"), files)
        for name, changed in {
            "negative": -_ones(16),
            "NaN": _ones(16) * np.nan,
            "another shape": _ones(3, 3),
            "zeros": 0 * _ones(16),
            "whole numbers": np.ones(16, np.int64),
        }.items():
            text = json.dumps({**header, "kind": kind}).encode()
            files = {
                "r.yaml": recipe,
                "s.safetensors": _measured({"model.norm.weight": changed}, text),
            }
            argv = ("merge", "{case}/r.yaml", "{case}/out", "--quiet")
            yield Input("statistics", f"{method}: tensors {name}", argv, files)


def _bases() -> Iterator[Input]:
    for number in range(130):

        def make(path: Path, number: int = number) -> None:
            source = path.parents[1] / "basis.safetensors"
            metadata = parse_file(source).metadata
            header = json.loads(metadata["weightsmith-basis"])
            header.pop("seal")
            header["tensors"] = dict(list(header["tensors"].items())[:1])
            made = list(variants(header, FEW))
            document = made[number][1] if number < len(made) else header
            text = sealed(document).decode()
            save_file(load_file(source), path, metadata={**metadata, "weightsmith-basis": text})

        for argv in (
            ("adapter", "basis", "show", "{case}/b.safetensors"),
            ("adapter", "basis", "extract", "{case}/b.safetensors", "lora", "{case}/out"),
        ):
            yield Input("bases", f"change {number}, {argv[2]}", argv, {"b.safetensors": make})


def _leagues() -> Iterator[Input]:
    for name, document in variants(LEAGUE, FEW):
        argv = ("report", "--league", "{case}/x.json", "-o", "{case}/r.html")
        yield Input("leagues", name, argv, {"x.json": json.dumps(document).encode()})


def _libraries() -> Iterator[Input]:
    damages: dict[str, Make] = {}
    for source, file in (
        ("package", "weightsmith-delta.json"),
        ("bundle", "weightsmith-bundle.json"),
    ):
        for name, content in JSON_TEXTS.items():
            damages[f"{file} {name}"] = copied(source, file, content)
    for name, content in JSON_TEXTS.items():
        damages[f"streams {name}"] = copied("package", "delta.safetensors", content)
    for name, make in damages.items():
        for argv in (
            ("delta", "list", "{case}"),
            ("delta", "dedupe", "{case}"),
            ("delta", "gc", "{case}"),
            ("delta", "materialise", "{case}", "m", "{case}/out", "--quiet"),
        ):
            yield Input(
                "libraries", f"{name}, {argv[1]}", argv, {"m": make, "n": copied("package")}
            )
