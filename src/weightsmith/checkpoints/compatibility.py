"""Whether checkpoints fit together, judged from their headers and configurations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from weightsmith.checkpoints.checkpoint import Checkpoint
from weightsmith.checkpoints.config import input_findings
from weightsmith.checkpoints.config_comparison import compare_configurations
from weightsmith.checkpoints.tied_tensors import Tying, vocabulary_head
from weightsmith.errors import CompatibilityError
from weightsmith.findings import Finding, Severity
from weightsmith.tensors import DType, Kind, LazyTensor, chunks_of, promote

_NAMES_SHOWN = 3


def compare(checkpoints: Sequence[Checkpoint], *, base: Checkpoint | None = None) -> list[Finding]:
    """What stands against combining `checkpoints`, and what is worth knowing; errors first.

    `base`, where given, is the one that integer tensors are copied from; it may be among
    `checkpoints` or not. Tensors are matched by name. One finding covers all tensors of a kind.
    """
    everyone = _distinct([*([base] if base is not None else []), *checkpoints])
    if not everyone:
        return []
    findings = [f for c in everyone for f in input_findings(c.config, c.tensors, c.identity)]
    reference, others = everyone[0], everyone[1:]
    findings += tie_findings(everyone)
    for other in others:
        findings += _compare_names(reference, other)
        findings += _compare_shapes(reference, other)
    findings += compare_configurations(reference, others).findings
    findings += _dtype_notes(everyone)
    findings += _integer_notes(everyone, base)
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def tie_findings(checkpoints: Sequence[Checkpoint]) -> list[Finding]:
    """An error for every checkpoint whose head is tied where others keep a head of their own."""
    tied = [c for c in checkpoints if c.tying is Tying.TIED]
    untied = [c for c in checkpoints if c.tying is Tying.UNTIED]
    if not tied or not untied:
        return []
    head = vocabulary_head(untied[0].tensors, untied[0].places)
    return [
        Finding(
            Severity.ERROR,
            "tied-untied-mix",
            checkpoint.identity,
            f"{checkpoint.identity} ties its output head to its embedding, but "
            f"{untied[0].identity} keeps {head!r} of its own, so a merge would be read with the "
            "wrong head",
            "untie the former (`untie: true` in the recipe reads its embedding as its head and "
            "writes both), or leave one of the two out",
        )
        for checkpoint in tied
    ]


def agreeing(tensors: Sequence[LazyTensor], *, base: LazyTensor | None = None) -> LazyTensor:
    """The tensor of integers or booleans to copy: the base's, or the one that all agree on.

    Reads the tensors a few megabytes at a time where there is no base. Raises CompatibilityError, naming
    the first byte that differs, where they do not agree.
    """
    if base is not None:
        return base
    first = tensors[0]
    for other in tensors[1:]:
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            raise _disagreement(first, other, "shape or dtype")
        place = _first_difference(first, other)
        if place is not None:
            raise _disagreement(first, other, f"byte {place}")
    return first


def _disagreement(first: LazyTensor, other: LazyTensor, where: str) -> CompatibilityError:
    return CompatibilityError(
        f"{first.location} holds {first.dtype.value}, which cannot be averaged, "
        f"and {other.location} differs from it at {where}: name a base to copy it from, or skip the tensor."
    )


def _first_difference(first: LazyTensor, other: LazyTensor) -> int | None:
    before = 0
    for pair in zip(chunks_of(first), chunks_of(other), strict=True):
        if pair[0] != pair[1]:
            return before + next(i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b)
        before += len(pair[0])
    return None


def _distinct(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    return list({id(checkpoint): checkpoint for checkpoint in checkpoints}.values())


def _compare_names(reference: Checkpoint, other: Checkpoint) -> list[Finding]:
    findings = []
    for has, lacks in ((reference, other), (other, reference)):
        excused = _excused(has, lacks)
        missing = [n for n in has.tensors if n not in lacks.tensors and n not in excused]
        if missing:
            findings.append(_missing(has, lacks, missing))
    return findings


def _excused(has: Checkpoint, lacks: Checkpoint) -> set[str]:
    """Names that `lacks` need not store: it has another name of the same tied tensor.

    A head that one keeps and the other ties is an error of its own, and not a missing tensor too.
    """
    tied = {n for g in has.ties if any(other in lacks.tensors for other in g) for n in g}
    head = vocabulary_head(has.tensors, has.places)
    mixed = {has.tying, lacks.tying} == {Tying.TIED, Tying.UNTIED}
    return tied | ({head} if mixed and head is not None else set())


def _missing(has: Checkpoint, lacks: Checkpoint, names: list[str]) -> Finding:
    if len(names) == len(has.tensors):
        hint = _prefix_hint(has, lacks)
        return Finding(
            Severity.ERROR,
            "no-common-tensors",
            lacks.identity,
            f"{lacks.identity} has no tensor name in common with {has.identity}{hint}",
            "convert one of the two to the other's names first",
        )
    return Finding(
        Severity.ERROR,
        "missing-tensor",
        lacks.identity,
        f"{lacks.identity} lacks {_count(names)} that {has.identity} has: {_some(names)}",
        "leave these tensors out of the recipe, take them from one model, or use checkpoints of "
        "one architecture",
    )


def _prefix_hint(has: Checkpoint, lacks: Checkpoint) -> str:
    """Say which wrapper prefix would make the names equal, if one would."""
    for long, short in ((has, lacks), (lacks, has)):
        name = next(iter(short.tensors))
        wrapped = next((n for n in long.tensors if n.endswith("." + name)), None)
        if wrapped is not None:
            prefix = wrapped.removesuffix(name)
            return f" (the names of {long.identity} begin with {prefix!r})"
    return ""


def _compare_shapes(reference: Checkpoint, other: Checkpoint) -> list[Finding]:
    differing = [
        name
        for name, tensor in reference.tensors.items()
        if name in other.tensors and other.tensors[name].shape != tensor.shape
    ]
    if not differing:
        return []
    findings = []
    vocabulary = [name for name in differing if _is_vocabulary(name, reference, other)]
    if vocabulary:
        findings.append(_vocabulary_mismatch(reference, other, vocabulary))
    rest = [name for name in differing if name not in set(vocabulary)]
    if rest:
        name = rest[0]
        mine, theirs = reference.tensors[name].shape, other.tensors[name].shape
        findings.append(
            Finding(
                Severity.ERROR,
                "shape-mismatch",
                other.identity,
                f"{_count(rest)} of {other.identity} differ in shape from those of "
                f"{reference.identity}: {_some(rest)} ({name!r} is {list(theirs)} against "
                f"{list(mine)})",
                "use checkpoints of one size, or leave these tensors out of the recipe",
            )
        )
    return findings


def _is_vocabulary(name: str, reference: Checkpoint, other: Checkpoint) -> bool:
    """An embedding or head whose rows, and nothing else, are those of differing vocabularies."""
    if reference.places[name].kind not in (Kind.EMBEDDING, Kind.HEAD):
        return False
    mine, theirs = reference.tensors[name].shape, other.tensors[name].shape
    return (
        mine[1:] == theirs[1:]
        and reference.vocab_size != other.vocab_size
        and mine[:1] == (reference.vocab_size,)
        and theirs[:1] == (other.vocab_size,)
    )


def _vocabulary_mismatch(reference: Checkpoint, other: Checkpoint, names: list[str]) -> Finding:
    return Finding(
        Severity.ERROR,
        "vocabulary-mismatch",
        other.identity,
        f"{other.identity} has a vocabulary of {other.vocab_size} rows and {reference.identity} "
        f"one of {reference.vocab_size} ({_some(names)}), so equal rows are not equal tokens",
        "align the tokenizers first, so that all embeddings have the same rows",
    )


def _dtype_notes(checkpoints: Sequence[Checkpoint]) -> list[Finding]:
    usual: dict[DType, Checkpoint] = {}
    for checkpoint in checkpoints:
        floats = Counter(t.dtype for t in checkpoint.tensors.values() if t.dtype.is_float)
        if floats:
            usual.setdefault(floats.most_common(1)[0][0], checkpoint)
    if len(usual) < 2:
        return []
    pairs = ", ".join(f"{c.identity} is mostly {dtype.value}" for dtype, c in usual.items())
    result = promote(usual)
    return [
        Finding(
            Severity.NOTE,
            "dtype-mix",
            ", ".join(dtype.value for dtype in usual),
            f"the inputs have different dtypes ({pairs}), so without a `dtype` the output is "
            f"{result.value}",
            "set `dtype` in the recipe to choose another",
        )
    ]


def _integer_notes(checkpoints: Sequence[Checkpoint], base: Checkpoint | None) -> list[Finding]:
    names = [
        name
        for name, tensor in checkpoints[0].tensors.items()
        if not tensor.dtype.is_float and any(name in c.tensors for c in checkpoints[1:])
    ]
    mixed = [
        name
        for name, tensor in checkpoints[0].tensors.items()
        if any(
            name in c.tensors and c.tensors[name].dtype.is_float is not tensor.dtype.is_float
            for c in checkpoints[1:]
        )
    ]
    findings = []
    if mixed:
        findings.append(
            Finding(
                Severity.ERROR,
                "integer-float-mix",
                checkpoints[0].identity,
                f"{_count(mixed)} are integers in one input and floats in another: {_some(mixed)}",
                "convert one of the checkpoints, or leave these tensors out of the recipe",
            )
        )
    if names:
        rule = f"copied from {base.identity}" if base else "compared, and must be equal in all"
        findings.append(
            Finding(
                Severity.NOTE,
                "integer-tensors",
                checkpoints[0].identity,
                f"{_count(names)} of integers or booleans are not merged but {rule}: "
                f"{_some(names)}",
            )
        )
    return findings


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(repr(name) for name in names[:_NAMES_SHOWN])
    return f"{listed}, ..." if len(names) > _NAMES_SHOWN else listed
