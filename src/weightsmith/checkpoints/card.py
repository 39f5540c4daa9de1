"""The model card (README.md) of a merged checkpoint, with the metadata that the Hub reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from weightsmith.checkpoints.licence import Licence

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_CHECKING = (
    "The manifest beside the weights names every input and every written tensor by its digest. With "
    "this checkpoint in the folder `DIR`, the first command reads it back and compares it with the "
    "manifest; the second makes the merge again, bit for bit."
)
_TAG = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Parent:
    """One checkpoint that went in.

    `name` is its Hub id or its folder's own name, never a path; `is_hub` tells the two apart; `form` is what stands
    behind the name in a reference to it, its task and its adapters; `part` is what it was in
    the merge (base, expert, adapter or base of another, statistics), `digest` that of its weights; a checkpoint with
    adapters has that of its changed weights. `licence` is what its own card says.
    """

    name: str
    part: str
    digest: str
    is_hub: bool = False
    revision: str | None = None
    form: str = ""
    licence: Licence | None = None


@dataclass(frozen=True, slots=True)
class MethodUse:
    """A method as it was used: its name, its parameters as resolved, and the paper it is from."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""


def model_card(
    title: str,
    parents: Sequence[Parent],
    methods: Sequence[MethodUse],
    *,
    recipe: str,
    config: Mapping[str, Any] | None,
    version: str,
    library: str | None = None,
    relation: str = "merge",
) -> str:
    """The text of README.md: front matter for the Hub, parents, methods, recipe, and how to check.

    `recipe` is the recipe's text; paths in it that lead into the user's folders are shortened to
    their last names. The library that loads the result is `library`; else transformers, if that wrote `config`, and
    none without one. `relation` is the Hub's word for what the result is to its parents; the licence of all models
    among these is that of the result where each names the same, and else none is named. All names are escaped.
    """
    origin = f"Merged from other checkpoints, without training, by weightsmith {_escaped(version)}."
    matter = _front_matter(parents, methods, library or _library(config), relation)
    blocks = [
        f"---\n{matter}---",
        f"# {_escaped(title)}",
        origin,
        "## Made of",
        _parents_table(parents),
        "## Method",
        "\n".join(_method_line(use) for use in methods),
        "## Recipe",
        _fenced(_without_folders(recipe), "yaml"),
        "## Check it",
        _CHECKING,
        _fenced("weightsmith verify DIR\nweightsmith replay DIR NEW", "sh"),
    ]
    return "\n\n".join(blocks) + "\n"


def _front_matter(
    parents: Sequence[Parent], methods: Sequence[MethodUse], library: str | None, relation: str
) -> str:
    tags = ["merge", "weightsmith", *(_TAG.sub("-", use.name.lower()) for use in methods)]
    document: dict[str, Any] = {
        # The Hub takes each for one of its models.
        "base_model": list(
            dict.fromkeys(p.name for p in parents if p.is_hub and _is_named(p, relation))
        ),
        "base_model_relation": relation,
    }
    if not document["base_model"]:
        document = {}
    licence = _common_licence(parents)
    if licence is not None:
        document |= licence.to_mapping()
    if library is not None:
        document["library_name"] = library
    document["tags"] = list(dict.fromkeys(tag for tag in tags if tag))
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def _is_named(parent: Parent, relation: str) -> bool:
    """An adapter is loaded onto its base, and no other adapter is that; measurements are no models."""
    return parent.part == "base" if relation == "adapter" else parent.part != "statistics"


def _common_licence(parents: Sequence[Parent]) -> Licence | None:
    """The licence of every model that went in, None where one is unknown or another."""
    models = [parent.licence for parent in parents if parent.part != "statistics"]
    return models[0] if models and len(set(models)) == 1 else None


def _library(config: Mapping[str, Any] | None) -> str | None:
    # A configuration that transformers wrote has the version of transformers in it.
    is_theirs = (
        config is not None and config.get("model_type") and config.get("transformers_version")
    )
    return "transformers" if is_theirs else None


def _last_name(parent: Parent) -> str:
    """The name without the folders it lies in; a Hub id as it is."""
    if parent.is_hub:
        return parent.name
    return re.split(r"[/\\]", parent.name.rstrip("/\\"))[-1] or "checkpoint"


def _parents_table(parents: Sequence[Parent]) -> str:
    titles = ["checkpoint", "part", "revision", "licence", "digest"]
    if not any(parent.licence for parent in parents):
        titles.remove("licence")
    rows = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for parent in parents:
        cells = {
            "checkpoint": _last_name(parent) + parent.form,
            "part": parent.part,
            "revision": parent.revision or "",
            "licence": "" if parent.licence is None else parent.licence.title,
            "digest": parent.digest,
        }
        rows.append(f"| {' | '.join(_escaped(cells[title]) for title in titles)} |")
    return "\n".join(rows)


def _method_line(use: MethodUse) -> str:
    given = ", ".join(
        f"{_escaped(name)} = {_escaped(str(value))}" for name, value in use.parameters.items()
    )
    line = f"- **{_escaped(use.name)}**" + (f" with {given}" if given else "")
    return f"{line} ({_escaped(use.paper)})" if use.paper else line


def _escaped(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    plain = _CONTROL.sub(" ", text)
    for character, entity in _HTML.items():
        plain = plain.replace(character, entity)
    return _MARKDOWN.sub(r"\\\1", plain)


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


# The start of an absolute or home-relative path, and its folders up to the last separator before
# its own name: in quotes or as the rest of a YAML value it may hold spaces, elsewhere it may not. A `+` before another
# root is between a model and its adapter.
_ROOT = r"(?:file://)?(?:~[\w.-]*/|/|[A-Za-z]:[\\/]+)"
_PLUS = rf"\+(?!{_ROOT})"
_FOLDERS = re.compile(
    rf"""(?<=['"]){_ROOT}(?:(?:[^'"\n+]|{_PLUS})*[/\\])?(?=[^/\\'"\n])"""
    rf"""|(?<=[:-][ ]){_ROOT}(?:(?:[^'"\n#,\[\]{{}}+]|{_PLUS})*[/\\])?(?=[^/\\\s])"""
    rf"""|(?<![\w:/.\\~$-]){_ROOT}(?:[^\s/\\'"`,\[\]{{}}()*+]+[/\\]+)*(?=[\w.-])"""
)


def _without_folders(recipe: str) -> str:
    return _FOLDERS.sub("", recipe)
