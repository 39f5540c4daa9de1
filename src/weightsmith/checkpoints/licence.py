"""The licence that a checkpoint's own card names, as the Hub reads it from the front matter of README.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from weightsmith.checkpoints.copied_files import is_inside
from weightsmith.tensors import is_printable_name, read_small

_CARD = "README.md"
_LARGEST_BYTES = 5_000_000
_LONGEST_MATTER = 100_000
_LONGEST = 300
_FRONT_MATTER = re.compile(r"\A(?:\ufeff)?---[ \t]*\r?\n(.*?\n)---[ \t]*\r?(?:\n|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Licence:
    """An identifier of the Hub, and for `other` the name and link of the text."""

    identifier: str
    name: str | None = None
    link: str | None = None

    @property
    def title(self) -> str:
        """What people call it."""
        return self.name or self.identifier

    def to_mapping(self) -> dict[str, str]:
        """The entries of the front matter."""
        every = {
            "license": self.identifier,
            "license_name": self.name,
            "license_link": self.link,
        }
        return {key: value for key, value in every.items() if value is not None}


def licence_of(folder: Path) -> Licence | None:
    """The licence of the checkpoint in a folder, None where its card names none or cannot be read.

    A card is prose by a stranger, so whatever is wrong with it stops nothing. A link to a file of the parent's own
    folder would lead nowhere from the result, and is left out.
    """
    card = folder / _CARD
    if not (folder.is_dir() and is_inside(card, folder)):
        return None
    try:
        found = _FRONT_MATTER.match(read_small(card, _LARGEST_BYTES).decode(errors="replace"))
        is_read = found is not None and len(found[1]) <= _LONGEST_MATTER
        matter = yaml.safe_load(found[1]) if found is not None and is_read else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    identifier = _text(matter, "license")
    if identifier is None:
        return None
    link = _text(matter, "license_link")
    is_address = link is not None and link.startswith(("https://", "http://"))
    return Licence(identifier, _text(matter, "license_name"), link if is_address else None)


def _text(matter: Any, key: str) -> str | None:
    value = matter.get(key) if isinstance(matter, dict) else None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    is_text = isinstance(value, str) and len(value) <= _LONGEST and is_printable_name(value)
    return value if is_text else None
