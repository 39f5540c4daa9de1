"""The folders of a sentence encoder's modules, which `modules.json` names (sentence-transformers).

Modules that choose between others (`Router`, `Asym`) name the folders of these in a configuration of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weightsmith.errors import CheckpointError
from weightsmith.tensors import NotJson, loads_json, read_small, shown

MODULES = "modules.json"
_CHOOSERS = ("router_config.json", "config.json")
_LARGEST_BYTES = 20_000_000
_PLAIN = re.compile(r"[^/\\:\x00-\x1f\x7f]+")
# A module's folder is part of a model but for weights and code.
_SETTINGS = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_INDEX = ".index.json"


def module_folders(folder: Path) -> tuple[str, ...]:
    """The folders inside `folder` that its modules lie in, by name, in the order of the modules; empty without any.

    Raises CheckpointError for a list of modules that cannot be read, or that leads out of the folder.
    """
    if not (folder / MODULES).is_file():
        return ()
    names: dict[str, None] = {}
    listed = _read(folder / MODULES)
    if not isinstance(listed, list):
        raise CheckpointError(f"{shown(folder / MODULES)} is no list of modules: fetch it again.")
    for module in listed:
        path = module.get("path", "") if isinstance(module, dict) else None
        if not isinstance(path, str):
            raise CheckpointError(
                f"{shown(folder / MODULES)} is no list of modules with paths: fetch it again."
            )
        own = _inside(path, folder / MODULES)
        names.update(dict.fromkeys([own, *_chosen(folder, own)]))
    return tuple(name for name in names if name and (folder / name).is_dir())


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
