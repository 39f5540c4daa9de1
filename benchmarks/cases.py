"""What is merged: one mergekit recipe per case, which both tools read, and how each tool is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PARITY = ROOT / ".venv-parity" / "bin"


@dataclass(frozen=True, slots=True)
class Case:
    """One method with its inputs; `target` is the speed-up over mergekit to reach, natively and with torch alone."""

    name: str
    method: str
    experts: int
    has_base: bool
    parameters: Mapping[str, Any] = field(default_factory=dict)
    each: Mapping[str, Any] = field(default_factory=dict)
    target: tuple[float, float] = (8.0, 4.0)
    one_pass: bool = False

    def inputs(self, folders: Sequence[Path]) -> list[Path]:
        """The folders that the case reads, of a family with its base first."""
        first = 0 if self.has_base else 1
        return list(folders[first : self.experts + 1])

    def recipe(self, folders: Sequence[Path]) -> str:
        """The recipe as YAML that mergekit and weightsmith both read."""
        experts = folders[1 : self.experts + 1]
        lines = [f"merge_method: {self.method}"]
        if self.method == "slerp":
            experts, base = experts[:2], experts[0]
        else:
            base = folders[0]
        if self.has_base or self.method == "slerp":
            lines.append(f"base_model: {base}")
        lines.append("models:")
        for expert in experts:
            lines.append(f"  - model: {expert}")
            if self.each:
                lines.append("    parameters:")
                lines += [f"      {key}: {number}" for key, number in self.each.items()]
        if self.parameters:
            lines.append("parameters:")
            lines += [f"  {key}: {number}" for key, number in self.parameters.items()]
        return "\n".join([*lines, "dtype: bfloat16", ""])


_SPAN, _SORTED, _DELLA = (8.0, 4.0), (25.0, 6.0), (10.0, 6.0)

CASES = {
    case.name: case
    for case in (
        Case("linear-2", "linear", 2, False, each={"weight": 0.5}, target=_SPAN, one_pass=True),
        Case("linear-4", "linear", 4, False, each={"weight": 0.25}, target=_SPAN, one_pass=True),
        Case("slerp", "slerp", 2, False, {"t": 0.4}, target=_SPAN),
        Case(
            "task_arithmetic",
            "task_arithmetic",
            4,
            True,
            each={"weight": 0.3},
            target=_SPAN,
            one_pass=True,
        ),
        Case("model_stock", "model_stock", 4, True, target=_SPAN),
        Case("karcher", "karcher", 4, False, target=_SORTED),
        Case("ties", "ties", 4, True, each={"weight": 1.0, "density": 0.2}, target=_SORTED),
        Case(
            "breadcrumbs",
            "breadcrumbs",
            4,
            True,
            each={"weight": 0.3, "density": 0.9, "gamma": 0.01},
            target=_SORTED,
        ),
        Case(
            "dare_ties",
            "dare_ties",
            4,
            True,
            each={"weight": 0.3, "density": 0.2},
            target=_SORTED,
            one_pass=True,
        ),
        Case("sce", "sce", 4, True, {"select_topk": 0.1}, target=_SORTED),
        Case(
            "della",
            "della",
            4,
            True,
            each={"weight": 0.3, "density": 0.4, "epsilon": 0.15},
            target=_DELLA,
        ),
    )
}


def weightsmith_command(
    recipe: Path, out: Path, *, backend: str = "auto", threads: int | None = None
) -> list[str | Path]:
    """The merge as a user types it."""
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "weightsmith",
        "merge",
        recipe,
        out,
        "--backend",
        backend,
    ]
    return command if threads is None else [*command, "--threads", str(threads)]


def mergekit_command(recipe: Path, out: Path) -> list[str | Path]:
    """mergekit with its default settings."""
    return [PARITY / "mergekit-yaml", recipe, out, "--no-copy-tokenizer", "--quiet"]


def mergekit_environment() -> dict[str, str]:
    """mergekit must not ask the hub for anything, and uses every core as it does by default."""
    return {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": str(os.cpu_count() or 1),
    }


def floor_command(out: Path, write_bytes: int, inputs: Sequence[Path]) -> list[str | Path]:
    """Read the inputs once and write the output once."""
    return [
        sys.executable,
        "-S",
        "-E",
        Path(__file__).parent / "floor.py",
        out,
        str(write_bytes),
        *inputs,
    ]
