"""The globals that a pickle of tensors may name, as inert stand-ins: this list is all that is
allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files.safetensors_header import LARGEST_RANK
from weightsmith.tensors.messages import shown
from weightsmith.tensors.pickles.pickle_machine import Global, PickleRefused
from weightsmith.tensors.pickles.strided import is_contiguous, span_elements

_LARGEST_COUNT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TorchStorage:
    """A storage of a torch file: its key, dtype (None if it is untyped) and size."""

    key: str
    dtype: DType | None
    nbytes: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A view of a storage from byte `offset` of it on; strides in elements (None: contiguous)."""

    dtype: DType
    shape: tuple[int, ...]
    storage: TorchStorage
    offset: int
    strides: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Inert:
    """Something that may be present but says nothing about tensors (a device, a torch.Size
    class...).
    """

    name: str


def find_global(module: str, name: str) -> Global:
    """The stand-in of `module.name`; raises `PickleRefused`, naming it, for everything that is not
    on the list.
    """
    full_name = f"{module}.{name}"
    found = _GLOBALS.get(full_name)
    if found is None:
        raise PickleRefused(
            f"it refers to {shown(full_name)}, which is not among the globals that tensors need (nothing was run)"
        )
    return found


def storage_of(persistent_id: object) -> TorchStorage:
    """The storage that a persistent id ("storage", class, key, device, elements) describes.

    Raises `PickleRefused` for anything else, and for storages that are views of others (torch
    before 0.4).
    """
    if type(persistent_id) is not tuple or len(persistent_id) not in (5, 6):
        raise PickleRefused("it refers to an object outside of itself that is not a storage")
    tag, kind, key, _device_name, numel = persistent_id[:5]
    if (
        tag != "storage"
        or type(key) is not str
        or type(numel) is not int
        or persistent_id[5:] not in ((), (None,))
    ):
        raise PickleRefused("it refers to an object outside of itself that is not a plain storage")
    if not isinstance(kind, Global) or kind.name not in _STORAGES:
        raise PickleRefused(f"storage {shown(key)} is not of a known class")
    if not 0 <= numel <= _LARGEST_COUNT:
        raise PickleRefused(f"storage {shown(key)} claims {numel} elements")
    dtype = _STORAGES[kind.name]
    return TorchStorage(key, dtype, numel * (dtype.itemsize if dtype else 1))


def _dtype_of(value: object) -> DType:
    if not isinstance(value, Global) or value.name not in _DTYPES:
        raise PickleRefused("a tensor is not of a known dtype")
    return _DTYPES[value.name]


def _is_extent(value: object) -> bool:
    return type(value) is tuple and all(type(n) is int and 0 <= n <= _LARGEST_COUNT for n in value)


def _view(
    dtype: DType, storage: TorchStorage, first: Any, shape: Any, strides: Any
) -> PickledTensor:
    """Check a view against its storage, so that no few bytes can claim to be many."""
    if not (
        _is_extent(shape)
        and _is_extent(strides)
        and _is_extent((first,))
        and len(shape) == len(strides)
    ):
        raise PickleRefused(
            "a tensor's offset, shape and strides are not lengths that fit together"
        )
    if len(shape) > LARGEST_RANK:
        raise PickleRefused(f"a tensor has {len(shape)} axes, the limit is {LARGEST_RANK}")
    count = math.prod(shape)
    available = storage.nbytes // dtype.itemsize
    stated = f"a tensor of shape {shown(shape)} and strides {shown(strides)}"
    if count > 1 and any(s == 0 and n > 1 for n, s in zip(shape, strides, strict=True)):
        raise PickleRefused(
            f"{stated} repeats elements (an expanded tensor); save a contiguous copy instead"
        )
    if count > available or (count and first + span_elements(shape, strides) > available):
        raise PickleRefused(
            f"{stated} from element {first} needs more than the {available} elements of storage {shown(storage.key)}"
        )
    offset = first * dtype.itemsize if count else 0
    dense = is_contiguous(shape, strides)
    return PickledTensor(dtype, shape, storage, offset, None if dense else strides)


def _check_plain(metadata: object) -> None:
    if metadata:
        raise PickleRefused(
            "a tensor is a lazy conjugate or negative; save a resolved copy instead"
        )


def _rebuild_tensor(storage: Any, first: Any, shape: Any, strides: Any) -> PickledTensor:
    if not isinstance(storage, TorchStorage) or storage.dtype is None:
        raise PickleRefused("a tensor is built on something that is not a typed storage")
    return _view(storage.dtype, storage, first, shape, strides)


def _rebuild_tensor_v2(
    storage: Any,
    first: Any,
    shape: Any,
    strides: Any,
    _grad: Any,
    _hooks: Any,
    metadata: Any = None,
) -> PickledTensor:
    _check_plain(metadata)
    return _rebuild_tensor(storage, first, shape, strides)


def _rebuild_tensor_v3(
    storage: Any,
    first: Any,
    shape: Any,
    strides: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> PickledTensor:
    _check_plain(metadata)
    if not isinstance(storage, TorchStorage):
        raise PickleRefused("a tensor is built on something that is not a storage")
    return _view(_dtype_of(dtype), storage, first, shape, strides)


def _rebuild_parameter(data: Any, _grad: Any, _hooks: Any, _state: Any = None) -> PickledTensor:
    if not isinstance(data, PickledTensor):
        raise PickleRefused("a parameter is built on something that is not a tensor")
    return data


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, _state: Any) -> PickledTensor:
    """A tensor with Python attributes: the attributes are left out, other classes of tensors are
    refused.
    """
    plain = isinstance(kind, Global) and kind.name in _PLAIN_TENSOR_CLASSES
    known = isinstance(function, Global) and function.name in _TENSOR_FUNCTIONS
    if not plain or not known or type(arguments) is not tuple:
        raise PickleRefused("a tensor is of a class of its own")
    tensor: PickledTensor = _TENSOR_FUNCTIONS[function.name](*arguments)
    return tensor


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    if pairs:
        raise PickleRefused(
            "it builds an OrderedDict from something that is not a plain series of items"
        )
    return {}


def _size(lengths: Any) -> tuple[int, ...]:
    if not _is_extent(tuple(lengths)):
        raise PickleRefused("a torch.Size is not a series of lengths")
    return tuple(lengths)


def _device(*_arguments: Any) -> Inert:
    return Inert("torch.device")


_TENSOR_FUNCTIONS: Mapping[str, Any] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}

_PLAIN_TENSOR_CLASSES = frozenset(
    {
        "torch.Tensor",
        "torch._tensor.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
    }
)

_STORAGES: Mapping[str, DType | None] = {
    "torch.DoubleStorage": DType.FLOAT64,
    "torch.FloatStorage": DType.FLOAT32,
    "torch.HalfStorage": DType.FLOAT16,
    "torch.BFloat16Storage": DType.BFLOAT16,
    "torch.LongStorage": DType.INT64,
    "torch.IntStorage": DType.INT32,
    "torch.ShortStorage": DType.INT16,
    "torch.CharStorage": DType.INT8,
    "torch.ByteStorage": DType.UINT8,
    "torch.BoolStorage": DType.BOOL,
    "torch.ComplexFloatStorage": DType.COMPLEX64,
    "torch.storage.UntypedStorage": None,
    "torch.UntypedStorage": None,
}

_DTYPES: Mapping[str, DType] = {f"torch.{dtype}": dtype for dtype in DType}

_GLOBALS: Mapping[str, Global] = {
    **{name: Global(name, call) for name, call in _TENSOR_FUNCTIONS.items()},
    **{name: Global(name) for name in (*_PLAIN_TENSOR_CLASSES, *_STORAGES, *_DTYPES)},
    "torch._tensor._rebuild_from_type_v2": Global(
        "torch._tensor._rebuild_from_type_v2", _rebuild_from_type
    ),
    "torch.Size": Global("torch.Size", _size),
    "torch.device": Global("torch.device", _device),
    "collections.OrderedDict": Global("collections.OrderedDict", _ordered_dict),
}
