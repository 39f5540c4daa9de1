"""Modifiers in expressions: `ties(base, a, b, modify=[clip(limit=2), winsorize])`."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.methods import Base
from weightsmith.methods import modifiers as registered

Assignments = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Modification:
    """A modifier of the experts, with the parameters that the recipe gives."""

    modifier: str
    parameters: Assignments


def read_modifiers(
    node: ast.expr, literal: Callable[[ast.expr], Any], *, has_base: bool, where: str
) -> tuple[Modification, ...]:
    """What stands behind `modify=`: one modifier or a list of them, as names or as calls with parameters by name.

    Raises RecipeError for anything else, for parameters that a modifier cannot have, and for a missing base.
    """
    listed = node.elts if isinstance(node, (ast.List, ast.Tuple)) else [node]
    return tuple(_modification(item, literal, has_base, where) for item in listed)


def _modification(
    node: ast.expr, literal: Callable[[ast.expr], Any], has_base: bool, where: str
) -> Modification:
    named = node.func if isinstance(node, ast.Call) else node
    keywords = node.keywords if isinstance(node, ast.Call) else []
    positional = node.args if isinstance(node, ast.Call) else []
    if not isinstance(named, ast.Name) or positional or any(k.arg is None for k in keywords):
        raise RecipeError(
            f"{where}: `{ast.unparse(node)}` is no modifier; write its name with parameters by name, such as "
            "clip(limit=2)."
        )
    spec = registered.get(named.id)
    if spec.base is Base.REQUIRED and not has_base:
        raise RecipeError(f"{where}: modifier {spec.name} needs a base; add `base=`.")
    given = {str(k.arg).rstrip("_"): literal(k.value) for k in keywords}
    spec.build(given, where=where)
    checked = ((key, spec.parameters[key].check(value, where)) for key, value in given.items())
    return Modification(spec.name, tuple(checked))


def measures_from_base(modifications: tuple[Modification, ...]) -> bool:
    """Whether one of the modifiers works on task vectors."""
    return any(registered.get(m.modifier).base is not Base.IGNORED for m in modifications)


@dataclass(frozen=True)
class ModifierCall:
    """A modifier with its parameters, for `modify=` of a method that is applied to expressions."""

    name: str
    parameters: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.parameters)})"


class _Modifiers:
    """Every modifier as a function of its parameters: `methods.linear(a, b, modify=[modifiers.clip(limit=2)])`."""

    def __getattr__(self, name: str) -> Callable[..., ModifierCall]:
        if name.startswith("__"):
            raise AttributeError(name)
        spec = registered.get(name)

        def apply(**parameters: Any) -> ModifierCall:
            return ModifierCall(spec.name, tuple(parameters.items()))

        return apply


modifiers = _Modifiers()
