"""Statistics of a checkpoint that were measured earlier and stored, opened and compared with it.

The form of the file is in `statistics_header`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightsmith.checkpoints.checkpoint import Checkpoint
from weightsmith.checkpoints.fingerprint import fingerprint
from weightsmith.checkpoints.formats.statistics_header import (
    METADATA_ENTRY,
    StatisticsHeader,
    checked,
    header_of,
)
from weightsmith.checkpoints.opening import open_checkpoint
from weightsmith.errors import CheckpointError, CompatibilityError
from weightsmith.naming import natural_key
from weightsmith.tensors import LazyTensor, parse_json
from weightsmith.wording import fault, shown

_MARK = "::"
_MOST_NAMES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """An opened statistics file: its header, and its tensors by name, dense and checked as they are read.

    `checkpoint` has them as a checkpoint has its weights; `parts` gives the names in it of each weight's statistic:
    one, or one per sample. What is said of a weight under a word (`T::mean`) is in `checkpoint` alone.
    """

    header: StatisticsHeader
    checkpoint: Checkpoint
    parts: Mapping[str, tuple[str, ...]]

    def names(self, name: str, word: str = "") -> tuple[str, ...]:
        """The names in `checkpoint` of the statistic of a weight, or of what is said of it under a word."""
        own = self.header.same.get(name, name)
        if word:
            return (
                (f"{own}{_MARK}{word}",) if f"{own}{_MARK}{word}" in self.checkpoint.tensors else ()
            )
        return self.parts.get(own, ())


def read_statistics(path: str | Path) -> Statistics:
    """Open a statistics file from its header; raises CheckpointError for a file that is none or is damaged."""
    return statistics_of(open_checkpoint(path))


def statistics_of(opened: Checkpoint) -> Statistics:
    """The statistics in a file that was opened as a checkpoint; raises CheckpointError where it is none."""
    header = _header(opened)
    parts: dict[str, list[str]] = {}
    for stored in opened.tensors:
        parts.setdefault(stored.partition(_MARK)[0], []).append(stored)
    if header.kind == "metrics":
        return Statistics(header, opened, {})
    # Imported here because every merge knows what statistics are, and few have some.
    from weightsmith.checkpoints.formats.statistic_tensors import dense_tensors

    tensors: dict[str, LazyTensor] = {}
    found: dict[str, tuple[str, ...]] = {}
    for name, stored_names in parts.items():
        marks = {
            stored[len(name) + len(_MARK) :]: opened.tensors[stored] for stored in stored_names
        }
        made = dense_tensors(name, marks, header, opened.identity)
        tensors |= made
        found[name] = tuple(sorted(filter(_is_read, made), key=natural_key))
    return Statistics(header, replace(opened, tensors=tensors), found)


def is_of(statistics: Statistics, checkpoint: Checkpoint) -> bool:
    """Whether the statistics are of this checkpoint."""
    return fingerprint(checkpoint) == statistics.header.digest


def require_match(statistics: Statistics, checkpoint: Checkpoint) -> None:
    """Raise CompatibilityError unless the statistics are of this checkpoint: the fingerprints must be equal."""
    found = fingerprint(checkpoint)
    if found != statistics.header.digest:
        raise CompatibilityError(
            f"The statistics {statistics.checkpoint.identity} are of {statistics.header.name!r} "
            f"({statistics.header.digest}), not of {checkpoint.identity} ({found}): "
            "collect them from this checkpoint, or merge the one that they are of."
        )


def require_names(statistics: Statistics, checkpoint: Checkpoint) -> None:
    """Raise CompatibilityError for statistics of tensors that the checkpoint lacks, or that the file itself lacks."""
    known = {*checkpoint.tensors, *(name for group in checkpoint.ties for name in group)}
    unknown = [name for name in (*statistics.parts, *statistics.header.same) if name not in known]
    if unknown:
        raise CompatibilityError(
            f"The statistics {statistics.checkpoint.identity} are of tensors that {checkpoint.identity} lacks: "
            f"{listed(unknown)}; give them the names that the checkpoint has."
        )
    dangling = [name for name in statistics.header.same.values() if name not in statistics.parts]
    if dangling:
        raise CompatibilityError(
            f"The statistics {statistics.checkpoint.identity} share those of tensors that they do not hold: "
            f"{listed(dangling)}; collect them again."
        )


def listed(names: Sequence[str]) -> str:
    """The first few names, for messages."""
    first = ", ".join(map(shown, names[:_MOST_NAMES]))
    more = len(names) - _MOST_NAMES
    return f"{first} and {more} more" if more > 0 else first


def misfit(shape: tuple[int, ...], found: Sequence[tuple[int, ...]], kind: str) -> str:
    """What is wrong with the shapes of a statistic of a weight of shape `shape`, empty if nothing is."""
    for own in found:
        if kind != "gram" and own != shape:
            return f"has shape {list(own)} for a weight of shape {list(shape)}"
        if kind == "gram" and not _is_gram(own, shape):
            return f"is a Gram matrix of shape {list(own)} for a weight of shape {list(shape)}"
    return ""


def _is_read(name: str) -> bool:
    """Whether a name is that of a statistic of its kind, and not of something said beside it."""
    mark = name.partition(_MARK)[2]
    return not mark or mark.isdecimal()


def _is_gram(gram: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if len(gram) not in (2, 3) or gram[-1] != gram[-2] or len(shape) < 2:
        return False
    if len(gram) == 3 and (len(shape) != 3 or gram[0] != shape[0]):
        return False
    widths = shape[-2:] if len(shape) <= 3 else (math.prod(shape[1:]),)
    return gram[-1] in widths


def _header(opened: Checkpoint) -> StatisticsHeader:
    if opened.is_folder or opened.path.suffix != ".safetensors":
        raise CheckpointError(
            f"{opened.identity} is no statistics file: give a safetensors file that `write_statistics` made."
        )
    text = opened.metadata.get(METADATA_ENTRY)
    if text is None:
        raise CheckpointError(
            f"{opened.identity} has no {METADATA_ENTRY!r} in its metadata, so it holds weights and no statistics: "
            "give a file that `write_statistics` made."
        )
    content = parse_json(text.encode(), f"{opened.identity}: {METADATA_ENTRY}")
    try:
        return checked(header_of(content))
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise CheckpointError(
            f"{opened.identity} has a statistics header that cannot be read ({fault(problem)}): collect them again."
        ) from None
