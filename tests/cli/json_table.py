"""The table of JSON keys in the documentation, and documents compared with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
# Mappings whose keys are data: names of tensors, tasks, codecs, presets, keys of a configuration.
BY_NAME = {
    ("adapter basis show", "tensors"),
    ("delta pack", "tensors"),
    ("delta show", "tensors"),
    *(
        ("*", key)
        for key in "about_presets codecs dtypes files forms items change_from_base expert_of versions".split()
    ),
}
# Content that is not ours: a configuration, a recipe, parameters; and trees of nodes.
FOREIGN = {"config", "defaults", "experts", "formula", "parameters", "parts", "recipe"}


def documented() -> dict[str, str]:
    """The cell of keys for every command of the table."""
    section = PAGE.partition("\n## JSON\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \| (.*) \|$", section, re.MULTILINE)
    table = {name: keys for names, keys in rows for name in re.findall(r"`([^`]+)`", names)}
    like = {name: re.match(r"as `([^`]+)`, and ", keys) for name, keys in table.items()}
    return {
        name: keys if like[name] is None else f"{table[like[name][1]]}, {keys[like[name].end() :]}"
        for name, keys in table.items()
    }


def shared_words() -> set[str]:
    """The keys of forms that several commands share, listed below the table."""
    section = PAGE.partition("\n## JSON\n")[2].partition("\n## ")[0]
    return set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^[-] .*(?:\n  .*)*", section, re.MULTILINE)))
    )


def top_level(cell: str) -> set[str]:
    """The keys of a cell outside of brackets, braces and parentheses, before the forms that it explains."""
    cell = re.sub(r"; (?:a \w+(?: \w+)? (?:is|has)|with a tokenizer section) .*", "", cell)
    depth, found = 0, set()
    for token in re.findall(r"`[^`]+`|[][{}()]", cell):
        if token in "[{(":
            depth += 1
        elif token in "]})":
            depth -= 1
        elif depth == 0 and re.fullmatch(r"`\w+`", token):
            found.add(token.strip("`"))
    return found


def keys_of(command: str, content: Any, *, by_name: bool = False) -> set[str]:
    """Every key within a document that is not data."""
    if isinstance(content, list):
        return set().union(*(keys_of(command, item) for item in content))
    if not isinstance(content, dict):
        return set()
    found = set() if by_name else set(content)
    for key, value in content.items():
        if key not in FOREIGN or by_name:
            named = not by_name and bool({(command, key), ("*", key)} & BY_NAME)
            found |= keys_of(command, value, by_name=named and isinstance(value, dict))
    return found


def check(command: str, documents: list[dict[str, Any]]) -> None:
    """That documents of a command have all keys of its row between them, and none that is not documented."""
    cell = documented()[command]
    assert all(document.pop("schema") == 1 for document in documents)
    found = set().union(*(keys_of(command, document) for document in documents))
    known = set(re.findall(r"`(\w+)`", cell)) | shared_words()
    assert not found - known, "keys that docs/command-line.md does not list"
    assert top_level(cell) == set().union(*documents)
