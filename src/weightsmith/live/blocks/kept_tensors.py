"""Outputs of blocks that ran before: tensors that know their shape, and are fetched when something computes with them.

A network is run again from its beginning for every block, with what earlier blocks gave in their place. Most of it is
handed from block to block and looked at by nobody; what is computed with is read from where it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as trees

_Fetch = Callable[[], torch.Tensor]
# What can be asked without the elements.
_FACTS = frozenset(
    {
        *(getattr(torch.Tensor, name) for name in ("size", "dim", "numel", "stride", "__len__")),
        *(getattr(torch.Tensor, name) for name in ("is_floating_point", "is_complex")),
        *(
            getattr(torch.Tensor, name).__get__
            for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_meta")
        ),
        *(
            getattr(torch.Tensor, name).__get__
            for name in ("is_nested", "is_sparse", "requires_grad")
        ),
    }
)


class KeptTensor(torch.Tensor):
    """A tensor whose elements are elsewhere until they are needed."""

    _fetch: _Fetch
    _value: torch.Tensor | None

    @staticmethod
    def of(form: torch.Tensor, fetch: _Fetch) -> KeptTensor:
        """A tensor with the shape, strides, dtype and device of `form`."""
        return KeptTensor.like(form.size(), form.stride(), form.dtype, form.device, fetch)

    @staticmethod
    def like(
        shape: Sequence[int], strides: Sequence[int], dtype: Any, device: Any, fetch: _Fetch
    ) -> KeptTensor:
        """A tensor of a form that is told in words."""
        made: KeptTensor = torch.Tensor._make_wrapper_subclass(
            KeptTensor, shape, strides, dtype=dtype, device=device
        )
        made._fetch, made._value = fetch, None
        return made

    def fetched(self) -> torch.Tensor:
        """The tensor with its elements."""
        if self._value is None:
            self._value = self._fetch()
        return self._value

    def own(self) -> torch.Tensor:
        """The same, to be written to: what is kept stays as it is."""
        self._value = self.fetched().clone()
        return self._value

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer what is asked of a shape; compute everything else with the elements."""
        if func in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if _writes(func, kwargs) and args and isinstance(args[0], KeptTensor):
            args = (args[0].own(), *args[1:])
        return func(*real(args), **real(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute with the elements, where an operation comes by another way than torch's functions."""
        return func(*real(args), **real(kwargs or {}))


class MissingWeight(Exception):
    """Something computes with a weight that is not in memory."""


class WeightGuard(TorchFunctionMode):
    """Raises MissingWeight where something would compute with a tensor without memory: torch may give any numbers.

    It looks at nothing while `is_resting`.
    """

    is_resting = False

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Look at what is computed with, and compute."""
        named = kwargs or {}
        if not self.is_resting and func not in _FACTS:
            leaves = trees.tree_leaves((args, named))
            if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in leaves):
                raise MissingWeight
        return func(*args, **named)


def real(tree: Any) -> Any:
    """A tree of tensors with their elements."""
    return trees.tree_map_only(KeptTensor, KeptTensor.fetched, tree)


def guarded(tree: Any) -> Any:
    """A tree of tensors that is not changed by whoever is given this one."""
    return trees.tree_map_only(torch.Tensor, lambda one: KeptTensor.of(one, lambda: one), tree)


def _writes(func: Any, kwargs: Mapping[str, Any] | None) -> bool:
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name.startswith("__i") or name == "__setitem__" or "out" in (kwargs or {})
