"""Reading the tensors of a torch file (.bin, .pt, .pth) without torch and without running anything
in it.

The pickle is interpreted by `pickle_machine`, which can only build plain containers and the
stand-ins of `torch_globals`; tensors become byte ranges of the file, as those of a safetensors file
do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.errors import CheckpointError
from weightsmith.tensors.files.open_files import OPEN_FILES, FileIdentity, changed, read_bytes
from weightsmith.tensors.files.strict_json import collection_paused
from weightsmith.tensors.messages import is_printable_name, shown
from weightsmith.tensors.pickles.pickle_machine import (
    ForgetfulMachine,
    Global,
    PickleMachine,
    PickleRefused,
)
from weightsmith.tensors.pickles.strided import contiguous_strides, span_elements
from weightsmith.tensors.pickles.torch_globals import (
    Inert,
    PickledTensor,
    TorchStorage,
    find_global,
    storage_of,
)
from weightsmith.tensors.pickles.zip_members import (
    LOCAL_SIGNATURE,
    MemberBytes,
    ZipMember,
    read_members,
)
from weightsmith.tensors.stored import StoredTensor

LARGEST_PICKLE_BYTES = 64_000_000

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

# Keys under which training scripts commonly put the state dict of the model.
_WRAPPERS = ("state_dict", "model")


@dataclass(frozen=True, slots=True)
class TorchFile:
    """The tensors of a torch file in the order of its dict, and the key of the dict they were found
    under, if any.
    """

    tensors: list[StoredTensor]
    wrapper: str | None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a storage begins in the file, and the member of the archive that it is, if it is one."""

    offset: int
    member: MemberBytes | None = None


def read_torch_file(path: Path) -> list[StoredTensor]:
    """The tensors of a torch file in the order of its dict, checked as `parse_torch_file` does."""
    return parse_torch_file(path).tensors


def parse_torch_file(path: Path) -> TorchFile:
    """Find the tensors of a file that torch.save wrote (zip, or the older form); no tensor data is
    read.

    The file must hold a dict of tensors by name, directly or under the only one of `state_dict` and
    `model` that is such a dict. Raises `CheckpointError`, naming what was refused, for any global
    that tensors do not need, compressed or damaged archives, views that claim more than their
    storage, big-endian files, and everything else.
    """
    with collection_paused(), OPEN_FILES.opened(path) as (descriptor, identity):
        first = read_bytes(descriptor, path, 0, min(4, identity.size), "the first bytes")
        try:
            if first == LOCAL_SIGNATURE:
                root, places = _load_archive(descriptor, path, identity)
            else:
                root, places = _load_legacy(descriptor, path, identity)
        except PickleRefused as error:
            raise _refusal(path, f"the pickle is refused because {error}") from None
        state, wrapper = _state_dict(root, path)
        return TorchFile(_stored(state, places, path, identity), wrapper)


def read_trainer_file(path: Path) -> Any:
    """What a zip archive of torch.save holds: containers, numbers, texts, and tensors, which are read later.

    Objects of any other class are `Inert`, whatever they were: nothing of the file is run. Raises CheckpointError for
    a file that is none, or damaged.
    """
    with collection_paused(), OPEN_FILES.opened(path) as (descriptor, identity):
        first = read_bytes(descriptor, path, 0, min(4, identity.size), "the first bytes")
        if first != LOCAL_SIGNATURE:
            raise _refusal(path, "it is no zip archive of torch.save")
        try:
            root, places = _load_archive(descriptor, path, identity, forgetful=True)
        except PickleRefused as error:
            raise _refusal(path, f"the pickle is refused because {error}") from None
        return _resolved(root, lambda found: _stored({"tensor": found}, places, path, identity)[0])


def _resolved(value: Any, tensor_of: Callable[[PickledTensor], StoredTensor]) -> Any:
    if type(value) is PickledTensor:
        return tensor_of(value)
    if type(value) is dict:
        return {key: _resolved(inner, tensor_of) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_resolved(inner, tensor_of) for inner in value)
    return value


def known_or_inert(module: str, name: str) -> Global:
    """A global that tensors need, or the name of another, which cannot be called."""
    try:
        return find_global(module, name)
    except PickleRefused:
        return Global(f"{module}.{name}")


def _refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{shown(path)}: {reason}: save its state dict again as safetensors.")


def _load_archive(
    descriptor: int, path: Path, identity: FileIdentity, *, forgetful: bool = False
) -> tuple[Any, dict[str, _Place]]:
    """The root object of a zip archive, and where each storage lies."""
    members, found = read_members(path)
    if found != identity:
        raise CheckpointError(changed(path))
    prefix = _prefix(members, path)
    _check_little_endian(descriptor, path, members.get(f"{prefix}byteorder"))
    pickled = members[f"{prefix}data.pkl"]
    if pickled.size > LARGEST_PICKLE_BYTES:
        raise _refusal(
            path, f"its data.pkl has {pickled.size} bytes, the limit is {LARGEST_PICKLE_BYTES}"
        )
    MemberBytes(path, pickled, identity).check()
    data = read_bytes(descriptor, path, pickled.offset, pickled.size, "data.pkl")
    places: dict[str, _Place] = {}

    def load_storage(persistent_id: Any) -> TorchStorage:
        storage = storage_of(persistent_id)
        member = members.get(f"{prefix}data/{storage.key}")
        if member is None or member.size < storage.nbytes:
            size = "no bytes" if member is None else f"only {member.size} bytes"
            raise PickleRefused(
                f"storage {shown(storage.key)} of {storage.nbytes} bytes has {size} in the archive"
            )
        if storage.key not in places:
            places[storage.key] = _Place(member.offset, MemberBytes(path, member, identity))
        return storage

    if forgetful:
        machine: PickleMachine = ForgetfulMachine(
            data, known_or_inert, load_storage, Inert("unknown")
        )
    else:
        machine = PickleMachine(data, find_global, load_storage)
    return machine.run(), places


def _prefix(members: Mapping[str, ZipMember], path: Path) -> str:
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise _refusal(path, f"the archive holds {len(pickles)} files data.pkl instead of one")
    return pickles[0].removesuffix("data.pkl")


def _check_little_endian(descriptor: int, path: Path, member: ZipMember | None) -> None:
    # Archives from before torch 2.1 do not say; they were practically always little-endian.
    if member is None:
        return
    stated = read_bytes(descriptor, path, member.offset, min(member.size, 16), "byteorder")
    if stated != b"little":
        raise _refusal(
            path, f"its byte order is {shown(stated.decode('latin-1'))}, only 'little' is supported"
        )


def _load_legacy(
    descriptor: int, path: Path, identity: FileIdentity
) -> tuple[Any, dict[str, _Place]]:
    """The root object of a file from before torch 1.6, and where each storage lies.

    Such a file is five pickles - magic number, version, facts of the system, the object, the keys
    of its storages - and then, for each key, a 64-bit count of elements and the elements.
    """
    head = read_bytes(descriptor, path, 0, min(identity.size, LARGEST_PICKLE_BYTES), "the pickles")
    if head[:1] != b"\x80":
        raise _refusal(path, "it is no file of torch.save (neither a zip archive nor a pickle)")
    storages: dict[str, TorchStorage] = {}

    def load_storage(persistent_id: Any) -> TorchStorage:
        storage = storage_of(persistent_id)
        if storages.setdefault(storage.key, storage) != storage:
            raise PickleRefused(f"storage {shown(storage.key)} is described in two ways")
        return storage

    position = 0
    parts: list[Any] = []
    for _ in range(5):
        machine = PickleMachine(head, find_global, load_storage, position)
        parts.append(machine.run())
        position = machine.position
        if parts[0] != _LEGACY_MAGIC:
            raise PickleRefused("it does not begin with torch's magic number")
    _, version, system, root, keys = parts
    if (
        version != _LEGACY_VERSION
        or not isinstance(system, dict)
        or system.get("little_endian") is not True
    ):
        raise PickleRefused(f"it is not of version {_LEGACY_VERSION} with little-endian numbers")
    if type(keys) is not list or sorted(map(str, keys)) != sorted(storages):
        raise PickleRefused("its list of storages does not match its tensors")
    return root, _legacy_offsets(descriptor, path, position, [storages[key] for key in keys])


def _legacy_offsets(
    descriptor: int, path: Path, position: int, storages: list[TorchStorage]
) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    for storage in storages:
        what = f"the size of storage {shown(storage.key)}"
        count = int.from_bytes(read_bytes(descriptor, path, position, 8, what), "little")
        itemsize = storage.dtype.itemsize if storage.dtype else 1
        if count * itemsize != storage.nbytes:
            raise PickleRefused(
                f"storage {shown(storage.key)} has {count} elements, not {storage.nbytes // itemsize}"
            )
        places[storage.key] = _Place(position + 8)
        position += 8 + storage.nbytes
    return places


def _tensors_only(value: Any) -> bool:
    return (
        type(value) is dict
        and bool(value)
        and all(type(v) is PickledTensor for v in value.values())
    )


def _state_dict(root: Any, path: Path) -> tuple[dict[Any, PickledTensor], str | None]:
    """The dict of tensors in a file, and the key it was under."""
    if type(root) is not dict:
        raise _refusal(path, f"it holds a {type(root).__name__} instead of a dict of tensors")
    if not root or _tensors_only(root):
        return root, None
    odd = next((key for key, value in root.items() if type(value) is not PickledTensor), None)
    if any(type(value) is PickledTensor for value in root.values()):
        kind = type(root[odd]).__name__
        raise _refusal(path, f"beside tensors it holds {shown(odd)}, a {kind}")
    wrappers = [key for key in _WRAPPERS if _tensors_only(root.get(key))]
    if len(wrappers) != 1:
        holders = [key for key, value in root.items() if _tensors_only(value)]
        raise _refusal(
            path,
            f"it is a dict of {shown(', '.join(map(str, root)))} in which the model's tensors cannot be told "
            f"(dicts of tensors: {shown(', '.join(map(str, holders))) if holders else 'none'})",
        )
    return root[wrappers[0]], wrappers[0]


def _stored(
    state: Mapping[Any, PickledTensor],
    places: Mapping[str, _Place],
    path: Path,
    identity: FileIdentity,
) -> list[StoredTensor]:
    tensors: list[StoredTensor] = []
    for name, found in state.items():
        if type(name) is not str or not is_printable_name(name):
            raise _refusal(
                path, f"a tensor has the name {shown(name)}, which is not printable text"
            )
        place = places[found.storage.key]
        offset = place.offset + found.offset
        end = (
            offset
            + (span_elements(found.shape, found.strides or contiguous_strides(found.shape)))
            * found.dtype.itemsize
        )
        if end > identity.size:
            raise CheckpointError(
                f"{shown(path)}: tensor {shown(name)} needs bytes up to {end}, but the file has {identity.size}: "
                "it is truncated, fetch it again."
            )
        tensors.append(
            StoredTensor(
                name,
                found.dtype,
                found.shape,
                path,
                offset,
                found.strides,
                identity,
                place.member,
            )
        )
    return tensors
