"""What a run of mutants says: survivors with their diffs, the rate of each group, and a record to read again."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mutation.session import Verdict
from mutation.sites import Mutant


@dataclass(frozen=True)
class Result:
    """A mutant of a group and what became of it."""

    group: str
    mutant: Mutant
    verdict: Verdict

    @property
    def survived(self) -> bool:
        """Whether no test noticed."""
        return not self.verdict.caught_by

    def line(self) -> str:
        """One line for a terminal."""
        end = self.verdict.caught_by or "SURVIVED"
        m = self.mutant
        return (
            f"{self.verdict.seconds:6.1f} s  {m.path}:{m.line} {m.where}: {m.change}\n"
            f"            {end} ({self.verdict.tests} tests)"
        )


def rate(results: Sequence[Result], group: str) -> tuple[int, int]:
    """How many mutants of a group were caught, and how many there were."""
    own = [r for r in results if r.group == group]
    return sum(not r.survived for r in own), len(own)


def survivors(results: Sequence[Result], root: Path) -> str:
    """Each surviving mutant: file, line, change, and the difference."""
    parts = []
    for result in results:
        if result.survived:
            m = result.mutant
            head = f"{m.path}:{m.line} {m.where}: {m.change}  ({result.verdict.tests} tests)"
            parts.append(head + "\n" + difference(m, (root / m.path).read_bytes()))
    return "\n".join(parts)


def difference(mutant: Mutant, source: bytes) -> str:
    """A mutant as a unified difference of its lines."""
    before, after = (s.decode().splitlines() for s in (source, mutant.applied(source)))
    lines = list(difflib.unified_diff(before, after, lineterm="", n=0))[2:]
    return "\n".join(f"    {line}" for line in lines if line not in ("+", "+)"))


def as_json(results: Sequence[Result], facts: Mapping[str, Any]) -> str:
    """The record of a run."""
    entries = [
        {"group": r.group, **asdict(r.mutant), **asdict(r.verdict)} | {"where": r.mutant.where}
        for r in results
    ]
    return json.dumps({**facts, "mutants": entries}, indent=1)
