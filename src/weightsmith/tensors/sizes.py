"""Numbers of bytes as people write and read them."""

from __future__ import annotations

import re

from weightsmith.wording import shown

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(I?))?B?", re.IGNORECASE)
_PREFIXES = "KMGT"
_LONGEST = 40
_LARGEST = 2**63


def parse_size(text: str | int) -> int:
    """Bytes of a size such as `256MB`, `1.5 GiB` or `1000000`.

    KB, MB, GB and TB are powers of 1000, KiB, MiB, GiB and TiB powers of 1024; B may be left out and
    case does not count. Raises ValueError for anything else, and for less than one byte.
    """
    spelled = str(text).strip()
    match = _SIZE.fullmatch(spelled) if len(spelled) <= _LONGEST else None
    if match is None:
        raise ValueError(
            f"{shown(text)} is not a size; write it like 256MB, 1GiB or a number of bytes"
        )
    number, prefix, binary = match.groups()
    power = _PREFIXES.index(prefix.upper()) + 1 if prefix else 0
    factor = (1024 if binary else 1000) ** power
    size = int(number) * factor if number.isdigit() else int(float(number) * factor)
    if size < 1:
        raise ValueError(f"{shown(text)} is less than one byte; write a size like 256MB")
    if size > _LARGEST:
        raise ValueError(f"{shown(text)} is more than any machine has; write a size like 256MB")
    return size


def format_size(nbytes: float) -> str:
    """A number of bytes in powers of 1000 with three digits: `1.23 GB`."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "B":
        return f"{value:.0f} B"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"
