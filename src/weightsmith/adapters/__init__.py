"""Adapters: every dialect read into one meaning, applied while a base is read, combined in factored form, written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.adapters.adapter import Adapter as Adapter
    from weightsmith.adapters.adapter import Form as Form
    from weightsmith.adapters.adapter import Update as Update
else:
    __getattr__, __dir__, __all__ = door(
        __name__, dict.fromkeys(("Adapter", "Form", "Update"), "weightsmith.adapters.adapter")
    )
