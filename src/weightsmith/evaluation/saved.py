"""Results that commands saved as JSON, read as data from a stranger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weightsmith.errors import UsageError
from weightsmith.tensors import NotJson, loads_json, read_small
from weightsmith.wording import shown

_LARGEST_BYTES = 256_000_000


def read_saved(file: Path, command: str) -> dict[str, Any]:
    """The JSON object that `weightsmith COMMAND --json FILE` saved; raises UsageError for another file."""
    advice = f"give what `{command} --json` wrote."
    try:
        content = loads_json(read_small(file, _LARGEST_BYTES))
    except OSError as problem:
        raise UsageError(f"{shown(file)} cannot be read ({problem.strerror}); {advice}") from None
    except NotJson as problem:
        raise UsageError(f"{shown(file)} cannot be read ({problem}); {advice}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{shown(file)} holds no JSON object; {advice}")
    return content
