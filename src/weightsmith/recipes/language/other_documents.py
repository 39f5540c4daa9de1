"""Documents that are given where another kind belongs: a suite as a recipe, a saved evaluation as a suite."""

from __future__ import annotations

from weightsmith.errors import RecipeError
from weightsmith.recipes.language.document import YamlDocument

# What each kind of document is and what it is for, by keys of which it has all and the others have none.
_KINDS = (
    (("suite", "tasks"), "suite", "a suite of tasks; give it to `evaluate`, `compare` or `league`"),
    (("subject", "scores"), "evaluation", "what `evaluate` saved; `compare` and `report` read it"),
    (("recipe_digest", "outputs"), "manifest", "a manifest; `verify` and `replay` take its folder"),
    (
        ("finetune", "tensors"),
        "package",
        "the record of a delta package; name its folder as a model",
    ),
    (("family", "tasks"), "family", "the record of a family; `league --family` takes its folder"),
    (("tasks",), "suite", "a suite of tasks; give it to `evaluate`, `compare` or `league`"),
    (("model_type",), "configuration", "a model's configuration; name the model in a recipe"),
    (("architectures",), "configuration", "a model's configuration; name the model in a recipe"),
    (("merge_method",), "recipe", "a recipe; `plan` and `merge` read it, and `evaluate` scores it"),
    (("expression",), "recipe", "a recipe; `plan` and `merge` read it, and `evaluate` scores it"),
)


def refuse_other_kinds(document: YamlDocument, kind: str) -> None:
    """Raise RecipeError for a document that is of another kind than `kind`, whose keys are no typing errors."""
    for keys, own, what in _KINDS:
        if all(key in document.data for key in keys):
            if own != kind:
                raise RecipeError(f"{document.where((keys[0],))}: this is {what}.")
            return
