"""The linear maps of a network, and the rows that they multiply."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightsmith.live import LiveModel

if TYPE_CHECKING:
    from torch import Tensor

Rows = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True, slots=True, eq=False)
class LinearMap:
    """A module that multiplies its input with a matrix: the stored tensors that make the matrix, and its width.

    `rows` turns an input into the rows [N, width] that are multiplied.
    """

    tensors: tuple[str, ...]
    width: int
    rows: Rows


def linear_maps(model: LiveModel) -> dict[str, LinearMap]:
    """The linear maps by the paths of their modules.

    Linear layers, GPT-2's Conv1D, and convolutions of one group, whose rows are patches. A head that is tied to an
    embedding is none: what multiplies there is also looked up.
    """
    embedded = _embeddings(model)
    found = {}
    for path, module in model.module.named_modules():
        rows = _rows_of(module)
        owner = model.names.owners.get(f"{path}.weight")
        if rows is None or owner is None or owner in embedded:
            continue
        width = _width(module)
        files = [n for n in model.names.files_of(owner) if _has_width(model, n, width, module)]
        if files:
            found[path] = LinearMap(tuple(files), width, rows)
    return found


def _embeddings(model: LiveModel) -> set[str]:
    from torch import nn

    return {
        model.names.owners[name]
        for path, module in model.module.named_modules()
        if isinstance(module, nn.Embedding) and (name := f"{path}.weight") in model.names.owners
    }


def _has_width(model: LiveModel, name: str, width: int, module: Any) -> bool:
    """Whether a stored tensor is a matrix of so many inputs, and not only a part of such."""
    shape = model.source.tensors[name].shape
    if _is_transposed(module):
        return len(shape) == 2 and shape[0] == width
    return len(shape) > 1 and math.prod(shape[1:]) == width


def _width(module: Any) -> int:
    weight = module.weight
    return int(weight.shape[0] if _is_transposed(module) else weight[0].numel())


def _rows_of(module: Any) -> Rows | None:
    from torch import nn

    if isinstance(module, nn.Linear) or _is_transposed(module):
        return flat_rows
    is_whole = isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups == 1
    if is_whole and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return Patches(module)
    return None


def _is_transposed(module: Any) -> bool:
    """Whether it is GPT-2's Conv1D, a linear map whose matrix is stored (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and module.weight.ndim == 2


def flat_rows(tensor: Tensor) -> Tensor:
    """[..., D] as [N, D]."""
    return tensor.reshape(-1, tensor.shape[-1])


@dataclass(frozen=True, slots=True)
class Patches:
    """The patches that a convolution multiplies, one row each."""

    module: Any

    def __call__(self, tensor: Tensor) -> Tensor:
        """[B, C, ...] as [N, C k...]."""
        from torch.nn import functional

        own = self.module
        shape: Any = (own.kernel_size, own.dilation, own.padding, own.stride)
        if tensor.ndim == 3:
            # Sequences are images of one row.
            tensor = tensor[:, :, None]
            shape = tuple((one, *of) for one, of in zip((1, 1, 0, 1), shape, strict=True))
        patches = functional.unfold(tensor, *shape)
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def paths_below(paths: Mapping[str, Any], prefix: str) -> list[str]:
    """Those of the paths that are a module's, or lie in it; all of them for ""."""
    return [path for path in paths if not prefix or f"{path}.".startswith(f"{prefix}.")]
