"""Parameters that name roles of tensors, separated by spaces."""

from __future__ import annotations

from weightsmith.errors import RecipeError
from weightsmith.graph import Site
from weightsmith.tensors import Kind

# CLIP's, which the authors of several methods on matrices do not take for one.
TEXT_PROJECTION = Kind.TEXT_PROJECTION.value


def has_role(site: Site, roles: str, parameter: str) -> bool:
    """Whether the tensor's role, or its family, is among those that a parameter names.

    Raises RecipeError for a name that is no role.
    """
    named = roles.replace(",", " ").split()
    if not named:
        return False
    known = {kind.value for kind in Kind} | {kind.value.partition(".")[0] for kind in Kind}
    for name in named:
        if name not in known:
            raise RecipeError(
                f"{parameter} names {name!r}, which is no role; known are {', '.join(sorted(known))}."
            )
    return any(site.role == name or site.role.startswith(f"{name}.") for name in named)
