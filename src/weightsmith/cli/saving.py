"""`--save FILE`: what `--json` prints, written to a file as well; and `--json FILE`, as version 0.1 called it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.presenting import SCHEMA, CommandResult
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])

_NOW = "`--json FILE` is now `--save FILE`, and `--json` alone writes to stdout"


def save_option(command: Command) -> Command:
    """Add --save."""
    return click.option(
        "--save",
        "save_file",
        type=click.Path(path_type=Path),
        metavar="FILE.json",
        help="Also write what --json prints to a file.",
    )(command)


def check_save(
    file: Path | None, kind: str, reads: Iterable[Path], report_file: Path | None
) -> None:
    """Refuse a --save that may not or could not be written, before the work that it would hold.

    `reads` is what the command reads. Raises OutputError, and UsageError where --report names the same file.
    """
    if file is None:
        return
    from weightsmith.publishing import check_file

    if report_file is not None and file.absolute() == report_file.absolute():
        raise UsageError(f"--save and --report both name {str(file)!r}; name two files.")
    check_file(file, kind, reads)


def save(found: CommandResult, file: Path | None, kind: str, reads: Iterable[Path]) -> None:
    """Write what --save asks for, if it was given, sealed, so that the same command may replace it."""
    if file is not None:
        from weightsmith.publishing import publish_file, sealed_json

        content = {"schema": SCHEMA, **found.to_mapping()}
        publish_file(file, sealed_json(content, kind), kind, reads)
        STREAMS.done()


class SavingCommand(DocumentedCommand):
    """A command with --json and --save that still understands `--json FILE`.

    The two spellings are told apart: a FILE is one argument more than the command takes.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write `--json FILE` and `--json=FILE` as `--save FILE`, and say so."""
        return super().parse_args(ctx, self._current(ctx, args))

    def _current(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        for place, argument in enumerate(args[:end]):
            if argument.startswith("--json="):
                return self._saved(args[:place], argument.partition("=")[2], args[place + 1 :])
            if argument == "--json" and place + 1 < end:
                file = args[place + 1]
                is_option = file.startswith("-") and file != "-"
                if not is_option and self._has_one_too_many(ctx, args):
                    return self._saved(args[:place], file, args[place + 2 :])
        return args

    def _has_one_too_many(self, ctx: click.Context, args: list[str]) -> bool:
        _, beyond, _ = self.make_parser(ctx).parse_args(list(args))
        return len(beyond) == 1

    @staticmethod
    def _saved(before: list[str], file: str, behind: list[str]) -> list[str]:
        print(f"weightsmith: {_NOW}.", file=sys.stderr)
        return [*before, *(["--json"] if file == "-" else ["--save", file]), *behind]
