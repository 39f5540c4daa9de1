"""The metadata of a merged file: what the config source's file says of itself, but for what is no longer so.

Files of image models have their own record there: `modelspec.*` (title, author, licence, resolution, architecture,
prediction type) and the `ss_*` of their training, which interfaces read to tell what a file is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from weightsmith.recipes import Resolved
from weightsmith.tensors import DEFAULT_METADATA

# Hashes over the tensors as they were, and records of this project about the file they stood in.
_NO_LONGER = re.compile(r"modelspec\.(?:hash_sha256|merged_from)|sshs_.*|weightsmith.*")
_TITLE, _MERGED_FROM = "modelspec.title", "modelspec.merged_from"


def carried_metadata(resolved: Resolved) -> Mapping[str, str]:
    """The metadata of a result's main set; `modelspec.merged_from` names the models where there are such fields."""
    source = resolved.checkpoints[resolved.config_source].metadata
    kept = {key: value for key, value in source.items() if not _NO_LONGER.fullmatch(key)}
    if any(key.startswith("modelspec.") for key in kept):
        labels = dict.fromkeys((resolved.config_source, *resolved.checkpoints))
        titles = [resolved.checkpoints[one].metadata.get(_TITLE) or _plain(one) for one in labels]
        kept[_MERGED_FROM] = ", ".join(dict.fromkeys(titles))
    # Libraries write metadata in any order; the same merge is the same bytes.
    return dict(sorted({**kept, **DEFAULT_METADATA}.items()))


def _plain(label: str) -> str:
    """The name of a model without the folders that it lies in."""
    return label.rstrip("/").rpartition("/")[2].removesuffix(".safetensors")
