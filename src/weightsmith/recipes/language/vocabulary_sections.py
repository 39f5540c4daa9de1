"""The `tokenizer:` section of a recipe: mergekit's, with native keys for how tokens are matched and rows are made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    model_serializer,
    model_validator,
)

from weightsmith.errors import WeightsmithError
from weightsmith.recipes.language.document_parts import DocumentPart
from weightsmith.recipes.language.model_references import ModelReference

# How old versions of mergekit marked a model as the source of a tokenizer.
_OLD_PREFIX = "model:"
_WORDS = ("union", "base")
BORROW = "borrow"
# Padding makes rows that are numbers in memory; hardware gains nothing beyond some hundreds.
_LARGEST_MULTIPLE = 65_536


def _source_form(given: Any) -> str:
    return "@word" if given in _WORDS else "@model"


def _without_old_prefix(given: Any) -> Any:
    return given.removeprefix(_OLD_PREFIX) if isinstance(given, str) else given


def _refuse_recipes(given: Any) -> Any:
    if isinstance(given, dict) and "model" not in given and "path" not in given:
        raise ValueError("a tokenizer comes from a checkpoint; name one, and no recipe")
    return given


TokenizerSource = Annotated[
    Annotated[Literal["union", "base"], Tag("@word")]
    | Annotated[ModelReference, BeforeValidator(_refuse_recipes), Tag("@model")],
    Discriminator(_source_form),
    BeforeValidator(_without_old_prefix),
]


class ModelToken(DocumentPart):
    """The row of another token of a model: `{kind: model_token, model, token}` or `token_id` in its place."""

    mergekit_keys = frozenset({"kind", "model", "token_id", "token"})

    kind: Literal["model_token"]
    model: ModelReference
    token_id: StrictInt | None = Field(default=None, ge=0)
    token: StrictStr | None = None

    @model_validator(mode="after")
    def _one(self) -> ModelToken:
        if (self.token_id is None) == (self.token is None):
            raise ValueError("a model_token has exactly one of token and token_id")
        return self


class ZeroRow(DocumentPart):
    """A row of zeros: `{kind: zero}`."""

    mergekit_keys = frozenset({"kind"})

    kind: Literal["zero"]


def _row_form(given: Any) -> str:
    kind = given.get("kind") if isinstance(given, dict) else getattr(given, "kind", None)
    if kind is None:
        return "@model"
    return "@zero" if kind == "zero" else "@token"


RowSource = Annotated[
    Annotated[ModelToken, Tag("@token")]
    | Annotated[ZeroRow, Tag("@zero")]
    | Annotated[ModelReference, Tag("@model")],
    Discriminator(_row_form),
]


class TokenRow(DocumentPart):
    """One of `tokens:`: where a token's row comes from in models that lack it, with `force` in all models."""

    mergekit_keys = frozenset({"source", "force"})

    source: RowSource | None = None
    force: StrictBool = False


class MissingRows(DocumentPart):
    """`missing:`: the rule that makes rows of missing tokens, `RULE` or `{rule: RULE, parameter: value...}`.

    `head` and `bias` are rules of their own for output heads and for biases.
    """

    rule: StrictStr = BORROW
    parameters: dict[str, Any] = Field(default_factory=dict)
    head: MissingRows | None = None
    bias: MissingRows | None = None

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> dict[str, Any]:
        """A rule is written as its name, or as a mapping with the name and parameters."""
        rule = {"type": "object", "required": ["rule"]}
        return {"anyOf": [{"type": "string"}, rule]}

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"rule": given}
        if not isinstance(given, dict) or not isinstance(given.get("rule"), str):
            raise ValueError("missing is a rule, such as `omp`, or a mapping with `rule:`")
        own = {key: given[key] for key in ("rule", "head", "bias") if key in given}
        rest = {key: value for key, value in given.items() if key not in own}
        # What was dumped has the parameters under one key.
        parameters = rest.pop("parameters", {})
        return {**own, "parameters": {**parameters, **rest}}

    @model_validator(mode="after")
    def _known(self) -> MissingRows:
        if self.rule == BORROW:
            if self.parameters:
                raise ValueError(f"the rule {BORROW} has no parameter {min(self.parameters)!r}")
            return self
        # Imported here because numpy is needed for nothing else in reading a recipe.
        from weightsmith.naming import nearest
        from weightsmith.vocabularies import RULES, rule_named

        if self.rule not in RULES:
            near = nearest(self.rule, (BORROW, *RULES))
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join((BORROW, *RULES))}"
            raise ValueError(f"there is no rule {self.rule!r} for missing rows; {hint}")
        try:
            rule_named(self.rule, self.parameters)
        except WeightsmithError as problem:
            raise ValueError(str(problem).rstrip(".")) from None
        return self

    @model_serializer
    def _to_recipe(self) -> Any:
        inner = {"head": self.head, "bias": self.bias}
        given = {key: rule._to_recipe() for key, rule in inner.items() if rule is not None}
        if not self.parameters and not given:
            return self.rule
        return {"rule": self.rule, **self.parameters, **given}


class Tokenizer(DocumentPart):
    """`tokenizer:`: which vocabulary the result has, and where the rows of its tokens come from."""

    mergekit_keys = frozenset({"source", "tokens", "pad_to_multiple_of"})

    source: TokenizerSource = "union"
    tokens: dict[StrictStr, TokenRow] | None = None
    pad_to_multiple_of: StrictInt | None = Field(default=None, ge=1, le=_LARGEST_MULTIPLE)
    match: Literal["exact", "bytes"] | None = None
    missing: MissingRows | None = None

    @model_validator(mode="after")
    def _no_empty_token(self) -> Tokenizer:
        if "" in (self.tokens or {}):
            raise ValueError(
                "a token of no characters is never found in a text; leave it out of `tokens`"
            )
        return self
