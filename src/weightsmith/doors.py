"""Doors of packages: names of their modules that a package hands on, each imported when it is first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def door(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package that hands on `names`.

    Each name has its module, or `module:name` where it is called otherwise there, or `module:*` where it is the module
    itself. A module is imported when one of its names is used, so the package costs nothing, whatever lies behind its
    door.
    """

    def fetch(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        place, _, own = names[name].partition(":")
        module = import_module(place)
        value: object = module if own == "*" else getattr(module, own or name)
        setattr(sys.modules[package], name, value)
        return value

    return fetch, lambda: sorted(names), sorted(names)
