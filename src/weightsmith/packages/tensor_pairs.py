"""Which tensor of the base each tensor of a fine-tune is coded against."""

from __future__ import annotations

from dataclasses import dataclass

from weightsmith.checkpoints import (
    Checkpoint,
    Tying,
    as_base,
    respelled,
    vocabulary_embedding,
    vocabulary_head,
)
from weightsmith.deltas import SomeRows, Stretch
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import LazyTensor, digest_tensor, in_order


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of the fine-tune and the base's tensor under it, if there is one of the same row length.

    `same_as` is an earlier tensor of the fine-tune with the same content.
    """

    name: str
    target: LazyTensor
    digest: str
    base: LazyTensor | None = None
    base_name: str | None = None
    base_digest: str | None = None
    same_as: str | None = None

    @property
    def known(self) -> LazyTensor | None:
        """The base's tensor as the change counts from it."""
        rows = self.target.shape[0] if self.target.shape else None
        return None if self.base is None else as_base(self.base, self.target.dtype, rows)

    @property
    def can_lose(self) -> bool:
        """Whether its change may be stored with an error: it is a matrix of floats, and so is the base's."""
        target, base = self.target, self.base
        is_matrix = len(target.shape) > 1 and target.numel > 0 and target.dtype.is_float
        return is_matrix and base is not None and base.dtype.is_float and base.numel > 0

    @property
    def shared_rows(self) -> int | None:
        """The rows that the base has too, where the fine-tune has more; None where it has not."""
        if self.base is None or not self.target.shape:
            return None
        return self.base.shape[0] if self.base.shape[0] < self.target.shape[0] else None

    def target_rows(self) -> tuple[LazyTensor, LazyTensor | None]:
        """The rows of the target that the base has too, and those beyond."""
        rows = self.shared_rows
        if rows is None:
            return self.target, None
        return SomeRows(self.target, 0, rows), SomeRows(self.target, rows, self.target.shape[0])


def pairs_of(finetune: Checkpoint, base: Checkpoint, threads: int) -> list[Pair]:
    """Every tensor of the fine-tune with the base's of the same name, in the fine-tune's order; both are read once.

    The base may spell the name otherwise. A head that the base ties to its embedding is coded against the embedding.
    Tensors that the base lacks, or has with other axes than the first, stand alone. Raises CompatibilityError where all
    do, CheckpointError where a tensor cannot be read.
    """
    seen = respelled(base, finetune)
    found = [
        (name, target, _base_name(name, target, finetune, seen))
        for name, target in finetune.tensors.items()
    ]
    if all(base_name is None for _, _, base_name in found):
        raise CompatibilityError(
            f"{finetune.identity} was not made from {base.identity}, for no tensor of one has the name and row length "
            "of one of the other: give the base that it was made from."
        )
    read: dict[str, LazyTensor] = {name: target for name, target, _ in found}
    needed = list(dict.fromkeys(name for _, _, name in found if name is not None))
    digests = dict(zip(read, in_order(digest_tensor, read.values(), threads), strict=True))
    origins = [base.tensors[name] for name in needed]
    base_digests = dict(zip(needed, in_order(digest_tensor, origins, threads), strict=True))
    first: dict[str, str] = {}
    pairs = []
    for name, target, base_name in found:
        digest = digests[name]
        same_as = first.setdefault(digest, name)
        if same_as != name:
            pairs.append(Pair(name, target, digest, same_as=same_as))
        elif base_name is None:
            pairs.append(Pair(name, target, digest))
        else:
            origin = base.tensors[base_name]
            pairs.append(Pair(name, target, digest, origin, base_name, base_digests[base_name]))
    return pairs


def _base_name(name: str, target: LazyTensor, finetune: Checkpoint, base: Checkpoint) -> str | None:
    known: str | None = name
    if name not in base.tensors:
        is_head = name == vocabulary_head(finetune.tensors, finetune.places)
        tied = base.tying is not Tying.UNTIED
        known = vocabulary_embedding(base.tensors, base.places) if is_head and tied else None
    if known is None:
        return None
    shape = base.tensors[known].shape
    own = base.own_names.get(known, (known,))
    # What is joined from several, or cut out of one, is no tensor that a package could name.
    is_whole = len(own) == 1 and not isinstance(base.tensors[known], Stretch)
    fits = len(shape) == len(target.shape) and shape[1:] == target.shape[1:]
    return own[0] if is_whole and fits else None
