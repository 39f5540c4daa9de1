"""Tensor names: their fields, the numbers in them, patterns over them, and their natural order."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightsmith.errors import RecipeError
from weightsmith.wording import shown

if TYPE_CHECKING:
    from weightsmith.patterns import PatternError, Patterns

# Lists that are made from 0 to an index of a file stay short.
_MOST_DIGITS = 5
_DIGITS = re.compile(r"([0-9]+)")
_INDEX = re.compile(rf"(?:^|(?<=\.))([0-9]{{1,{_MOST_DIGITS}}})(?=\.|\Z)")
_EXPERT_FIELD = re.compile(r"^(?:experts?|local_experts|moe_experts)$")
_LONGEST_NUMBER = 100
_LONGEST_MISSPELT = 200
_NUMBERED_EXPERT = re.compile(rf"^experts?_(\d{{1,{_MOST_DIGITS}}})$")
# FILE/NAME; no part of FILE leads upwards, nor means anything else than a name on any system.
_BESIDE = re.compile(
    r"(?P<file>(?:(?!\.{1,2}/)[^/\\:]+/)*?[^/\\:]+\.(?:safetensors|bin|pt|pth))/(?P<name>.+)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class NamePieces:
    """A tensor name taken apart.

    `prefix` is the stack that the tensor's block repeats in (`model.layers`), `layer` the block's
    number there, `expert` the number of its expert, and `stem` the rest with the expert number
    written `*`: `mlp.experts.*.w1.weight`. Without a stack, `prefix` and `layer` are None.
    """

    prefix: str | None
    layer: int | None
    expert: int | None
    stem: str


def beside(name: str) -> tuple[str, str] | None:
    """The file and the name there of a tensor in another file than the main set, which is called FILE/NAME.

    `2_Dense/model.safetensors/linear.weight` is `linear.weight` of `2_Dense/model.safetensors`. None for other names.
    """
    found = _BESIDE.fullmatch(name) if "/" in name else None
    return None if found is None else (found["file"], found["name"])


def beside_name(file: str, name: str) -> str:
    """What a tensor of another file than the main set is called; see `beside`."""
    return f"{file}/{name}"


def split_name(name: str) -> tuple[str, ...]:
    """The fields between the dots of a tensor name."""
    return tuple(name.split("."))


def is_number(field: str) -> bool:
    """Whether a field is an index: ASCII digits only, and no more of them than a block or expert has."""
    return len(field) <= _MOST_DIGITS and field.isdigit() and field.isascii()


def blocks_in(name: str) -> Iterator[tuple[str, int, str]]:
    """What may be a block: the name before each field that is an index, the index, and the rest; without experts'."""
    for found in _INDEX.finditer(name):
        start, end = found.span(1)
        prefix = name[: max(0, start - 1)]
        if not _EXPERT_FIELD.match(prefix.rpartition(".")[2]):
            yield prefix, int(found[1]), name[end + 1 :]


def expert_of(fields: tuple[str, ...]) -> tuple[int | None, tuple[str, ...]]:
    """The expert number among fields, and the fields with that number written `*`."""
    for i, field in enumerate(fields):
        numbered = _NUMBERED_EXPERT.match(field)
        if numbered:
            return int(numbered[1]), (*fields[:i], "expert_*", *fields[i + 1 :])
        if i > 0 and is_number(field) and _EXPERT_FIELD.match(fields[i - 1]):
            return int(field), (*fields[:i], "*", *fields[i + 1 :])
    return None, fields


@functools.lru_cache(maxsize=1 << 16)
def parse_name(name: str, prefix: str | None) -> NamePieces:
    """Take a name apart, given the prefix of the stack it may lie in.

    A name outside that stack gets no layer.
    """
    layer: int | None = None
    rest = name
    if prefix is not None and name.startswith(prefix + "." if prefix else ""):
        tail = name[len(prefix) + 1 :] if prefix else name
        number, _, remainder = tail.partition(".")
        if is_number(number):
            layer, rest = int(number), remainder
    expert, fields = expert_of(split_name(rest))
    return NamePieces(prefix if layer is not None else None, layer, expert, ".".join(fields))


def natural_key(text: str) -> tuple[str | int, ...]:
    """A sort key under which `layers.2` comes before `layers.10`."""
    return tuple(_counted(part) if i % 2 else part for i, part in enumerate(_DIGITS.split(text)))


def _counted(digits: str) -> int:
    # Python reads no number of thousands of digits; such ones come last.
    return int(digits) if len(digits) <= _LONGEST_NUMBER else 10**_LONGEST_NUMBER


@functools.lru_cache(maxsize=512)
def compile_glob(pattern: str) -> re.Pattern[str]:
    """A whole-name pattern from a glob: `*` any run, `?` one character, `[...]` a set.

    Dots are ordinary characters, and case counts.
    """
    return re.compile(fnmatch.translate(pattern))


@functools.lru_cache(maxsize=512)
def compile_regex(pattern: str) -> Patterns:
    """A regular expression, refused with RecipeError where it is malformed or cannot be matched in bounded time."""
    # Few recipes have one, and what matches it is a room of its own.
    from weightsmith.patterns import PatternError, Patterns

    try:
        return Patterns([pattern])
    except PatternError as problem:
        raise _refused(pattern, problem) from None


def is_found(pattern: str, name: str) -> bool:
    """Whether a regular expression is found in a name; raises RecipeError as `compile_regex` does."""
    from weightsmith.patterns import PatternError

    try:
        return compile_regex(pattern).found(name) is not None
    except PatternError as problem:
        raise _refused(pattern, problem) from None


def _refused(pattern: str, problem: PatternError) -> RecipeError:
    return RecipeError(
        f"The regular expression {shown(pattern)} cannot be used, since {problem}; correct it or use a glob."
    )


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a glob matches, in their order."""
    compiled = compile_glob(pattern)
    return [name for name in names if compiled.match(name)]


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `name`, for a did-you-mean, or None where none is near."""
    if len(name) > _LONGEST_MISSPELT:
        return None
    # Imported here because it is for mistakes alone.
    import difflib

    found = difflib.get_close_matches(name, list(candidates), n=1)
    return found[0] if found else None
