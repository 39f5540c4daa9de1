"""Weights in other files of a folder than its main set: those of modules, heads and projectors, and copies.

A tensor of such a file is one of the checkpoint, called FILE/NAME (`naming.beside`). What is a second set of the same
weights, or no flat dict of tensors, is neither read nor copied, and said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightsmith.checkpoints.copied_files import is_inside
from weightsmith.checkpoints.formats.weights import PICKLES, read_weights, weight_files
from weightsmith.checkpoints.recognition import ADAPTER_WEIGHTS
from weightsmith.deltas import renamed
from weightsmith.errors import CheckpointError
from weightsmith.findings import Finding, Severity
from weightsmith.naming import beside, beside_name
from weightsmith.tensors import (
    LazyTensor,
    StoredTensor,
    read_weight_map,
    shown,
    way_out,
)
from weightsmith.wording import counted

# What libraries look for first in the folder of a part; the last is diffusers'.
_STANDARD, _DIFFUSERS = "model.safetensors", "diffusion_pytorch_model.safetensors"
_DIFFUSERS_PICKLE = "diffusion_pytorch_model.bin"
_INDICES = ("*.safetensors.index.json", "*.bin.index.json")
# Names of whole sets, and formats of other libraries.
_SET = re.compile(
    r"(?:(?:diffusion_)?pytorch_model|model|consolidated|flax_model|tf_model)\b.*"
    r"|.*\.(?:fp16|bf16|fp32|ema|non_ema)\.\w+"
)
_OTHER_LIBRARIES = (".h5", ".msgpack", ".ot", ".onnx", ".gguf")
# What trainers and exporters leave in folders of their own is no part of the model there.
_NOT_OF_THE_MODEL = re.compile(r"\.|checkpoint-|global_step|runs$|logs?$|onnx$|openvino$")
_MOST_NAMES = 3


@dataclass(frozen=True, slots=True)
class SideFiles:
    """The tensors of a folder's other files of weights by FILE/NAME, and what is to be said of those left out."""

    tensors: Mapping[str, LazyTensor]
    findings: tuple[Finding, ...] = ()


def find_side_files(
    folder: Path, main: Path | None, parts: Sequence[str], names: Collection[str], identity: str
) -> SideFiles:
    """Read the headers of what lies beside the main set, whose file or index is `main` and whose tensors have `names`.

    `parts` are the folders that a list of modules or components names. Raises CheckpointError for a file of such a
    part that is damaged or leads out of the folder.
    """
    tensors: dict[str, LazyTensor] = {}
    copies: list[str] = []
    unread: dict[str, str] = {}
    for file in _others(folder, main):
        if _is_copy(file, folder):
            copies.append(file.name)
            continue
        try:
            own = _read(file, folder)
        except CheckpointError as problem:
            unread[file.name] = str(problem)
            continue
        if 2 * sum(tensor.name in names for tensor in own) > len(names):
            copies.append(file.name)
        else:
            tensors.update(_named(own, file.name))
    for module in parts:
        tensors.update(_of_module(folder, module, main, copies))
    elsewhere = _elsewhere(folder, parts)
    return SideFiles(tensors, tuple(_findings(identity, main, copies, unread, elsewhere)))


def _others(folder: Path, main: Path | None) -> list[Path]:
    """The files of weights at the top of a folder that are none of its main set."""
    if main is None:
        return []
    taken = {main.name}
    if main.name.endswith(".index.json"):
        taken |= set(read_weight_map(main).values())
    found = weight_files(folder, (".safetensors", *PICKLES, *_OTHER_LIBRARIES))
    adapters = [folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()]
    return [file for file in (*found, *adapters) if file.name not in taken]


def _is_copy(file: Path, folder: Path) -> bool:
    """Whether a file is one of a second set of weights by its name, or by an index that lists it."""
    if file.suffix in _OTHER_LIBRARIES or _SET.fullmatch(file.name) or file.name in ADAPTER_WEIGHTS:
        return True
    indices = (index for pattern in _INDICES for index in folder.glob(pattern))
    return any(file.name in read_weight_map(index).values() for index in indices)


def _read(file: Path, folder: Path) -> list[StoredTensor]:
    if not is_inside(file, folder):
        raise CheckpointError(f"{shown(file)} {way_out(file)}")
    if file.suffix in PICKLES:
        from weightsmith.tensors import parse_torch_file

        found = parse_torch_file(file)
        if found.wrapper is not None:
            raise CheckpointError(f"{shown(file)} holds more than tensors by name")
        return found.tensors
    return read_weights(file).tensors


def _named(tensors: Iterable[StoredTensor], file: str) -> dict[str, LazyTensor]:
    names = {beside_name(file, tensor.name): tensor for tensor in tensors}
    if any(beside(name) != (file, tensor.name) for name, tensor in names.items()):
        raise CheckpointError(
            f"The name of the file {shown(file)} cannot be told from those of its tensors: rename it."
        )
    return {name: renamed(tensor, name) for name, tensor in names.items()}


def _of_module(
    folder: Path, module: str, main: Path | None, copies: list[str]
) -> dict[str, LazyTensor]:
    """The tensors of one part, called as if they lay in the one file that its library looks for first."""
    place = folder / module
    index = [file for pattern in _INDICES for file in sorted(place.glob(pattern))]
    files = weight_files(place, (".safetensors", *PICKLES))
    usual = (_STANDARD, _DIFFUSERS, *_names(index), "pytorch_model.bin", _DIFFUSERS_PICKLE)
    standard = [place / name for name in usual]
    chosen = next((file for file in standard if file.is_file()), None)
    if chosen is None:
        read = [file for file in files if file != main]
        return {
            name: tensor
            for file in read
            for name, tensor in _named(_of_folder(file, folder), f"{module}/{file.name}").items()
        }
    shards = set(read_weight_map(chosen).values()) if chosen in index else {chosen.name}
    copies += [f"{module}/{file.name}" for file in files if file.name not in shards]
    called = _DIFFUSERS if chosen.name.startswith("diffusion_") else _STANDARD
    return _named(_of_folder(chosen, folder), f"{module}/{called}")


def _names(files: Iterable[Path]) -> list[str]:
    return [file.name for file in files]


def _of_folder(file: Path, folder: Path) -> list[StoredTensor]:
    if not is_inside(file, folder):
        raise CheckpointError(f"{shown(file)} {way_out(file)}.")
    return read_weights(file).tensors


def _elsewhere(folder: Path, parts: Sequence[str]) -> list[str]:
    """The folders with weights that no list of modules names."""
    known = {name.partition("/")[0] for name in parts}
    with os.scandir(folder) as entries:
        folders = [
            entry.name
            for entry in entries
            if entry.is_dir()
            and entry.name not in known
            and not _NOT_OF_THE_MODEL.match(entry.name)
        ]
    endings = (".safetensors", *PICKLES)
    return sorted(name for name in folders if weight_files(folder / name, endings))


def _findings(
    identity: str,
    main: Path | None,
    copies: list[str],
    unread: Mapping[str, str],
    elsewhere: list[str],
) -> Iterator[Finding]:
    if copies:
        chosen = "" if main is None else f" ({shown(main.name)} is)"
        yield Finding(
            Severity.NOTE,
            "second-set",
            identity,
            f"{identity} has other sets of weights beside the one that is merged{chosen}, which are neither read nor "
            f"copied: {_some(copies)}",
            "remove what is left over, or give the file itself if it is the one that you mean",
        )
    for name, reason in unread.items():
        yield Finding(
            Severity.WARNING,
            "side-file",
            identity,
            f"{identity} has {shown(name)} beside its weights, which is neither merged nor copied, since "
            f"{reason.rstrip('.')}",
            "save its tensors alone, by name, or copy it into the result by hand",
        )
    if elsewhere:
        yield Finding(
            Severity.NOTE,
            "side-file",
            identity,
            f"{identity} has weights in {counted(len(elsewhere), 'folder')} that no modules.json names, which are "
            f"neither read nor copied: {_some(elsewhere)}",
            "merge these folders too, if they belong to the model",
        )


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    listed = ", ".join(map(shown, names[:_MOST_NAMES]))
    return f"{listed} and {more} more" if more > 0 else listed
