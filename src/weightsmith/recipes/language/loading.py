"""Reading recipes: files, texts and mappings; several documents; recipes inside recipes; overrides."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from weightsmith.adapters import exists_locally, locate, parse_adapter, parse_reference
from weightsmith.errors import RecipeError, UsageError
from weightsmith.findings import Finding
from weightsmith.naming import nearest
from weightsmith.recipes.language import dialect
from weightsmith.recipes.language.checks import check_methods, refuse_outermost_keys
from weightsmith.recipes.language.document import (
    MOST_BYTES,
    MOST_DEPTH,
    YamlDocument,
    parse_documents,
    plain_data,
)
from weightsmith.recipes.language.mistakes import recipe_error
from weightsmith.recipes.language.model_references import RECIPE_SUFFIXES
from weightsmith.recipes.language.other_documents import refuse_other_kinds
from weightsmith.recipes.language.overrides import override
from weightsmith.recipes.language.schema import RecipeDocument
from weightsmith.tensors import expanded, read_small, real
from weightsmith.wording import shown

_MODEL_KEYS = frozenset({"model", "base_model", "donor", "keep", "to", "tokenizer_source"})
_MOST_NESTED = 2_000
# Each puts a recipe three keys deeper into another, which must stay within what can be read again.
_MOST_DEEP = MOST_DEPTH // 3
_STEP = re.compile(r"\[\d+\]|[^.\[\]]+")


def read_document(
    source: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    base_dir: Path | None = None,
    name: str | None = None,
) -> tuple[RecipeDocument, Path | None, tuple[Finding, ...], tuple[Path, ...]]:
    """The document of a recipe, the folder that its paths may be meant from, findings, and the files that were read.

    See `Recipe.load`, which this is the reading of. Raises RecipeError with file, line and column.
    """
    loader = _Loading()
    if isinstance(source, Mapping):
        documents = [YamlDocument(plain_data(source), {}, "recipe")]
    elif not isinstance(source, (str, Path)):
        raise UsageError(f"A recipe is a path, a text or a mapping, not {shown(source)}.")
    else:
        text, label, folder = loader.text_of(source)
        base_dir = base_dir or folder
        documents = parse_documents(text, label)
    # Put in place, what was within the bounds in each file may be beyond them.
    raw = plain_data(loader.complete(documents, base_dir, overrides, name, ()))
    document = _validated(YamlDocument(raw, {}, documents[0].source), None, base_dir)
    refuse_outermost_keys(document)
    findings, files = dict.fromkeys(loader.findings), dict.fromkeys(loader.files)
    return document, base_dir, tuple(findings), tuple(files)


def _text_of(source: str | Path) -> tuple[str, str, Path | None]:
    if isinstance(source, str) and _is_text(source):
        return source, "recipe", None
    path = Path(source)
    try:
        return read_small(path, MOST_BYTES, pipes=True).decode(), str(path), path.parent
    except UnicodeDecodeError as problem:
        raise RecipeError(
            f"{shown(path)} is not UTF-8 text (byte {problem.start}); save it as UTF-8."
        ) from None
    except OSError as problem:
        raise RecipeError(
            f"The recipe {shown(path)} cannot be read ({problem.strerror}); give a YAML file."
        ) from None


def _is_text(source: str) -> bool:
    if "\n" in source or not source.strip():
        return True
    is_name = source.endswith(RECIPE_SUFFIXES) or ":" not in source
    return not is_name and not exists_locally(source, None)


def _validated(
    document: YamlDocument, dialect_name: str | None, base_dir: Path | None
) -> RecipeDocument:
    try:
        return RecipeDocument.model_validate(
            document.data, context={"dialect": dialect_name, "base_dir": base_dir}
        )
    except ValidationError as problem:
        raise recipe_error(problem, document) from None


@dataclass(slots=True)
class _Loading:
    """One load, with what it found, the files it read and how many recipes it has put into one another."""

    findings: tuple[Finding, ...] = ()
    files: tuple[Path, ...] = ()
    nested: int = 0

    def text_of(self, source: str | Path) -> tuple[str, str, Path | None]:
        """The text of a recipe, what messages call it, and the folder of its file if it is in one."""
        text, label, folder = _text_of(source)
        if folder is not None:
            self.files += (Path(source).absolute(),)
        return text, label, folder

    def complete(
        self,
        documents: Sequence[YamlDocument],
        base_dir: Path | None,
        overrides: Sequence[str],
        name: str | None,
        inside: tuple[Path, ...],
    ) -> dict[str, Any]:
        """The chosen document as native data, with every recipe that it refers to put in place."""
        by_name = _named(documents)
        chosen = _choose(documents, by_name, name)
        for text in overrides:
            chosen.data.update(override(chosen.data, [text]))
        for document in documents:
            self._check(document, base_dir)
        return self._filled(chosen, by_name, base_dir, inside, ())

    def _check(self, document: YamlDocument, base_dir: Path | None) -> None:
        """Validate one document as it stands, so that messages have its lines and columns."""
        is_native = "weightsmith" in document.data
        dialect.refuse_other_programs(document)
        refuse_other_kinds(document, "recipe")
        if not is_native:
            self.findings += tuple(dialect.findings(document))
        self.findings += tuple(dialect.unused_keys(document)) + tuple(dialect.empty_lists(document))
        read = _validated(document, None if is_native else "mergekit", base_dir)
        semantics = "paper" if is_native else "mergekit"

        def where(path: str) -> str:
            place = tuple(
                int(key[1:-1]) if key.startswith("[") else key for key in _STEP.findall(path)
            )
            return f"{document.where(place)}: {path}"

        self.findings += tuple(check_methods(read, semantics, where))

    def _filled(
        self,
        document: YamlDocument,
        by_name: Mapping[str, YamlDocument],
        base_dir: Path | None,
        inside: tuple[Path, ...],
        names: tuple[str, ...],
    ) -> dict[str, Any]:
        is_native = "weightsmith" in document.data

        def replaced(text: str) -> Any:
            if text in by_name:
                self._refuse_depth(document, len(inside) + len(names))
                if text in names or by_name[text] is document:
                    raise RecipeError(
                        f"{document.source}: the merges {' -> '.join((*names, text))} refer to each other."
                    )
                return self._filled(by_name[text], by_name, base_dir, inside, (*names, text))
            if is_native and text.endswith(RECIPE_SUFFIXES):
                self._refuse_depth(document, len(inside) + len(names))
                return self._from_file(text, base_dir, inside)
            return text

        self.nested += 1
        if self.nested > _MOST_NESTED:
            raise RecipeError(
                f"{document.source}: recipes in recipes come to more than {_MOST_NESTED}; name fewer."
            )
        data: dict[str, Any] = _replace_models(document.data, replaced)
        semantics = data.get("semantics") or ("paper" if is_native else "mergekit")
        rest = {
            key: value for key, value in data.items() if key not in ("weightsmith", "semantics")
        }
        return {"weightsmith": 1, "semantics": semantics, **rest}

    def _refuse_depth(self, document: YamlDocument, depth: int) -> None:
        if depth >= _MOST_DEEP:
            raise RecipeError(
                f"{document.source}: recipes are more than {_MOST_DEEP} deep in one another; merge some of them first."
            )

    def _from_file(
        self, text: str, base_dir: Path | None, inside: tuple[Path, ...]
    ) -> dict[str, Any]:
        path = expanded(locate(text, base_dir))
        if real(path) in inside:
            raise RecipeError(f"The recipe {str(path)!r} contains itself; break the circle.")
        content, label, folder = self.text_of(path)
        raw = self.complete(
            parse_documents(content, label), folder, (), None, (*inside, real(path))
        )
        prefix = os.path.dirname(text)

        def beside(path: str) -> str:
            # As everywhere: from the working directory, else from the folder of the recipe that says it.
            if exists_locally(path, None) or not exists_locally(path, folder):
                return path
            return os.path.join(prefix, path)

        result: dict[str, Any] = _replace_paths(
            _replace_models(raw, lambda text: _moved(text, folder, beside)), beside
        )
        return result


def _named(documents: Sequence[YamlDocument]) -> dict[str, YamlDocument]:
    by_name: dict[str, YamlDocument] = {}
    for document in documents:
        name = document.data.get("name")
        # What is no text is refused where the document is checked.
        if not isinstance(name, str):
            continue
        if name in by_name:
            raise RecipeError(
                f"{document.where(('name',))}: two merges are called {name!r}; rename one."
            )
        by_name[name] = document
    return by_name if len(documents) > 1 else {}


def _choose(
    documents: Sequence[YamlDocument], by_name: Mapping[str, YamlDocument], name: str | None
) -> YamlDocument:
    if name is not None and len(documents) > 1:
        if name not in by_name:
            near = nearest(name, by_name)
            hint = (
                f"did you mean {near!r}?"
                if near
                else f"its merges are {', '.join(by_name) or 'without names'}."
            )
            raise RecipeError(f"{documents[0].source} has no merge called {name!r}; {hint}")
        return by_name[name]
    unnamed = [document for document in documents if document.data.get("name") is None]
    if len(documents) == 1:
        return documents[0]
    if len(unnamed) > 1:
        raise RecipeError(
            f"{unnamed[1].where(())}: more than one document has no `name:`; name all but the one to be written."
        )
    if unnamed:
        return unnamed[0]
    used: set[str] = set()

    def noted(text: str) -> str:
        used.add(text)
        return text

    for document in documents:
        _replace_models(document.data, noted)
    last = [document for key, document in by_name.items() if key not in used]
    if len(last) != 1:
        names = ", ".join(repr(d.data["name"]) for d in last) or "none"
        raise RecipeError(
            f"{documents[0].source}: which merge is the result is not clear ({names} could be); "
            "leave out the `name:` of the one to be written."
        )
    return last[0]


def _moved(text: str, folder: Path | None, beside: Callable[[str], str]) -> str:
    """A reference with `beside` of each of its paths."""
    try:
        found = parse_reference(text, folder)
    except ValueError:
        return text
    adapters = tuple(replace(adapter, path=beside(adapter.path)) for adapter in found.adapters)
    made = replace(found, path=beside(found.path), adapters=adapters)
    return text if made == found else str(made)


def _replace_paths(data: Any, beside: Callable[[str], str], in_model: bool = False) -> Any:
    """A copy of raw recipe data with `beside` of each `path:` of a model's mapping, and of adapters under `lora:`."""
    if isinstance(data, list):
        return [_replace_paths(item, beside, in_model) for item in data]
    if not isinstance(data, dict):
        return data
    result: dict[str, Any] = {}
    for key, value in data.items():
        if key == "path" and in_model and isinstance(value, str):
            result[key] = beside(value)
        elif key == "lora" and isinstance(value, (str, list)):
            listed = [value] if isinstance(value, str) else value
            result[key] = [
                _moved_adapter(item, beside)
                if isinstance(item, str)
                else _replace_paths(item, beside, True)
                for item in listed
            ]
        elif key in ("parameters", "statistics"):
            result[key] = value
        else:
            result[key] = _replace_paths(value, beside, key in _MODEL_KEYS or key == "lora")
    return result


def _moved_adapter(text: str, beside: Callable[[str], str]) -> str:
    try:
        found = parse_adapter(text)
    except ValueError:
        return text
    made = replace(found, path=beside(found.path))
    return text if made == found else str(made)


def _replace_models(data: Any, replaced: Callable[[str], Any]) -> Any:
    """A copy of raw recipe data with every text that names a model passed through `replaced`."""
    if isinstance(data, list):
        return [_replace_models(item, replaced) for item in data]
    if not isinstance(data, dict):
        return data
    result: dict[str, Any] = {}
    for key, value in data.items():
        if key in _MODEL_KEYS and isinstance(value, str):
            result[key] = replaced(value)
        elif key == "checkpoints" and isinstance(value, dict):
            result[key] = {
                k: replaced(v) if isinstance(v, str) else _replace_models(v, replaced)
                for k, v in value.items()
            }
        elif key in ("parameters", "statistics"):
            result[key] = value
        else:
            result[key] = _replace_models(value, replaced)
    return result
