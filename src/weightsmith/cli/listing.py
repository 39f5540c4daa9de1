"""Options that take a list as a shell writes one: `--parents A B C --base D`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from weightsmith.cli.saving import SavingCommand


class ListingCommand(SavingCommand):
    """A command some of whose options, `lists`, take all arguments up to the next option."""

    def __init__(self, *arguments: Any, lists: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lists = frozenset(lists)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat such an option before each of its values, as click has it.

        Raises click.BadOptionUsage for one without a value.
        """
        written: list[str] = []
        current = None
        is_first = False
        for argument in args:
            if current is not None and not argument.startswith("--"):
                written += [current, argument]
                is_first = False
                continue
            self._require_value(current, is_first)
            current = argument if argument in self.lists else None
            is_first = current is not None
            if current is None:
                written.append(argument)
        self._require_value(current, is_first)
        return super().parse_args(ctx, written)

    @staticmethod
    def _require_value(option: str | None, is_empty: bool) -> None:
        if option is not None and is_empty:
            raise click.BadOptionUsage(option, f"Option {option!r} needs at least one value.")
