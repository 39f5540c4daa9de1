"""JSON from an untrusted file: no duplicate keys, no NaN, no runaway numbers or nesting, and never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

from weightsmith.errors import CheckpointError
from weightsmith.tensors.messages import shown

# The longest decimal number that can be an offset or a length: 2^64 has 20 digits.
_LONGEST_NUMBER = 20


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


def _bounded_integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER or text.startswith("-0"):
        raise _Refused(f"{text[:_LONGEST_NUMBER]}... is not a usable integer")
    return int(text)


def _parse(text: str, parse_int: Callable[[str], int]) -> Any:
    return json.loads(
        text, object_pairs_hook=_object, parse_constant=_constant, parse_int=parse_int
    )


def parse_json(data: bytes, what: str) -> Any:
    """The value that UTF-8 `data` spells; `what` begins every message ("'x.safetensors': the header").

    Raises `CheckpointError` for anything that a strict parser would refuse.
    """
    try:
        return _parse(data.decode("utf-8"), _bounded_integer)
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 at its byte {error.start}"
    except json.JSONDecodeError as error:
        reason = f"is not JSON at its character {error.pos} ({error.msg})"
    except _Refused as error:
        reason = f"is refused because {error}"
    except RecursionError:
        reason = "is refused because it is nested too deeply"
    raise CheckpointError(f"{what} {reason}: the file is damaged or hostile, fetch it again.")
