"""What torch.save wrote into some bytes (and not into a file of its own), read without torch and without running it."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import CheckpointError
from weightsmith.tensors.messages import shown
from weightsmith.tensors.pickles.pickle_machine import ForgetfulMachine, PickleRefused
from weightsmith.tensors.pickles.pickle_reader import known_or_inert
from weightsmith.tensors.pickles.strided import contiguous_strides, span_elements
from weightsmith.tensors.pickles.torch_globals import (
    Inert,
    PickledTensor,
    TorchStorage,
    storage_of,
)
from weightsmith.tensors.widening import WORDS, widen


def read_saved_object(data: bytes, what: str) -> Any:
    """The containers, numbers, texts and arrays (of tensors) in an archive of torch.save; all else is `Inert`.

    Floats are widened to float32, or stay float64. Raises CheckpointError, which calls the archive `what`, where it is
    none, compressed or damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read(archive)
    except (
        zipfile.BadZipFile,
        PickleRefused,
        KeyError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        reason = shown(str(error)) if isinstance(error, PickleRefused) else type(error).__name__
        raise CheckpointError(
            f"{what} is no archive of torch.save that can be read ({reason}): save the checkpoint again."
        ) from None


def _read(archive: zipfile.ZipFile) -> Any:
    members = {member.filename: member for member in archive.infolist()}
    # What is stored as it is cannot stand for more than its bytes.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        raise PickleRefused("it is compressed")
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or len(members) != len(archive.infolist()):
        raise PickleRefused("it has not one data.pkl, or two members of one name")
    prefix = pickles[0].removesuffix("data.pkl")
    if archive.read(f"{prefix}byteorder") != b"little":
        raise PickleRefused("its numbers are not little-endian")

    def load_storage(persistent_id: Any) -> TorchStorage:
        storage = storage_of(persistent_id)
        if members[f"{prefix}data/{storage.key}"].file_size < storage.nbytes:
            raise PickleRefused(f"storage {shown(storage.key)} has too few bytes")
        return storage

    machine = ForgetfulMachine(
        archive.read(pickles[0]), known_or_inert, load_storage, Inert("unknown")
    )
    return _arrays_in(machine.run(), archive, prefix)


def _arrays_in(value: Any, archive: zipfile.ZipFile, prefix: str) -> Any:
    if type(value) is PickledTensor:
        return _array_of(value, archive.read(f"{prefix}data/{value.storage.key}"))
    if type(value) is dict:
        return {key: _arrays_in(inner, archive, prefix) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_arrays_in(inner, archive, prefix) for inner in value)
    return value


def _array_of(found: PickledTensor, storage: bytes) -> NDArray[Any]:
    strides = found.strides or contiguous_strides(found.shape)
    size = found.dtype.itemsize
    count = span_elements(found.shape, strides)
    words = np.frombuffer(storage, WORDS[size], count, found.offset)
    steps = [stride * size for stride in strides]
    own = np.ascontiguousarray(np.lib.stride_tricks.as_strided(words, found.shape, steps))
    own = own.reshape(found.shape)
    return widen(own, found.dtype) if found.dtype.is_float else own.view(found.dtype.value)
