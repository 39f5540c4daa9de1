"""The names of a source bound to those of a network: every tensor has its place, and every place its tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from weightsmith.errors import CompatibilityError
from weightsmith.live.config_checks import other_shape
from weightsmith.live.libraries import asking_library, quiet_library
from weightsmith.live.model_source import Source
from weightsmith.live.name_map import NameMap, Origin
from weightsmith.live.networks import Network
from weightsmith.live.slots import aliases_of
from weightsmith.live.tensor_reading import are_equal
from weightsmith.live.transformers_names import FoundNames, transformers_names
from weightsmith.naming import beside
from weightsmith.tensors import LazyTensor
from weightsmith.wording import counted, shown


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """The map of names, and the tensors in memory that the network's own rules fill."""

    names: NameMap
    absent: tuple[str, ...]


class Binder:
    """Binds sources to one network; the library's rules are asked once for a layout of files."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._aliases = aliases_of(network.module)
        self._shapes = {name: tuple(t.shape) for name, t in network.module.state_dict().items()}
        self._layout: object = None
        self._found = FoundNames((), (), (), ())

    def bind(self, source: Source) -> Bound:
        """Bind a source; no weight is read, but for tensors that are stored twice because they are tied.

        Raises CompatibilityError for tensors without a place, places without a tensor, and other shapes.
        """
        found = self._names(source)
        origins = _under_first_names(found.origins, self._aliases, source)
        self._check_shapes(source, origins)
        owners = self._owners(source, origins)
        filled = {name for origin in origins for name in origin.memory}
        missing = [name for name in found.missing if owners[name] not in filled]
        _check_names(source, missing, found.unexpected)
        absent = tuple(name for name in found.absent if owners[name] not in filled)
        return Bound(NameMap(origins, owners), absent)

    def _names(self, source: Source) -> FoundNames:
        # What lies in files of its own belongs to other modules, which the configuration says nothing of.
        stored = {n: tensor.shape for n, tensor in source.tensors.items() if beside(n) is None}
        if stored != self._layout:
            self._layout, self._found = stored, _found_names(self._network, source.name, stored)
        return self._found

    def _check_shapes(self, source: Source, origins: Sequence[Origin]) -> None:
        for origin in origins:
            stored, own = source.tensors[origin.files[0]].shape, self._shapes[origin.memory[0]]
            if origin.convert is None and stored != own:
                raise CompatibilityError(other_shape(source.name, origin.files[0], stored, own))

    def _owners(self, source: Source, origins: Sequence[Origin]) -> dict[str, str]:
        """The name whose tensor each name has; tied tensors that are stored with other numbers stay apart."""
        made_by = {name: origin for origin in origins for name in origin.memory}
        shared: dict[str, str] = {}
        for group in self._network.ties:
            first = next((name for name in group if name in made_by), group[0])
            for name in group:
                own = made_by.get(name)
                if own is None or _are_tied(source, made_by[first], own):
                    shared[name] = first
        return {name: shared.get(first, first) for name, first in self._aliases.items()}


def _found_names(network: Network, name: str, stored: Mapping[str, tuple[int, ...]]) -> FoundNames:
    if network.plain:
        own = network.module.state_dict().keys()
        origins = tuple(Origin((file,), (file,)) for file in stored if file in own)
        extra, missing = sorted(stored.keys() - own), sorted(own - stored.keys())
        return FoundNames(origins, tuple(extra), tuple(missing), ())
    said = f"The tensors of {name!r} do not fit {type(network.module).__name__}"
    with quiet_library(), asking_library(said, "correct config.json", CompatibilityError):
        return transformers_names(network.module, stored)


def _under_first_names(
    origins: Iterable[Origin], aliases: Mapping[str, str], source: Source
) -> tuple[Origin, ...]:
    """Origins by the first name of each place; what is stored twice for one place must be equal, and counts once."""
    found: dict[tuple[str, ...], Origin] = {}
    for origin in origins:
        memory = tuple(aliases[name] for name in origin.memory)
        known = found.get(memory)
        files = origin.files if known is None else (*known.files, *origin.files)
        if origin.convert is None and len(files) > 1:
            _check_copies([source.tensors[name] for name in files], source)
        first = Origin(files[:1], memory) if origin.convert is None else origin
        found.setdefault(memory, first)
    return tuple(found.values())


def _check_copies(tensors: Sequence[LazyTensor], source: Source) -> None:
    for other in tensors[1:]:
        if not are_equal(tensors[0], other):
            raise CompatibilityError(
                f"{source.name!r} has two tensors for one place in its network, {shown(tensors[0].name)} and "
                f"{shown(other.name)}, which differ; leave one out."
            )


def _are_tied(source: Source, one: Origin, other: Origin) -> bool:
    if one is other:
        return True
    plain = one.convert is None and other.convert is None
    return plain and are_equal(source.tensors[one.files[0]], source.tensors[other.files[0]])


def _check_names(source: Source, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    if missing or unexpected:
        lacks = f"lacks {_some(missing, 'of the network that its config.json describes')}"
        more = f"has {_some(unexpected, 'without a place in the network')}"
        both = " and ".join([*([lacks] if missing else []), *([more] if unexpected else [])])
        raise CompatibilityError(
            f"{source.name!r} {both}; correct config.json, its `architectures` above all."
        )


def _some(names: Sequence[str], which: str) -> str:
    return f"{counted(len(names), 'tensor')} {which} (such as {shown(names[0])})" if names else ""
