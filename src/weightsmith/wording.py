"""Words and numbers as people read them, on a terminal and in a report."""

from __future__ import annotations

_LONGEST = 160


def shown(text: object) -> str:
    """`text` quoted, with everything unprintable escaped and the middle of very long text left out."""
    whole = str(text)
    if len(whole) > _LONGEST:
        half = _LONGEST // 2
        whole = f"{whole[:half]}...{whole[-half:]}"
    return repr(whole)


def harmless(text: str, *, keep_lines: bool = False) -> str:
    """`text` with everything escaped that could move a terminal's cursor, colour it or turn the reading direction."""
    return "".join(
        c if c.isprintable() or (keep_lines and c == "\n") else _escaped(c) for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def counted(number: int, noun: str) -> str:
    """`1 tensor`, `1,234 tensors`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """A length of time with about two digits: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
