"""What a network is made from: tensors as files name them, a configuration, and the files beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weightsmith.adapters import open_model
from weightsmith.errors import UsageError
from weightsmith.tensors import LazyTensor
from weightsmith.vocabularies import carried_files


class Source(Protocol):
    """Anything that has weights for a network: a checkpoint, or a merge in memory."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Tensors under the names of the files."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of config.json."""
        ...

    @property
    def files(self) -> Mapping[str, bytes]:
        """The other files by name (tokenizer, pooling...)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ModelSource:
    """A `Source` of its parts."""

    name: str
    tensors: Mapping[str, LazyTensor]
    config: Mapping[str, Any]
    files: Mapping[str, bytes]

    @classmethod
    def like(cls, source: Source, tensors: Mapping[str, LazyTensor]) -> ModelSource:
        """The same network with other tensors."""
        return cls(source.name, tensors, source.config, source.files)


def open_source(given: str | Path) -> ModelSource:
    """A checkpoint (folder, `BASE+ADAPTER`, `BUNDLE#TASK`, Hub id) as what a network is made from; no weight is read.

    Raises UsageError without a usable config.json, and what opening checkpoints raises.
    """
    checkpoint = open_model(given)
    check_config(str(given), checkpoint.config)
    checkpoint.require_own_files()
    return ModelSource(
        str(given), checkpoint.tensors, checkpoint.config or {}, carried_files(checkpoint)
    )


def check_config(name: str, config: Mapping[str, Any] | None) -> None:
    """Raise UsageError where a configuration says nothing of a network, or of one whose tensors are packed."""
    if config is None:
        raise UsageError(
            f"{name!r} has no config.json, so its network is unknown; give a checkpoint folder with one."
        )
    if config.get("quantization_config"):
        raise UsageError(
            f"{name!r} is quantised, and its packed tensors cannot be evaluated; give the checkpoint it was made from."
        )
