"""The inputs of an output folder that has a manifest: where they are now, and which of them a name means."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from weightsmith.adapters import AdapterReference, PlacedAdapter, Reference, open_model, open_with
from weightsmith.checkpoints import Checkpoint, member_of
from weightsmith.engine.records.manifest import Input, Manifest
from weightsmith.errors import UsageError, VerificationError
from weightsmith.recipes import Opener


def recorded_opener(folder: Path, manifest: Manifest, inputs: Mapping[str, Path]) -> Opener:
    """A function that opens what the recipe on record calls REFERENCE.

    It lies where `inputs` says, else where it lay seen from `folder`, else where the reference leads. Raises
    VerificationError for references that are not on record.
    """
    real = Path(os.path.realpath(folder))
    recorded = dict(_places(manifest, real))
    unknown = sorted(set(inputs) - set(recorded))
    if unknown:
        raise VerificationError(
            f"The manifest has no input {unknown[0]!r}; it has {', '.join(map(repr, recorded))}."
        )
    where = {
        reference: path
        for reference, path in recorded.items()
        if path is not None and (path.exists() or member_of(path) is not None)
    } | dict(inputs)

    known = {given.reference: given for given in manifest.inputs.values()}

    def opener(reference: Reference) -> Checkpoint:
        name = str(reference)
        given = known.get(name)
        if given is None:
            return open_model(where.get(name, reference))
        # A base that another input is called like is only looked for elsewhere where the caller says so.
        bases = {
            one.reference: inputs[one.reference] for one in given.behind if one.reference in inputs
        }
        opened = (
            open_model(where.get(name, reference), bases=bases)
            if not given.adapters or name in inputs
            else _with_adapters(given, where, bases)
        )
        return replace(opened, hub_id=given.hub_id, revision=given.revision)

    return opener


def _places(manifest: Manifest, folder: Path) -> Iterator[tuple[str, Path | None]]:
    """Every reference on record and where it lay; a pair lies nowhere, its base and adapters do.

    What inputs are decoded with comes first, so that an input that is called the same counts.
    """

    def seen_from(path: str) -> Path:
        return Path(os.path.normpath(folder / path))

    for given in manifest.inputs.values():
        yield from ((one.reference, seen_from(one.path)) for one in given.behind)
    for given in manifest.inputs.values():
        if not given.adapters:
            yield given.reference, seen_from(given.path)
            continue
        yield given.reference, None
        yield given.model, seen_from(given.path)
        for adapter in given.adapters:
            yield adapter.reference, seen_from(adapter.path)


def _with_adapters(
    given: Input, where: Mapping[str, Path], bases: Mapping[str, Path]
) -> Checkpoint:
    placed = [
        PlacedAdapter(
            AdapterReference(adapter.reference, None, adapter.strength, adapter.component),
            str(where.get(adapter.reference, adapter.reference)),
        )
        for adapter in given.adapters
    ]
    opened = open_with(
        str(where.get(given.model, given.model)), placed, source=given.reference, bases=bases
    )
    on_record = [
        replace(found, hub_id=adapter.hub_id, revision=adapter.revision)
        for found, adapter in zip(opened.attached, given.adapters, strict=True)
    ]
    return replace(opened, base_source=given.model, attached=tuple(on_record))


def input_called(manifest: Manifest, name: str) -> Input:
    """The input that a name means: its reference, its label, or the last part of one reference alone.

    Raises UsageError for a name that means none or several.
    """
    inputs = manifest.inputs
    exact = [i for label, i in inputs.items() if name in (i.reference, label)]
    short = [i for i in inputs.values() if name == Path(i.reference).name]
    found = [i for i in exact if i.reference == name] or exact or short
    listed = ", ".join(repr(i.reference) for i in (found or inputs.values()))
    if not found:
        raise UsageError(f"The manifest has no input {name!r}; it has {listed}.")
    if len(found) > 1:
        raise UsageError(f"{name!r} may be any of {listed}; give the whole reference.")
    return found[0]
