"""Statistics of a checkpoint that were measured earlier and stored: what they are, and of which weights.

A statistics file is a safetensors file. Its metadata has one entry, `weightsmith_statistics`, a JSON object:

    schema         1
    kind           fisher     means (or sums) of squared gradients, one number per weight
                   adam       second moments of Adam (exp_avg_sq), one number per weight
                   gradients  gradients of single samples, one number per weight and sample
                   gram       X^T X of the inputs of linear maps, (inputs, inputs) or a stack of such
                   metrics    numbers of the whole model, such as its loss
    of             {name, digest}: the checkpoint, and its fingerprint (see `fingerprint`)
    data, samples  over what it was measured, and over how many samples
    normalization  mean or sum over the samples
    metrics        {name: number} of kind metrics
    same           {tensor: tensor}: tensors whose statistic is that of another (q, k, v share one Gram matrix)
    means          whether rows and columns are means, as Adafactor's, instead of sums
    block          elements per block
    weightsmith    the version that wrote it

Tensors have the names of the checkpoint's. Instead of a dense `T` there may be `T::rows` and `T::columns`,
`T::left` and `T::right`, or `T::blocks:SHAPE` (see `tensors.compressed`); gradients of sample k are `T::k`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weightsmith.checkpoints.checkpoint import Checkpoint, open_checkpoint
from weightsmith.checkpoints.fingerprint import fingerprint
from weightsmith.checkpoints.formats.statistic_tensors import dense_tensors
from weightsmith.errors import CheckpointError, CompatibilityError, Malformed
from weightsmith.naming import natural_key
from weightsmith.tensors.files.strict_json import parse_json
from weightsmith.tensors.stored import LazyTensor
from weightsmith.wording import fault, literal, shown

METADATA_ENTRY = "weightsmith_statistics"
SCHEMA = 1
ELEMENTWISE = ("fisher", "adam", "gradients")
KINDS = (*ELEMENTWISE, "gram", "metrics")
_NORMALIZATIONS = ("mean", "sum")
_MARK = "::"
_MOST_NAMES = 3


@dataclass(frozen=True, slots=True)
class StatisticsHeader:
    """The typed header of a statistics file (see the module)."""

    kind: str
    name: str
    digest: str
    data: str
    samples: int
    normalization: str = "mean"
    metrics: Mapping[str, float] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    means: bool = False
    block: int = 0
    version: str = ""

    @property
    def divisor(self) -> float:
        """What a stored number is divided by to be a mean over samples."""
        return float(self.samples) if self.normalization == "sum" else 1.0

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the file's metadata."""
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": self.kind,
            "of": {"name": self.name, "digest": self.digest},
            "data": self.data,
            "samples": self.samples,
            "normalization": self.normalization,
            "weightsmith": self.version,
        }
        if self.metrics:
            content["metrics"] = dict(self.metrics)
        if self.same:
            content["same"] = dict(self.same)
        if self.means:
            content["means"] = True
        if self.block:
            content["block"] = self.block
        return content


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """An opened statistics file: its header, and its tensors by name, dense and checked as they are read.

    `checkpoint` has them as a checkpoint has its weights; `parts` gives the names in it of each weight's statistic:
    one, or one per sample.
    """

    header: StatisticsHeader
    checkpoint: Checkpoint
    parts: Mapping[str, tuple[str, ...]]

    def of_tensor(self, name: str) -> tuple[LazyTensor, ...]:
        """The statistic of the weight called `name`: one tensor, one per sample, or none where it has no statistic."""
        return tuple(self.checkpoint.tensors[part] for part in self.names(name))

    def names(self, name: str) -> tuple[str, ...]:
        """The names in `checkpoint` of the statistic of the weight called `name`."""
        return self.parts.get(self.header.same.get(name, name), ())


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
    tensors: dict[str, LazyTensor] = {}
    found: dict[str, tuple[str, ...]] = {}
    for name, stored_names in parts.items():
        marks = {
            stored[len(name) + len(_MARK) :]: opened.tensors[stored] for stored in stored_names
        }
        made = dense_tensors(name, marks, header, opened.identity)
        tensors |= made
        found[name] = tuple(sorted(made, key=natural_key))
    return Statistics(header, replace(opened, tensors=tensors), found)


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


def _is_gram(gram: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if len(gram) not in (2, 3) or gram[-1] != gram[-2] or len(shape) < 2:
        return False
    if len(gram) == 3 and (len(shape) != 3 or gram[0] != shape[0]):
        return False
    widths = shape[-2:] if len(shape) <= 3 else (math.prod(shape[1:]),)
    return gram[-1] in widths


def _header(opened: Checkpoint) -> StatisticsHeader:
    from weightsmith.tensors.files.safetensors_header import parse_file

    if opened.is_folder or opened.path.suffix != ".safetensors":
        raise CheckpointError(
            f"{opened.identity} is no statistics file: give a safetensors file that `write_statistics` made."
        )
    text = parse_file(opened.path).metadata.get(METADATA_ENTRY)
    if text is None:
        raise CheckpointError(
            f"{opened.identity} has no {METADATA_ENTRY!r} in its metadata, so it holds weights and no statistics: "
            "give a file that `write_statistics` made."
        )
    content = parse_json(text.encode(), f"{opened.identity}: {METADATA_ENTRY}")
    try:
        return checked(_from_json(content))
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise CheckpointError(
            f"{opened.identity} has a statistics header that cannot be read ({fault(problem)}): collect them again."
        ) from None


def _from_json(content: Mapping[str, Any]) -> StatisticsHeader:
    if content["schema"] != SCHEMA:
        raise Malformed(f"its schema is {literal(content['schema'])} and not {SCHEMA}")
    return StatisticsHeader(
        kind=content["kind"],
        name=content["of"]["name"],
        digest=content["of"]["digest"],
        data=content["data"],
        samples=content["samples"],
        normalization=content["normalization"],
        metrics=dict(content.get("metrics", {})),
        same=dict(content.get("same", {})),
        means=content.get("means", False),
        block=content.get("block", 0),
        version=content["weightsmith"],
    )


def checked(header: StatisticsHeader) -> StatisticsHeader:
    """The header, its types and ranges checked; raises Malformed."""
    texts = {
        "kind": header.kind,
        "name": header.name,
        "digest": header.digest,
        "data": header.data,
        "normalization": header.normalization,
        "weightsmith": header.version,
        **{f"same.{name}": other for name, other in header.same.items()},
    }
    for key, text in texts.items():
        if not isinstance(text, str):
            raise Malformed(f"its {shown(key)} is no text")
    for name in (*header.same, *header.metrics):
        if not isinstance(name, str):
            raise Malformed(f"{literal(name)} is no name")
    if header.kind not in KINDS:
        raise Malformed(f"kind {header.kind!r} is none of {', '.join(KINDS)}")
    if header.normalization not in _NORMALIZATIONS:
        raise Malformed(f"normalization {header.normalization!r} is neither mean nor sum")
    if not _is_count(header.samples, 1) or not _is_count(header.block, 0):
        raise Malformed("samples or block is not a count")
    if not isinstance(header.means, bool):
        raise Malformed("means is neither true nor false")
    for name, number in header.metrics.items():
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number):
            raise Malformed(f"metric {name!r} is no finite number")
    return header


def _is_count(number: object, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least
