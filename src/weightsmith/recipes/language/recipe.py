"""A recipe: what to merge and how, read from YAML, from a mapping or from an expression."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.errors import RecipeError
from weightsmith.findings import Finding
from weightsmith.recipes.language.document import dump_yaml
from weightsmith.recipes.language.loading import read_document
from weightsmith.recipes.language.schema import RecipeDocument, plain
from weightsmith.wording import literal

if TYPE_CHECKING:
    from weightsmith.recipes.language.expressions import Expression


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. Two recipes are equal if they say the same, wherever and however they were written.

    `base_dir` is the folder that relative paths may be meant from; `findings` is what the reading of the text found,
    and `files` are those that it was read from, recipes inside it among them.
    """

    document: RecipeDocument
    base_dir: Path | None = field(default=None, compare=False)
    findings: tuple[Finding, ...] = field(default=(), compare=False)
    files: tuple[Path, ...] = field(default=(), compare=False)

    @classmethod
    def load(
        cls,
        source: str | Path | Mapping[str, Any],
        *,
        overrides: Sequence[str] = (),
        base_dir: Path | None = None,
        name: str | None = None,
    ) -> Recipe:
        """Read a recipe from a file, from YAML text or from a mapping.

        A document with `weightsmith: 1` is native; any other is read as mergekit means it. Of several documents
        the result is the one called `name`, else the one without a name, else the one that no other refers to;
        references by name become nested recipes. `overrides` are texts `key.key=value`, applied to that document.
        `base_dir` is the folder that relative paths may be meant from (default: the file's). Raises RecipeError
        with file, line and column.
        """
        return cls(*read_document(source, overrides=overrides, base_dir=base_dir, name=name))

    @classmethod
    def from_expression(cls, expression: Expression, **settings: Any) -> Recipe:
        """The recipe that computes an expression; `settings` are other keys of a recipe, such as `dtype` or `then`.

        Raises RecipeError where the expression is no weight, or a setting is unknown.
        """
        from weightsmith.recipes.language import expressions

        if not isinstance(expression, expressions.Expression):
            raise RecipeError(
                f"{literal(expression)} is no expression; make one of what `weightsmith.open` gives."
            )
        return cls.load({"weightsmith": 1, **expression.written(), **settings})

    @property
    def semantics(self) -> str:
        """The preset that fills the parameters the recipe leaves out, such as `paper` or `mergekit`."""
        return self.document.semantics or "paper"

    def to_mapping(self) -> dict[str, Any]:
        """The recipe as plain data, in the canonical form."""
        return plain(self.document)

    def dump(self) -> str:
        """The recipe as canonical YAML, which `load` reads back to an equal recipe."""
        return self._text

    @cached_property
    def _text(self) -> str:
        # A merge asks for it five times: the plan's digest, the manifest's, the folder's and the card's.
        return dump_yaml(self.to_mapping())

    def to_mergekit(self) -> str:
        """The recipe as YAML that mergekit reads; raises RecipeError where mergekit cannot express it."""
        from weightsmith.recipes.language.export import to_mergekit

        return to_mergekit(self.document)

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """The JSON Schema of native recipes, for editors that check and complete YAML."""
        schema: dict[str, Any] = _any_of(RecipeDocument.model_json_schema())
        return schema

    def digest(self) -> str:
        """Hexadecimal BLAKE2 digest of the canonical form: the same for recipes that say the same."""
        return hashlib.blake2b(self.dump().encode(), digest_size=32).hexdigest()


def _any_of(schema: Any) -> Any:
    # A gradient is both "any value" and a list, which `oneOf` would refuse.
    if isinstance(schema, list):
        return [_any_of(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {"anyOf" if key == "oneOf" else key: _any_of(value) for key, value in schema.items()}


def load(
    source: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    base_dir: Path | None = None,
    name: str | None = None,
) -> Recipe:
    """Read a recipe; see `Recipe.load`."""
    return Recipe.load(source, overrides=overrides, base_dir=base_dir, name=name)
