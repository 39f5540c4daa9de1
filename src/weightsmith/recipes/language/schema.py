"""The schema of recipes: one language, of which mergekit's YAML is a subset."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PrivateAttr,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from weightsmith.errors import WeightsmithError
from weightsmith.recipes.language.adapter_form import AdapterForm
from weightsmith.recipes.language.document_parts import DocumentPart
from weightsmith.recipes.language.free_forms import MeasuredForm
from weightsmith.recipes.language.image_interfaces.method_names import MethodName
from weightsmith.recipes.language.model_references import ModelReference
from weightsmith.recipes.language.numbers import Number
from weightsmith.recipes.language.parameter_settings import Settings
from weightsmith.recipes.language.selectors import Match
from weightsmith.recipes.language.vocabulary_sections import Tokenizer, TokenizerSource
from weightsmith.tensors import DType
from weightsmith.wording import literal

# Any preset of a method; `checks` refuses those that no method has. The schema offers the two that all have.
Semantics = Annotated[
    StrictStr, WithJsonSchema({"anyOf": [{"enum": ["paper", "mergekit"]}, {"type": "string"}]})
]

_RECIPE_KEYS = frozenset(
    {"weightsmith", "merge_method", "expression", "models", "slices", "modules"}
)


def _model_form(given: Any) -> str:
    is_recipe = isinstance(given, RecipeDocument) or (
        isinstance(given, dict) and bool(_RECIPE_KEYS & given.keys())
    )
    return "@recipe" if is_recipe else "@model"


def _read_dtype(given: Any) -> str:
    try:
        return DType.parse(given).value if isinstance(given, str) else _not_text(given)
    except WeightsmithError as problem:
        raise ValueError(str(problem)) from None


def _not_text(given: Any) -> str:
    raise ValueError(f"expected the name of a dtype, not {literal(given)}")


def _listed(given: Any) -> Any:
    return given if given is None or isinstance(given, (list, tuple)) else (given,)


def _range(given: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= given[0] < given[1]:
        raise ValueError(
            f"layer_range {list(given)} is not a range [first, end) with 0 <= first < end"
        )
    return given


DTypeName = Annotated[str, BeforeValidator(_read_dtype)]
LayerRange = Annotated[tuple[StrictInt, StrictInt], AfterValidator(_range)]
StatisticsFiles = Annotated[tuple[ModelReference, ...], BeforeValidator(_listed)]
Measured = Annotated[tuple[MeasuredForm, ...], BeforeValidator(_listed)]
Model = Annotated[
    Annotated[ModelReference, Tag("@model")] | Annotated["RecipeDocument", Tag("@recipe")],
    Discriminator(_model_form),
]


class ModelEntry(DocumentPart):
    """One of `models:`; `statistics` names files of what was measured on it, and masks."""

    mergekit_keys = frozenset({"model", "parameters"})

    model: Model
    parameters: Settings | None = None
    statistics: Measured | None = None


class SliceSource(DocumentPart):
    """One of a slice's `sources:`: the layers [first, end) of a model."""

    mergekit_keys = frozenset({"model", "layer_range", "parameters"})

    model: Model
    layer_range: LayerRange
    parameters: Settings | None = None
    statistics: Measured | None = None


class MethodStep(DocumentPart):
    """One of `then:`, written `{method: {parameter: value}}`, or of `modify:`, with a modifier for the method.

    A step of `then:` may have `statistics` of the base beside its method.
    """

    method: StrictStr
    parameters: Settings = Field(default_factory=dict)
    statistics: StatisticsFiles | None = None

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> dict[str, Any]:
        """A step is written as its method's name, or as a mapping from that to parameters."""
        step = {"type": "object", "minProperties": 1, "maxProperties": 2}
        return {"anyOf": [{"type": "string"}, step]}

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"method": given}
        rest = dict(given) if isinstance(given, dict) else {}
        statistics = rest.pop("statistics", None)
        if len(rest) != 1:
            raise ValueError(
                "a step is one method with its parameters, such as `lines: {alpha: 0.5}`"
            )
        ((method, parameters),) = rest.items()
        return {"method": method, "parameters": parameters or {}, "statistics": statistics}

    @model_serializer(mode="wrap")
    def _to_recipe(self, handler: Any) -> dict[str, Any]:
        plain = handler(self)
        beside = {"statistics": plain["statistics"]} if plain.get("statistics") else {}
        return {self.method: plain.get("parameters", {}), **beside}


# Each may stream all weights once more.
Steps = Annotated[tuple[MethodStep, ...], Field(max_length=64)]


class Slice(DocumentPart):
    """A run of output layers made from equally long runs of source layers."""

    mergekit_keys = frozenset({"sources", "base_model", "residual_weight", "parameters"})

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    base_model: Model | None = None
    residual_weight: Number | None = None
    merge_method: MethodName | None = None
    semantics: Semantics | None = None
    parameters: Settings | None = None
    modify: Steps | None = None


class Module(DocumentPart):
    """A part of a network (text decoder, vision tower...) that is merged in its own way.

    `match` says which tensors it has where its name does not. `prefix` says how names correspond where a model calls
    the part otherwise than the donor: from the config source's name prefixes to the model's, or the config source's
    prefix alone for models that have none there (default: inferred from the stacks of blocks).
    """

    mergekit_keys = frozenset({"slices", "models", "parameters"})

    slices: tuple[Slice, ...] | None = None
    models: tuple[ModelEntry, ...] | None = None
    match: Match | None = None
    prefix: StrictStr | dict[StrictStr, StrictStr] | None = None
    merge_method: MethodName | None = None
    semantics: Semantics | None = None
    base_model: Model | None = None
    parameters: Settings | None = None
    modify: Steps | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Module:
        if bool(self.slices) == bool(self.models):
            raise ValueError("a module has either models or slices")
        return self


class RecipeRule(DocumentPart):
    """Another method or other parameters for some tensors, or `keep`: copy them from a model."""

    match: Match
    merge_method: MethodName | None = None
    semantics: Semantics | None = None
    parameters: Settings | None = None
    modify: Steps | None = None
    keep: Model | None = None

    @model_validator(mode="after")
    def _meaningful(self) -> RecipeRule:
        changes = self.merge_method or self.parameters or self.semantics
        if bool(changes or self.modify is not None) == (self.keep is not None):
            raise ValueError(
                "a rule has either keep, or some of merge_method, parameters, semantics and modify"
            )
        return self


class NormRatio(DocumentPart):
    """Bounds on the norm of an output tensor over the norm of the base's."""

    low: Number = 0.0
    high: Number = float("inf")
    match: Match | None = None

    @model_validator(mode="after")
    def _ordered(self) -> NormRatio:
        if not 0 <= self.low <= self.high:
            raise ValueError(
                f"norm_ratio: [{self.low:g}, {self.high:g}] is not an interval of ratios"
            )
        return self


class EqualClause(DocumentPart):
    """Tensors that must have the values that a model has."""

    to: Model
    match: Match | None = None


class Clause(DocumentPart):
    """One of `assert:`: finite, norm_ratio or equal."""

    finite: Literal[True] | None = None
    norm_ratio: NormRatio | None = None
    equal: EqualClause | None = None

    @model_validator(mode="after")
    def _one(self) -> Clause:
        if sum(item is not None for item in (self.finite, self.norm_ratio, self.equal)) != 1:
            raise ValueError("each assertion is one of finite, norm_ratio and equal")
        return self


class BundleForm(DocumentPart):
    """`bundle:`: the result is a bundle of tasks, stored as base, shared vector and masks."""

    base: Literal["stored", "reference"] = "stored"
    shared_dtype: DTypeName | None = None


class RecipeDocument(DocumentPart):
    """A whole recipe as a document. `Recipe` wraps one with where it came from."""

    mergekit_keys = frozenset(
        """name merge_method models slices modules base_model dtype out_dtype parameters
        tokenizer_source tokenizer chat_template""".split()
    )

    weightsmith: Literal[1] | None = None
    name: StrictStr | None = None
    semantics: Semantics | None = None
    merge_method: MethodName | None = None
    models: tuple[ModelEntry, ...] | None = None
    slices: tuple[Slice, ...] | None = None
    modules: dict[str, Module] | None = None
    expression: StrictStr | None = None
    checkpoints: dict[str, Model] | None = None
    statistics: dict[str, StatisticsFiles] | None = None
    base_model: Model | None = None
    donor: Model | None = None
    parameters: Settings | None = None
    rules: tuple[RecipeRule, ...] | None = None
    modify: Steps | None = None
    then: Steps | None = None
    assertions: tuple[Clause, ...] | None = Field(default=None, alias="assert")
    dtype: DTypeName | None = None
    out_dtype: DTypeName | None = None
    tokenizer_source: TokenizerSource | None = None
    tokenizer: Tokenizer | None = None
    chat_template: StrictStr | None = None
    seed: StrictInt | None = Field(default=None, ge=0, lt=2**64)
    shard_size: StrictStr | StrictInt | None = None
    nonfinite: Literal["error", "propagate"] | None = None
    missing: Literal["error", "base", "skip"] | None = None
    equal_magnitudes: Literal["hash", "index", "file"] | None = None
    untie: StrictBool | Literal["always"] | None = None
    accept: tuple[StrictStr, ...] | None = None
    bundle: BundleForm | None = None
    adapter: AdapterForm | None = None
    _path: str = PrivateAttr("")

    @property
    def path(self) -> str:
        """Where it stands in the outermost recipe, empty for that one itself."""
        return self._path

    def place_at(self, path: str) -> None:
        """Say where it stands."""
        self._path = path

    @model_validator(mode="after")
    def _one_form(self) -> RecipeDocument:
        forms = [f for f in ("models", "slices", "modules", "expression") if getattr(self, f)]
        if len(forms) != 1:
            given = f"{' and '.join(forms)} are given" if forms else "none is given"
            raise ValueError(
                f"a recipe has exactly one of models, slices, modules and expression, but {given}"
            )
        if self.expression is not None:
            if self.merge_method or self.parameters or self.rules or self.modify:
                raise ValueError(
                    "an expression says what is computed; merge_method, parameters, rules and modify do not apply"
                )
            if not self.checkpoints:
                raise ValueError(
                    "an expression needs `checkpoints:`, a mapping of its names to models"
                )
            strange = next((n for n in self.statistics or () if n not in self.checkpoints), None)
            if strange is not None:
                raise ValueError(
                    f"statistics are given for {strange!r}, which is not among `checkpoints:`"
                )
        elif self.statistics:
            raise ValueError(
                "`statistics:` of a recipe belong to the checkpoints of an expression; name those of `models:` "
                "under each model"
            )
        elif self.checkpoints:
            raise ValueError("`checkpoints:` belongs to an expression; list models under `models:`")
        elif self.merge_method is None and not self._has_method_everywhere():
            raise ValueError("merge_method is missing")
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError("tokenizer_source and tokenizer exclude each other; keep one")
        return self

    def _has_method_everywhere(self) -> bool:
        if self.slices:
            return all(s.merge_method for s in self.slices)
        modules = (self.modules or {}).values()
        return bool(modules) and all(
            m.merge_method or (m.slices and all(s.merge_method for s in m.slices)) for m in modules
        )


def plain(document: Any) -> dict[str, Any]:
    """A part of a recipe as plain data: dictionaries, lists and scalars, without what is left to defaults."""
    mapping: dict[str, Any] = _as_lists(
        document.model_dump(exclude_none=True, exclude_defaults=True, by_alias=True)
    )
    return mapping


def _as_lists(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _as_lists(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_as_lists(item) for item in data]
    return data
