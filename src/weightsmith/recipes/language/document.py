"""YAML as recipes use it: text in, plain data out, with the line and column of everything.

Stricter than YAML: duplicate keys, keys that are no text, tags, deep nesting, numbers of many digits and documents that
blow up through aliases are refused, because every one of them is a mistake or an attack in a recipe. Dates are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from weightsmith.errors import RecipeError
from weightsmith.wording import shown

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # libyaml is optional in PyYAML's own builds
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

Step = str | int
Place = tuple[Step, ...]

# No recipe and no suite comes near any of these.
MOST_BYTES = 8 * 2**20
MOST_DEPTH = 48
_MOST_NODES = 200_000
_MOST_DIGITS = 38
_MERGE_TAG = "tag:yaml.org,2002:merge"
_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")
)
# A date, and `=`: text that only YAML 1.1 takes for more.
_TEXT_TAGS = frozenset({"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"})
_COLLECTION_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq"))
_NO_TAGS = "the tag {} is not allowed; write plain values"
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """One YAML document: its data, and where each key or item stands (line and column, from 1)."""

    data: dict[str, Any]
    positions: Mapping[Place, tuple[int, int]]
    source: str

    def where(self, place: Place) -> str:
        """The position of a place, or of the nearest thing around it, for messages."""
        for end in range(len(place), -1, -1):
            position = self.positions.get(place[:end])
            if position is not None:
                return f"{self.source}, line {position[0]}, column {position[1]}"
        return self.source


@dataclass(frozen=True, slots=True)
class DocumentKind:
    """What a document is, and the keys that it needs, for messages."""

    name: str
    keys: str


RECIPE = DocumentKind("recipe", "merge_method and models")


def parse_documents(text: str, source: str, kind: DocumentKind = RECIPE) -> list[YamlDocument]:
    """The documents of a YAML text; `source` names it in messages.

    Raises RecipeError, with line and column, for text that is no YAML or none that a document of its kind may hold.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise RecipeError(
            f"{source} is larger than {MOST_BYTES} bytes, which no {kind.name} is; give a {kind.name}."
        )
    with _composed(text, source) as roots:
        documents = [reader.document(root, kind) for reader, root in roots]
    if not documents:
        raise RecipeError(f"{source} is empty; a {kind.name} needs at least {kind.keys}.")
    return documents


def parse_value(text: str, source: str) -> Any:
    """The one value of a YAML text, within the same bounds; None for a text of nothing. Raises RecipeError."""
    with _composed(text, source) as roots:
        values = [reader.value(root) for reader, root in roots]
    if len(values) > 1:
        raise RecipeError(f"{source} holds {len(values)} documents; give one value.")
    return values[0] if values else None


def is_encodable(text: str) -> bool:
    """Whether a text can be written; escapes and command lines may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain_data(data: Any, depth: int = 0) -> Any:
    """A copy of data from Python as YAML would give them: lists for tuples, texts for paths; raises RecipeError."""
    if depth > MOST_DEPTH:
        raise RecipeError(
            f"The recipe is nested more than {MOST_DEPTH} deep; no recipe needs that."
        )
    if isinstance(data, Mapping):
        return {key: plain_data(value, depth + 1) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain_data(item, depth + 1) for item in data]
    if isinstance(data, int) and abs(data) >= 10**_MOST_DIGITS:
        raise RecipeError(f"The recipe has a whole number of more than {_MOST_DIGITS} digits.")
    return str(data) if isinstance(data, PurePath) else data


@contextmanager
def _composed(text: str, source: str) -> Iterator[Iterator[tuple[_Reader, Any]]]:
    """The roots of the documents of a text, each with what reads it."""
    loader: Any = None
    try:
        _refuse_depth(text, source)
        loader = _Loader(text)
        yield _roots(loader, source)
    except yaml.YAMLError as problem:
        raise RecipeError(_sentence(problem, source)) from None
    finally:
        if loader is not None:
            loader.dispose()


def _roots(loader: Any, source: str) -> Iterator[tuple[_Reader, Any]]:
    while loader.check_node():
        yield _Reader(loader, source), loader.get_node()


def number(text: str) -> float | int | None:
    """The number that a text such as `1e-5` or `0.5` spells, which YAML 1.1 may read as text; None for other text."""
    if len(text) > _MOST_DIGITS or not _NUMBER.fullmatch(text):
        return None
    return float(text) if re.search(r"[.eE]", text) else int(text)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Data as YAML text: keys in their order, lists of scalars on one line."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    flow = all(isinstance(item, (bool, int, float)) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # PyYAML writes NEL, a line break to YAML 1.1, bare into single quotes, where it is read as a blank.
    style = '"' if "\x85" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)


def _refuse_depth(text: str, source: str) -> None:
    # Before composing, because that recurses in C and a deep document would end the process.
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        nodes += isinstance(event, yaml.NodeEvent)
        mark: Any = event.start_mark
        if nodes > _MOST_NODES:
            raise RecipeError(
                f"{source}, line {mark.line + 1}: more than {_MOST_NODES} values; nobody needs so many."
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH:
            raise RecipeError(
                f"{source}, line {mark.line + 1}: nested more than {MOST_DEPTH} deep; nobody needs that."
            )


def _sentence(problem: yaml.YAMLError, source: str) -> str:
    mark = getattr(problem, "problem_mark", None)
    what = getattr(problem, "problem", None) or str(problem).replace("\n", " ")
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{source}{place}: not valid YAML ({what}); correct the text there."


class _Reader:
    """Turns the nodes of one document into data, counting what aliases expand to."""

    def __init__(self, loader: Any, source: str) -> None:
        self._loader = loader
        self._source = source
        self._nodes = 0
        self._positions: dict[Place, tuple[int, int]] = {}

    def value(self, node: yaml.Node) -> Any:
        """The value of `node`."""
        return self._value(node, ())

    def document(self, node: yaml.Node, kind: DocumentKind) -> YamlDocument:
        """The document whose root is `node`."""
        data = self.value(node)
        if not isinstance(data, dict):
            raise self._error(node, f"a {kind.name} is a mapping of keys such as {kind.keys}")
        return YamlDocument(data, self._positions, self._source)

    def _value(self, node: yaml.Node, place: Place) -> Any:
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise self._error(
                node,
                f"aliases expand to more than {_MOST_NODES} values; write them out or use fewer",
            )
        if len(place) > MOST_DEPTH:
            raise self._error(
                node, f"nested more than {MOST_DEPTH} deep, perhaps an alias that contains itself"
            )
        self._positions.setdefault(place, (node.start_mark.line + 1, node.start_mark.column + 1))
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTION_TAGS:
            raise self._error(node, _NO_TAGS.format(shown(node.tag)))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*place, i)) for i, item in enumerate(node.value)]
        return self._scalar(node)

    def _scalar(self, node: yaml.Node) -> Any:
        if not is_encodable(node.value):
            raise self._error(node, "the text has half a character (a lone surrogate)")
        if node.tag in _TEXT_TAGS:
            return node.value
        if node.tag not in _PLAIN_TAGS:
            raise self._error(node, _NO_TAGS.format(shown(node.tag)))
        if node.tag.endswith((":int", ":float")) and ":" in node.value:
            raise self._error(
                node, f"YAML reads {node.value!r} as a number in base 60; put it in quotes"
            )
        if node.tag.endswith(":int") and len(node.value) > _MOST_DIGITS:
            raise self._error(
                node, f"a whole number of more than {_MOST_DIGITS} digits, which nobody needs"
            )
        try:
            return self._loader.construct_object(node)
        except (ValueError, KeyError):  # a tag that was written before a value of another kind
            raise self._error(
                node, f"{shown(node.value)} is not of the kind that its tag says"
            ) from None

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                merged.append(value_node)
                continue
            key = self._key(key_node)
            if key in result:
                raise self._error(key_node, f"the key {key!r} is given twice; keep one")
            at = (*place, key)
            self._positions[at] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            result[key] = self._value(value_node, (*place, key))
        for source in merged:
            for key, value in self._merged(source, place).items():
                result.setdefault(key, value)
        return result

    def _merged(self, node: yaml.Node, place: Place) -> dict[str, Any]:
        value = self._value(node, (*place, "<<"))
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            raise self._error(node, "`<<` merges mappings only")
        return {key: item for part in reversed(parts) for key, item in part.items()}

    def _key(self, node: yaml.Node) -> str:
        key = self._scalar(node) if isinstance(node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise self._error(node, "a key must be text; put it in quotes")
        return key

    def _error(self, node: yaml.Node, what: str) -> RecipeError:
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        return RecipeError(f"{self._source}, line {line}, column {column}: {what}.")
