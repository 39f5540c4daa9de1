"""Commands that write a checkpoint: the run, and what it made as one line for people or as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.cli.interruption import interruptible
from weightsmith.cli.merging.plan import show_plan
from weightsmith.cli.options import RunOptions
from weightsmith.cli.presenting import Data, present, show_findings
from weightsmith.cli.progress_lines import open_progress
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.terminal_text import duration
from weightsmith.findings import Finding

if TYPE_CHECKING:
    from weightsmith.engine import Manifest, Plan
    from weightsmith.recipes import Recipe


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint that a command has written at `out`; `findings` are those of its plan and of its making.

    `more` is what only this command has to say, for JSON.
    """

    out: Path
    manifest: Manifest
    seconds: float
    findings: tuple[Finding, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def _weights(self) -> list[Path]:
        """The files of weights: one alone is the output itself."""
        if self.out.is_file():
            return [self.out]
        return [self.out / name for name in self.manifest.shards]

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it; the manifest in the folder has the rest."""
        made = self.manifest
        return {
            "out": str(self.out),
            "digest": made.digest,
            "tensors": len(made.outputs),
            "bytes": sum(file.stat().st_size for file in self._weights),
            "backend": made.backend,
            "recipe_digest": made.recipe_digest,
            "inputs": [
                {"reference": given.reference, "digest": given.digest}
                for given in made.inputs.values()
            ],
            "seconds": self.seconds,
            "findings": [finding.to_mapping() for finding in self.findings],
            **self.more,
        }


def show_written(made: Written, *, as_json: bool) -> None:
    """Show what was written: where, which digest, how long; the result is there, whatever becomes of what is shown."""
    STREAMS.done()
    present(made, _line, as_json=as_json)


def _line(made: Written) -> Iterable[Data]:
    yield Data(f"{made.out}  {made.manifest.digest}  {duration(made.seconds)}")


def write(
    out: Path, begun: float, make: Callable[..., Manifest], *, quiet: bool, as_json: bool
) -> int:
    """Have a checkpoint made at `out` by `make(progress=...)`, and show it; `begun` is when the command did."""
    with interruptible(out), open_progress(quiet) as progress:
        manifest = make(progress=progress)
    show_written(Written(out, manifest, time.monotonic() - begun), as_json=as_json)
    return 0


def run_plan(made: Plan, out: Path, begun: float, how: RunOptions) -> int:
    """Run a plan into `out`, with its findings and progress on stderr, and show what was written."""
    from weightsmith.engine import run

    with interruptible(out):
        if not how.quiet and not made.errors:
            show_findings(made.findings, to_stderr=True)
        with open_progress(how.quiet) as progress:
            manifest = run(made, out, force=how.force, fresh=how.fresh, progress=progress)
    done = Written(out, manifest, time.monotonic() - begun, tuple(made.findings))
    show_written(done, as_json=how.as_json)
    return 0


@dataclass(frozen=True, slots=True)
class _Shown:
    """A recipe that a command has made, to be looked at."""

    recipe: Recipe

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"recipe": self.recipe.to_mapping()}


def _yaml(made: _Shown) -> Iterable[Data]:
    for line in made.recipe.dump().splitlines():
        yield Data(line)


def run_recipe(
    recipe: Recipe,
    out: Path,
    begun: float,
    *,
    only_recipe: bool,
    dry_run: bool,
    **given: Any,
) -> int:
    """Merge by a recipe that a command has made, as `recipe_options` say.

    Show it with --recipe, or its plan with --dry-run, else run it.
    """
    from weightsmith.engine import make_plan

    how = RunOptions(**given)
    if only_recipe:
        present(_Shown(recipe), _yaml, as_json=how.as_json)
        return 0
    made = make_plan(recipe, **how.options())
    if dry_run:
        return show_plan(made, as_json=how.as_json)
    return run_plan(made, out, begun, how)
