"""Retrieval tasks: queries, each with the one document that answers it, in three splits that share no source."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from weightsmith.testbeds.data.passages import DJANGO, split_of, spread, verse_key, verses
from weightsmith.testbeds.data.sources import fetch, read_members
from weightsmith.testbeds.data.tasks import SPLITS, Split

Pair = dict[str, str]
_DOCUMENT_CHARACTERS = 300
_DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class PairTask:
    """A task: `pairs` yields (key, query, document); the key decides the split."""

    name: str
    pairs: Callable[[], Iterator[tuple[str, str, str]]]
    is_unseen: bool = False

    def rows(self, most: Mapping[Split, int]) -> dict[Split, list[Pair]]:
        """At most so many pairs of every split, spread evenly; no query and no document occurs twice."""
        found: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
        queries: set[str] = set()
        documents: set[str] = set()
        for key, query, document in self.pairs():
            if query in queries or document in documents:
                continue
            queries.add(query)
            documents.add(document)
            found[split_of(key)].append({"query": query, "document": document})
        return {split: list(spread(found[split], most[split])) for split in SPLITS}


def translations(name: str, language: str, *, is_unseen: bool = False) -> PairTask:
    """Verses in a language, each to find its English translation."""

    def pairs() -> Iterator[tuple[str, str, str]]:
        english = verses("en")
        for place, text in verses(language).items():
            if len(text) >= 30 and len(english.get(place, "")) >= 30:
                yield verse_key(place), text, english[place][:_DOCUMENT_CHARACTERS]

    return PairTask(name, pairs, is_unseen)


def documented_functions(name: str) -> PairTask:
    """First paragraphs of the docstrings of Django's functions and classes, each to find what is below it, by file."""

    def pairs() -> Iterator[tuple[str, str, str]]:
        for path, content in read_members(fetch(DJANGO), r"django/.*\.py"):
            for query, document in functions_of(content.decode()):
                yield path, query, document

    return PairTask(name, pairs)


def functions_of(source: str) -> Iterator[tuple[str, str]]:
    """The first paragraph of each docstring in a Python source, and the lines below that docstring, joined."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, _DOCUMENTED) or len(node.body) < 2:
            continue
        first = (ast.get_docstring(node) or "").strip().split("\n\n")[0]
        query = " ".join(first.split())
        body = [line.strip() for line in lines[node.body[1].lineno - 1 : node.end_lineno]]
        document = " ".join(body)[:_DOCUMENT_CHARACTERS]
        if len(query) >= 20 and len(document) >= 40:
            yield query, document
