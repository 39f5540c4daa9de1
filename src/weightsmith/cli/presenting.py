"""Showing what a command found: one result, told as tables and lines for people or as one JSON document.

Data goes to stdout and talk to stderr. A command makes its result, and a function that tells it in blocks; `present`
decides between the two forms, so that `--json` means the same everywhere.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TextIO, TypeVar

from weightsmith.cli.terminal_text import abridged, harmless
from weightsmith.cli.text_tables import Cell as Cell
from weightsmith.cli.text_tables import ShownInterval as ShownInterval
from weightsmith.cli.text_tables import TextTable as TextTable
from weightsmith.cli.text_tables import draw_table, plain_table, with_short_cells
from weightsmith.findings import Finding, Severity

SCHEMA = 1
_GAP = re.compile(r"(?<=\S) {2,}(?=\S)")
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


class CommandResult(Protocol):
    """What a command found."""

    def to_mapping(self) -> dict[str, Any]:
        """All of it as plain data, the keys in the order in which they are written."""
        ...


@dataclass(frozen=True, slots=True)
class FindingsBlock:
    """Findings among the blocks of a result, errors first."""

    findings: Iterable[Finding]


@dataclass(frozen=True, slots=True)
class Data:
    """A line for scripts and files among the blocks of a result: a narrow terminal does not break it."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs and indented formulas among the blocks of a result; a terminal gets paragraphs as wide as it is."""

    text: str


Block = str | Data | Text | TextTable | FindingsBlock
Found = TypeVar("Found", bound=CommandResult)


def present(found: Found, blocks: Callable[[Found], Iterable[Block]], *, as_json: bool) -> None:
    """Write a result to stdout: with --json its mapping, else its blocks one below the other."""
    if as_json:
        print(json_text(found.to_mapping()))
        return
    for block in blocks(found):
        if isinstance(block, TextTable):
            show_table(block)
        elif isinstance(block, FindingsBlock):
            show_findings(block.findings)
        elif isinstance(block, Data):
            print(harmless(block.text))
        elif isinstance(block, Text):
            for line in _filled(block.text):
                show_line(line)
        else:
            show_line(block)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody reads along; a stream that was closed when Python started is None."""
    return stream is not None and stream.isatty()


def show_table(table: TextTable) -> None:
    """Write a table and an empty line to stdout: drawn to fit a terminal, plain elsewhere."""
    table = with_short_cells(table)
    if is_terminal(sys.stdout):
        from rich.console import Console

        draw_table(table, Console())
    else:
        print(plain_table(table))
        print()


def show_line(text: str = "") -> None:
    """Write a sentence to stdout, harmless to a terminal and broken between words where it is narrow."""
    line = harmless(abridged(text))
    print(broken(line, shutil.get_terminal_size().columns) if is_terminal(sys.stdout) else line)


def broken(line: str, width: int) -> str:
    """A line in as many as it needs, broken between words.

    What follows stands below the words behind a gap, such as those behind a name, or a little further in than the line.
    """
    if len(line) <= width:
        return line
    margin = len(line) - len(line.lstrip())
    gap = _GAP.search(line, margin)
    hang = margin + 2 if margin else 0
    if gap is not None and gap.end() <= width // 2:
        hang = gap.end()
    else:
        # What stands far to the right comes nearer before it goes to another line.
        line = line[:margin] + _GAP.sub("   ", line[margin:])
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _filled(text: str) -> Iterator[str]:
    """The lines of a text; on a terminal those of a paragraph are one, and only what is indented stays as it is."""
    lines = text.splitlines()
    if not is_terminal(sys.stdout):
        yield from lines
        return
    for is_prose, run in itertools.groupby(lines, key=lambda line: line[:1].strip() != ""):
        together = list(run)
        yield from [" ".join(together)] if is_prose else together


def show_findings(findings: Iterable[Finding], *, to_stderr: bool = False) -> None:
    """Write every finding with its severity and its fix, errors first."""
    order = list(Severity)
    for finding in sorted(findings, key=lambda f: order.index(f.severity)):
        head = f"{finding.severity.value}[{finding.code}]"
        text = harmless(abridged(finding.message))
        fix = harmless(abridged(finding.fix))
        stream = sys.stderr if to_stderr else sys.stdout
        if is_terminal(stream):
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


def json_text(content: Mapping[str, Any]) -> str:
    """JSON with its schema: escaped to ASCII, keys in the order given, and no NaN."""
    document = {"schema": SCHEMA, **content}
    return json.dumps(_finite(document), indent=1, ensure_ascii=True, allow_nan=False)


def _finite(content: Any) -> Any:
    """Numbers that JSON has no word for become null."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float):
        return float(content) if content - content == 0 else None
    return content
