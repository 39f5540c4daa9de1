"""JSON from an untrusted file: no duplicate keys, no NaN, no runaway numbers or nesting, and never
a traceback.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from weightsmith.errors import CheckpointError
from weightsmith.tensors.messages import shown


class _Refused(Exception):
    """Carries the reason out of the parser's hooks."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"the key {shown(key)} appears twice")
            seen.add(key)
    return found


def _constant(text: str) -> NoReturn:
    raise _Refused(f"{text} is not a number of JSON")


def _integer(text: str) -> int:
    if text.startswith("-0"):
        raise _Refused(f"{shown(text)} is not an integer")
    return int(text)


def _may_have_negative_zero(data: bytes) -> bool:
    """Whether a number may begin with "-0"; vocabularies have many strings with it."""
    at = data.find(b"-0")
    while at >= 0:
        if data[max(0, at - 64) : at].rstrip()[-1:] in (b"", b"[", b":", b","):
            return True
        at = data.find(b"-0", at + 1)
    return False


def _parse(data: bytes) -> Any:
    # The hook costs as much as all the rest, so it is used only where it may find something.
    parse_int = _integer if _may_have_negative_zero(data) else None
    return json.loads(
        data.decode("utf-8"),
        object_pairs_hook=_object,
        parse_constant=_constant,
        parse_int=parse_int,
    )


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
        return _parse(data)
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 at its byte {error.start}"
    except json.JSONDecodeError as error:
        reason = f"is not JSON at its character {error.pos} ({error.msg})"
    except (_Refused, ValueError) as error:  # ValueError: a number of more than 4300 digits
        reason = f"is refused because {error}"
    except RecursionError:
        reason = "is refused because it is nested too deeply"
    raise CheckpointError(f"{what} {reason}: the file is damaged or hostile, fetch it again.")
