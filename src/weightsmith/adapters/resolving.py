"""Finding the tensors of a base that an adapter's names mean.

An adapter names modules as they are called in memory when it is trained, a file as its family writes them: the two meet
where both are canonical. Beyond that names may differ by what wraps the model (`model.`, `transformer.`, the family's
own prefix). Flat names (`_` for `.`) mean the tensor whose flattened name they are.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from weightsmith.adapters.adapter import Adapter, Update
from weightsmith.checkpoints import Checkpoint, Spelling, spelling_of
from weightsmith.errors import CompatibilityError
from weightsmith.naming import nearest
from weightsmith.tensors import shown

# Fields that wrap a model and may be there or not.
_WRAPPERS = frozenset(
    """model base_model transformer module language_model text_model _orig_mod _fsdp_wrapped_module backbone
    thinker bert roberta distilbert albert electra deberta xlm_roberta camembert mpnet modernbert gpt_neox vit clip
    wav2vec2 whisper esm""".split()
)
# Parameters of modules that have no weight of their own.
_OTHER_LEAVES = {"weight": "in_proj_weight", "bias": "in_proj_bias"}
_QUANTISED_LEAVES = (
    "qweight",
    "weight_packed",
    "weight.absmax",
    "SCB",
    "weight_scale_inv",
    "qzeros",
)
_LONGEST_LIST = 3


@dataclass(frozen=True)
class Names:
    """The names of a base's tensors, looked up in several ways."""

    base: Checkpoint

    @functools.cached_property
    def wrappers(self) -> frozenset[str]:
        """Fields that may wrap this model."""
        kind = (self.base.config or {}).get("model_type")
        own = (
            {kind, kind.replace("-", "_"), kind.partition("-")[0]}
            if isinstance(kind, str)
            else set()
        )
        return _WRAPPERS | own

    @functools.cached_property
    def spelling(self) -> Spelling:
        """How the base names its tensors."""
        return spelling_of(self.base.config, self.base.tensors)

    @functools.cached_property
    def owners(self) -> Mapping[str, str]:
        """The base's tensor by its own name and by its canonical one."""
        canonical = {self.spelling.canonical(name): name for name in self.base.tensors}
        return {**canonical, **{name: name for name in self.base.tensors}}

    @functools.cached_property
    def by_end(self) -> Mapping[tuple[str, ...], list[str]]:
        """Names, own and canonical ones, by their last two fields."""
        found: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name in self.owners:
            found[tuple(name.split(".")[-2:])].append(name)
        return found

    @functools.cached_property
    def by_flat_end(self) -> Mapping[str, list[tuple[str, str]]]:
        """(fields before, name) by the flattened rest of a module's path, and the tensor's own field behind it."""
        found: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for name in self.base.tensors:
            *module, leaf = name.split(".")
            for at in range(len(module)):
                flat = "_".join(module[at:])
                found[f"{flat}.{leaf}"].append((".".join(module[:at]), name))
        return found

    def find(self, target: str) -> str | None:
        """The tensor that a dotted name means, or None; raises CompatibilityError where several could be meant."""
        spellings = dict.fromkeys((target, self.spelling.canonical(target)))
        found = (self._found(spelling) for spelling in spellings)
        return next((name for name in found if name is not None), None)

    def _found(self, target: str) -> str | None:
        module, _, leaf = target.rpartition(".")
        for wanted in (target, f"{module}.{_OTHER_LEAVES.get(leaf, leaf)}"):
            if wanted in self.owners:
                return self.owners[wanted]
        fields = target.split(".")
        for dropped in range(len(fields) - 1):
            if dropped and fields[dropped - 1] not in self.wrappers:
                break
            rest = fields[dropped:]
            ends = [n for n in self.by_end.get(tuple(rest[-2:]), ()) if _ends(n, rest)]
            chosen = self._chosen(ends, len(rest))
            if chosen is not None:
                return chosen
            if ends:
                several = list(dict.fromkeys(self.owners[name] for name in ends))
                listed = ", ".join(shown(name) for name in several[:_LONGEST_LIST])
                raise CompatibilityError(
                    f"{shown(target)} of the adapter could be any of {len(several)} tensors of {self.base.identity} "
                    f"({listed}): give the base that the adapter was trained on."
                )
        return None

    def _chosen(self, ends: Sequence[str], kept: int) -> str | None:
        """The only tensor of the names, or the only one with nothing but wrappers before the fields that are kept."""
        wrapped = [n for n in ends if self.wrappers.issuperset(n.split(".")[:-kept])]
        for names in (ends, wrapped):
            found = {self.owners[name] for name in names}
            if len(found) == 1:
                return found.pop()
        return None


def resolve(adapter: Adapter, updates: Sequence[Update], names: Names) -> dict[str, str]:
    """The base's tensor for each update, by `Update.key`.

    Raises CompatibilityError, naming the target and the closest names, for one that is not there, is one of several,
    or is meant by two updates.
    """
    found = (
        _flat(adapter, updates, names) if adapter.flattened else _dotted(adapter, updates, names)
    )
    owners: dict[str, str] = {}
    for key, name in found.items():
        other = owners.setdefault(name, key)
        if other != key:
            raise CompatibilityError(
                f"{shown(other)} and {shown(key)} of adapter {shown(adapter.source)} both mean the tensor "
                f"{shown(name)} of {names.base.identity}: give the base that the adapter was trained on."
            )
    return found


def unresolved(adapter: Adapter, update: Update, names: Names) -> CompatibilityError:
    """The error for a target that the base does not have."""
    base, target = names.base, update.target
    module, _, leaf = target.rpartition(".")
    quantised = [n for n in _QUANTISED_LEAVES if f"{module}.{n}" in base.tensors]
    start = f"Adapter {shown(adapter.source)} changes {shown(target)}, "
    if quantised:
        return CompatibilityError(
            f"{start}which is quantised in {base.identity} ({shown(f'{module}.{quantised[0]}')}): give the base before "
            "it was quantised."
        )
    if leaf == "bias" and _has_weight(module, adapter, names):
        return CompatibilityError(
            f"{start}but the module has no bias in {base.identity}, so the model that reads it has no place for one: "
            "drop the bias from the adapter, or give the base that it was trained on."
        )
    near = nearest(target, base.tensors)
    hint = f" (the closest name is {shown(near)})" if near else ""
    return CompatibilityError(
        f"{start}which {base.identity} has no tensor for{hint}: give the base that the adapter was trained on."
    )


def _has_weight(module: str, adapter: Adapter, names: Names) -> bool:
    if adapter.flattened:
        return f"{module}.weight" in names.by_flat_end
    return names.find(f"{module}.weight") is not None


def _dotted(adapter: Adapter, updates: Sequence[Update], names: Names) -> dict[str, str]:
    found: dict[str, str] = {}
    for update in updates:
        name = names.find(update.target)
        if name is None:
            raise unresolved(adapter, update, names)
        found[update.key] = name
    return found


def _ends(name: str, rest: Sequence[str]) -> bool:
    return name.split(".")[-len(rest) :] == list(rest)


def _flat(adapter: Adapter, updates: Sequence[Update], names: Names) -> dict[str, str]:
    """Flat names are all of the part of the base below one prefix."""
    prefixes = _common_prefixes(updates, names)
    if not prefixes:
        best = max(
            _prefix_counts(updates, names).items(), key=lambda item: item[1], default=("", 0)
        )
        lost = next(u for u in updates if not _below(u, best[0], names))
        raise unresolved(adapter, lost, names)
    if len(prefixes) > 1 and "" not in prefixes:
        listed = ", ".join(map(shown, prefixes[:_LONGEST_LIST]))
        raise CompatibilityError(
            f"The names of adapter {shown(adapter.source)} fit {names.base.identity} below {listed}: give the one "
            "component that the adapter is of as the base."
        )
    prefix = "" if "" in prefixes else prefixes[0]
    return {update.key: _only(update, prefix, adapter, names) for update in updates}


def _common_prefixes(updates: Sequence[Update], names: Names) -> list[str]:
    counts = _prefix_counts(updates, names)
    return [prefix for prefix, count in counts.items() if count == len(updates)]


def _prefix_counts(updates: Iterable[Update], names: Names) -> dict[str, int]:
    """How many of the updates have a tensor below each prefix."""
    counts: dict[str, int] = defaultdict(int)
    for update in updates:
        for prefix in dict.fromkeys(p for p, _ in names.by_flat_end.get(update.target, ())):
            counts[prefix] += 1
    return counts


def _below(update: Update, prefix: str, names: Names) -> list[str]:
    return [name for p, name in names.by_flat_end.get(update.target, ()) if p == prefix]


def _only(update: Update, prefix: str, adapter: Adapter, names: Names) -> str:
    found = _below(update, prefix, names)
    if len(found) > 1:
        raise CompatibilityError(
            f"{shown(update.target)} of adapter {shown(adapter.source)} is the flat name of {shown(found[0])} and of "
            f"{shown(found[1])} in {names.base.identity}: convert the adapter to dotted names with the program that "
            "made it."
        )
    return found[0]
