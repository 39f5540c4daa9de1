"""Watching a network by the names of its files: what goes into and out of the modules that hold a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """One call of a module: the stored tensors that it holds (of those asked for), its path, inputs and output."""

    tensors: tuple[str, ...]
    module: str
    inputs: tuple[Any, ...]
    named_inputs: Mapping[str, Any]
    output: Any


Watch = Callable[[Passage], None]


class Watched:
    """A context in which modules are watched; `unseen` are the tensors of which nothing was told so far.

    A module whose weights others use without calling it tells nothing.
    """

    def __init__(self, network: Any, modules: Mapping[str, tuple[str, ...]], told: Watch) -> None:
        self._network, self._told = network, told
        self._tensors: dict[str, list[str]] = {}
        for tensor, paths in modules.items():
            for path in paths:
                self._tensors.setdefault(path, []).append(tensor)
        self._handles: list[RemovableHandle] = []
        self._seen: set[str] = set()

    @property
    def unseen(self) -> tuple[str, ...]:
        """Tensors whose modules were not called."""
        every = dict.fromkeys(tensor for own in self._tensors.values() for tensor in own)
        return tuple(tensor for tensor in every if tensor not in self._seen)

    def __enter__(self) -> Watched:
        for path, tensors in self._tensors.items():
            hook = self._hook(path, tuple(tensors))
            module = self._network.get_submodule(path)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, path: str, tensors: tuple[str, ...]) -> Callable[..., None]:
        from weightsmith.live.blocks.kept_tensors import real

        def tell(_: Any, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
            self._seen.update(tensors)
            self._told(Passage(tensors, path, *real((inputs, named, output))))

        return tell


def users_of(names: Iterable[str]) -> tuple[str, ...]:
    """The paths of the modules that hold tensors of these names in memory."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))
