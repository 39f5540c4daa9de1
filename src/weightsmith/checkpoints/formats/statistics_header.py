"""The typed header of a statistics file: what was measured, and of which weights.

A statistics file is a safetensors file. Its metadata has one entry, `weightsmith_statistics`, a JSON object:

    schema         1
    kind           fisher     means (or sums) of squared gradients, one number per weight
                   adam       second moments of Adam (exp_avg_sq), one number per weight
                   gradients  gradients of single samples, one number per weight and sample, and what sums them up
                   gram       X^T X of the inputs of linear maps, (inputs, inputs) or a stack of such
                   channels   means over the rows that modules read and give, one number per channel
                   repair     what REPAIR makes of the model: factors of rows, biases, moments of batch norms
                   cross      moments of what two models read and give on the same data
                   routing    what routers of mixtures choose, and how alike the outputs of their experts are
                   mask       factors of a task vector, one per weight, or for whole rows or columns (shapes that
                              broadcast to the weight's)
                   metrics    numbers of the whole model, such as its loss
    of             {name, digest}: the checkpoint, and its fingerprint (see `fingerprint`)
    with           {name, digest}: the other checkpoint of kind cross, or the base of an adapter that `of` is
    data, samples  over what it was measured, and over how many samples
    normalization  mean or sum over the samples
    metrics        {name: number} of kind metrics
    same           {tensor: tensor}: tensors whose statistic is that of another (q, k, v share one Gram matrix); of kind
                   cross whose inputs are
    means          whether rows and columns are means, as Adafactor's, instead of sums
    block          elements per block
    estimator      exact, mc:S or empirical: whose labels the gradients of a fisher are of
    per            what is squared before it is summed: the gradient of a whole sequence, or of a token
    objective      whose gradients these are, in words
    rows           {tensor: number}: how many rows a module read, and gave
    goals          the models, with weights, whose statistics those of a repair were brought to
    through        the merge whose layers the inputs of gram matrices went through, in words
    dtype          what the network computed in, if that was not float32
    weightsmith    the version that wrote it

Tensors have the names of the checkpoint's. Instead of a dense `T` there may be `T::rows` and `T::columns`,
`T::left` and `T::right`, `T::blocks:SHAPE`, `T::upper` for a symmetric matrix, or, of a repair, `T::factors:SHAPE` with
a number for each row of a weight (see `tensors.compressed`); gradients of sample k are `T::k`. What else is said of a
weight has the names `T::WORD` of its kind:

    gram       tokens (of a stack of experts, how many each was given)
    gradients  mean, absolute (the mean magnitude), taylor (weight times mean), sensitivity (one number)
    channels   input_magnitude, input_square, output_mean, output_variance
    cross      input_cross, input_mean, input_square, input_mean_with, input_square_with, the same of outputs
    routing    chosen, weights, outputs, similarity
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weightsmith.errors import Malformed
from weightsmith.wording import literal, shown

METADATA_ENTRY = "weightsmith_statistics"
SCHEMA = 1
ELEMENTWISE = ("fisher", "adam", "gradients")
# Kinds that say all that they do under words.
DESCRIPTIVE = ("channels", "cross", "routing")
KINDS = (*ELEMENTWISE, "gram", "repair", "mask", *DESCRIPTIVE, "metrics")
_NORMALIZATIONS = ("mean", "sum")
# What is said of how it was measured, where there is something to say.
_FACTS = ("estimator", "per", "objective", "rows", "goals", "through", "dtype")


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
    estimator: str = ""
    per: str = ""
    objective: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)
    goals: str = ""
    through: str = ""
    other_name: str = ""
    other_digest: str = ""
    dtype: str = ""

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
        if self.other_name:
            content["with"] = {"name": self.other_name, "digest": self.other_digest}
        if self.metrics:
            content["metrics"] = dict(self.metrics)
        if self.same:
            content["same"] = dict(self.same)
        if self.means:
            content["means"] = True
        if self.block:
            content["block"] = self.block
        for key in _FACTS:
            if value := getattr(self, key):
                content[key] = value
        return content


def header_of(content: Mapping[str, Any]) -> StatisticsHeader:
    """The header that `StatisticsHeader.to_json` gave; raises Malformed and what Python raises for other data."""
    if content["schema"] != SCHEMA:
        raise Malformed(f"its schema is {literal(content['schema'])} and not {SCHEMA}")
    other = content.get("with", {"name": "", "digest": ""})
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
        other_name=other["name"],
        other_digest=other["digest"],
        **{key: content[key] for key in _FACTS if key in content},
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
        "estimator": header.estimator,
        "per": header.per,
        "objective": header.objective,
        "goals": header.goals,
        "through": header.through,
        "with.name": header.other_name,
        "with.digest": header.other_digest,
        "dtype": header.dtype,
        **{f"same.{name}": other for name, other in header.same.items()},
    }
    for key, text in texts.items():
        if not isinstance(text, str):
            raise Malformed(f"its {shown(key)} is no text")
    for name in (*header.same, *header.metrics, *header.rows):
        if not isinstance(name, str):
            raise Malformed(f"{literal(name)} is no name")
    if header.kind not in KINDS:
        raise Malformed(f"kind {header.kind!r} is none of {', '.join(KINDS)}")
    if header.normalization not in _NORMALIZATIONS:
        raise Malformed(f"normalization {header.normalization!r} is neither mean nor sum")
    if not _is_count(header.samples, 1) or not _is_count(header.block, 0):
        raise Malformed("samples or block is not a count")
    if not all(_is_count(count, 0) for count in header.rows.values()):
        raise Malformed("the rows of a tensor are not a count")
    if not isinstance(header.means, bool):
        raise Malformed("means is neither true nor false")
    for name, number in header.metrics.items():
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number):
            raise Malformed(f"metric {name!r} is no finite number")
    return header


def _is_count(number: object, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least
