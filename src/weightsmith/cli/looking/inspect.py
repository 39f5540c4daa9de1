"""`weightsmith inspect`: what a checkpoint's headers and configuration say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import json_option
from weightsmith.cli.presenting import Block, FindingsBlock, TextTable, present
from weightsmith.cli.terminal_text import counted, shape
from weightsmith.findings import errors_among
from weightsmith.tensors import format_size

if TYPE_CHECKING:
    from weightsmith.inspection import CheckpointSummary

_ROLES = ("role", "tensors", "parameters", "bytes")
_TENSORS = ("name", "dtype", "shape", "role", "layer", "file")


@click.command(
    cls=DocumentedCommand,
    examples=(
        "inspect merged",
        "inspect merged --tensors --json",
    ),
)
@click.argument("checkpoint")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
def inspect(checkpoint: str, tensors: bool, as_json: bool) -> int:
    """Show layout, dtypes, roles, layers, ties, vocabulary and config of CHECKPOINT.

    CHECKPOINT is a folder, a weights file, or a Hub id. Only headers are read. The exit code is 1 if a file is
    damaged.
    """
    from weightsmith.inspection import summarize_checkpoint

    summary = summarize_checkpoint(checkpoint)
    present(summary if tensors else replace(summary, tensors=()), _blocks, as_json=as_json)
    return 1 if errors_among(summary.findings) else 0


def _blocks(summary: CheckpointSummary) -> Iterator[Block]:
    yield TextTable("Checkpoint", ("", ""), _facts(summary))
    if summary.roles:
        roles = [
            (r.role, f"{r.tensors:,}", f"{r.parameters:,}", format_size(r.nbytes))
            for r in summary.roles
        ]
        yield TextTable("Roles", _ROLES, roles, frozenset({1, 2, 3}))
    if summary.tensors:
        rows = [
            (
                t.name,
                t.dtype,
                shape(t.shape),
                t.role,
                "" if t.layer is None else str(t.layer),
                t.file,
            )
            for t in summary.tensors
        ]
        yield TextTable("Tensors", _TENSORS, rows, frozenset({4}), spare=(5, 4))
    yield FindingsBlock(summary.findings)


def _facts(summary: CheckpointSummary) -> list[tuple[str, str]]:
    from weightsmith.checkpoints import Tying

    facts = [("path", summary.place or str(summary.path)), ("layout", summary.layout)]
    facts += [("adapter", adapter) for adapter in summary.adapters]
    if not summary.roles:
        return facts
    facts.append(("parameters", f"{summary.parameters:,} ({format_size(summary.nbytes)})"))
    facts.append(
        ("dtype", ", ".join(f"{name}: {n:,}" for name, n in (summary.dtypes or {}).items()))
    )
    facts += [
        ("layers", f"{s.blocks} in {s.prefix or 'the top'} ({s.parameters:,} parameters)")
        for s in summary.stacks
    ]
    if summary.spelling is not None:
        one = summary.spelling
        facts.append(
            (
                "in memory",
                f"{counted(one.tensors, 'tensor')} named otherwise: {one.memory} for {one.file}",
            )
        )
    if summary.vocabulary is not None:
        has_none = summary.tying == Tying.NO_HEAD.value
        facts.append(("vocabulary head", "none" if has_none else summary.tying))
    facts += [("tied", " = ".join(group)) for group in summary.ties]
    if summary.vocabulary is not None:
        facts.append(("vocabulary", f"{summary.vocabulary:,} rows"))
    facts.append(("tokenizer", ", ".join(summary.tokenizer_files) or "none"))
    for key, value in (summary.config or {}).items():
        facts.append((f"config {key}", ", ".join(value) if isinstance(value, list) else str(value)))
    return facts
