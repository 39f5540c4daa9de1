"""Frozen dataclasses of which there are several for every tensor, and which are made accordingly fast.

The constructor that `dataclasses` writes for a frozen class calls `object.__setattr__` for each field, which takes most
of the time of a plan of many thousand tensors. `record` writes one that sets the fields of an object of a twin class,
which has the same slots and is not frozen. Everything else is what `dataclasses` made of the class.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type[Any])


def record(cls: _Class) -> _Class:
    """A decorator above `@dataclass(frozen=True, slots=True)`; subclasses have no fields of their own.

    Raises TypeError for a class that is something else, or with a field that has a default factory.
    """
    facts = getattr(cls, "__dataclass_params__", None)
    fields = dataclasses.fields(cls) if facts is not None else ()
    if facts is None or not facts.frozen or "__slots__" not in vars(cls):
        raise TypeError(f"{cls.__name__} is no frozen dataclass with slots")
    if any(f.default_factory is not dataclasses.MISSING for f in fields):
        raise TypeError(f"a field of {cls.__name__} has a default factory")
    names = [f.name for f in fields]
    scope: dict[str, Any] = {f"default_{f.name}": f.default for f in fields}
    scope |= {"twin": type(cls.__name__, cls.__bases__, {"__slots__": names})}
    scope["set_class"] = vars(object)["__class__"].__set__
    given = [
        f.name if f.default is dataclasses.MISSING else f"{f.name}=default_{f.name}"
        for f in fields
        if f.init
    ]
    lines = [
        f"def __init__(self, {', '.join(given)}):",
        "    own = self.__class__",
        "    set_class(self, twin)",
        *(f"    self.{f.name} = {f.name if f.init else f'default_{f.name}'}" for f in fields),
        "    self.__class__ = own",
        *(["    self.__post_init__()"] if hasattr(cls, "__post_init__") else []),
    ]
    exec("\n".join(lines), scope)
    made = scope["__init__"]
    made.__annotations__ = vars(cls)["__init__"].__annotations__
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__module__ = cls.__module__
    setattr(cls, "__init__", made)  # noqa: B010 - a type checker allows no assignment
    return cls
