"""A package as an ordinary checkpoint again, with a manifest of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weightsmith.checkpoints import Checkpoint, find_location, open_checkpoint, read_package_header
from weightsmith.engine import Manifest, Plan, make_plan, run
from weightsmith.packages.carried import check_files
from weightsmith.progress import Progress
from weightsmith.recipes import Recipe
from weightsmith.tensors import read_bytes


def unpack(
    package: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    force: bool = False,
    fresh: bool = False,
    progress: Progress | None = None,
    **machine: Any,
) -> Manifest:
    """Write the checkpoint that a package decodes to into the folder `out` and return its manifest.

    It is a passthrough merge: planned, resumed, verified and replayed like any other; `machine` are options of
    `make_plan`. `base` is where the base lies now. Every tensor must come out with the digest that the package has on
    record, without loss the fine-tune's own. Raises CheckpointError for a package that is damaged and for another base,
    naming the first tensor that differs, and what merging raises.
    """
    location = find_location(package)
    header = read_package_header(location.path)
    check_files(location.path, dict(header.files))
    opened = open_checkpoint(package, base=base)
    check_in_order(opened)
    made = copy_plan(opened, str(package), **machine)
    # Of tensors that are tied one is written.
    expected = {output.name: header.tensors[output.name].digest for output in made.resolved.outputs}
    return run(made, Path(out), force=force, fresh=fresh, progress=progress, expected=expected)


def copy_plan(opened: Checkpoint, reference: str, **machine: Any) -> Plan:
    """The plan of copying an opened checkpoint as it is read, `reference` being what the record calls it."""
    recipe = Recipe.load(
        {
            "weightsmith": 1,
            "merge_method": "passthrough",
            "models": [{"model": {"model": {"path": reference}}}],
        }
    )
    return make_plan(recipe, opener=lambda _: opened, **machine)


def check_in_order(opened: Checkpoint) -> None:
    """Compare base and streams with their digests, tensor by tensor, by asking for each tensor's first element.

    Its first block is decoded as well, so that a forged header is found before anything is written. Raises
    CheckpointError for the first tensor that differs.
    """
    for tensor in opened.tensors.values():
        if tensor.numel:
            read_bytes(tensor, 0, 1)
