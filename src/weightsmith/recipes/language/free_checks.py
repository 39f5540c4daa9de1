"""Does a free number fit the parameter that it stands for, and the place where it is written?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.methods import Parameter
from weightsmith.recipes.language.free_forms import FreeForm, free_forms
from weightsmith.recipes.language.parameter_settings import Condition

Where = Callable[[str], str]


def check_free(
    setting: Any, parameter: Parameter, place: str, where: Where, *, above_models: bool
) -> None:
    """Raise RecipeError for a free number of a setting that its parameter, or its place, cannot have.

    `where` turns a path into words for messages. `above_models`: the setting belongs to all models that are listed
    below it.
    """
    for inner, form in free_forms(setting):
        at = f"{place}.{inner}" if inner and not inner.startswith("[") else f"{place}{inner}"
        problem = (
            _of_parameter(form, parameter)
            or _of_experts(form, parameter, direct=not inner and above_models)
            or _of_place(form, setting, inner)
        )
        if problem:
            raise RecipeError(f"{where(at)}: {problem}.")


def _of_parameter(form: FreeForm, parameter: Parameter) -> str:
    key = parameter.key
    if parameter.kind not in (int, float):
        return f"{key} is no number, so it cannot be free; choose its value"
    try:
        for number in (*form.free, form.start):
            parameter.check(number, key)
    except RecipeError as problem:
        return str(problem).partition(": ")[2].rstrip(".")
    return ""


def _of_experts(form: FreeForm, parameter: Parameter, *, direct: bool) -> str:
    if not form.is_per_expert:
        return ""
    if not parameter.per_expert:
        return f"{parameter.key} is one value for all experts, so there is none `per: expert`; leave that out"
    if not direct:
        return "`per: expert` is for a value of all models listed below it; write the number with each model"
    return ""


def _of_place(form: FreeForm, setting: Any, inner: str) -> str:
    if form.by is None:
        return ""
    if isinstance(setting, tuple) and not isinstance(setting[0], Condition):
        return "the entries of a gradient are numbers of the whole depth; leave `per` out"
    if isinstance(setting, tuple):
        condition: Condition = setting[int(inner[1 : inner.index("]")])]
        if not isinstance(condition.value, FreeForm):
            return "the entries of a gradient are numbers of the whole depth; leave `per` out"
        if condition.filter not in (None, "*"):
            return f"`per: {form.by}` goes with `match:`, not with `filter:`; write a match"
    return ""
