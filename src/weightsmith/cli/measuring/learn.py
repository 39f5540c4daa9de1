"""`weightsmith learn`: find the free numbers of a recipe from data, and write the recipe that they make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import (
    THREADS,
    device_option,
    dtype_option,
    json_option,
    quiet_option,
    size,
)
from weightsmith.cli.presenting import Block, Data, present
from weightsmith.cli.progress_lines import open_progress
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.terminal_text import counted
from weightsmith.errors import UsageError

if TYPE_CHECKING:
    from weightsmith.learning import Learned

_SETTINGS = (
    "objective",
    "temperature",
    "steps",
    "batch_size",
    "parametrisation",
    "penalty",
    "until",
    "check_every",
    "patience",
    "seed",
)
_OPTIMIZER = {
    "optimizer": "name",
    "rate": "rate",
    "weight_decay": "weight_decay",
    "momentum": "momentum",
    "first_restart": "first_restart",
    "clip": "clip",
    "step": "step",
}
_POSITIVE = click.IntRange(min=1)
_AT_LEAST_ZERO = click.FloatRange(min=0)


@click.command(
    cls=DocumentedCommand,
    examples=(
        "learn merge.yaml --preset adamerging --data family/suite.validation.yaml --out learned.yaml",
        "learn free.yaml --objective cross_entropy --data corpus.jsonl --steps 100 --rate 0.01 --out learned.yaml",
        "learn merge.yaml --preset fw_merging --data family/suite.validation.yaml --out learned.yaml",
    ),
)
@click.argument("recipe", metavar="RECIPE", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A suite, a text, JSON lines, an arrow file or a folder of them; repeatable.",
)
@click.option("--task", "tasks", multiple=True, help="Learn from this task only; repeatable.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE.yaml",
    help="The recipe with the numbers in it; the log goes to FILE.learning.json.",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="What a paper sets, and frees in a recipe without free numbers: adamerging, adamerging_task_wise, "
    "expert_merging, fw_merging, fw_merging_layer_wise or learned_soup.",
)
@click.option(
    "--objective",
    metavar="NAME[:WEIGHT],...",
    help="entropy, cross_entropy, kl (to the teacher of a task), hidden (its blocks' outputs), or a sum.",
)
@click.option("--temperature", type=_AT_LEAST_ZERO, help="Of kl.")
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="TASK=MODEL",
    help="The model that a task is learned from; default: the recipe's model of that name.",
)
@click.option(
    "--validation",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Data on which the best values are chosen; repeatable.",
)
@click.option("--check-every", type=_POSITIVE, help="Steps between measurements on them.")
@click.option(
    "--patience", type=_POSITIVE, help="End after so many measurements without a better one."
)
@click.option("--steps", type=_POSITIVE, help="Steps of the optimizer.")
@click.option("--batch-size", type=_POSITIVE, help="Items of each task in a step.")
@click.option("--optimizer", metavar="adam|adamw|sgd|frank_wolfe", help="What moves the numbers.")
@click.option("--rate", type=_AT_LEAST_ZERO, help="Its learning rate.")
@click.option("--weight-decay", type=_AT_LEAST_ZERO, help="Its weight decay.")
@click.option("--momentum", type=_AT_LEAST_ZERO, help="Of sgd.")
@click.option("--first-restart", type=_POSITIVE, help="Steps before a cosine schedule begins anew.")
@click.option("--clip", type=_AT_LEAST_ZERO, help="Most norm of a gradient.")
@click.option("--step", type=click.Choice(("diminishing", "line_search")), help="Of frank_wolfe.")
@click.option("--until", type=_AT_LEAST_ZERO, help="Of frank_wolfe: end at this duality gap.")
@click.option(
    "--parametrisation",
    type=click.Choice(("clip", "sigmoid", "softmax")),
    help="How numbers are kept within their bounds.",
)
@click.option("--penalty", type=_AT_LEAST_ZERO, help="Factor of the mean distance from the start.")
@click.option("--limit", type=_POSITIVE, default=256, show_default=True, help="First items only.")
@click.option("--context", type=_POSITIVE, help="Most tokens of an item; default: the model's.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the order of the items.")
@click.option("--on-test", is_flag=True, help="Learn from data that are called test or held out.")
@click.option("--memory", type=size, help="Bound on the memory of the merge beside the network.")
@click.option("--threads", type=THREADS, help="Worker threads of the merge.")
@device_option
@dtype_option
@json_option
@quiet_option
def learn(
    recipe: Path,
    data: tuple[Path, ...],
    tasks: tuple[str, ...],
    out: Path,
    preset: str | None,
    teachers: tuple[str, ...],
    validation: tuple[Path, ...],
    limit: int,
    context: int | None,
    on_test: bool,
    memory: int | None,
    threads: int | None,
    device: str,
    dtype: str,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Learn the free numbers of RECIPE from data, and write the ordinary recipe that they make.

    The merged network is asked for its loss, the gradient goes to the weights and from there to the numbers in one pass
    over the files of the models: memory is that of one model and its gradient, however many are merged. What is learned
    is merged, verified and replayed like any recipe, without the data. After Ctrl-C or a kill the same command goes on.
    """
    from weightsmith.learning import learn as learned

    settings = {name: given[name] for name in _SETTINGS if given[name] is not None}
    optimizer = {key: given[name] for name, key in _OPTIMIZER.items() if given[name] is not None}
    with open_progress(quiet) as progress:
        found = learned(
            recipe,
            data=data,
            out=out,
            preset=preset,
            validation=validation,
            teachers=_teachers(teachers),
            tasks=tasks,
            limit=limit,
            context=context,
            on_test=on_test,
            memory_bytes=memory,
            threads=threads,
            device=device,
            dtype=dtype,
            progress=progress,
            optimizer=optimizer,
            **settings,
        )
    STREAMS.done()
    present(found, _blocks, as_json=as_json)
    return 0


def _teachers(texts: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for task, model in map(_pair, texts):
        if found.setdefault(task, model) != model:
            raise UsageError(f"Two teachers are named for the task {task!r}; leave one out.")
    return found


def _pair(text: str) -> tuple[str, str]:
    task, equals, model = text.partition("=")
    if not (task and equals and model):
        raise UsageError(f"--teacher is TASK=MODEL, not {text!r}.")
    return task, model


def _blocks(found: Learned) -> Iterator[Block]:
    yield Data(f"{found.recipe}  {counted(len(found.values), 'number')}")
    yield f"{counted(found.steps, 'step')}: {found.stopped}; the last loss is {found.loss:.5g}."
    if found.validation is not None:
        yield f"The numbers are those after step {found.kept}, with a loss of {found.validation:.5g} on validation."
    yield f"How they were found is in {found.log}."
