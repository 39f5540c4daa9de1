"""Writing results: tables with rich on a terminal, plain aligned text elsewhere, and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.cli.text import harmless
from weightsmith.findings import Finding, Severity

# A column of names gets at least as many characters as most parts of a name have.
_NARROWEST = 16
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


@dataclass(frozen=True, slots=True)
class Table:
    """A table to show; `right` holds the positions of columns of numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[int] = frozenset()


def show_table(table: Table) -> None:
    """Write a table and an empty line to stdout."""
    if sys.stdout.isatty():
        _show_rich(table)
    else:
        print(plain_table(table))
        print()


def plain_table(table: Table) -> str:
    """A table as text: the title, a line of column names (if they have any), and a line for each row."""
    head = [table.columns] if any(table.columns) else []
    lines = [[harmless(cell) for cell in row] for row in (*head, *table.rows)]
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(len(table.columns))]
    aligned = []
    for line in lines:
        cells = [
            cell.rjust(width) if i in table.right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        aligned.append("  ".join(cells).rstrip())
    return "\n".join([table.title, *(f"  {line}" for line in aligned)])


def _show_rich(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    drawn = RichTable(
        title=Text(table.title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        show_header=any(table.columns),
    )
    for i, name in enumerate(table.columns):
        number = i in table.right
        drawn.add_column(
            Text(name),
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=number,
        )
    room = _room_for_names(table, console.width)
    for row in table.rows:
        first, *rest = (harmless(cell) for cell in row)
        drawn.add_row(Text(folded(first, room)), *map(Text, rest))
    console.print(drawn)


def _room_for_names(table: Table, width: int) -> int:
    """Characters that the first column may take where nothing beside it is folded, two being between columns."""
    lines = [[harmless(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    return max(_NARROWEST, width - sum(widths[1:]) - 2 * len(widths))


def folded(name: str, width: int) -> str:
    """A dotted name in as many lines as it needs, broken behind dots: `model.layers.3.` and `mlp.up_proj.weight`."""
    if len(name) <= width or " " in name:
        return name
    lines = [""]
    for part in name.replace(".", ".\n").splitlines():
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def show_line(text: str = "") -> None:
    """Write one line to stdout, harmless to a terminal."""
    print(harmless(text))


def show_findings(findings: Iterable[Finding], *, to_stderr: bool = False) -> None:
    """Write every finding with its severity and its fix, errors first."""
    order = list(Severity)
    for finding in sorted(findings, key=lambda f: order.index(f.severity)):
        head = f"{finding.severity.value}[{finding.code}]"
        text = harmless(finding.message)
        fix = harmless(finding.fix)
        stream = sys.stderr if to_stderr else sys.stdout
        if stream.isatty():
            _show_rich_finding(head, text, fix, _STYLES[finding.severity], to_stderr)
        else:
            print(f"{head}: {text}" + (f"\n  fix: {fix}" if fix else ""), file=stream)


def _show_rich_finding(head: str, text: str, fix: str, style: str, to_stderr: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble((head, style), f": {text}")
    if fix:
        line.append("\n  fix: ", "bold").append(fix)
    Console(stderr=to_stderr).print(line)


def show_json(content: Any) -> None:
    """Write JSON to stdout: escaped to ASCII, keys in the order given, and no NaN."""
    print(json.dumps(_finite(content), indent=1, ensure_ascii=True, allow_nan=False))


def _finite(content: Any) -> Any:
    """Numbers that JSON has no word for become null."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float):
        return float(content) if content - content == 0 else None
    return content


def findings_json(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Findings as JSON has them."""
    return [
        {
            "severity": f.severity.value,
            "code": f.code,
            "subject": f.subject,
            "message": f.message,
            "fix": f.fix,
        }
        for f in findings
    ]
