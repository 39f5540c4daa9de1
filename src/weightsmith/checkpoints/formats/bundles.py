"""Task bundles: one folder with a base, a vector that tasks share, and a mask per task; each task is a checkpoint.

`BUNDLE#TASK` names a member, TASK being its label or its number from 1. The folder holds, for each coded tensor X,

    X::shared      the shared vector
    X::mask::T     the mask of task T, one bit per element
    X::scale::T    the task's rescaler, where the method has one

X itself where the base is stored, and what no task changes. `weightsmith-bundle.json` says the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightsmith.checkpoints.checkpoint import Behind, Checkpoint, assemble
from weightsmith.checkpoints.copied_files import absence, is_inside
from weightsmith.checkpoints.formats.outside_base import Bases, base_tensor, open_base
from weightsmith.checkpoints.formats.weights import find_weights, read_weights
from weightsmith.checkpoints.json_files import read_json
from weightsmith.checkpoints.locate import Location
from weightsmith.checkpoints.recognition import BUNDLE_HEADER
from weightsmith.deltas import DecodedTensor, PackedBits, VerifiedTensor, packed_bytes
from weightsmith.errors import CheckpointError, Malformed, UsageError
from weightsmith.graph import Value, source, where
from weightsmith.tensors import (
    DType,
    LazyTensor,
    StoredTensor,
    optional_text_in,
    shown,
    text_in,
    texts_in,
)
from weightsmith.wording import fault

SCHEMA = 1
_FETCH = "the bundle is damaged, fetch it or make it again"


@dataclass(frozen=True, slots=True)
class CodedTensor:
    """How one tensor of the members is kept: its dtype, the base's name for it, digests by part, coded or as it is."""

    dtype: DType
    base: str | None
    coded: bool
    scaled: bool
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BundleTask:
    """One member: its label, the expert it rebuilds and that expert's digest."""

    label: str
    reference: str
    digest: str


@dataclass(frozen=True, slots=True)
class BundleHeader:
    """The content of `weightsmith-bundle.json`.

    `base_places` are where the base may lie (a path relative to the bundle, the Hub id, the recipe's reference),
    empty where the bundle stores it.
    """

    method: str
    parameters: Mapping[str, Any]
    tasks: tuple[BundleTask, ...]
    base_reference: str
    base_digest: str
    base_places: tuple[str, ...]
    tensors: Mapping[str, CodedTensor]

    @property
    def stores_base(self) -> bool:
        """Whether the base's tensors lie in the bundle."""
        return not self.base_places

    def to_json(self) -> dict[str, Any]:
        """The header as plain data, which `read_bundle_header` reads back."""
        return {
            "schema": SCHEMA,
            "method": self.method,
            "parameters": dict(self.parameters),
            "base": {
                "reference": self.base_reference,
                "digest": self.base_digest,
                "places": list(self.base_places),
            },
            "tasks": [
                {"label": t.label, "reference": t.reference, "digest": t.digest} for t in self.tasks
            ],
            "tensors": {
                name: {
                    "dtype": str(t.dtype),
                    "base": t.base,
                    "coded": t.coded,
                    "scaled": t.scaled,
                    "digests": dict(sorted(t.digests.items())),
                }
                for name, t in self.tensors.items()
            },
        }


def part_names(name: str, tasks: int, *, scaled: bool) -> dict[str, str]:
    """The stored parts of a coded tensor: part (`shared`, `mask::1`, ...) to tensor name."""
    numbers = range(1, tasks + 1)
    parts = ["shared", *(f"mask::{t}" for t in numbers)]
    parts += [f"scale::{t}" for t in numbers] if scaled else []
    return {part: f"{name}::{part}" for part in parts}


def read_bundle_header(folder: Path) -> BundleHeader:
    """The header of a bundle; raises CheckpointError if it is missing, damaged or of a newer version."""
    path = folder / BUNDLE_HEADER
    if not is_inside(path, folder):
        raise CheckpointError(absence(folder, BUNDLE_HEADER, "a task bundle"))
    content = read_json(path)
    if content.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{shown(path)} has schema {shown(content.get('schema'))}, but this version reads {SCHEMA}: use a newer "
            "weightsmith."
        )
    try:
        return _header(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, UsageError) as error:
        raise CheckpointError(
            f"{shown(path)} is not a bundle's header ({fault(error)}): {_FETCH}."
        ) from None


def _header(content: Mapping[str, Any]) -> BundleHeader:
    base = content["base"]
    tasks = tuple(
        BundleTask(text_in(t, "label"), text_in(t, "reference"), text_in(t, "digest"))
        for t in content["tasks"]
    )
    if not tasks:
        raise Malformed("it has no tasks")
    return BundleHeader(
        text_in(content, "method"),
        dict(content["parameters"]),
        tasks,
        text_in(base, "reference"),
        text_in(base, "digest"),
        tuple(_place(place) for place in base["places"]),
        {
            str(name): CodedTensor(
                DType.parse(t["dtype"]),
                optional_text_in(t, "base"),
                bool(t["coded"]),
                bool(t["scaled"]),
                texts_in(t, "digests"),
            )
            for name, t in content["tensors"].items()
        },
    )


def _place(place: Any) -> str:
    if not isinstance(place, str):
        raise Malformed("a place of its base is no text")
    return place


def open_located(location: Location, source: str, bases: Bases) -> Checkpoint:
    """One task of a bundle as a checkpoint; nothing but headers is read, tensors are decoded as they are read.

    Raises CheckpointError for a bundle without a task, an unknown task, parts that are missing or have another form
    than the header says, and a base that is not there or lacks a tensor; parts and base are compared with their
    digests when they are first read.
    """
    folder = location.path
    header = read_bundle_header(folder)
    if location.task is None:
        labels = ", ".join(task.label for task in header.tasks)
        raise CheckpointError(
            f"{shown(folder)} is a bundle of the tasks {labels}: name one of them as {shown(folder)[1:-1]}#TASK."
        )
    number = _task_number(header, location.task, folder)
    stored = {tensor.name: tensor for tensor in read_weights(find_weights(folder)).tensors}
    outside = None
    if not header.stores_base:
        outside = open_base("bundle", folder, header.base_reference, header.base_places, bases)
    reader = _Member(folder, header, number, stored, outside)
    tensors = {name: reader.tensor(name, coded) for name, coded in header.tensors.items()}
    config = (
        read_json(folder / "config.json") if is_inside(folder / "config.json", folder) else None
    )
    opened = assemble(tensors, config, path=folder, source=source)
    member = header.tasks[number - 1].label
    if outside is None:
        return replace(opened, member=member)
    coded_against = {t.base: t.digests["base"] for t in header.tensors.values() if t.base}
    return replace(
        opened, member=member, behind=(Behind(header.base_reference, outside, coded_against),)
    )


def _task_number(header: BundleHeader, task: str, folder: Path) -> int:
    labels = [t.label for t in header.tasks]
    if task in labels:
        return labels.index(task) + 1
    if task.isdecimal() and 1 <= int(task) <= len(labels):
        return int(task)
    raise CheckpointError(
        f"The bundle {shown(folder)} has no task {task!r}: give one of {', '.join(map(repr, labels))}, or a number "
        f"from 1 to {len(labels)}."
    )


@dataclass(frozen=True, slots=True)
class _Member:
    """The tensors of one task."""

    folder: Path
    header: BundleHeader
    number: int
    stored: Mapping[str, StoredTensor]
    base: Checkpoint | None

    def tensor(self, name: str, coded: CodedTensor) -> LazyTensor:
        """One tensor of the task, decoded on the way."""
        base = self._base(name, coded)
        if not coded.coded:
            return base
        shared = self._part(name, coded, "shared", None, base.shape)
        packed = self._part(
            name, coded, f"mask::{self.number}", DType.UINT8, (packed_bytes(base.numel),)
        )
        scale = (
            (self._part(name, coded, f"scale::{self.number}", None, ()),)
            if coded.scaled and base.numel
            else ()
        )
        sources = (base, shared, PackedBits(name, base.shape, packed))
        return DecodedTensor(name, coded.dtype, base.shape, sources, masked_sum, scale)

    def _base(self, name: str, coded: CodedTensor) -> LazyTensor:
        if self.base is None or coded.base is None:
            return self._part(name, coded, "base", None, None)
        digest, reference = coded.digests["base"], self.header.base_reference
        return base_tensor("bundle", self.base, coded.base, digest, reference)

    def _part(
        self,
        name: str,
        coded: CodedTensor,
        part: str,
        dtype: DType | None,
        shape: tuple[int, ...] | None,
    ) -> LazyTensor:
        full = name if part == "base" else f"{name}::{part}"
        if full not in self.stored or part not in coded.digests:
            raise self._wrong(f"the part {full!r} is missing", _FETCH)
        found = self.stored[full]
        if (dtype is not None and found.dtype is not dtype) or shape not in (None, found.shape):
            form = f"{found.dtype} {list(found.shape)}"
            raise self._wrong(
                f"{found.location} has another form ({form}) than is on record", _FETCH
            )
        return VerifiedTensor(found, coded.digests[part], _FETCH)

    def _wrong(self, what: str, advice: str) -> CheckpointError:
        return CheckpointError(f"The bundle {shown(self.folder)} cannot be read, {what}: {advice}.")


def masked_sum(scale: float | None = None) -> Value:
    """theta_0 + m tau, or theta_0 + lambda m tau: the formula of TALL masks, of EMR and of Localize-and-Stitch."""
    base, shared, mask = source(0), source(1), source(2)
    masked = where(mask > 0.0, shared, 0.0)
    return base + (masked if scale is None else masked * scale)
