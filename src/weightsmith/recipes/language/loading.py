"""Reading recipes: files, texts and mappings; several documents; recipes inside recipes; overrides."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from weightsmith.adapters import Reference, exists_locally, locate
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
from weightsmith.recipes.language.free_recipes import with_names
from weightsmith.recipes.language.mentioned import ModelLike
from weightsmith.recipes.language.mistakes import recipe_error
from weightsmith.recipes.language.model_references import RECIPE_SUFFIXES
from weightsmith.recipes.language.other_documents import refuse_other_kinds
from weightsmith.recipes.language.overrides import override
from weightsmith.recipes.language.rewriting import with_models, with_paths
from weightsmith.recipes.language.schema import RecipeDocument, plain
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
    document = loader.complete(documents, base_dir, overrides, name, ())
    if loader.nested > 1:
        # Put in place, what was within the bounds in each file may be beyond them.
        plain_data(plain(document))
    refuse_outermost_keys(document)
    document = with_names(document)
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


@dataclass(frozen=True, slots=True)
class _Written:
    """One document as it is written, and what it says."""

    document: YamlDocument
    recipe: RecipeDocument

    @property
    def is_native(self) -> bool:
        return "weightsmith" in self.document.data


@dataclass(frozen=True, slots=True)
class _Together:
    """The documents of one text by their names, the folder that its paths are meant from, and the files around it."""

    by_name: Mapping[str, _Written]
    base_dir: Path | None
    inside: tuple[Path, ...]


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
    ) -> RecipeDocument:
        """The chosen document as a native recipe, with every recipe that it refers to put in place."""
        by_name = _named(documents)
        chosen = _choose(documents, by_name, name)
        for text in overrides:
            chosen.data.update(plain_data(override(chosen.data, [text])))
        written = [_Written(document, self._check(document, base_dir)) for document in documents]
        named = {name: next(w for w in written if w.document is d) for name, d in by_name.items()}
        outermost = next(one for one in written if one.document is chosen)
        return self._filled(outermost, _Together(named, base_dir, inside), ())

    def _check(self, document: YamlDocument, base_dir: Path | None) -> RecipeDocument:
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
        return read

    def _filled(
        self, written: _Written, together: _Together, names: tuple[str, ...]
    ) -> RecipeDocument:
        document = written.document

        def put(reference: Reference) -> ModelLike:
            text = str(reference)
            if not _is_recipe(text, written, together):
                return reference
            self._refuse_depth(document, len(together.inside) + len(names))
            if text not in together.by_name:
                return self._from_file(text, together)
            named = together.by_name[text]
            if text in names or named is written:
                raise RecipeError(
                    f"{document.source}: the merges {' -> '.join((*names, text))} refer to each other."
                )
            return self._filled(named, together, (*names, text))

        self.nested += 1
        if self.nested > _MOST_NESTED:
            raise RecipeError(
                f"{document.source}: recipes in recipes come to more than {_MOST_NESTED}; name fewer."
            )
        source = written.recipe.tokenizer_source
        if isinstance(source, Reference) and _is_recipe(str(source), written, together):
            raise RecipeError(
                f"{document.where(('tokenizer_source',))}: tokenizer_source: a tokenizer comes from a checkpoint; name "
                "one, and no recipe."
            )
        semantics = written.recipe.semantics or ("paper" if written.is_native else "mergekit")
        changes = {"weightsmith": 1, "semantics": semantics}
        return with_models(written.recipe, put).model_copy(update=changes)

    def _refuse_depth(self, document: YamlDocument, depth: int) -> None:
        if depth >= _MOST_DEEP:
            raise RecipeError(
                f"{document.source}: recipes are more than {_MOST_DEEP} deep in one another; merge some of them first."
            )

    def _from_file(self, text: str, together: _Together) -> RecipeDocument:
        path = expanded(locate(text, together.base_dir))
        if real(path) in together.inside:
            raise RecipeError(f"The recipe {str(path)!r} contains itself; break the circle.")
        content, label, folder = self.text_of(path)
        inside = (*together.inside, real(path))
        found = self.complete(parse_documents(content, label), folder, (), None, inside)
        prefix = os.path.dirname(text)

        def beside(path: str) -> str:
            # As everywhere: from the working directory, else from the folder of the recipe that says it.
            if exists_locally(path, None) or not exists_locally(path, folder):
                return path
            return os.path.join(prefix, path)

        return with_paths(found, beside)


def _is_recipe(text: str, written: _Written, together: _Together) -> bool:
    """Whether a model of a document is another document beside it or, in native ones, a file of a recipe."""
    return text in together.by_name or (written.is_native and text.endswith(RECIPE_SUFFIXES))


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
    used = {text for document in documents for text in _model_texts(document.data)}
    last = [document for key, document in by_name.items() if key not in used]
    if len(last) != 1:
        names = ", ".join(repr(d.data["name"]) for d in last) or "none"
        raise RecipeError(
            f"{documents[0].source}: which merge is the result is not clear ({names} could be); "
            "leave out the `name:` of the one to be written."
        )
    return last[0]


def _model_texts(data: Any) -> Iterator[str]:
    """Every text in raw recipe data that names a model."""
    if isinstance(data, list):
        for item in data:
            yield from _model_texts(item)
    if not isinstance(data, dict):
        return
    for key, value in data.items():
        if key in _MODEL_KEYS and isinstance(value, str):
            yield value
        elif key == "checkpoints" and isinstance(value, dict):
            yield from (text for text in value.values() if isinstance(text, str))
        if key not in ("parameters", "statistics"):
            yield from _model_texts(value)
