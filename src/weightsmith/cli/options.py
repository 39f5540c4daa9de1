"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from weightsmith.cli import completing
from weightsmith.tensors import MOST_THREADS, parse_size

THREADS = click.IntRange(min=1, max=MOST_THREADS)

Command = TypeVar("Command", bound=Callable[..., Any])


def size(text: str) -> int:
    """Read a number of bytes such as 256MB or 1GiB."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def reference_and_path(text: str) -> tuple[str, Path]:
    """Read REF=PATH: where an input of the manifest lies now."""
    reference, equals, path = text.partition("=")
    if not (reference and equals and path):
        raise click.BadParameter(f"{text!r} is not of the form REF=PATH.")
    return reference, Path(path)


@dataclass(frozen=True, slots=True)
class Machine:
    """With what a merge is computed."""

    memory: int
    threads: int | None
    device: str
    backend: str

    def options(self) -> dict[str, Any]:
        """As keyword arguments of `make_plan`."""
        return {
            "memory_bytes": self.memory,
            "threads": self.threads,
            "device": self.device,
            "backend": self.backend,
        }


threads_option = click.option(
    "--threads", type=THREADS, default=None, help="Worker threads; default: all cores."
)


def machine_options(command: Command) -> Command:
    """Add --memory, --threads, --device and --backend."""
    for option in reversed(
        (
            click.option(
                "--memory",
                type=size,
                default="256MiB",
                show_default=True,
                help="Bound on anonymous memory, such as 256MB or 1GiB.",
            ),
            threads_option,
            click.option(
                "--device",
                default="cpu",
                show_default=True,
                metavar="cpu|cuda|cuda:N|mps",
                shell_complete=completing.names(completing.devices),
                help="Where to compute.",
            ),
            click.option(
                "--backend",
                type=click.Choice(("auto", "native", "torch")),
                default="auto",
                show_default=True,
                help="What computes; auto takes native where it was built.",
            ),
        )
    ):
        command = option(command)
    return command


def device_option(command: Command) -> Command:
    """Add --device, for models that are run."""
    return click.option(
        "--device",
        default="cpu",
        show_default=True,
        metavar="cpu|cuda|cuda:N|mps",
        shell_complete=completing.names(completing.devices),
        help="Where models run.",
    )(command)


def dtype_option(command: Command) -> Command:
    """Add --dtype, for networks that are run."""
    return click.option(
        "--dtype",
        type=click.Choice(("float32", "bfloat16")),
        default="float32",
        show_default=True,
        help="What the network computes in, whatever its weights are stored as.",
    )(command)


def overrides_option(command: Command) -> Command:
    """Add --set."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a value of the recipe, such as models.0.parameters.weight=0.3; repeatable.",
    )(command)


def values_option(command: Command) -> Command:
    """Add --values."""
    return click.option(
        "--values",
        metavar="FILE|start",
        help="Values of the recipe's free numbers, names to numbers as YAML or JSON; start: those they start from.",
    )(command)


def inputs_option(command: Command) -> Command:
    """Add --input."""
    return click.option(
        "--input",
        "inputs",
        multiple=True,
        type=reference_and_path,
        metavar="REF=PATH",
        help="Where an input lies now, REF being what the recipe calls it; repeatable.",
    )(command)


force_option = click.option(
    "--force", is_flag=True, help="Replace OUT if weightsmith wrote it and nobody changed it."
)


def output_options(command: Command) -> Command:
    """Add --force and --fresh, for a run that writes OUT and can be continued."""
    fresh = click.option(
        "--fresh", is_flag=True, help="Discard an interrupted run instead of going on with it."
    )
    return force_option(fresh(command))


@dataclass(frozen=True, slots=True)
class RunOptions(Machine):
    """How a command writes a checkpoint: what OUT may replace and what is shown, beside what it is computed with."""

    force: bool
    fresh: bool
    quiet: bool
    as_json: bool

    def writing(self) -> dict[str, Any]:
        """As keyword arguments of what plans and writes."""
        return {"force": self.force, "fresh": self.fresh, **self.options()}


def run_options(command: Command) -> Command:
    """Add the options that `RunOptions` is made of."""
    return machine_options(output_options(json_option(quiet_option(command))))


def recipe_options(command: Command) -> Command:
    """Add what a command has that makes a recipe and runs it: --recipe, --dry-run and those of a run."""
    only_recipe = click.option(
        "--recipe", "only_recipe", is_flag=True, help="Show the recipe and merge nothing."
    )
    dry_run = click.option("--dry-run", is_flag=True, help="Show the plan and merge nothing.")
    return only_recipe(dry_run(run_options(command)))


def quiet_option(command: Command) -> Command:
    """Add --quiet."""
    return click.option("--quiet", is_flag=True, help="Show no progress and no notes.")(command)


def json_option(command: Command) -> Command:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")(command)


def report_option(command: Command) -> Command:
    """Add --report."""
    return click.option(
        "--report",
        "report_file",
        type=click.Path(path_type=Path),
        metavar="FILE.html",
        help="Also write a report as one HTML file.",
    )(command)


def by_reference(inputs: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """The values of --input as a mapping."""
    return dict(inputs)
