"""A base under the names that a model's modules have in memory, where its files call them differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from weightsmith.checkpoints import Checkpoint, assemble
from weightsmith.deltas import renamed
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter

# Families of which checkpoints were published from the body alone although their configuration names a class with a
# head: what that class calls the body.
_BODIES = {
    "gpt2": "transformer.",
    "bloom": "transformer.",
    "openai-gpt": "transformer.",
    "opt": "model.",
}
_HEADS = ("lm_head.", "score.", "classifier.", "qa_outputs.")


@dataclass(frozen=True, slots=True)
class Renaming:
    """Names that begin with `before` begin with `after` instead."""

    before: str = ""
    after: str = ""

    def __call__(self, name: str) -> str:
        return self.after + name[len(self.before) :] if name.startswith(self.before) else name


def in_memory(base: Checkpoint | None) -> Renaming:
    """How transformers names the modules of a checkpoint that stores a body without the name of its class for it."""
    config = (base.config if base is not None else None) or {}
    body = _BODIES.get(str(config.get("model_type")))
    declared = config.get("architectures")
    architecture = str(declared[0]) if isinstance(declared, list) and declared else ""
    has_head = not architecture.endswith("Model") or architecture.endswith("HeadModel")
    if base is None or body is None or not architecture or not has_head:
        return Renaming()
    return Renaming() if any(name.startswith(body) for name in base.tensors) else Renaming("", body)


def between(names: Mapping[str, str]) -> Renaming | None:
    """The one exchange of beginnings that turns every key into its value, or None."""
    found: set[tuple[str, str]] = set()
    for before, after in names.items():
        one, other = before.split("."), after.split(".")
        kept = 0
        while kept < min(len(one), len(other)) and one[-1 - kept] == other[-1 - kept]:
            kept += 1
        found.add((_beginning(one, kept), _beginning(other, kept)))
    return Renaming(*found.pop()) if len(found) == 1 else None


def _beginning(fields: Sequence[str], kept: int) -> str:
    return "".join(f"{field}." for field in fields[: len(fields) - kept])


def renamed_base(base: Checkpoint, renaming: Renaming) -> Checkpoint:
    """The base with other names; heads keep theirs where a body gets a name in front."""
    if renaming == Renaming():
        return base
    tensors = {}
    for name, tensor in base.tensors.items():
        other = name if _is_head(name, renaming) else renaming(name)
        tensors[other] = renamed(tensor, other)
    built = assemble(tensors, base.config, path=base.path, source=base.source)
    return replace(built, hub_id=base.hub_id, revision=base.revision, tying=base.tying)


def renamed_adapter(adapter: LowRankAdapter, renaming: Renaming) -> LowRankAdapter:
    """The adapter for a base with other names."""
    if renaming == Renaming():
        return adapter

    def new(name: str) -> str:
        return name if _is_head(name, renaming) else renaming(name)

    factors: dict[str, Factors] = {}
    for given in adapter.factors.values():
        found = replace(given, target=new(given.target))
        factors[found.key] = found
    return replace(
        adapter,
        factors=factors,
        replaced={new(name): values for name, values in adapter.replaced.items()},
        added={new(name): values for name, values in adapter.added.items()},
    )


def _is_head(name: str, renaming: Renaming) -> bool:
    return not renaming.before and name.startswith(_HEADS)
