"""Write docs/oracle.md from what a run of the oracles found (`make oracle` does both).

python tools/make_oracle_table.py FOLDER      FOLDER has the JSON files of ORACLE_RESULTS=FOLDER pytest -m oracle
"""

from __future__ import annotations

import datetime as dt
import json
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).resolve().parent.parent / "docs" / "oracle.md"
STRUCTURES = PAGE.parent.parent / "tests" / "oracle" / "structures.py"
FILES = [
    f"{dtype} {backend}" for dtype in ("float32", "bfloat16") for backend in ("native", "torch")
]
SINGLE = ("float32", "bfloat16", "rounded_inputs")
INTRODUCTION = """\
# Oracles

*This page is written by `make oracle` from its own run; run it instead of changing the page.*

Every method and modifier is written a second time in `tests/oracle/rules`, from its paper, in plain float64 numpy that
imports nothing of weightsmith. `make oracle` runs both on small models of four shapes - a decoder with matrices and
norms (llama), two towers with a 4-d convolution and a scalar (clip), matrices stored inputs first (gpt2), experts
fused in 3-d tensors (mixture) - and compares every element:

- **memory**: `merge_state_dicts` in float64, of the four shapes; **tied**: a model whose head is its embedding, there
  and in files;
- **recipes** of float64 checkpoints: a recipe as a model or as the base, one that is rounded to bfloat16, slices, rules
  with another method and `keep`, `missing: base`, weights along the depth with 0 and 1 among them, `then:`, `modify:`,
  files in other orders, and tensors stored in different dtypes. The oracle makes them in one or two steps;
- **equal**: numbers so coarse that many magnitudes are equal, where a method's result depends on which count as larger;
- **files** in float32 and bfloat16, computed in float32 by the native and by the torch backend, written as float32; and
  files in float64 that mergekit's `dtype` rounds first.

An error is the largest difference of any element, as a share of the largest change that the merge makes to the base.
**float64** is the largest one of memory, tied, recipes and equal, **float32** that of files. What exceeds a method's
tolerance (1e-12 and 2e-6, unless the oracle gives a reason for another) fails the run.
"""


Row = Mapping[str, Any]


@dataclass
class Found:
    """What was found of a method or modifier, or in a structure."""

    methods: set[str] = field(default_factory=set)
    variants: set[str] = field(default_factory=set)
    shapes: set[str] = field(default_factory=set)
    structures: set[str] = field(default_factory=set)
    comparisons: int = 0
    float64: float = 0.0
    float32: float | None = None

    def add(self, row: Row) -> None:
        """Take one comparison."""
        self.methods.add(row["method"])
        self.variants.add(row["variant"])
        self.shapes.add(row["shape"].removesuffix("-tied"))
        self.structures.add(row["structure"])
        self.comparisons += 1
        if row["structure"].startswith(SINGLE):
            self.float32 = max(self.float32 or 0.0, row["error"])
        else:
            self.float64 = max(self.float64, row["error"])

    @property
    def largest(self) -> float:
        """The largest error of all."""
        return max(self.float64, self.float32 or 0.0)


def gathered(rows: Iterable[Row], key: str) -> dict[str, Found]:
    """The comparisons of each method, or of each structure."""
    found: dict[str, Found] = {}
    for row in rows:
        found.setdefault(row[key], Found()).add(row)
    return dict(sorted(found.items()))


def page(rows: Sequence[Row], machine: str, date: str) -> str:
    """The whole page."""
    failures = sum(not row["error"] <= row["tolerance"] for row in rows)
    lines = [
        INTRODUCTION,
        f"Run on {date}, {machine}: {len(rows)} comparisons, {failures} beyond their tolerance.",
        "",
        "| method | variants | shapes | structures | comparisons | float64 | float32 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {len(m.variants)} | {len(m.shapes)} | {len(m.structures)} | {m.comparisons} "
        f"| {_shown(m.float64)} | {_shown(m.float32)} |"
        for name, m in gathered(rows, "method").items()
    ]
    lines += [
        "",
        "What was run:",
        "",
        "| structure | methods | comparisons | largest error |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {len(s.methods)} | {s.comparisons} | {_shown(s.largest)} |"
        for name, s in gathered(rows, "structure").items()
    ]
    if missing := left_out(rows):
        lines += ["", f"This run was of a part: {', '.join(missing)} were left out."]
    return "\n".join(lines) + "\n"


def left_out(rows: Iterable[Row]) -> list[str]:
    """Structures that there are and that nothing was compared in."""
    recipes = re.findall(r"^@structure\(.*\)\ndef (\w+)", STRUCTURES.read_text(), re.MULTILINE)
    every = ["memory", "tied", "tied files", "equal", *recipes, *FILES]
    return sorted(set(every) - {row["structure"] for row in rows})


def _shown(error: float | None) -> str:
    if error is None:
        return ""
    return "0" if error == 0 else f"{error:.1e}"


def machine_kind() -> str:
    """The kind of machine, without its name."""
    python = f"Python {platform.python_version()}"
    return f"{platform.system()} {platform.machine()}, {python}, numpy {np.__version__}"


def main(arguments: Sequence[str]) -> int:
    """Write the page from a folder of results."""
    files = sorted(Path(arguments[0]).glob("*.json"))
    rows = [row for path in files for row in json.loads(path.read_text())]
    if not rows:
        print(f"{arguments[0]} has no results; run `make oracle`.", file=sys.stderr)
        return 1
    today = dt.datetime.now(tz=dt.timezone.utc).date().isoformat()
    PAGE.write_text(page(rows, machine_kind(), today))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
