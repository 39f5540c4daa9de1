"""The door to checkpoints: whatever lies at a place, opened by the format that it is recognised as.

A format is a module of `checkpoints.formats` with `open_located(location, source, bases)`; a new one is a line of
`FORMATS`. References with adapters (`BASE+ADAPTER`) come in through `adapters.adapted_models`, which opens the base
here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from weightsmith.checkpoints.checkpoint import Checkpoint, assemble
from weightsmith.checkpoints.formats.outside_base import Bases
from weightsmith.checkpoints.formats.weights import BareAdapter, find_weights, read_weights
from weightsmith.checkpoints.locate import Location, find_location
from weightsmith.checkpoints.recognition import is_bundle, is_package
from weightsmith.tensors import LazyTensor, real


@dataclass(frozen=True, slots=True)
class Format:
    """A way to keep checkpoints: what a folder or file of it is recognised by, and the module that reads it."""

    module: str
    recognises: Callable[[Location], bool]

    def open_located(self, location: Location, source: str, bases: Bases) -> Checkpoint:
        """The checkpoint that lies there; the module is imported when the first of its kind is opened."""
        module = import_module(f"weightsmith.checkpoints.formats.{self.module}")
        opened: Checkpoint = module.open_located(location, source, bases)
        return opened


# The first that recognises a place reads it.
FORMATS = (
    Format("bundles", lambda at: at.task is not None or is_bundle(at.path)),
    Format("packages", lambda at: is_package(at.path)),
    Format("dense", lambda _: True),
)


def open_checkpoint(
    path: str | Path,
    *,
    base: str | Path | None = None,
    bases: Mapping[str, Path] | None = None,
) -> Checkpoint:
    """Open a checkpoint from its headers: a folder, a weights file, or a Hub id.

    A Hub id is `owner/name[@revision]`; `~` in a path is expanded. `BUNDLE#TASK` is one task of a task bundle, and a
    delta package is what it decodes to. `base` is where the base of such a one lies now, `bases` says it by the
    references that they and their bases have for it. Folders may hold one or several safetensors files or pickled
    state dicts (`pytorch_model.bin`); safetensors win. Raises CheckpointError for what is missing, damaged, hostile or
    unknown.
    """
    return _opened(find_location(path), str(path), base, bases or {})


def open_task(bundle: Path, task: str, *, base: str | Path | None = None) -> Checkpoint:
    """One task of a task bundle, by its label or its number from 1; raises as `open_checkpoint` does."""
    return _opened(Location(real(bundle), task=task), f"{bundle}#{task}", base, {})


def _opened(
    location: Location, source: str, base: str | Path | None, bases: Mapping[str, Path]
) -> Checkpoint:
    where = Bases(lambda other: open_checkpoint(other, bases=bases), base, bases)
    found = next(form for form in FORMATS if form.recognises(location))
    return found.open_located(location, source, where)


def open_packed(folder: Path) -> Checkpoint:
    """A folder as what it stores, parts of tensors as they are, for those who check or copy it."""
    return _as_stored(find_weights(folder), folder)


def open_output(folder: Path) -> Checkpoint:
    """What a run has written: a checkpoint, a bundle with its parts, or an adapter with its factors."""
    if is_bundle(folder):
        return open_packed(folder)
    try:
        return open_checkpoint(folder)
    except BareAdapter as adapter:
        return _as_stored(adapter.weights, folder)


def _as_stored(weights: Path, folder: Path) -> Checkpoint:
    tensors: dict[str, LazyTensor] = {t.name: t for t in read_weights(weights).tensors}
    return assemble(tensors, None, path=folder, source=str(folder))
