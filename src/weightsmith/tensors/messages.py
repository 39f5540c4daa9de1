"""How untrusted text (tensor names, file names, pickled globals) appears in a message."""

from __future__ import annotations

import re

from weightsmith.wording import shown as shown

# Control characters can rewrite a terminal; surrogates cannot be written as UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def is_printable_name(name: str) -> bool:
    """True for a name that is not empty and holds neither control characters nor lone surrogates."""
    return bool(name) and _UNPRINTABLE.search(name) is None
