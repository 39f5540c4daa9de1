"""What folders of every kind are told apart by: the name of one file, looked for once."""

from __future__ import annotations

from pathlib import Path

BUNDLE_HEADER = "weightsmith-bundle.json"
PACKAGE_HEADER = "weightsmith-delta.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a task bundle."""
    return (folder / BUNDLE_HEADER).is_file()


def is_package(folder: Path) -> bool:
    """Whether a folder is a delta package."""
    return (folder / PACKAGE_HEADER).is_file()
