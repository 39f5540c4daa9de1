"""Libraries at work on files of strangers: whatever they raise becomes one sentence with their reason.

A configuration may name any number for anything, and transformers answers with whatever its arithmetic comes to: a
ZeroDivisionError as well as a sentence.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from weightsmith.errors import WeightsmithError
from weightsmith.wording import shown

_MOST_CHARACTERS = 300
# Errors of Python itself, which speak of its types and not of the file.
_OF_PYTHON = re.compile(
    r"object has no attribute|not subscriptable|not iterable|not callable|unhashable|indices must be|has no len|"
    r"invalid literal|could not convert|unsupported operand|not supported between|required positional|"
    r"unexpected keyword|cannot unpack|must be str|cannot be interpreted|NoneType|\(\) argument"
)
# "expected int, got dict": what a type is to someone who writes JSON.
_TYPES = re.compile(r"\b(expected|got) (\w+)\b")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    "NoneType": "null",
}
_CLASS_NAME = re.compile(r"^[A-Za-z]*(?:Error|Exception): ")

_ZERO = "a number in it is 0 that must not be"
_TOO_LARGE = "a number in it is too large"
_OTHER_FORM = "an entry of it has another form than it should"
# Reasons that do not say which entry it is.
_UNNAMED = frozenset({_ZERO, _TOO_LARGE, _OTHER_FORM})


@contextmanager
def asking_library(
    said: str,
    advice: str,
    kind: type[WeightsmithError],
    entry: Callable[[], str | None] | None = None,
) -> Iterator[None]:
    """Turn whatever a library raises within into `kind`: what was `said`, its reason in brackets, and the `advice`.

    Where the library does not say which entry of a file it means, `entry` may find it. Errors of this project pass, and
    so does memory that ran out. Warnings of the library are not shown.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (WeightsmithError, MemoryError):
        raise
    except Exception as error:  # libraries raise everything
        if is_of_memory(error):
            raise
        reason = reason_of(error)
        found = entry() if entry is not None and reason in _UNNAMED else None
        where = "" if found is None else f": {shown(found)}"
        raise kind(f"{said} ({reason}{where}); {advice}.") from error


def is_of_memory(error: Exception) -> bool:
    """Whether an error of a library says that memory ran out."""
    text = str(error)
    return isinstance(error, (RuntimeError, MemoryError)) and (
        "out of memory" in text
        or "allocate memory" in text
        or ("allocate" in text and "bytes" in text)
    )


def reason_of(error: BaseException) -> str:
    """The reason that a library's error gives, in one line; where it is one of Python's own, what that means."""
    inmost = error
    while inmost.__cause__ is not None and inmost.__cause__ is not inmost:
        inmost = inmost.__cause__
    if isinstance(inmost, ZeroDivisionError):
        return _ZERO
    if isinstance(inmost, KeyError) and inmost.args:
        return f"there is no {shown(inmost.args[0])}"
    if isinstance(inmost, (RecursionError, OverflowError)):
        return "it is nested too deeply" if isinstance(inmost, RecursionError) else _TOO_LARGE
    lines = [line.strip() for line in str(inmost).splitlines() if line.strip()]
    # A heading that ends in a colon has the reason below it.
    told = next((line for line in lines if not line.endswith(":")), "")
    told = _CLASS_NAME.sub("", told).rstrip(".")
    told = _TYPES.sub(lambda match: f"{match[1]} {_WORDS.get(match[2], match[2])}", told)
    if not told or _OF_PYTHON.search(told) or isinstance(inmost, (AttributeError, IndexError)):
        return _OTHER_FORM
    return told if len(told) <= _MOST_CHARACTERS else f"{told[:_MOST_CHARACTERS]}..."


@contextmanager
def quiet_library() -> Iterator[None]:
    """transformers without progress bars and load reports, which are checked here and told in one sentence."""
    import transformers

    logging: Any = transformers.utils.logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
