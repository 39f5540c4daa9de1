"""How a model is named together with its adapters: `BASE[@REVISION][+ADAPTER[@REVISION][:STRENGTH]]...`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from weightsmith.tensors import expanded

_STRENGTH = re.compile(r"(?P<path>.*):(?P<strength>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")
_FORM = "BASE[@REVISION][+ADAPTER[@REVISION][:STRENGTH]]"


@dataclass(frozen=True, slots=True)
class AdapterReference:
    """An adapter by path or Hub id, and what its change is multiplied with.

    `component` is the one part of a pipeline that it is used for, None for all that it changes.
    """

    path: str
    revision: str | None = None
    strength: float = 1.0
    component: str | None = None

    @property
    def place(self) -> str:
        """The reference without the strength."""
        return _at(self.path, self.revision)

    def __str__(self) -> str:
        place = self.place if self.component is None else f"{self.place}[{self.component}]"
        return place if self.strength == 1.0 else f"{place}:{self.strength!r}"


@dataclass(frozen=True, slots=True)
class Reference:
    """A checkpoint by path or Hub id, and the adapters that it is read with, in their order.

    `override_architecture` is a word for mergekit that a recipe may have there; it has no effect.
    """

    path: str
    revision: str | None = None
    adapters: tuple[AdapterReference, ...] = ()
    override_architecture: str | None = field(default=None, compare=False)

    @property
    def base(self) -> str:
        """The reference without adapters."""
        return _at(self.path, self.revision)

    def __str__(self) -> str:
        return "+".join([self.base, *map(str, self.adapters)])


def parse_reference(text: str, base_dir: Path | None = None) -> Reference:
    """The parts of a reference; a local path that exists is taken as it is, with `+`, `@` and `:` in it.

    Where several readings exist, the longest path does: of `a+b+c` with a folder `a+b`, the adapter is `c`. Paths are
    looked up from the working directory and from `base_dir`. Raises ValueError for an empty part, more than one `@`
    in a part, and a strength that is not finite.
    """
    if not text.strip():
        raise ValueError("A model is given as an empty text; give a path or a Hub id.")
    if _is_there(text, base_dir):
        return Reference(text)
    first, *others = _parts(text, base_dir)
    if not first.strip() or not all(part.strip() for part in others):
        raise ValueError(
            f"Model {text!r} has an empty part beside a `+`; write {_FORM}, one `+` before each adapter."
        )
    path, revision = _revision(first, base_dir)
    return Reference(path, revision, tuple(parse_adapter(part, base_dir) for part in others))


def parse_adapter(text: str, base_dir: Path | None = None) -> AdapterReference:
    """The parts of `ADAPTER[@REVISION][:STRENGTH]`; raises ValueError as `parse_reference` does."""
    found = None if exists_locally(text, base_dir) else _STRENGTH.fullmatch(text)
    place, colon, rest = text.rpartition(":")
    if (
        found is None
        and colon
        and not exists_locally(text, base_dir)
        and exists_locally(place, base_dir)
    ):
        raise ValueError(
            f"The strength {rest!r} of adapter {place!r} is no finite number; write one as 0.5."
        )
    strength = 1.0 if found is None else float(found["strength"])
    if not math.isfinite(strength):
        raise ValueError(f"The strength of adapter {text!r} is not a finite number; give one.")
    path, revision = _revision(text if found is None else found["path"], base_dir)
    if not path.strip():
        raise ValueError(
            f"Adapter {text!r} has an empty path; write ADAPTER[@REVISION][:STRENGTH]."
        )
    return AdapterReference(path, revision, strength)


def is_ambiguous(path: str) -> bool:
    """Whether a path that is not there reads as a longer reference: it has `+`, `@` or a number at its end."""
    return "+" in path or "@" in path or _STRENGTH.fullmatch(path) is not None


def located(reference: Reference, base_dir: Path | None) -> Reference:
    """The same with paths as `locate` gives them."""
    if base_dir is None:
        return reference
    adapters = tuple(replace(a, path=locate(a.path, base_dir)) for a in reference.adapters)
    return replace(reference, path=locate(reference.path, base_dir), adapters=adapters)


def locate(text: str, base_dir: Path | None) -> str:
    """The path to open: relative to the working directory, else to `base_dir`, else the text as it is."""
    if base_dir is None or expanded(text).exists():
        return text
    # The task of a bundle is no part of its path.
    for path in (expanded(text), expanded(text.partition("#")[0])):
        if not path.exists() and not path.is_absolute() and (base_dir / path).exists():
            return str(base_dir / expanded(text))
    return text


def exists_locally(text: str, base_dir: Path | None) -> bool:
    """Whether a path exists, taken from the working directory or from `base_dir`."""
    try:
        path = expanded(text)
        return path.exists() or (base_dir is not None and (base_dir / path).exists())
    except (OSError, ValueError, RuntimeError):
        return False


def _at(path: str, revision: str | None) -> str:
    return f"{path}@{revision}" if revision else path


def _parts(text: str, base_dir: Path | None) -> Iterator[str]:
    """The text between `+` signs, but those of a path that exists left in it."""
    pieces = text.split("+")
    start = 0
    while start < len(pieces):
        ends = range(len(pieces), start + 1, -1)
        longer = ("+".join(pieces[start:end]) for end in ends)
        there = (part for part in longer if _is_there(part, base_dir) or _is_strong(part, base_dir))
        found = next(there, pieces[start])
        yield found
        start += found.count("+") + 1


def _is_there(part: str, base_dir: Path | None) -> bool:
    """Whether a path exists, or a task of a bundle, whose name may have a `+`."""
    if exists_locally(part, base_dir):
        return True
    return "#" in part and _is_task(locate(part, base_dir))


def _is_task(place: str) -> bool:
    # Imported here because few merges read bundles.
    from weightsmith.checkpoints import member_of, read_bundle_header

    found = member_of(place)
    return found is not None and any(
        t.label == found[1] for t in read_bundle_header(found[0]).tasks
    )


def _is_strong(part: str, base_dir: Path | None) -> bool:
    strong = _STRENGTH.fullmatch(part)
    return strong is not None and exists_locally(strong["path"], base_dir)


def _revision(text: str, base_dir: Path | None) -> tuple[str, str | None]:
    if exists_locally(text, base_dir):
        return text, None
    path, at, revision = text.partition("@")
    if at and (not revision or "@" in revision or not path):
        raise ValueError(
            f"Model {text!r} is not of the form PATH@REVISION; write one path and one revision."
        )
    return path, revision or None
