"""JSON from an untrusted file: no duplicate keys, no NaN, no runaway numbers or nesting, and never
a traceback.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from weightsmith.errors import CheckpointError, Malformed
from weightsmith.tensors.messages import shown

_BEFORE_NUMBERS = frozenset((b"", b"[", b":", b",", b" ", b"\t", b"\n", b"\r"))


class NotJson(Malformed):
    """Bytes are no JSON, or none that is read; the message begins with "it"."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise NotJson(f"it is refused because the key {shown(key)} appears twice")
            seen.add(key)
    return found


def _constant(text: str) -> NoReturn:
    raise NotJson(f"it is refused because {text} is not a number of JSON")


def _integer(text: str) -> int:
    if text.startswith("-0"):
        raise NotJson(f"it is refused because {shown(text)} is not an integer")
    return int(text)


def _may_have_negative_zero(data: bytes) -> bool:
    """Whether a number may begin with "-0"; vocabularies have many strings with it."""
    at = data.find(b"-0")
    while at >= 0:
        # One byte says it of most; an index has two such strings in every entry ("model-00001-of-00002").
        if data[at - 1 : at] in _BEFORE_NUMBERS and (
            data[max(0, at - 64) : at].rstrip()[-1:] in (b"", b"[", b":", b",")
        ):
            return True
        at = data.find(b"-0", at + 1)
    return False


def _strictly(data: bytes) -> Any:
    # The hook costs as much as all the rest, so it is used only where it may find something.
    parse_int = _integer if _may_have_negative_zero(data) else None
    return json.loads(
        data.decode("utf-8"),
        object_pairs_hook=_object,
        parse_constant=_constant,
        parse_int=parse_int,
    )


def loads_json(data: bytes, *, strictly: bool = False) -> Any:
    """The value that JSON spells; `strictly` allows no duplicate keys, no NaN or Infinity and no byte order mark.

    Raises NotJson for anything else, runaway nesting and numbers among it.
    """
    try:
        return _strictly(data) if strictly else json.loads(data)
    except NotJson:
        raise
    except UnicodeDecodeError as error:
        raise NotJson(f"it is not UTF-8 at its byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"it is not JSON at its character {error.pos} ({error.msg})") from None
    except ValueError:
        raise NotJson("it has a number of thousands of digits") from None
    except RecursionError:
        raise NotJson("it is nested too deeply") from None


@contextmanager
def collection_paused() -> Iterator[None]:
    """Keep the cyclic garbage collector from rescanning millions of new objects, none of which is
    garbage.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def parse_json(data: bytes, what: str) -> Any:
    """The value that UTF-8 `data` spells; `what` begins every message ("'x.safetensors': the
    header").

    Raises `CheckpointError` for anything that a strict parser would refuse.
    """
    try:
        return loads_json(data, strictly=True)
    except NotJson as reason:
        raise CheckpointError(
            f"{what} {str(reason).removeprefix('it ')}: the file is damaged or hostile, fetch it again."
        ) from None


def text_in(facts: Any, key: str) -> str:
    """The text under a key of a JSON object; raises Malformed where there is none."""
    value = _entry(facts, key)
    if not isinstance(value, str):
        raise Malformed(f"its {shown(key)} is no text")
    return value


def optional_text_in(facts: Any, key: str) -> str | None:
    """The text under a key, or None where that is null."""
    return None if _entry(facts, key) is None else text_in(facts, key)


def texts_in(facts: Any, key: str) -> dict[str, str]:
    """The object of texts under a key, empty where the key is missing."""
    value = _object_of(facts).get(key, {})
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise Malformed(f"its {shown(key)} is no object of texts")
    return value


def listed_in(facts: Any, key: str) -> list[str]:
    """The list of texts under a key."""
    value = _entry(facts, key)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise Malformed(f"its {shown(key)} is no list of texts")
    return value


def count_in(facts: Any, key: str) -> int:
    """The whole number from 0 on under a key."""
    value = _entry(facts, key)
    if not _is_count(value):
        raise Malformed(f"its {shown(key)} is no whole number from 0 on")
    return int(value)


def counts_in(facts: Any, key: str) -> tuple[int, ...]:
    """The list of whole numbers from 0 on under a key."""
    value = _entry(facts, key)
    if not isinstance(value, list) or not all(map(_is_count, value)):
        raise Malformed(f"its {shown(key)} is no list of whole numbers from 0 on")
    return tuple(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(facts: Any, key: str) -> Any:
    if key not in _object_of(facts):
        raise Malformed(f"it lacks {shown(key)}")
    return facts[key]


def _object_of(facts: Any) -> dict[str, Any]:
    if not isinstance(facts, dict):
        raise Malformed("an entry of it is no JSON object")
    return facts
