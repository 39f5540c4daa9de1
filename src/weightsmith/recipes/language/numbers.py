"""Numbers as recipes write them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from weightsmith.recipes.language.document import number
from weightsmith.wording import literal


def _read_number(given: Any) -> float:
    spelled = number(given) if isinstance(given, str) else given
    if isinstance(spelled, bool) or not isinstance(spelled, (int, float)):
        raise ValueError(f"expected a number, not {literal(given)}")
    return float(spelled)


Number = Annotated[float, BeforeValidator(_read_number)]
