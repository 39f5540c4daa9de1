"""What a shell completes arguments to: names of methods and families, files and folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


class ReferenceType(click.types.StringParamType):
    """Text that names a checkpoint, a recipe, an adapter or a suite: a file or folder, or what is no path at all."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Files and folders."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


def names(known: Callable[[], Iterable[str]], *more: str, listed: bool = False) -> Completer:
    """Names that `known` gives, and `more`; `listed` where several stand behind one another with commas between."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        before, comma, begun = incomplete.rpartition(",") if listed else ("", "", incomplete)
        given = before.split(",")
        return [
            CompletionItem(f"{before}{comma}{name}")
            for name in (*known(), *more)
            if name.startswith(begun) and name not in given
        ]

    return complete


def methods() -> list[str]:
    """Names of the merge methods."""
    from weightsmith.methods import method_index as index

    return sorted(index.modules_of("method"))


def methods_and_modifiers() -> list[str]:
    """Names of the merge methods, then those of modifiers."""
    from weightsmith.methods import method_index as index

    return [*methods(), *sorted(index.modules_of("modifier"))]


def families() -> list[str]:
    """Names of the families that can be built."""
    from weightsmith.testbeds import FAMILIES

    return list(FAMILIES)


def dtypes() -> tuple[str, ...]:
    """Names of the dtypes that hold weights."""
    return ("float32", "bfloat16", "float16", "float64")


def devices() -> tuple[str, ...]:
    """Where to compute."""
    return ("cpu", "cuda", "cuda:0", "mps")


def splits() -> tuple[str, ...]:
    """Parts of a family's data."""
    return ("test", "validation")


def codecs() -> tuple[str, ...]:
    """Names of the lossy codecs."""
    from weightsmith.deltas import LOSSY

    return LOSSY


def tasks(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Labels of the tasks of the bundle that stands before."""
    from click.shell_completion import CompletionItem

    from weightsmith.checkpoints import read_bundle_header
    from weightsmith.errors import WeightsmithError

    try:
        header = read_bundle_header(Path(ctx.params["folder"]))
    except (WeightsmithError, KeyError, TypeError):
        return []
    labels = (task.label for task in header.tasks)
    return [CompletionItem(label) for label in labels if label.startswith(incomplete)]


def members(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the members of the library that stands before."""
    from click.shell_completion import CompletionItem

    from weightsmith.errors import WeightsmithError
    from weightsmith.packages import members as found

    try:
        named = [member.name for member in found(ctx.params["library"])]
    except (WeightsmithError, KeyError, TypeError):
        return []
    return [CompletionItem(name) for name in named if name.startswith(incomplete)]


def adapters(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Labels of the adapters of the basis that stands before."""
    from click.shell_completion import CompletionItem

    from weightsmith.errors import WeightsmithError
    from weightsmith.lora import open_basis

    try:
        labels = open_basis(ctx.params["file"]).labels
    except (WeightsmithError, KeyError, TypeError):
        return []
    return [CompletionItem(label) for label in labels if label.startswith(incomplete)]
