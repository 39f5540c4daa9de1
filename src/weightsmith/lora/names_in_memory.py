"""A base under the names that a model's modules have in memory, where its files call them differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from weightsmith.checkpoints import HEADS, Checkpoint, assemble, spelling_of
from weightsmith.deltas import renamed
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter

Rename = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Renaming:
    """Names that begin with `before` begin with `after` instead."""

    before: str = ""
    after: str = ""

    def __call__(self, name: str) -> str:
        if not name.startswith(self.before) or (not self.before and name.startswith(HEADS)):
            return name
        return self.after + name[len(self.before) :]


def in_memory(base: Checkpoint | None) -> Rename:
    """How transformers names what the files of a base store."""
    if base is None:
        return Renaming()
    return spelling_of(base.config, base.tensors).canonical


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


def renamed_base(base: Checkpoint, rename: Rename) -> Checkpoint:
    """The base with other names."""
    names = {name: rename(name) for name in base.tensors}
    if all(name == other for name, other in names.items()):
        return base
    tensors = {other: renamed(base.tensors[name], other) for name, other in names.items()}
    built = assemble(tensors, base.config, path=base.path, source=base.source)
    return replace(built, hub_id=base.hub_id, revision=base.revision, tying=base.tying)


def renamed_adapter(adapter: LowRankAdapter, rename: Rename) -> LowRankAdapter:
    """The adapter for a base with other names."""
    factors: dict[str, Factors] = {}
    for given in adapter.factors.values():
        found = replace(given, target=rename(given.target))
        factors[found.key] = found
    return replace(
        adapter,
        factors=factors,
        replaced={rename(name): values for name, values in adapter.replaced.items()},
        added={rename(name): values for name, values in adapter.added.items()},
    )
