"""The folders that a model's parts lie in, as a list at its top names them.

modules.json       a sentence encoder's modules (sentence-transformers); those that choose between others (`Router`,
                   `Asym`) name the folders of these in a configuration of their own
model_index.json   an image model's components (diffusers)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weightsmith.errors import CheckpointError
from weightsmith.tensors import NotJson, loads_json, read_small, shown

_MODULES, _COMPONENTS = "modules.json", "model_index.json"
_CHOOSERS = ("router_config.json", "config.json")
_LARGEST_BYTES = 20_000_000
_PLAIN = re.compile(r"[^/\\:\x00-\x1f\x7f]+")
# A module's folder is part of a model but for weights and code.
_SETTINGS = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_INDEX = ".index.json"


def module_folders(folder: Path) -> tuple[str, ...]:
    """The folders inside `folder` that its parts lie in, by name, in the order of the list; empty without one.

    Raises CheckpointError for a list that cannot be read, or that leads out of the folder.
    """
    # Most folders have neither list, which one look at the folder tells.
    present = os.listdir(folder) if folder.is_dir() else []
    names: dict[str, None] = {}
    if _MODULES in present:
        for own in _modules(folder / _MODULES):
            names.update(dict.fromkeys([own, *_chosen(folder, own)]))
    elif _COMPONENTS in present:
        names.update(dict.fromkeys(_components(folder / _COMPONENTS)))
    return tuple(name for name in names if name and (folder / name).is_dir())


def _modules(file: Path) -> Iterator[str]:
    listed = _read(file)
    if not isinstance(listed, list):
        raise CheckpointError(f"{shown(file)} is no list of modules: fetch it again.")
    for module in listed:
        path = module.get("path", "") if isinstance(module, dict) else None
        if not isinstance(path, str):
            raise CheckpointError(
                f"{shown(file)} is no list of modules with paths: fetch it again."
            )
        yield _inside(path, file)


def _components(file: Path) -> Iterator[str]:
    """Every key whose value is a library and a class; settings of the pipeline have others."""
    listed = _read(file)
    if not isinstance(listed, dict):
        raise CheckpointError(f"{shown(file)} is no list of components: fetch it again.")
    for name, value in listed.items():
        if isinstance(value, list) and len(value) == 2:
            yield _inside(name, file)


def module_settings(folder: Path) -> Iterator[str]:
    """The files of the modules' folders, but for weights and code, by name from `folder` on."""
    for name in module_folders(folder):
        for file in sorted((folder / name).iterdir()):
            if file.suffix in _SETTINGS and not file.name.endswith(_INDEX):
                yield f"{name}/{file.name}"


def _chosen(folder: Path, name: str) -> Iterator[str]:
    """The folders of the modules that a module of the folder `name` chooses between."""
    for file in (folder / name / config for config in _CHOOSERS):
        if not file.is_file() or (not name and file.name == "config.json"):
            continue
        settings = _read(file)
        structure = settings.get("structure") if isinstance(settings, dict) else None
        for route in structure.values() if isinstance(structure, dict) else ():
            for module in route if isinstance(route, list) else ():
                if isinstance(module, str):
                    yield _inside("/".join(part for part in (name, module) if part), file)


def _inside(path: str, stated_by: Path) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or not all(map(_PLAIN.fullmatch, parts)):
        raise CheckpointError(
            f"{shown(stated_by)} names the folder {shown(path)}, which does not lead straight into its own: fetch the "
            "checkpoint again from a source you trust."
        )
    return "/".join(parts)


def _read(file: Path) -> Any:
    try:
        return loads_json(read_small(file, _LARGEST_BYTES))
    except OSError as problem:
        raise CheckpointError(
            f"{shown(file)} cannot be read ({problem.strerror}): check that it is a readable file."
        ) from None
    except NotJson as problem:
        raise CheckpointError(
            f"{shown(file)} {str(problem).removeprefix('it ')}: fetch it again."
        ) from None
