"""A command whose help ends with examples, and whose arguments a shell completes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from weightsmith.cli import completing

# Options whose text is one, or leads to one.
_REFERENCES = frozenset({"base", "suite", "parents", "initial", "models", "validation"})


class DocumentedCommand(click.Command):
    """A command with `examples`: command lines without the word `weightsmith`."""

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = tuple(examples)
        _complete_references(self.params)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the options."""
        _write_examples(self.examples, formatter)


class DocumentedGroup(click.Group):
    """A group of commands whose help ends with examples, as those of `DocumentedCommand` do."""

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the commands."""
        _write_examples(self.examples, formatter)


def _complete_references(parameters: Sequence[click.Parameter]) -> None:
    """Let a shell complete text that names a checkpoint, a recipe, an adapter or a suite, all files or folders."""
    for parameter in parameters:
        is_reference = isinstance(parameter, click.Argument) or parameter.name in _REFERENCES
        if is_reference and parameter.type is click.STRING:
            parameter.type = completing.ReferenceType()


def _write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}weightsmith {example}\n")
