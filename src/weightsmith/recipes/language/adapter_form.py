"""`adapter:` of a recipe of adapters alone: the space that they are combined in, and how the result is stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, model_validator

from weightsmith.recipes.language.document_parts import DocumentPart
from weightsmith.recipes.language.numbers import Number
from weightsmith.wording import literal


class DenseSpace(DocumentPart):
    """The elements of the changes themselves."""


class KnotsSpaceForm(DocumentPart):
    """The joint singular basis of all changes; see `adapters.spaces.Knots`."""

    side: Literal["outputs", "inputs"] = "outputs"
    basis: Literal["orthonormal", "scaled"] = "orthonormal"


class CoreSpaceForm(DocumentPart):
    """What lies between the bases of all left and of all right factors; see `adapters.spaces.CoreSpace`."""

    gauge: Literal["balanced", "stored"] = "balanced"


class SvdReduction(DocumentPart):
    """The leading singular directions."""


class LegoReduction(DocumentPart):
    """Units of rank one, clustered; see `adapters.lego.Lego`."""

    units: Literal["stored", "singular"] = "stored"
    similarity: Literal["halves", "products"] = "halves"
    norm: Literal["l2", "inf"] = "l2"
    reweight_parameters: StrictBool = True
    reweight_output: StrictBool = True
    iterations: StrictInt = Field(default=100, ge=1, le=10_000)


class _Choice(DocumentPart):
    """One of several things, written as its name or as `{name: {option: value}}`."""

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> dict[str, Any]:
        """The name, or a mapping from it to options."""
        names = sorted(cls.known_keys())
        options = {"type": "object", "maxProperties": 1, "propertyNames": {"enum": names}}
        return {"anyOf": [{"enum": names}, options]}

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, given: Any) -> Any:
        names = sorted(cls.known_keys())
        if isinstance(given, str) and given in names:
            return {given: {}}
        if not isinstance(given, dict) or len(given) != 1:
            raise ValueError(
                f"expected one of {', '.join(names)}, or one of them with its options as a mapping, not "
                f"{literal(given)}"
            )
        return {name: {} if options is None else options for name, options in given.items()}

    @property
    def name(self) -> str:
        """Which of them it is."""
        return next(iter(self.model_fields_set))

    @property
    def options(self) -> dict[str, Any]:
        """Its options, those that are left to defaults among them."""
        chosen = getattr(self, self.name)
        assert isinstance(chosen, DocumentPart)
        return chosen.model_dump()


class SpaceChoice(_Choice):
    """`space:`, in what coordinates a method sees the changes."""

    dense: DenseSpace | None = None
    knots: KnotsSpaceForm | None = None
    core: CoreSpaceForm | None = None


class ReductionChoice(_Choice):
    """`reduce:`, how a sum of more ranks than are kept is made smaller."""

    svd: SvdReduction | None = None
    lego: LegoReduction | None = None


class AdapterForm(DocumentPart):
    """`adapter:`: in what space adapters are combined, and how the result is stored.

    `rank` is the most that is kept, or `largest`, the largest rank of the adapters at the tensor; `energy` the share of
    the sum of squares, `error` what may be left out of the norm, each per tensor. `dialect` is that of the inputs where
    all have one that is written, else PEFT's.
    """

    space: SpaceChoice | None = None
    rank: Annotated[StrictInt, Field(ge=1)] | Literal["largest"] | None = None
    energy: Number | None = Field(default=None, gt=0.0, le=1.0)
    error: Number | None = Field(default=None, ge=0.0, lt=1.0)
    reduce: ReductionChoice | None = None
    dialect: Literal["peft", "kohya", "diffusers"] | None = None
