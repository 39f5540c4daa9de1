"""Adapters: every dialect read into one meaning, applied while a base is read, combined in factored form, written."""

from __future__ import annotations

from weightsmith.adapters.adapter import Adapter as Adapter
from weightsmith.adapters.adapter import Form as Form
from weightsmith.adapters.adapter import Update as Update
