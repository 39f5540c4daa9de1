"""Which module registers which method: read from the sources, so that a command imports its recipe's methods alone."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec

from weightsmith.errors import UsageError

# Bytes that begin with the end of a line are found ten times faster than the beginnings of lines of a text.
_REGISTERED = re.compile(rb'\n@(method|modifier)\(\s*"(\w+)"')


def modules_of(kind: str) -> Mapping[str, str]:
    """The modules of this room by the names that they register with `@method` or `@modifier`, as `kind` says.

    A module without its source, as in an installation of compiled files alone, is imported: it registers itself.
    """
    return _registered().get(kind, {})


def load(name: str, kind: str) -> None:
    """Import the module that registers `name`, if one of this room does."""
    module = modules_of(kind).get(name)
    if module is not None:
        importlib.import_module(module)


def require_free(name: str, kind: str, module: str, owner: str | None) -> None:
    """Raise UsageError where `module` registers a name that is another's; `owner` is who has registered it so far.

    Without this the order of imports would decide which of the two a recipe means.
    """
    taken = owner or modules_of(kind).get(name)
    if taken is not None and taken != module:
        raise UsageError(
            f"{module} registers the {kind} {name!r}, which {taken} has; give it another name."
        )


@functools.cache
def _registered() -> Mapping[str, Mapping[str, str]]:
    import weightsmith.methods as package

    found: dict[str, dict[str, str]] = {}
    for spec in _modules(package.__name__, package.__path__):
        source = _source(spec)
        if source is None:
            importlib.import_module(spec.name)
            continue
        for kind, name in _REGISTERED.findall(source):
            found.setdefault(kind.decode(), {})[name.decode()] = spec.name
    return found


def _modules(package: str, folders: Iterable[str]) -> Iterator[ModuleSpec]:
    """The modules of a package and of those in it but `parts`, which registers nothing; none is imported."""
    for finder, module, _ in pkgutil.iter_modules(folders, f"{package}."):
        spec = None if module == __package__ else finder.find_spec(module, None)
        if spec is None:
            continue
        if spec.submodule_search_locations is None:
            yield spec
        else:
            yield from _modules(module, spec.submodule_search_locations)


def _source(spec: ModuleSpec) -> bytes | None:
    """The source of a module, be it in a folder or an archive, or None where there is none."""
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    get_data: Callable[[str], bytes] | None = getattr(spec.loader, "get_data", None)
    return None if get_data is None else get_data(spec.origin)
