"""A page: sections of blocks, written as one HTML file that needs neither network nor scripts.

Everything that a page shows is text until it is written here, where it is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from weightsmith.findings import Finding, Severity
from weightsmith.reports.drawing import inline_svg
from weightsmith.reports.palette import declarations
from weightsmith.wording import harmless

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Nothing may be fetched and nothing may run, whatever a name in a checkpoint says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text; a `caution` stands out."""

    text: str
    caution: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Pairs of a word and what it is."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TextListing:
    """Text as it was written, line by line."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class DataTable:
    """Rows of texts; the columns numbered in `right` hold numbers. The first column names its row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class FindingList:
    """Findings of a plan, errors first."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with its key (for ids and file names), title, a sentence that says what it shows, and its numbers."""

    key: str
    title: str
    description: str
    figure: Figure
    table: DataTable | None = None
    caution: str = ""


Block = Paragraph | Facts | TextListing | DataTable | FindingList | Picture


@dataclass(frozen=True, slots=True)
class PageSection:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A page: its title, one line below it, and its sections."""

    title: str
    subtitle: str
    sections: tuple[PageSection, ...]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures in their order."""
        return [b for section in self.sections for b in section.blocks if isinstance(b, Picture)]


def render(report: Report) -> str:
    """The page as HTML: the same report gives the same text."""
    sections = [section for section in report.sections if section.blocks]
    style = files("weightsmith.reports").joinpath("style.css").read_text(encoding="utf-8")
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(report.title)}</title>\n"
        f"<style>\n{_colours()}{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{_text(report.title)}</h1>\n<p>{_text(report.subtitle)}</p></header>\n"
        f"{_contents(sections)}<main>\n"
        + "".join(_section(number, section) for number, section in enumerate(sections, start=1))
        + "</main>\n</body>\n</html>\n"
    )


def _colours() -> str:
    light, dark = declarations(dark=False), declarations(dark=True)
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{color-scheme:dark;{dark}}}}}\n"
    )


def _contents(sections: Sequence[PageSection]) -> str:
    if len(sections) < 2:
        return ""
    items = "".join(
        f'<li><a href="#section-{number}">{_text(section.title)}</a></li>'
        for number, section in enumerate(sections, start=1)
    )
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>\n'


def _section(number: int, section: PageSection) -> str:
    blocks: list[str] = []
    row: list[str] = []
    for block in section.blocks:
        if isinstance(block, Picture):
            row.append(_picture(block))
            continue
        blocks += [*_row(row), _WRITTEN[type(block)](block)]
        row = []
    blocks += _row(row)
    return (
        f'<section aria-labelledby="section-{number}">\n'
        f'<h2 id="section-{number}">{_text(section.title)}</h2>\n'
        + "".join(blocks)
        + "</section>\n"
    )


def _row(pictures: Sequence[str]) -> list[str]:
    return [f'<div class="pictures">\n{"".join(pictures)}</div>\n'] if pictures else []


def _picture(picture: Picture) -> str:
    drawn = inline_svg(
        picture.figure, picture.key, harmless(picture.title), harmless(picture.description)
    )
    caution = f'<p class="caution">{_text(picture.caution)}</p>\n' if picture.caution else ""
    table = (
        ""
        if picture.table is None
        else f"<details><summary>The numbers</summary>\n{_table(picture.table)}</details>\n"
    )
    return (
        f'<figure id="{escape(picture.key)}">\n'
        f"<figcaption><strong>{_text(picture.title)}</strong> {_text(picture.description)}</figcaption>\n"
        f"{caution}{drawn}\n{table}</figure>\n"
    )


def _table(table: DataTable) -> str:
    heads = "".join(
        f'<th scope="col"{_number_class(table, i)}>{_text(name)}</th>'
        for i, name in enumerate(table.columns)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{_text(cell)}</th>'
            if i == 0
            else f"<td{_number_class(table, i)}>{_text(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>\n"
        for row in table.rows
    )
    # A region that scrolls must be reachable by keyboard and have a name.
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(table.title)}">\n'
        f"<table><caption>{_text(table.title)}</caption>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{rows}</tbody></table></div>\n"
    )


def _number_class(table: DataTable, column: int) -> str:
    return ' class="number"' if column in table.right else ""


def _paragraph(block: Paragraph) -> str:
    kind = ' class="caution"' if block.caution else ""
    return f"<p{kind}>{_text(block.text)}</p>\n"


def _facts(block: Facts) -> str:
    pairs = "".join(f"<div><dt>{_text(a)}</dt><dd>{_text(b)}</dd></div>\n" for a, b in block.pairs)
    return f"<dl>\n{pairs}</dl>\n"


def _listing(block: TextListing) -> str:
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(block.title)}">'
        f"<pre><code>{_text(block.text, keep_lines=True)}</code></pre></div>\n"
    )


def _findings(block: FindingList) -> str:
    if not block.findings:
        return "<p>Nothing to remark.</p>\n"
    order = list(Severity)
    items = "".join(
        f'<li><span class="severity {f.severity.value}">{f.severity.value}</span> {_text(f.message)}'
        + (f'<br><span class="fix">{_text(f.fix)}</span>' if f.fix else "")
        + "</li>\n"
        for f in sorted(block.findings, key=lambda f: order.index(f.severity))
    )
    return f'<ul class="findings">\n{items}</ul>\n'


_WRITTEN: dict[type, Any] = {
    Paragraph: _paragraph,
    Facts: _facts,
    TextListing: _listing,
    DataTable: _table,
    FindingList: _findings,
}


def _text(text: str, *, keep_lines: bool = False) -> str:
    """Escaped for HTML, with nothing left that turns the reading direction or hides."""
    return escape(harmless(text, keep_lines=keep_lines))
