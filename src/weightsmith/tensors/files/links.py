"""Where links of a checkpoint may lead: within its folder, into a Hub cache, and where the user says.

Links lead into a cache from its own snapshots, from folders that older versions of huggingface_hub filled, and from
farms of links. A checkpoint is a stranger's, so any other place is one that nobody asked for.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from weightsmith.tensors.messages import shown

VARIABLE = "WEIGHTSMITH_LINKS"
# Blobs are called by their SHA-1 or SHA-256.
_BLOB = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def may_lead_to(target: Path, folder: Path) -> bool:
    """Whether a file of `folder` may be a link to `target`; both are real paths.

    It may lie in the folder, in the `blobs` of the model whose snapshot the folder is in, for a folder outside of all
    caches in the `blobs` or `snapshots` of any model in a Hub cache, and in a folder that the environment names
    (`WEIGHTSMITH_LINKS`, several as in PATH).
    """
    if target.is_relative_to(folder) or any(target.is_relative_to(told) for told in _told()):
        return True
    model = _model_of_snapshot(folder)
    if model is not None:
        return target.parent == model / "blobs"
    in_blobs = target.parent.name == "blobs" and _BLOB.fullmatch(target.name) is not None
    return (in_blobs and _is_model(target.parent.parent)) or _model_of_snapshot(target) is not None


def way_out(file: Path) -> str:
    """What is wrong with a link that is not followed, and what to do, to stand behind its name in a message."""
    if not file.exists():
        return "is a link that leads nowhere: fetch the file"
    real = Path(os.path.realpath(file))
    if not file.is_file() and real.is_relative_to(os.path.realpath(file.parent)):
        return "is no regular file: put the file itself there"
    return (
        f"is a link that leaves its folder, to {shown(real)}: put the file itself there, or name the folder that it "
        f"leads into in the environment variable {VARIABLE}"
    )


def _told() -> list[Path]:
    places = os.environ.get(VARIABLE, "").split(os.pathsep)
    return [Path(os.path.realpath(os.path.expanduser(place))) for place in places if place]


def _model_of_snapshot(path: Path) -> Path | None:
    """The folder in a Hub cache of the model that a path is in a snapshot of."""
    for parent in (path, *path.parents):
        if parent.parent.name == "snapshots" and _is_model(parent.parent.parent):
            return parent.parent.parent
    return None


def _is_model(folder: Path) -> bool:
    return folder.name.startswith("models--")
