"""What an extracted adapter does with each tensor of a fine-tune, decided from headers and roles alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from weightsmith.adapters import Turned, stores_input_first, turned_stacks
from weightsmith.checkpoints import Checkpoint, Tying, untied, vocabulary_embedding
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.naming import beside, matching, nearest
from weightsmith.tensors import Kind, LazyTensor, Place, kernel_shape, shown

_EMBEDDINGS = (Kind.EMBEDDING, Kind.POSITION_EMBEDDING, Kind.TYPE_EMBEDDING)
_RESIZABLE = (*_EMBEDDINGS, Kind.HEAD)
_BARE = "it is a parameter of no module, and adapters change modules"
_HOLDER = "its module holds others with factors, and PEFT replaces modules whole"
_ALIKE = (
    "its module's path is the end of that of another with factors, and PEFT replaces both whole"
)
_NO_WEIGHT = "it is no weight of a module, which adapters change"


class Treatment(str, Enum):
    """Where the change of a tensor goes."""

    FACTORED = "factored"
    REPLACED = "replaced"
    ADDED = "added"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class Choices:
    """What becomes of tensors that are no plain matrices.

        embeddings   replace: stored whole; lora: factored; skip: left out
        heads        the same of output heads
        biases       add: their change is stored whole; skip: left out
        norms        replace: stored whole; skip: left out
        exclude      globs of names of tensors that are left out, whatever they are

    Tables and heads of another number of rows than the base's cannot be factored, so they are replaced unless skipped.
    """

    embeddings: Literal["replace", "lora", "skip"] = "replace"
    heads: Literal["replace", "lora", "skip"] = "lora"
    biases: Literal["add", "skip"] = "add"
    norms: Literal["replace", "skip"] = "replace"
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class TreatedTensor:
    """A tensor of the fine-tune, or one expert (`part`) of a fused one, and what becomes of its change.

    `base` is None for a tensor that the base lacks or has in another shape. `shape` is that of the matrix, `first` the
    element with which it begins, `why` the reason for leaving it out.
    """

    finetune: LazyTensor
    base: LazyTensor | None
    treatment: Treatment
    shape: tuple[int, int]
    kind: Literal["linear", "embedding", "conv"] = "linear"
    input_first: bool = False
    part: int | None = None
    first: int = 0
    why: str = ""

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.finetune.name

    @property
    def key(self) -> str:
        """Name and expert, as `Factors.key`."""
        return self.name if self.part is None else f"{self.name}[{self.part}]"


def parts_of(finetune: Checkpoint, base: Checkpoint, choices: Choices) -> list[TreatedTensor]:
    """Every tensor of the fine-tune that may differ from the base's, in the order of its files.

    Of tensors that are tied in both the first counts for all. Raises CompatibilityError where the fine-tune lacks a
    tensor, or has one of another shape that is no table or head; UsageError for a pattern that excludes nothing.
    """
    left_out = _named_by(choices.exclude, {**base.tensors, **finetune.tensors})
    finetune = _same_head(finetune, base)
    head = _untying(finetune, base)
    repeated = _repeated(finetune, base) | ({head.name} if head is not None else set())
    _check_complete(finetune, base, left_out)
    turned = turned_stacks(base)
    found = [
        part
        for name in finetune.tensors
        if name not in repeated
        for part in (
            [_excluded(name, finetune, base)]
            if name in left_out
            else _parts(name, finetune, base, choices, turned)
        )
    ]
    return found if head is None else [*found, head]


def placeless(parts: Sequence[TreatedTensor]) -> Mapping[str, str]:
    """Of parts that change, those that cannot be written beside the others by `TreatedTensor.key`, and why."""
    factored = {p.name.rpartition(".")[0] for p in parts if p.treatment is Treatment.FACTORED}
    found: dict[str, str] = {}
    for part in parts:
        why = _why(part, factored)
        if why:
            found[part.key] = why
    return found


def _why(part: TreatedTensor, factored: Collection[str]) -> str:
    if part.treatment not in (Treatment.REPLACED, Treatment.ADDED):
        return ""
    module, _, leaf = part.name.rpartition(".")
    if not module:
        return _BARE
    if module in factored or (leaf == "bias" and part.treatment is Treatment.ADDED):
        return ""
    if any(other.startswith(f"{module}.") for other in factored):
        return _HOLDER
    return _ALIKE if any(other.endswith(module) for other in factored) else ""


def _named_by(patterns: Sequence[str], names: Iterable[str]) -> set[str]:
    """The names that globs have; raises UsageError for a glob that no name has, which is most often misspelt."""
    known = list(names)
    found: set[str] = set()
    for pattern in patterns:
        own = matching(pattern, known)
        if not own:
            near = nearest(pattern, known)
            hint = (
                f"did you mean {shown(near)}?" if near else "`*` stands for any run of characters."
            )
            raise UsageError(f"No tensor has a name like {shown(pattern)}; {hint}")
        found.update(own)
    return found


def _excluded(name: str, finetune: Checkpoint, base: Checkpoint) -> TreatedTensor:
    """A tensor that was asked to be left out, of whatever form it is in the two."""
    tensor, original = finetune.tensors[name], base.tensors.get(name)
    same = original if original is not None and original.shape == tensor.shape else None
    shape = kernel_shape(tensor.shape)
    return TreatedTensor(tensor, same, Treatment.LEFT_OUT, shape, why="it was asked to be excluded")


def _parts(
    name: str, finetune: Checkpoint, base: Checkpoint, choices: Choices, turned: Turned
) -> Iterator[TreatedTensor]:
    tensor, original, role = finetune.tensors[name], base.tensors.get(name), finetune.places[name]
    if role.part.startswith("weight_scale"):
        raise CompatibilityError(
            f"{finetune.identity} is quantised (it has {shown(name)}), and its stored numbers are no weights; "
            "dequantise both models first."
        )
    if original is not None and original.shape != tensor.shape:
        if not _is_resized(role, tensor, original):
            raise CompatibilityError(
                f"{shown(name)} has the shape {tensor.shape} in {finetune.identity}, but {original.shape} in "
                f"{base.identity}: they are no models of one architecture; give the base that was fine-tuned."
            )
        original = None
    input_first = original is not None and bool(stores_input_first(base, name, turned))
    part = TreatedTensor(
        tensor, original, Treatment.FACTORED, kernel_shape(tensor.shape), input_first=input_first
    )
    treatment, why = _treatment(part, role, choices)
    if treatment is Treatment.FACTORED and len(tensor.shape) == 3 and role.kind.matches("expert"):
        yield from _experts(part)
        return
    yield replace(part, treatment=treatment, why=why, kind=_kind(role, tensor))


def _treatment(part: TreatedTensor, role: Place, choices: Choices) -> tuple[Treatment, str]:
    """What becomes of a tensor, and why if it is left out."""
    tensor, kind = part.finetune, role.kind
    if not tensor.dtype.is_float or (part.base is not None and not part.base.dtype.is_float):
        return Treatment.LEFT_OUT, "it holds no floats"
    if beside(part.name) is not None:
        return Treatment.LEFT_OUT, "it lies in a file of its own, which adapters do not change"
    wanted = _chosen(role, choices)
    if wanted == "skip":
        return Treatment.LEFT_OUT, "it was asked to be skipped"
    is_experts = len(tensor.shape) == 3 and kind.matches("expert") and part.base is not None
    if kind is Kind.BUFFER or not (
        part.name.endswith((".weight", ".bias")) or is_experts or wanted
    ):
        return Treatment.LEFT_OUT, _NO_WEIGHT
    if part.base is None:
        if kind in _RESIZABLE:
            return Treatment.REPLACED, ""
        return Treatment.LEFT_OUT, "the base has no such tensor"
    if wanted == "add":
        return Treatment.ADDED, ""
    if wanted == "replace" or len(tensor.shape) < 2 or _is_depthwise(kind, tensor.shape):
        return Treatment.REPLACED, ""
    if not (part.name.endswith(".weight") or is_experts):
        return Treatment.LEFT_OUT, _NO_WEIGHT
    return Treatment.FACTORED, ""


def _chosen(role: Place, choices: Choices) -> str:
    """What was chosen for the tensor: replace, lora, add or skip; "" where nothing was."""
    if role.kind is Kind.NORM:
        return choices.norms
    asked = choices.embeddings if role.kind in _EMBEDDINGS else ""
    if role.kind is Kind.HEAD:
        asked = choices.heads
    if role.part == "bias" and role.kind is not Kind.BUFFER:
        # That of a module which is stored whole belongs to it.
        return asked if asked == "replace" else choices.biases
    return asked


def _is_resized(role: Place, tensor: LazyTensor, original: LazyTensor) -> bool:
    return role.kind in _RESIZABLE and tensor.shape[1:] == original.shape[1:]


def _is_depthwise(kind: Kind, shape: tuple[int, ...]) -> bool:
    """Kernels with one input for each group: small, and of full rank as matrices."""
    return kind is Kind.CONVOLUTION and shape[1] == 1 < shape[0]


def _kind(role: Place, tensor: LazyTensor) -> Literal["linear", "embedding", "conv"]:
    if role.kind in _EMBEDDINGS:
        return "embedding"
    return "conv" if len(tensor.shape) > 2 else "linear"


def _experts(part: TreatedTensor) -> Iterator[TreatedTensor]:
    count, rows, columns = part.finetune.shape
    for number in range(count):
        yield replace(part, shape=(rows, columns), part=number, first=number * rows * columns)


def _same_head(finetune: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The fine-tune with a head of its own where the base has one and its own is tied."""
    if base.tying is not Tying.UNTIED or finetune.tying is not Tying.TIED:
        return finetune
    missing = [name for name in _heads(base) if name not in finetune.tensors]
    return untied(finetune, missing[0]) if missing else finetune


def _untying(finetune: Checkpoint, base: Checkpoint) -> TreatedTensor | None:
    """The head of a fine-tune whose base ties it, compared with the fine-tune's own table."""
    if finetune.tying is not Tying.UNTIED or base.tying is not Tying.TIED:
        return None
    table = vocabulary_embedding(finetune.tensors, finetune.places)
    heads = [finetune.tensors[name] for name in _heads(finetune)]
    own = [h for h in heads if table and h.shape == finetune.tensors[table].shape]
    if table is None or not own:
        return None
    why = "the base ties its head to the table, which an adapter cannot undo"
    return TreatedTensor(
        own[0], finetune.tensors[table], Treatment.LEFT_OUT, kernel_shape(own[0].shape), why=why
    )


def _heads(checkpoint: Checkpoint) -> list[str]:
    return [
        name
        for name, role in checkpoint.places.items()
        if role.kind is Kind.HEAD and name.endswith(".weight")
    ]


def _repeated(finetune: Checkpoint, base: Checkpoint) -> set[str]:
    """Names that are another name's tensor in both; the table of a tied vocabulary stands for its head."""
    found: set[str] = set()
    for group in finetune.ties:
        if not any(group <= other for other in base.ties):
            continue
        table = vocabulary_embedding(finetune.tensors, finetune.places)
        first = table if table in group else min(group)
        found |= group - {first}
    return found


def _check_complete(finetune: Checkpoint, base: Checkpoint, left_out: Collection[str]) -> None:
    missing = [
        name
        for name, tensor in base.tensors.items()
        if name not in finetune.tensors
        and name not in left_out
        and beside(name) is None
        and tensor.dtype.is_float
        and base.places[name].kind not in (Kind.BUFFER, Kind.HEAD)
    ]
    if missing:
        more = f" and {len(missing) - 1} more of the base's tensors" if len(missing) > 1 else ""
        raise CompatibilityError(
            f"{finetune.identity} has no {shown(missing[0])}{more}: it is no fine-tune of {base.identity}, or its "
            "tensors are named in another way."
        )
