"""Adapters of classifiers on the base of a language model: PEFT stores the head that was trained on it whole.

The result is a classifier: the base's body with the changes, and the adapter's head in the place of that which scores
the vocabulary, under the configuration of the family's class for the task.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from weightsmith.adapters.adapter import Adapter, Update
from weightsmith.adapters.resolving import Names
from weightsmith.checkpoints import Checkpoint, Tying, vocabulary_head
from weightsmith.deltas import renamed
from weightsmith.errors import CompatibilityError
from weightsmith.findings import Finding, Severity
from weightsmith.tensors import DType, Kind, Place, shown

# PEFT's task types, and the end of the class that transformers has for each.
_CLASSES = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
_MODULES = frozenset({"score", "classifier"})
_LANGUAGE = re.compile(r"(?:ForCausalLM|LMHeadModel|ForMaskedLM|Model)$")


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """The tensors of a classifier's head in an adapter, which a language model has no place for, by name.

    `rest` is the adapter without them.
    """

    updates: Mapping[str, Update]
    rest: Adapter


def heads_of(adapter: Adapter, names: Names, strength: float) -> Heads:
    """What of an adapter is a new head on its base, and what is not.

    Raises CompatibilityError for a strength other than 0 and 1: there is nothing that a new head could be weighted
    against.
    """
    updates: dict[str, Update] = {}
    if adapter.config.get("task_type") in _CLASSES and _class_of(names.base) is not None:
        updates = {u.target: u for u in adapter.updates.values() if _is_new(u, names.base)}
    if updates and strength not in (0.0, 1.0):
        raise CompatibilityError(
            f"Adapter {shown(adapter.source)} brings a head of its own ({shown(next(iter(updates)))}), which "
            f"{names.base.identity} has nothing to weight against: apply it with strength 1."
        )
    rest = {key: u for key, u in adapter.updates.items() if u.target not in updates}
    return Heads(updates, replace(adapter, updates=rest))


def _is_new(update: Update, base: Checkpoint) -> bool:
    is_whole = update.replacement is not None and update.load is None and update.effect is None
    module = update.target.rpartition(".")[0]
    return is_whole and module in _MODULES and update.target not in base.tensors


def with_heads(changed: Checkpoint, found: Heads) -> Checkpoint:
    """The base with adapters, with a classifier's head and configuration in place of those of a language model."""
    heads, adapter = found.updates, found.rest
    if not heads:
        return changed
    head = vocabulary_head(changed.tensors, changed.places)
    usual = _usual_dtype(changed)
    tensors = {name: tensor for name, tensor in changed.tensors.items() if name != head}
    places = {name: place for name, place in changed.places.items() if name != head}
    for name, update in heads.items():
        assert update.replacement is not None
        tensors[name] = renamed(update.replacement, name)
        places[name] = Place(name, Kind.HEAD, part=name.rpartition(".")[2])
    dropped = "" if head is None else f", in place of {shown(head)}"
    note = Finding(
        Severity.NOTE,
        "added-head",
        changed.identity,
        f"{changed.identity} becomes a classifier: {', '.join(map(shown, heads))} of adapter {shown(adapter.source)} "
        f"is added{dropped}, and config.json names that class",
        "put the names of the labels into `id2label` of the result",
    )
    return replace(
        changed,
        tensors=tensors,
        places=places,
        ties=tuple(group for group in changed.ties if head not in group),
        tying=Tying.NO_HEAD,
        stored_as={**changed.stored_as, **dict.fromkeys(heads, usual)},
        config=_config(changed, heads, adapter),
        about_files=(*changed.about_files, note),
    )


def _class_of(base: Checkpoint) -> str | None:
    """The class of a language model that a configuration names."""
    named = (base.config or {}).get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first if isinstance(first, str) and _LANGUAGE.search(first) else None


def _config(base: Checkpoint, heads: Mapping[str, Update], adapter: Adapter) -> dict[str, Any]:
    config = copy.deepcopy(base.config or {})
    end = _CLASSES[str(adapter.config["task_type"])]
    config["architectures"] = [_LANGUAGE.sub(end, _class_of(base) or "")]
    weight = next((u.replacement for name, u in heads.items() if name.endswith(".weight")), None)
    labels = None if weight is None else weight.shape[0]
    if labels is not None and len(config.get("id2label") or ()) != labels:
        # What transformers calls them where nobody has named them.
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
    return config


def _usual_dtype(checkpoint: Checkpoint) -> DType:
    """What most numbers of a checkpoint are stored in."""
    counts: Counter[DType] = Counter()
    for name, tensor in checkpoint.tensors.items():
        if checkpoint.dtype_of(name).is_float:
            counts[checkpoint.dtype_of(name)] += tensor.numel
    return counts.most_common(1)[0][0]
