"""Which files of a folder hold its weights, and the tensors that their headers list."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from weightsmith.checkpoints.copied_files import is_inside
from weightsmith.checkpoints.recognition import ADAPTER_WEIGHTS
from weightsmith.errors import CheckpointError
from weightsmith.naming import natural_key
from weightsmith.tensors import StoredTensor, shown, way_out

PICKLES = (".bin", ".pth", ".pt", ".ckpt")
# Pickles that trainers leave beside the weights.
_TRAINING_STATE = (
    "training_args",
    "optimizer",
    "scheduler",
    "scaler",
    "rng_state",
    "random_states",
)


class BareAdapter(CheckpointError):
    """An adapter where a checkpoint must stand; `path` is where it lies, `weights` its file."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.weights = path
        if path.is_dir():
            names = (path / name for name in ADAPTER_WEIGHTS)
            self.weights = next((file for file in names if file.exists()), path)
        super().__init__(
            f"{identity} is an adapter, which is no model of its own: write it behind its base, as "
            f"BASE+{identity[1:-1]}, or look at it with `weightsmith adapter inspect`."
        )


def find_weights(folder: Path) -> Path:
    """The file that the weights are read from: an index of shards, or the one file of weights.

    safetensors files win over pickles, and the standard names over others.
    Raises CheckpointError where there is none, several and no index, or a link that leaves the
    folder.
    """
    weights = _choose(folder)
    if not is_inside(weights, folder):
        raise CheckpointError(f"{shown(weights)} {way_out(weights)}.")
    return weights


def _is_weights(file: Path) -> bool:
    return file.suffix in (".safetensors", *PICKLES)


def has_weights(folder: Path) -> bool:
    """Whether a folder has a file of weights, or an index of such, at its top."""
    return bool(
        weight_files(folder, (".safetensors", *PICKLES)) or any(folder.glob("*.index.json"))
    )


def _choose(folder: Path) -> Path:
    for candidates in _candidates(folder):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = ", ".join(shown(file.name) for file in candidates[:3])
            raise CheckpointError(
                f"{shown(folder)} holds {len(candidates)} weight files ({names}, ...) and nothing "
                "that says which belong together: give one of them, or add the index of the shards."
            )
    if any((folder / adapter).exists() for adapter in ADAPTER_WEIGHTS):
        raise BareAdapter(folder, shown(folder))
    broken = next((f for f in sorted(folder.iterdir()) if _is_weights(f) and not f.exists()), None)
    if broken is not None:
        raise CheckpointError(f"{shown(broken)} {way_out(broken)}.")
    raise CheckpointError(_nothing_found(folder))


def _candidates(folder: Path) -> Iterator[list[Path]]:
    """What may be the main set, standard names first: a head in a safetensors file is none beside pytorch_model.bin."""
    for standard, index in (
        ("model.safetensors", "*.safetensors.index.json"),
        ("pytorch_model.bin", "*.bin.index.json"),
    ):
        yield [folder / standard] if (folder / standard).is_file() else []
        yield sorted(folder.glob(index))
    for endings in ((".safetensors",), PICKLES):
        yield weight_files(folder, endings)


@dataclass(frozen=True, slots=True)
class ListedWeights:
    """What the headers of a weights file say: its tensors, and the metadata that a safetensors file may have."""

    tensors: list[StoredTensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_weights(file: Path) -> ListedWeights:
    """The tensors that a weights file or an index of shards lists, from headers alone, each of which is parsed once.

    Raises CheckpointError for damaged or hostile files and for formats that are not read.
    """
    if file.name.endswith(".index.json"):
        from weightsmith.tensors import read_index

        return ListedWeights(read_index(file))
    if file.suffix == ".safetensors":
        from weightsmith.tensors import parse_file

        header = parse_file(file)
        return ListedWeights(header.tensors, header.metadata)
    if file.suffix in PICKLES:
        from weightsmith.tensors import read_torch_file

        return ListedWeights(read_torch_file(file))
    raise CheckpointError(
        f"{shown(file)} is of no format that is read here: give a safetensors file, a torch "
        f"state dict ({', '.join(PICKLES)}), or a folder with either."
    )


def weight_files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files at the top of a folder with one of these endings, without adapters and trainers' state."""
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if os.path.splitext(entry.name)[1] in endings
            and entry.name not in ADAPTER_WEIGHTS
            and not entry.name.startswith(_TRAINING_STATE)
            and entry.is_file()
        ]
    return [folder / name for name in sorted(names, key=natural_key)]


def _nothing_found(folder: Path) -> str:
    others = sorted(file.name for file in folder.iterdir() if file.is_file())[:5]
    found = f"it holds {', '.join(shown(name) for name in others)}" if others else "it is empty"
    return (
        f"{shown(folder)} has no weights that can be read ({found}): give a folder with "
        "safetensors files or pytorch_model.bin."
    )
