"""Options that take a list as a shell writes one: `--parents A B C --base D`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.saving import SavingCommand

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# The option whose list is not ended when a shell asks what comes next.
_OPEN = "weightsmith.cli.listing.open"


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
            if not ctx.resilient_parsing:
                self._require_value(current, is_first)
            current = argument if argument in self.lists else None
            is_first = current is not None
            if current is None:
                written.append(argument)
        if ctx.resilient_parsing:
            ctx.meta[_OPEN] = current
        else:
            self._require_value(current, is_first)
        return super().parse_args(ctx, written)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """What can be one more value of a list, or options."""
        option = ctx.meta.get(_OPEN)
        if option is None or incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        listed = next(param for param in self.params if option in param.opts)
        return listed.shell_complete(ctx, incomplete)

    @staticmethod
    def _require_value(option: str | None, is_empty: bool) -> None:
        if option is not None and is_empty:
            raise click.BadOptionUsage(option, f"Option {option!r} needs at least one value.")
