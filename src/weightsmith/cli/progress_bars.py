"""Progress on a terminal: a bar for everything that is counted, and a line above for each of its stages that ended."""

from __future__ import annotations

from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from weightsmith.cli.progress_stages import Display, Stage, joined, place_of, result_of, resumed


class ProgressBars(Display):
    """Bars with rate and remaining time; a context, which leaves those of the whole where they stand."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        doing = TextColumn("{task.description}", markup=False)
        # Where the terminal is narrow, the bar gives way.
        pace = _Pace(table_column=Column(no_wrap=True))
        self._drawn = Progress(doing, BarColumn(), pace, console=Console(file=stream))
        self._rows: dict[Stage, TaskID] = {}
        # Stands where nothing is counted yet.
        self._waiting = self._drawn.add_task("starting", total=None, stage=None)

    def __enter__(self) -> ProgressBars:
        self._drawn.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._drawn.update(self._waiting, visible=False)
        self._drawn.stop()

    def begun(self, stage: Stage) -> None:
        """Draw a bar for what is counted; what is not is named on the bar of its work."""
        if stage.total is None:
            self.said(stage, stage.name)
            return
        self._drawn.update(self._waiting, visible=False)
        self._rows[stage] = self._drawn.add_task(
            _title(stage), total=stage.total, completed=int(stage.done), stage=stage
        )
        if stage.done and stage.part is None:
            self._print(resumed(stage))

    def moved(self, stage: Stage) -> None:
        """Move the bars of a stage and of all that it is a part of."""
        moved: Stage | None = stage
        while moved is not None:
            if moved in self._rows:
                title = _title(stage) if moved is stage else None
                row = self._rows[moved]
                self._drawn.update(row, completed=moved.reached(), description=title)
            moved = moved.work

    def said(self, stage: Stage, text: str) -> None:
        """Show what is going on beside the bar."""
        shown: Stage | None = stage
        while shown is not None and shown not in self._rows:
            shown = shown.work
        if shown is None:
            self._drawn.update(self._waiting, description=text, visible=True)
        else:
            self._drawn.update(self._rows[shown], description=text)

    def ended(self, stage: Stage, result: str, kept: bool) -> None:
        """Leave a line of a stage that counts; its bar goes."""
        if stage.part is not None:
            row = self._rows.pop(stage, None)
            if row is not None:
                self._drawn.remove_task(row)
            assert stage.work is not None
            self.moved(stage.work)
        if stage.part is stage and (result or not kept):
            self._print(result_of(stage, result, kept))

    def _print(self, line: str) -> None:
        self._drawn.console.print(line, markup=False, highlight=False)


class _Pace(ProgressColumn):
    """How far a stage is, its rate and the time that is left."""

    def render(self, task: Task) -> Text:
        stage: Stage | None = task.fields["stage"]
        if stage is None:
            return Text()
        share = f"{100 * stage.fraction():3.0f} %"
        return Text(joined(share, stage.amount(), stage.rate(), stage.left()))


def _title(stage: Stage) -> str:
    part = stage.part
    return stage.name if part is None else joined(place_of(part), part.name)
