"""Names that interfaces of image models have for methods: read where they mean one, and explained where they do not."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, StrictStr
from pydantic_core.core_schema import ValidationInfo

from weightsmith.recipes.language.document_parts import MERGEKIT, dialect_of

# Of sd-webui-supermerger and sd-mecha; A is the base, B the model, and alpha goes from one to the other.
_SAME = {
    "weight_sum": "wise_ft",
    "weighted_sum": "wise_ft",
    "cosineA": "cosine_a",
    "cosineB": "cosine_b",
    "add_cosine_a": "cosine_a",
    "add_cosine_b": "cosine_b",
    "trainDifference": "train_difference",
}
_ARITHMETIC = (
    "{name} is A + alpha (B - C): write task_arithmetic with C as base_model, A with the weight 1 and B with the "
    "weight alpha among the models, and `donor: A`"
)
_LINEAR = (
    "{name} is a sum of three models: write linear with A, B and C among the models, each with its weight, which is "
    "{weights}"
)
_OTHERWISE = {
    "add_difference": _ARITHMETIC,
    "addDifference": _ARITHMETIC,
    "triple_sum": _LINEAR.replace("{weights}", "1 - alpha - beta, alpha and beta"),
    "sum_twice": _LINEAR.replace("{weights}", "(1 - alpha) (1 - beta), alpha (1 - beta) and beta"),
}


def _read(given: str, info: ValidationInfo) -> str:
    if dialect_of(info) == MERGEKIT:
        return given
    if given in _OTHERWISE:
        raise ValueError(_OTHERWISE[given].format(name=given))
    return _SAME.get(given, given)


MethodName = Annotated[StrictStr, AfterValidator(_read)]
