"""Writing an adapter in one of the dialects that other programs read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from weightsmith.checkpoints import Checkpoint
from weightsmith.deltas import Matrix
from weightsmith.errors import OutputError, UsageError
from weightsmith.lora.diffusers_writing import diffusers_files
from weightsmith.lora.kohya_writing import kohya_files
from weightsmith.lora.low_rank_adapters import LowRankAdapter
from weightsmith.lora.peft_writing import peft_files
from weightsmith.lora.storing import SUFFIX, Files, check_place, put
from weightsmith.publishing import refuse_inputs
from weightsmith.tensors import expanded, shown

Dialect = Literal["peft", "kohya", "diffusers"]


def write_adapter(
    adapter: LowRankAdapter,
    out: str | Path,
    dialect: Dialect = "peft",
    *,
    base: Checkpoint | None = None,
    force: bool = False,
    reads: Sequence[Path] = (),
    magnitudes: Mapping[str, Matrix] | None = None,
    component: str | None = None,
    task: str | None = None,
) -> None:
    """Write `adapter` to `out`, which then is there whole or not at all.

        peft       a folder with adapter_config.json and adapter_model.safetensors
        kohya      one file
        diffusers  a folder with pytorch_lora_weights.safetensors, or one file where `out` ends in .safetensors

    Factors are stored in `adapter.dtype` as they are, with alpha = scale * rank; the same adapter gives the same
    bytes. `base` is the model that the adapter is for: it is needed where whole tensors change, and tells whether the
    head is tied. `magnitudes` are DoRA's, by target; `component` is for diffusers, see `diffusers_files`, and `task` is
    PEFT's task type. An output that exists is replaced only with `force`, and only if it is an adapter as weightsmith
    wrote it and nothing else; `reads` is what the adapter was made from, where none is put.

    Raises CompatibilityError for what the dialect cannot hold, NonFiniteError for numbers that are not finite or too
    large for the dtype, UsageError for an unknown dialect, OutputError and ResourceError where `out` cannot be
    written.
    """
    out = check_output(out, dialect, force=force, reads=reads)
    files = adapter_files(
        adapter, dialect, base=base, magnitudes=magnitudes, component=component, task=task
    )
    put(files, out, force=force, reads=reads)


def adapter_files(
    adapter: LowRankAdapter,
    dialect: Dialect,
    *,
    base: Checkpoint | None = None,
    magnitudes: Mapping[str, Matrix] | None = None,
    component: str | None = None,
    task: str | None = None,
) -> Files:
    """What `write_adapter` writes; raises CompatibilityError for what the dialect cannot hold."""
    if dialect == "kohya":
        return kohya_files(adapter, base, magnitudes)
    if dialect == "diffusers":
        return diffusers_files(adapter, base, magnitudes, component=component)
    return peft_files(adapter, base, magnitudes, task=task)


def check_output(
    out: str | Path, dialect: Dialect, *, force: bool = False, reads: Sequence[Path] = ()
) -> Path:
    """The absolute place of an output, before the work for it begins.

    Raises UsageError for an unknown dialect, and OutputError for a name that does not fit it or a place that is taken
    (see `storing.check_place`).
    """
    if dialect not in get_args(Dialect):
        raise UsageError(
            f"{dialect!r} is no format that is written; take {', '.join(get_args(Dialect))}."
        )
    place = Path(out)
    refuse_inputs(Path(os.path.abspath(expanded(place))), reads)
    is_file = place.suffix == SUFFIX
    if (dialect == "peft" and is_file) or (dialect == "kohya" and not is_file):
        kind = "a folder, whose name does not" if is_file else "one file, whose name must"
        raise OutputError(
            f"An adapter in the {dialect} format is {kind} end in {SUFFIX}; choose another output than "
            f"{shown(place)}."
        )
    return check_place(place, force=force, reads=reads)
