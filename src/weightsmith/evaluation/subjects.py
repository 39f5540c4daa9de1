"""What is evaluated: a checkpoint, or a recipe whose merged tensors are made in memory and never written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.adapters import open_model
from weightsmith.engine import make_plan, merge_in_memory, refuse_free
from weightsmith.errors import UsageError
from weightsmith.live import LiveMerge, check_config
from weightsmith.progress import Progress
from weightsmith.recipes import Recipe, is_recipe_file
from weightsmith.tensors import LazyTensor, checkpoint_digest, digest_tensor
from weightsmith.vocabularies import carried_files


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """Tensors under the names of the files, the configuration, and the other files by name (tokenizer, pooling...).

    `digest` is over all of these, so a recipe has that of the checkpoint it would write.
    """

    name: str
    tensors: Mapping[str, LazyTensor]
    config: Mapping[str, Any]
    files: Mapping[str, bytes]
    digest: str


def open_subject(
    given: str | Path | Recipe,
    *,
    threads: int | None = None,
    memory_bytes: int | None = None,
    progress: Progress | None = None,
) -> Subject:
    """A checkpoint (folder, `BASE+ADAPTER`, `BUNDLE#TASK`, Hub id), or a recipe (a YAML file or a Recipe).

    A recipe is merged in memory.

    `threads` and `memory_bytes` bound the merge as they do in `weightsmith.merge`; the result itself is held in
    memory on top. Raises UsageError for a checkpoint without a config.json, and what opening and merging raise.
    """
    if isinstance(given, Recipe) or is_recipe_file(given):
        recipe = given if isinstance(given, Recipe) else Recipe.load(given)
        name = f"recipe {recipe.digest()[:19]}" if isinstance(given, Recipe) else str(given)
        return _merged(recipe, name, threads, memory_bytes, progress)
    checkpoint = open_model(given)
    check_config(str(given), checkpoint.config)
    checkpoint.require_own_files()
    digests = {name: digest_tensor(tensor) for name, tensor in checkpoint.tensors.items()}
    return _subject(
        str(given),
        checkpoint.tensors,
        checkpoint.config or {},
        carried_files(checkpoint),
        checkpoint_digest(digests),
    )


def merge_as_subject(merge: LiveMerge, device: str) -> Subject:
    """What a merge that runs is at its present values.

    Raises UsageError for one on another device, or one that does not compute in float32, as scores are taken.
    """
    model = merge.model
    precision = str(model.dtype).removeprefix("torch.")
    if (model.device, precision) != (device, "float32"):
        raise UsageError(
            f"Scores are taken in float32 on {device}, but the network of {model.name!r} is in {precision} on "
            f"{model.device}; make it so, or name its device."
        )
    return _subject(model.name, model.source.tensors, model.config, model.files, merge.digest)


def _merged(
    recipe: Recipe,
    name: str,
    threads: int | None,
    memory_bytes: int | None,
    progress: Progress | None,
) -> Subject:
    options: dict[str, Any] = {} if memory_bytes is None else {"memory_bytes": memory_bytes}
    plan = make_plan(recipe, threads=threads, **options)
    refuse_free(plan, "merge it into a folder with --values FILE and evaluate that")
    merge = merge_in_memory(plan, progress)
    check_config(name, merge.companions.config)
    return _subject(
        name, merge.tensors, merge.companions.config or {}, merge.companions.files, merge.digest
    )


def _subject(
    name: str,
    tensors: Mapping[str, LazyTensor],
    config: Mapping[str, Any],
    files: Mapping[str, bytes],
    weights: str,
) -> Subject:
    companions = {path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())}
    text = json.dumps([weights, config, companions], sort_keys=True)
    digest = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    return Subject(name, tensors, config, files, digest)
