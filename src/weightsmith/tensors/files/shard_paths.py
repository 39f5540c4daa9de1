"""File names that a checkpoint itself states (in an index, say), kept inside the checkpoint's
folder.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from weightsmith.errors import CheckpointError
from weightsmith.tensors.files.links import may_lead_to, way_out
from weightsmith.tensors.messages import is_printable_name, shown


def resolve_inside(folder: Path, name: str, stated_by: Path, suffixes: tuple[str, ...]) -> Path:
    """The path of file `name` of a checkpoint folder, checked by the rules of POSIX and of Windows.

    The name must end in one of `suffixes`, and neither it nor the links that it follows may leave
    the folder but for the places of `links`. `stated_by` is the file that states the name, for messages. Raises
    `CheckpointError`.
    """
    problem = _problem_of_name(name, suffixes)
    if problem:
        raise CheckpointError(
            f"{shown(stated_by)} names the file {shown(name)}, which {problem}: fetch the checkpoint again "
            "from a source you trust."
        )
    path = folder / name
    try:
        real = Path(os.path.realpath(path, strict=True))
        root = Path(os.path.realpath(folder, strict=True))
    except OSError as error:
        raise CheckpointError(
            f"{shown(stated_by)} names the file {shown(name)}, which is missing or cannot be reached "
            f"({error.strerror}): fetch that file."
        ) from error
    if not may_lead_to(real, root):
        raise CheckpointError(f"{shown(path)} {way_out(path)}.")
    return path


def _problem_of_name(name: str, suffixes: tuple[str, ...]) -> str | None:
    if not is_printable_name(name):
        return "is empty or holds control characters"
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.drive or windows.root or ":" in name:
        return "is an absolute path or names a drive"
    if "\\" in name:
        return "holds a backslash"
    if ".." in posix.parts or posix.as_posix() != name:
        return "does not lead straight into the folder"
    if posix.suffix not in suffixes:
        return f"does not end in {' or '.join(suffixes)}"
    return None
