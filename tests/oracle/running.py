"""Running weightsmith on a family, in memory and from files, and measuring how far it is from an oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.engine.running.in_memory import merge_in_memory
from weightsmith.methods.parts import registry

from .catalogue import Rule, Variant
from .families import Family, Place, Tensors
from .measured import channel_axis

RESERVED = frozenset({"preset", "experts", "base", "statistics"})
_NUMPY = {"float64": np.float64, "float32": np.float32}
TORCH = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


# Files ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A family on disk. Its labels are the names of the experts' folders, which random masks depend on."""

    folder: Path
    dtype: str
    family: Family
    files: dict[tuple[str, int], str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The base's folder."""
        return str(self.folder / "base")

    def expert(self, number: int) -> str:
        """The folder of an expert, counted from 0."""
        return str(self.folder / self.family.labels[number])

    def write(self, name: str, tensors: Tensors, **how: Any) -> str:
        """One more model of this dtype, made once; its folder."""
        folder = self.folder / name
        if not folder.exists():
            write_model(folder, tensors, **{"dtype": self.dtype, **how})
        return str(folder)

    def statistics(
        self, kind: str, expert: int, values: Mapping[str, Any], *, of_base: bool = False
    ) -> str:
        """The statistics file of an expert, or of the base over an expert's data, written once."""
        owner = "base" if of_base else ""
        key = (f"{owner}{kind}", expert)
        if key not in self.files:
            kind_of, _, word = kind.partition(":")
            path = self.folder / f"{owner}{kind.replace(':', '-')}-{expert}.safetensors"
            places = self.family.places
            arrays = {
                n: [x.astype(np.float32) for x in v]
                if isinstance(v, list)
                else _narrow(_one_for_each(v, places[n]) if kind_of == "channels" else v, kind)
                for n, v in values.items()
            }
            weightsmith.write_statistics(
                path,
                {f"{n}::{word}" if word else n: v for n, v in arrays.items()},
                kind=kind_of,
                of=self.base if of_base else self.expert(expert),
                data="numbers drawn for a test",
                samples=len(next(iter(values.values()))) if kind == "gradients" else 16,
            )
            self.files[key] = str(path)
        return self.files[key]


def _one_for_each(values: np.ndarray, place: Place) -> np.ndarray:
    """The number of each channel."""
    axis = channel_axis(place)
    at = tuple(slice(None) if i == axis else 0 for i in range(values.ndim))
    return np.asarray(values[at])


def _narrow(values: np.ndarray, kind: str) -> np.ndarray:
    return values if kind == "gram" else values.astype(np.float32)


def store(
    family: Family, folder: Path, dtype: str, tied: Mapping[str, str] | None = None
) -> Stored:
    """Write a base and its experts; `tied` are further names of tensors, as their configuration says."""
    labels = tuple(f"expert-{i}" for i in range(len(family.experts)))
    for label, tensors in zip(("base", *labels), (family.base, *family.experts), strict=True):
        twice = {alias: tensors[name] for alias, name in (tied or {}).items()}
        write_model(folder / label, tensors | twice, dtype=dtype)
        if tied is not None:
            config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
            (folder / label / "config.json").write_text(json.dumps(config))
    return Stored(folder, dtype, replace(family, labels=labels))


def write_model(
    folder: Path,
    tensors: Tensors,
    *,
    dtype: str,
    dtypes: Mapping[str, str] = {},
    shards: int = 1,
    backwards: bool = False,
) -> None:
    """A folder of safetensors files; `dtypes` are those of single tensors."""
    folder.mkdir(parents=True)
    names = list(tensors)[:: -1 if backwards else 1]
    state = {
        n: torch.from_numpy(np.array(tensors[n])).to(TORCH[dtypes.get(n, dtype)]) for n in names
    }
    if shards == 1 and not backwards:
        save_file(state, folder / "model.safetensors")
        return
    for k in range(shards):
        # safetensors orders a file's tensors by itself, so the order of shards is what can be turned around.
        part = {n: state[n] for n in names[k::shards]}
        save_file(part, folder / f"model-{k + 1:05}-of-{shards:05}.safetensors")
    _write_index(folder, names, shards)


def _write_index(folder: Path, names: Sequence[str], shards: int) -> None:
    weight_map = {
        n: f"model-{k + 1:05}-of-{shards:05}.safetensors"
        for k in range(shards)
        for n in names[k::shards]
    }
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


# Runs -----------------------------------------------------------------------------------------------------------------


def takes_base(rule: Rule, variant: Variant) -> bool:
    """Whether the method is given a base in this variant."""
    kind = registry.get(rule.name).base
    return kind is not registry.Base.IGNORED and variant.get("base", True)


def parameters_of(variant: Variant, count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A variant's parameters: those for all, and those of each expert."""
    own = {k: v for k, v in variant.items() if k not in RESERVED}
    for_all = {k: v for k, v in own.items() if not isinstance(v, list)}
    # A base among the models, of which something was measured, has none.
    each = [
        {k: v[i] for k, v in own.items() if isinstance(v, list) and i < len(v)}
        for i in range(count)
    ]
    return for_all, each


def recipe(
    rule: Rule, variant: Variant, models: Sequence[Any], base: Any | None, **more: Any
) -> dict[str, Any]:
    """A recipe for a variant: `models` are references or mappings with the keys of an entry."""
    for_all, each = parameters_of(variant, len(models))
    entries = []
    for model, own in zip(models, each, strict=True):
        entry = dict(model) if isinstance(model, dict) and "model" in model else {"model": model}
        parameters = {**own, **entry.get("parameters", {})}
        entries.append({**entry, "parameters": parameters} if parameters else entry)
    made: dict[str, Any] = {"weightsmith": 1, "merge_method": rule.name, "models": entries}
    if variant.get("preset", "paper") != "paper":
        made["semantics"] = variant["preset"]
    if base is not None:
        made["base_model"] = base
    if for_all:
        made["parameters"] = for_all
    return {**made, **more}


def plain_recipe(rule: Rule, variant: Variant, stored: Stored, **more: Any) -> dict[str, Any]:
    """The recipe that merges the stored experts as they are."""
    base = stored.base if takes_base(rule, variant) else None
    return recipe(rule, variant, models_of(rule, variant, stored), base, **more)


def models_of(rule: Rule, variant: Variant, stored: Stored) -> list[Any]:
    """The experts of a variant, with their statistics where the rule has such."""
    family = rule.cut(stored.family, variant)
    numbers = range(len(family.experts))
    kind = rule.kind(variant)
    if kind is None:
        return [stored.expert(i) for i in numbers]
    if rule.of_base:
        file = stored.statistics(kind, 0, family.statistics[0], of_base=True)
        return [
            *(stored.expert(i) for i in numbers),
            {"model": stored.base, "statistics": file},
        ]
    of_base = registry.get(rule.name).measured_on is not registry.MeasuredOn.EXPERTS
    return [
        {
            "model": stored.expert(i),
            "statistics": stored.statistics(kind, i, family.statistics[i], of_base=of_base),
        }
        for i in numbers
    ]


def computed(made: Mapping[str, Any]) -> Tensors:
    """What a recipe makes, without a file."""
    merged = merge_in_memory(weightsmith.plan(made, threads=1))
    return {
        n: np.frombuffer(t.data, _NUMPY[t.dtype.value]).reshape(t.shape).astype(np.float64)
        for n, t in merged.tensors.items()
    }


def written(made: Mapping[str, Any], folder: Path, backend: str) -> Tensors:
    """What a recipe writes."""
    weightsmith.merge(made, folder, threads=1, backend=backend)
    found: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= {n: x.double().numpy() for n, x in load_file(path).items()}
    return found


def in_memory(
    rule: Rule,
    variant: Variant,
    family: Family,
    tied: Mapping[str, str] | None = None,
    modify: Mapping[str, Any] | None = None,
    based: bool = False,
) -> Tensors:
    """What `merge_state_dicts` makes of a family in float64.

    `tied` are further names of tensors. `modify` is a modifier with its parameters; `based`: it works on task vectors
    even where the method has no base.
    """
    for_all, each = parameters_of(variant, len(family.experts))

    def state(tensors: Tensors) -> dict[str, torch.Tensor]:
        made = {n: torch.from_numpy(np.array(x)) for n, x in tensors.items()}
        return made | {alias: made[name] for alias, name in (tied or {}).items()}

    merged = weightsmith.merge_state_dicts(
        rule.name,
        [state(e) for e in family.experts],
        base=state(family.base) if based or takes_base(rule, variant) else None,
        parameters=for_all,
        per_expert=each,
        preset=variant.get("preset", "paper"),
        seed=family.seed,
        labels=family.labels,
        modify=[modify] if modify else (),
        statistics=[
            {n: _as_torch(v) for n, v in measured.items()} for measured in family.statistics
        ],
        statistics_kind=rule.kind(variant),
    )
    return {n: x.numpy() for n, x in merged.items()}


def _as_torch(values: np.ndarray | list[np.ndarray]) -> torch.Tensor | list[torch.Tensor]:
    if isinstance(values, list):
        return [torch.from_numpy(x) for x in values]
    return torch.from_numpy(values)


# Comparison -----------------------------------------------------------------------------------------------------------


def error(want: Tensors, got: Tensors, base: Tensors) -> float:
    """The largest difference as a share of the largest change that the oracle makes to the base."""
    assert set(want) == set(got), sorted(set(want) ^ set(got))
    change = max(np.abs(want[n] - base[n]).max() for n in base if n in want)
    largest = 0.0
    for name, right in want.items():
        assert right.shape == got[name].shape, (name, right.shape, got[name].shape)
        assert np.isfinite(right).all(), f"the oracle of {name} is not finite"
        assert np.isfinite(got[name]).all(), f"{name} is not finite"
        largest = max(largest, float(np.abs(right - got[name]).max()))
    return largest / float(change) if change else largest
