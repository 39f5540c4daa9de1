"""Words and numbers as people read them, on a terminal and in a report."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import islice

from weightsmith.errors import Malformed, WeightsmithError

_LONGEST = 160
_LONGEST_LINE = 1200
_MOST_ITEMS = 4
_MOST_DEPTH = 2
_MOST_BITS = 256
# Nouns that end like this have a plural in es.
_SIBILANTS = ("s", "x", "z", "ch", "sh")

# What to do where the system refuses something, by its reason.
_ADVICE = {
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.ELOOP: "check the links of the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "free some memory, or raise `ulimit -v`",
    errno.EIO: "check the disk",
}


def shown(text: object) -> str:
    """`text` quoted, with everything unprintable escaped and the middle of very long text left out."""
    whole = str(text)
    if len(whole) > _LONGEST:
        half = _LONGEST // 2
        whole = f"{whole[:half]}...{whole[-half:]}"
    return repr(whole)


def abridged(message: str) -> str:
    """A message of which a line is not longer than anybody reads, its beginning and its end."""
    return "\n".join(map(_abridged_line, message.split("\n")))


def _abridged_line(line: str) -> str:
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[: 2 * _LONGEST_LINE // 3]} ... {line[-_LONGEST_LINE // 3 :]}"


def literal(value: object, depth: int = 0) -> str:
    """A value from a document as it stands there: texts quoted, `true`, `null`, numbers, lists; long ones abridged."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"[{_items(map(partial(literal, depth=depth + 1), value), depth)}]"
    if isinstance(value, Mapping):
        pairs = (f"{shown(key)[1:-1]}: {literal(item, depth + 1)}" for key, item in value.items())
        return f"{{{_items(pairs, depth)}}}"
    return shown(value)


def _items(items: Iterable[str], depth: int) -> str:
    most = _MOST_ITEMS if depth < _MOST_DEPTH else 0
    first = list(islice(items, most + 1))
    return ", ".join([*first[:most], *(["..."] if len(first) > most else [])])


def fault(problem: Exception) -> str:
    """What is wrong with data that could not be read, from the error that reading them gave.

    Only errors of this project and missing keys say something to whoever has the file.
    """
    if isinstance(problem, (Malformed, WeightsmithError)):
        return str(problem).rstrip(".")
    if isinstance(problem, KeyError) and problem.args:
        return f"it lacks {shown(problem.args[0])}"
    return "an entry of it has another form than it should"


def advice_on(refusal: OSError) -> str:
    """What to do where the system refuses something."""
    return _ADVICE.get(refusal.errno or 0, "check the path and what its disk allows")


def harmless(text: str, *, keep_lines: bool = False) -> str:
    """`text` with everything escaped that could move a terminal's cursor, colour it or turn the reading direction."""
    return "".join(
        c if c.isprintable() or (keep_lines and c == "\n") else _escaped(c) for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def with_extra(name: str) -> str:
    """What to do where a library of an optional part is missing; nothing is said of indexes that may not have it."""
    return f'install weightsmith with the extra `{name}`, in its checkout with `pip install ".[{name}]"`'


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 tensor`, `1,234 tensors`, `2 batches`; with a `plural` that has neither s nor es, that."""
    ending = "es" if noun.endswith(_SIBILANTS) else "s"
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or noun + ending}"


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
