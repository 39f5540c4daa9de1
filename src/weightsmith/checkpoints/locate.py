"""From what a user wrote - a path or a Hub id - to a folder or file on this machine."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightsmith.checkpoints.recognition import is_bundle
from weightsmith.errors import CheckpointError
from weightsmith.tensors import expanded, read_weight_map, shown

if TYPE_CHECKING:
    from collections.abc import Callable

_HUB_ID = re.compile(
    r"^(?:hf://(?:models/)?)?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>[\w./-]+))?$"
)
_TRUE_WORDS = frozenset({"1", "ON", "YES", "TRUE"})
_METADATA_PATTERNS = ["*.json", "*.model", "*.txt", "*.jinja", "*.md"]


@dataclass(frozen=True, slots=True)
class Location:
    """Where a checkpoint lies, its Hub id and commit if it came from there, and which task of a bundle it is."""

    path: Path
    hub_id: str | None = None
    revision: str | None = None
    task: str | None = None


def member_of(reference: str | Path) -> tuple[Path, str] | None:
    """The bundle and the task that `BUNDLE#TASK` names, or None if it names none."""
    text = str(reference)
    if "#" not in text or expanded(text).exists():
        return None
    for at in (at for at, character in enumerate(text) if character == "#" and at > 0):
        folder = expanded(text[:at])
        if is_bundle(folder):
            return folder.resolve(), text[at + 1 :]
    return None


def find_location(path: str | Path) -> Location:
    """Resolve a local path (`~` expanded), a task of a bundle, or a Hub id `owner/name[@revision]`.

    Anything that exists locally is local. A Hub id is first looked for in the local cache and only
    downloaded where HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE allow it.
    Raises CheckpointError where nothing is found.
    """
    try:
        member = member_of(path)
        if member is not None:
            return Location(member[0], task=member[1])
        local = expanded(path)
        if local.exists():
            return Location(local.resolve() if local.is_dir() else local.absolute())
    except OSError as error:
        raise CheckpointError(
            f"{shown(path)} is no path ({error.strerror}): give a folder or a file."
        ) from None
    except ValueError:
        raise CheckpointError(
            f"{shown(path)} is no path (it holds a zero byte): give a folder or a file."
        ) from None
    hub = _HUB_ID.match(str(path))
    if hub is None or str(path).startswith((".", "/", "~")):
        raise CheckpointError(
            f"No checkpoint is at {shown(path)}: give a folder, a weights file, or a Hub id such "
            "as owner/name."
        )
    return _from_hub(hub["repo"], hub["revision"])


def _from_hub(repo: str, revision: str | None) -> Location:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{shown(repo)} is not a local path, and Hub ids need the package huggingface_hub: "
            "install it (`pip install huggingface_hub`), or give a local folder."
        ) from None
    folder = _attempt(snapshot_download, repo, revision, local_only=True)
    if folder is None or not _has_weights(folder):
        if _is_offline():
            raise CheckpointError(
                f"{shown(repo)} is neither a local path nor complete in the local Hub cache, and "
                "HF_HUB_OFFLINE forbids downloading it: unset that, or give a local folder."
            )
        folder = _attempt(snapshot_download, repo, revision, local_only=False)
    if folder is None:
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{shown(repo)}{at} is neither a local path nor a model that could be downloaded: "
            "check the name, the network and the token in HF_TOKEN, or give a local folder."
        )
    return Location(folder, repo, folder.name)


def _attempt(
    download: Callable[..., str], repo: str, revision: str | None, *, local_only: bool
) -> Path | None:
    """The snapshot's folder; the safetensors files and, only where there are none, the pickles."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    folder: Path | None = None
    for weights in ("*.safetensors", "*.bin"):
        try:
            found = download(
                repo,
                revision=revision,
                local_files_only=local_only,
                allow_patterns=[*_METADATA_PATTERNS, weights],
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
            return None
        folder = Path(found)
        if _has_weights(folder):
            break
    return folder


def _has_weights(folder: Path) -> bool:
    """Whether weights are there, and every shard that an index names: snapshots may be partial."""
    for index in folder.glob("*.index.json"):
        if not all((folder / shard).is_file() for shard in read_weight_map(index).values()):
            return False
    return any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "*.bin"))


def _is_offline() -> bool:
    from huggingface_hub import constants

    words = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return bool(constants.HF_HUB_OFFLINE) or any(word.upper() in _TRUE_WORDS for word in words)
