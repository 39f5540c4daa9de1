"""`weightsmith transplant`: give a model another model's tokenizer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli import completing
from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import recipe_options
from weightsmith.cli.written import run_recipe
from weightsmith.tensors import NotJson, loads_json

if TYPE_CHECKING:
    from weightsmith.recipes import Recipe

_RULES = ("omp", "least_squares", "procrustes", "subtokens", "mean", "zero")


def key_and_value(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE: a parameter of a rule, its value a number, true, false or a text."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE.")
    try:
        return key, loads_json(value.encode("utf-8", "surrogatepass"))
    except NotJson:
        return key, value


@click.command(
    cls=DocumentedCommand,
    examples=(
        "transplant model donor transplanted",
        "transplant model donor transplanted --rule least_squares --parameter ridge=0.01",
        "transplant model donor transplanted --dry-run",
    ),
)
@click.argument("model")
@click.argument("donor")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--rule",
    type=click.Choice(_RULES),
    default="omp",
    show_default=True,
    help="How the rows of tokens that MODEL lacks are made.",
)
@click.option("--k", type=click.IntRange(min=1), help="Atoms per token of the rule omp.")
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    type=key_and_value,
    metavar="KEY=VALUE",
    help="A parameter of the rule; repeatable.",
)
@click.option(
    "--match",
    type=click.Choice(("exact", "bytes")),
    help="Which tokens are the same; default: bytes where the kinds of tokenizers differ.",
)
@click.option(
    "--pad-to-multiple-of", type=click.IntRange(min=1), help="Round the number of rows up."
)
@click.option(
    "--dtype",
    shell_complete=completing.names(completing.dtypes),
    help="The dtype of the result; default: the model's.",
)
@recipe_options
def transplant(
    model: str,
    donor: str,
    out: Path,
    rule: str,
    k: int | None,
    parameters: tuple[tuple[str, Any], ...],
    match: str | None,
    pad_to_multiple_of: int | None,
    dtype: str | None,
    **run: Any,
) -> int:
    """Write MODEL with the tokenizer of DONOR into the new folder OUT.

    Rows of tokens that both have are MODEL's own; the others are made by a rule from DONOR's rows. It is a merge with
    a recipe of its own: interrupted, verified and replayed like any other. Its plan tells the error of the rule.
    """
    begun = time.monotonic()
    given = dict(parameters) if k is None else {"k": k, **dict(parameters)}
    recipe = transplant_recipe(
        model,
        donor,
        {"rule": rule, **given},
        match=match,
        pad_to_multiple_of=pad_to_multiple_of,
        dtype=dtype,
    )
    return run_recipe(recipe, out, begun, **run)


def transplant_recipe(
    model: str, donor: str, missing: dict[str, Any], *, dtype: str | None = None, **section: Any
) -> Recipe:
    """The recipe of a transplantation: MODEL alone, in the vocabulary of DONOR.

    `section` are other keys of its tokenizer section; those that are None are left out.
    """
    from weightsmith.recipes import Recipe

    wanted = {key: value for key, value in section.items() if value is not None}
    recipe: dict[str, Any] = {
        "weightsmith": 1,
        "merge_method": "passthrough",
        "models": [{"model": model}],
        "tokenizer": {"source": donor, **wanted, "missing": missing},
    }
    return Recipe.load(recipe if dtype is None else {**recipe, "dtype": dtype})
