"""Tied tensors: several names for one matrix, most often the input embedding and the output head.

A tie is known in four ways: two names share one storage of a pickled file; the configuration says
`tie_word_embeddings`, or is silent, and both tensors are stored with the same bytes; both are parts that networks
always have once, such as the bias of a head; or the head is not stored at all. Equal bytes alone are no tie: a model
that was trained untied may start out equal. Nor is the word of the configuration alone: a head that was trained apart
is what gets loaded.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsmith.checkpoints.nested_config import first_of
from weightsmith.checkpoints.roles import Described
from weightsmith.tensors import Kind, LazyTensor, Place, StoredTensor, read_bytes

# Classes whose output head scores the vocabulary, by the end of their name.
_LANGUAGE_HEADS = (
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "ForMaskedLM",
    "ForPreTraining",
    "WithLMHead",
)


# A head is compared with the embedding in so many stretches, of so many numbers each: one that was trained differs in
# every row that was trained, and to read a table of gigabytes is no way to open a checkpoint.
_STRETCHES, _STRETCH = 64, 256


# Names that older files have beside another one of the same tensor: what is read in place of them.
_COPIES = tuple(
    (re.compile(copy), original)
    for copy, original in (
        (r"^(.*(?:predictions|lm_head|mlm_head|mim_head))\.decoder\.bias$", r"\1.bias"),
        (
            r"^((?:model\.)?)(?:encoder|decoder|text_encoder|text_decoder)\.embed_tokens\.weight$",
            r"\1shared.weight",
        ),
    )
)
_COPY_ENDS = (".decoder.bias", ".embed_tokens.weight")


class Tying(enum.Enum):
    """How a checkpoint keeps its output head."""

    TIED = "tied"
    UNTIED = "untied"
    NO_HEAD = "no head"


def find_ties(
    tensors: Mapping[str, LazyTensor],
    places: Mapping[str, Place],
    config: dict[str, Any] | None,
) -> tuple[frozenset[str], ...]:
    """Groups of stored names that are one tensor, in the order of their first names."""
    groups = _shared_storages(tensors)
    head = vocabulary_head(tensors, places)
    if head is not None and config is not None and declared_tied(config) is not False:
        embedding = vocabulary_embedding(tensors, places)
        if embedding is not None and _is_copy(tensors[embedding], tensors[head]):
            groups.append({embedding, head})
    groups += _stored_copies(tensors)
    order = {name: i for i, name in enumerate(tensors)}
    joined = _joined(groups)
    return tuple(sorted(joined, key=lambda group: min(order[name] for name in group)))


def declared_tied(config: dict[str, Any] | None) -> bool | None:
    """What the configuration says of `tie_word_embeddings`; None where it says nothing.

    Silence means different things for different families, so then the stored tensors decide.
    """
    declared = first_of(config, "tie_word_embeddings")
    return declared if isinstance(declared, bool) else None


def tying_of(
    tensors: Mapping[str, LazyTensor],
    places: Mapping[str, Place],
    ties: Sequence[frozenset[str]],
    config: dict[str, Any] | None,
) -> Tying:
    """Whether the output head is the embedding, a tensor of its own, or not there.

    An absent head is a tied one if the configuration says so, or if it is silent and names a class
    that has a language head. A network without a vocabulary has no head to tie.
    """
    embedding = vocabulary_embedding(tensors, places)
    head = vocabulary_head(tensors, places)
    if head is not None:
        tied = any(head in group and embedding in group for group in ties)
        return Tying.TIED if tied else Tying.UNTIED
    if embedding is None:
        return Tying.NO_HEAD
    architectures = (config or {}).get("architectures") or ()
    has_head = any(str(name).endswith(_LANGUAGE_HEADS) for name in architectures)
    declared = declared_tied(config)
    if architectures and not has_head:
        return Tying.NO_HEAD
    return Tying.TIED if declared or (declared is None and has_head) else Tying.NO_HEAD


def vocabulary_embedding(
    tensors: Mapping[str, Described], places: Mapping[str, Place]
) -> str | None:
    """The name of the input embedding: the first embedding matrix with the most rows."""
    matrices = [
        name
        for name, role in places.items()
        if role.kind is Kind.EMBEDDING and role.part == "weight" and len(tensors[name].shape) == 2
    ]
    return max(matrices, key=lambda name: tensors[name].shape[0], default=None)


def vocabulary_head(tensors: Mapping[str, Described], places: Mapping[str, Place]) -> str | None:
    """The name of the matrix that scores the vocabulary: a head with the embedding's rows."""
    embedding = vocabulary_embedding(tensors, places)
    if embedding is None:
        return None
    rows = tensors[embedding].shape[0]
    heads = (
        name
        for name, role in places.items()
        if role.kind is Kind.HEAD and role.part == "weight" and len(tensors[name].shape) == 2
    )
    # MobileBERT scores with its table and a matrix beside it, which has as many rows.
    fitting = [n for n in heads if tensors[n].shape[0] == rows and not n.endswith(".dense.weight")]
    if not fitting:
        return None
    # Of several models in one checkpoint (Bark), the head is not one of another model that has a table of its own.
    tables = {_top(name) for name, role in places.items() if role.kind is Kind.EMBEDDING}
    others = tables - {_top(embedding)}
    return next((name for name in fitting if _top(name) not in others), None)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _stored_copies(tensors: Mapping[str, LazyTensor]) -> list[set[str]]:
    """The pairs of names that networks have one tensor for, where both are stored and equal."""
    groups = []
    for name in tensors:
        if not name.endswith(_COPY_ENDS):
            continue
        for copy, original in _COPIES:
            found = copy.match(name)
            other = "" if found is None else found.expand(original)
            if other in tensors and _is_copy(tensors[other], tensors[name]):
                groups.append({other, name})
    return groups


def _is_copy(first: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors have one shape and dtype, and the same bytes wherever they are looked at."""
    if (first.shape, first.dtype) != (other.shape, other.dtype):
        return False
    step = max(1, first.numel // _STRETCHES)
    # The last rows are those of tokens that were added, and may be all that was trained.
    starts = (*range(0, first.numel, step), max(0, first.numel - _STRETCH))
    return all(_stretch(first, start) == _stretch(other, start) for start in starts)


def _stretch(tensor: LazyTensor, start: int) -> bytearray:
    return read_bytes(tensor, start, min(start + _STRETCH, tensor.numel))


def _shared_storages(tensors: Mapping[str, LazyTensor]) -> list[set[str]]:
    first_at: dict[object, str] = {}
    shared: dict[object, set[str]] = {}
    files: dict[Path, int] = {}
    last, file = None, 0
    for name, tensor in tensors.items():
        if isinstance(tensor, StoredTensor) and 0 not in tensor.shape:
            # Neighbours lie in one file, and the hash of a path takes longer than all the rest.
            if tensor.file is not last:
                last, file = tensor.file, files.setdefault(tensor.file, len(files))
            place = (file, tensor.offset, tensor.dtype, tensor.shape, tensor.strides)
            first = first_at.setdefault(place, name)
            if first != name:
                shared.setdefault(place, {first}).add(name)
    return list(shared.values())


def _joined(groups: Sequence[set[str]]) -> list[frozenset[str]]:
    """Groups with a name in common become one."""
    joined: list[set[str]] = []
    for group in groups:
        apart = [other for other in joined if not other & group]
        together = [other for other in joined if other & group]
        joined = [*apart, set(group).union(*together)]
    return [frozenset(group) for group in joined]
