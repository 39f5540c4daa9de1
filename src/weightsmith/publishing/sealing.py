"""JSON text whose last entry is the SHA-256 of everything before it, so that damage to a record is found."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from weightsmith.errors import Malformed
from weightsmith.tensors import loads_json

_MARK = b' "seal": "sha256:'


def sealed(content: dict[str, Any]) -> bytes:
    """Canonical text of a non-empty object with its seal: the same facts give the same bytes."""
    return _with_seal(json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False).encode())


def unsealed(text: bytes) -> dict[str, Any]:
    """The content of a sealed text, the seal among it; raises Malformed if a byte of it was changed."""
    body, mark, _ = text.rpartition(_MARK)
    if not mark or _with_seal(body.removesuffix(b",\n") + b"\n}") != text:
        raise Malformed("its seal does not fit its content")
    content = loads_json(text)
    if not isinstance(content, dict):
        raise Malformed("it holds no JSON object")
    return content


def _with_seal(content: bytes) -> bytes:
    body = content.removesuffix(b"\n}") + b",\n"
    return body + _MARK + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'
