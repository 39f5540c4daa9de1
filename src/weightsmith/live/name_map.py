"""Names in memory and names in files: which stored tensors make which tensor of a network, and back.

Most tensors have one name with other prefixes. Some are several in files and one in memory (experts that are stored one
by one and computed as one array), some the other way. Tied tensors are one in memory under several names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weightsmith.errors import UsageError
from weightsmith.wording import shown

if TYPE_CHECKING:
    from torch import Tensor

Convert = Callable[[Sequence["Tensor"]], Mapping[str, "Tensor"]]
Revert = Callable[[Mapping[str, "Tensor"]], Sequence["Tensor"]]


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Stored tensors that together make tensors in memory.

    Without `convert` there is one of each, with the same elements. Otherwise `convert` gives the tensors in memory from
    those of `files`, in that order, and `revert` the stored ones from those in memory; both only move elements, so
    gradients go through them as weights do.
    """

    files: tuple[str, ...]
    memory: tuple[str, ...]
    convert: Convert | None = None
    revert: Revert | None = None

    def reverted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors in memory as the files have them."""
        if self.convert is None:
            return {self.files[0]: tensors[self.memory[0]]}
        if self.revert is None:
            raise UsageError(
                f"Nobody knows how {shown(self.memory[0])} is taken apart into {shown(self.files[0])} and others; "
                "ask for it by its name in memory."
            )
        own = {name: tensors[name] for name in self.memory}
        return dict(zip(self.files, self.revert(own), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class NameMap:
    """The map of one network and one layout of files.

    `owners` has for every name in memory the one whose tensor it is: its own, or that of the tensor it is tied to.
    """

    origins: tuple[Origin, ...]
    owners: Mapping[str, str]
    _by_memory: dict[str, Origin] = field(init=False, repr=False)
    _by_file: dict[str, Origin] = field(init=False, repr=False)
    _sharing: dict[str, list[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sharing: dict[str, list[str]] = {}
        for name, owner in self.owners.items():
            sharing.setdefault(owner, []).append(name)
        for key, value in (
            ("_by_memory", {name: origin for origin in self.origins for name in origin.memory}),
            ("_by_file", {name: origin for origin in self.origins for name in origin.files}),
            ("_sharing", sharing),
        ):
            object.__setattr__(self, key, value)

    def origins_of(self, names: Iterable[str]) -> list[Origin]:
        """What tensors in memory are made from, each once."""
        found = (self._by_memory.get(self.owners[name]) for name in names)
        return list({id(origin): origin for origin in found if origin is not None}.values())

    def touched_by(self, files: Iterable[str]) -> tuple[str, ...]:
        """The names in memory that stored tensors have a part in, ties included; raises UsageError for another name."""
        found: dict[str, None] = {}
        for file in files:
            for own in self._origin_of(file).memory:
                found.update(dict.fromkeys(self._sharing[self.owners[own]]))
        return tuple(found)

    def made_with(self, file: str) -> tuple[str, ...]:
        """The stored tensors that with another make tensors in memory, itself among them."""
        return self._origin_of(file).files

    def files_of(self, name: str) -> tuple[str, ...]:
        """The stored tensors that a tensor in memory is made from; none for one that no file has."""
        origin = self._by_memory.get(self.owners[name])
        return () if origin is None else origin.files

    def to_files(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by names in memory (weights, or gradients of them) by the names of the files.

        Those that only together make a stored tensor must all be there, or none. Names of tied tensors are those of
        their owners; a tensor that is stored twice, under tied names, is given once.
        """
        found: dict[str, Tensor] = {}
        for origin in self.origins_of(tensors):
            found.update(origin.reverted(tensors))
        return found

    def _origin_of(self, file: str) -> Origin:
        if file not in self._by_file:
            raise UsageError(f"The network has no tensor {shown(file)}; give names of its files.")
        return self._by_file[file]
