"""`weightsmith league`: methods on models, each with its defaults and its tuned scale, cost beside quality."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli import completing
from weightsmith.cli.input_paths import places_read, suite_files
from weightsmith.cli.interruption import INTERRUPTED
from weightsmith.cli.judging.compare import estimate
from weightsmith.cli.judging.report import check_place, write_beside
from weightsmith.cli.listing import ListingCommand
from weightsmith.cli.options import device_option, json_option, quiet_option, report_option
from weightsmith.cli.presenting import Block, ShownInterval, TextTable, present
from weightsmith.cli.progress_lines import open_progress
from weightsmith.cli.saving import check_save, save, save_option
from weightsmith.cli.text_tables import without_blanks
from weightsmith.tensors import format_size
from weightsmith.wording import counted

if TYPE_CHECKING:
    from weightsmith.comparison import Estimate, Family, League, LeagueRow, Scaling
    from weightsmith.reports import Report

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(text: str) -> float:
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _UNITS else (text, "s")
    try:
        seconds = float(number) * _UNITS[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise click.BadParameter(f"{text!r} is no length of time, such as 90s, 20m or 2h.")
    return seconds


_KIND = "league"
# As `comparison.league.METHODS`, which would load numpy to show the help.
_METHODS = "linear,task_arithmetic,ties,iso_c,tsv_m,iwudi"


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise click.BadParameter(f"{text!r} is no list of names with commas between them.")
    return names


def _counts(text: str) -> list[int]:
    try:
        counts = [int(number) for number in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise click.BadParameter(f"{text!r} is no list of numbers of experts, such as 2,4,8.")
    return counts


@click.command(
    cls=ListingCommand,
    lists=("--models",),
    examples=(
        "league --models french german --base base --suite suite.yaml",
        "league --models french german --base base --suite test.yaml --validation tune.yaml",
        "league --family vision-tiny --methods linear,task_arithmetic,ties",
        "league --family vision --methods all --out league --budget 30m",
        "league --families vision-tiny,vision --methods ties,tsv_m --experts 2,4",
    ),
)
@click.option(
    "--models", multiple=True, metavar="MODEL...", help="Models of your own, to be merged."
)
@click.option(
    "--base", metavar="MODEL", help="The model that they were made from, if there is one."
)
@click.option("--suite", metavar="FILE", help="The suite whose scores are reported.")
@click.option(
    "--validation",
    metavar="FILE",
    help="A suite to tune scales on; default: half of the items of --suite, which are not reported.",
)
@click.option(
    "--family",
    "--families",
    "families",
    type=_names,
    metavar="NAME|DIR[,...]",
    shell_complete=completing.names(completing.families, listed=True),
    help="A test-bed that was built or a family file of your own, or several, in the place of models.",
)
@click.option(
    "--methods",
    default=_METHODS,
    show_default=True,
    type=_names,
    metavar="M1,M2,...|all",
    shell_complete=completing.names(completing.methods, "all", listed=True),
    help="The methods to rank.",
)
@click.option(
    "--split",
    default="test",
    show_default=True,
    shell_complete=completing.names(completing.splits),
    help="What scores are reported on.",
)
@click.option(
    "--experts", type=_counts, metavar="N[,...]", help="Merge only the first N models each time."
)
@click.option(
    "--statistics",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A folder of MODEL.KIND.safetensors, for methods that need statistics.",
)
@click.option("--budget", type=_seconds, metavar="TIME", help="Begin nothing after this time.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where measurements are kept; default: in the cache.",
)
@device_option
@quiet_option
@report_option
@json_option
@save_option
def league(
    models: Sequence[str],
    base: str | None,
    suite: str | None,
    validation: str | None,
    families: list[str] | None,
    methods: list[str],
    split: str,
    experts: list[int] | None,
    statistics: Path | None,
    budget: float | None,
    out: Path | None,
    device: str,
    quiet: bool,
    report_file: Path | None,
    as_json: bool,
    save_file: Path | None,
) -> int:
    """Merge models with every method and rank the results on a suite of tasks.

    Each method is merged with its defaults, and with the scale that scores best on validation. The models are your own
    or those of a family. The expert of a task is the model whose folder has the task's name, else the one that scores
    best on it. What was measured is kept: the same command goes on after Ctrl-C and adds methods without measuring the
    others again. With several families or numbers of models it is a scaling study.
    """
    from weightsmith.comparison import default_folder
    from weightsmith.publishing import refuse_inputs

    opened = _opened(models, base, suite, validation, families)
    folder = out or default_folder()
    reads = (
        *(place for family in opened for place in _places(family)),
        *(() if statistics is None else (statistics,)),
    )
    check_place(report_file, reads)
    check_save(save_file, _KIND, reads, report_file)
    refuse_inputs(folder / "entries", reads)
    shown = _Shown(as_json, report_file, save_file, reads)
    options: dict[str, Any] = {"split": split, "device": device, "quiet": quiet}
    if len(opened) == 1 and len(experts or []) < 2:
        family = opened[0].first(experts[0]) if experts else opened[0]
        if statistics is not None:
            family = family.measured(statistics)
        options["budget_seconds"] = budget
        ended = _league(family, methods, folder, shown, **options)
    elif statistics is not None:
        raise click.UsageError("A scaling study has no --statistics; give one family at a time.")
    elif budget is not None:
        raise click.UsageError("A scaling study has no --budget; Ctrl-C keeps what is finished.")
    else:
        ended = _scaling(opened, methods, experts or [], folder, shown, **options)
    return _exit_code(ended, folder)


def _opened(
    models: Sequence[str],
    base: str | None,
    suite: str | None,
    validation: str | None,
    families: list[str] | None,
) -> list[Family]:
    """The families that were named, or the one of the models that were; raises UsageError for neither or both."""
    from weightsmith.comparison import family_of_models, open_family

    of_models = {"--models": models or None, "--base": base, "--suite": suite}
    of_models["--validation"] = validation
    if families is not None:
        given = next((name for name, value in of_models.items() if value is not None), None)
        if given is not None:
            raise click.UsageError(
                f"{given} is for models of your own, and a family has its own; give --models or --family, not both."
            )
        return [open_family(name) for name in families]
    if not models:
        raise click.UsageError(
            "Nothing says what to merge; give --models and --suite, or --family with a test-bed or a family file."
        )
    if suite is None:
        raise click.UsageError(
            "Nothing says what to score the merges on; give a suite of tasks with --suite."
        )
    return [family_of_models(models, base, suite, validation)]


def _places(family: Family) -> Sequence[Path]:
    """What is read of a family."""
    if family.folder is not None:
        return (family.folder,)
    suites = [file for suite in family.suites.values() for file in suite_files(str(suite))]
    return (*places_read(*(model.reference for model in family.members)), *suites)


@dataclass(frozen=True, slots=True)
class _Shown:
    """Where a result goes beside the terminal, and in which form it comes there."""

    as_json: bool
    report_file: Path | None
    save_file: Path | None
    reads: Sequence[Path]


def _league(
    family: Family,
    methods: Sequence[str],
    out: Path,
    shown: _Shown,
    *,
    quiet: bool,
    **options: Any,
) -> str:
    from weightsmith.comparison import run_league

    with open_progress(quiet) as progress:
        found = run_league(family, methods, out, progress=progress, **options)
    write_beside(shown.report_file, lambda: _report(found), shown.reads)
    save(found, shown.save_file, _KIND, shown.reads)
    present(found, _league_blocks, as_json=shown.as_json)
    return found.ended


def _report(found: League | Scaling) -> Report:
    from weightsmith.reports import report_of_league

    return report_of_league(found.to_mapping())


def _scaling(
    families: Sequence[Family],
    methods: Sequence[str],
    counts: Sequence[int],
    out: Path,
    shown: _Shown,
    *,
    quiet: bool,
    **options: Any,
) -> str:
    from weightsmith.comparison import run_scaling

    with open_progress(quiet) as progress:
        found = run_scaling(families, methods, counts, out, progress=progress, **options)
    write_beside(shown.report_file, lambda: _report(found), shown.reads)
    save(found, shown.save_file, _KIND, shown.reads)
    present(found, _scaling_blocks, as_json=shown.as_json)
    return found.ended


def _exit_code(ended: str, out: Path) -> int:
    from weightsmith.comparison import INTERRUPTED as WAS_INTERRUPTED

    if ended != WAS_INTERRUPTED:
        return 0
    kept = f"what was measured is kept in {str(out)!r}, and the same command goes on from there"
    print(f"weightsmith: interrupted: {kept}.", file=sys.stderr)
    return INTERRUPTED


_EXPLAINED = {
    "normalised": "normalised: merged over expert",
    "retained": "retained: how much of what the experts gained over the base is kept",
    "rank": "rank 1 is best",
}


def _league_blocks(found: League) -> Iterator[Block]:
    yield f"{found.family}: {counted(len(found.models), 'expert')}, scores on {_scored_on(found)}"
    yield ""
    if any(task != label for task, label in found.owners.items()):
        yield TextTable("Experts", ("task", "its expert"), list(found.owners.items()))
    heads = ("", "scale", "mean", "normalised", "retained", "unseen", "rank", "CPU", "memory")
    rows = [
        (
            _name(row),
            _parameters(row),
            estimate(row.mean),
            estimate(row.normalized),
            estimate(row.retained),
            estimate(row.unseen, signed=True),
            "-" if row.rank is None else _rank(row.rank),
            "-" if row.cost is None else f"{row.cost.cpu_seconds:.2f} s",
            "-" if row.cost is None else format_size(row.cost.peak_bytes),
        )
        for row in found.rows
    ]
    table = TextTable("League", heads, rows, frozenset(range(2, 9)), spare=(8, 7, 5, 4, 2))
    shown = without_blanks(table)
    yield shown
    explained = [_EXPLAINED[head] for head in shown.columns if head in _EXPLAINED]
    if explained:
        yield f"{'; '.join(explained)}."
    yield ""
    yield _by_task(found)
    if found.left_out:
        reasons = [(out.method, out.reason) for out in found.left_out]
        yield TextTable("Left out", ("method", "reason"), reasons)
    if any(row.at_edge for row in found.rows):
        yield ("* The best scale is at the edge of the grid; another may be better.")


def _scored_on(found: League) -> str:
    return "the half of the items that no scale was tuned on" if found.is_halved else found.split


def _by_task(found: League) -> TextTable:
    tasks = list(dict.fromkeys(score.task for row in found.rows for score in row.scores))
    rows = []
    for row in found.rows:
        scores = {score.task: score for score in row.scores}
        cells = [f"{scores[task].value:.4g}" if task in scores else "-" for task in tasks]
        rows.append((_name(row), *cells))
    return TextTable("Scores", ("", *tasks), rows, frozenset(range(1, len(tasks) + 1)))


def _name(row: LeagueRow) -> str:
    return row.name if row.name == row.setting else f"{row.name}, {row.setting}"


def _parameters(row: LeagueRow) -> str:
    from weightsmith.comparison import written

    given = written(row.parameters)
    return f"{given} *" if row.at_edge else given


def _rank(found: Estimate) -> ShownInterval:
    return ShownInterval(f"{found.value:g}", f"[{found.low:g}, {found.high:g}]")


def _scaling_blocks(found: Scaling) -> Iterator[Block]:
    heads = ("method", "family", "parameters", "experts", "normalised", "retained", "unseen")
    rows = [
        (
            row.method,
            row.family,
            f"{row.parameters:,}",
            str(row.experts),
            estimate(row.normalized),
            estimate(row.retained),
            estimate(row.unseen, signed=True),
        )
        for row in found.rows
    ]
    title = "Scaling, each method with its tuned scale"
    yield without_blanks(TextTable(title, heads, rows, frozenset(range(2, 7)), spare=(6,)))
