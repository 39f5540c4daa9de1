"""Which kind of output a recipe makes: the one place that knows all kinds."""

from __future__ import annotations

from weightsmith.checkpoints import BareAdapter
from weightsmith.engine.outputs.carried_metadata import carried_metadata
from weightsmith.engine.outputs.dense_output import DenseFolder
from weightsmith.engine.planning.plan import Output
from weightsmith.errors import RecipeError
from weightsmith.recipes import Opener, Recipe, Resolved, resolve
from weightsmith.tensors import SINGLE_FILE


def resolve_output(recipe: Recipe, opener: Opener) -> tuple[Resolved, Output]:
    """The formulas of a recipe, and what becomes of their tensors.

    Raises what `resolve` does, and RecipeError for a recipe that asks for an output that its models do not give.
    """
    try:
        resolved = resolve(recipe, opener)
    except BareAdapter as found:
        from weightsmith.engine.outputs.adapter_output import AdapterFolder

        return AdapterFolder.of_adapters(recipe, opener, found)
    if recipe.document.adapter is not None:
        raise RecipeError(
            "adapter: the models of this recipe are checkpoints, so its result is one too; name adapters alone as "
            "models, or leave the key out."
        )
    return resolved, output_of_models(resolved)


def output_of_models(resolved: Resolved) -> Output:
    """What a recipe over models makes."""
    if resolved.recipe.document.bundle is None:
        return DenseFolder.of(resolved.outputs, carried_metadata(resolved), _single_file(resolved))
    from weightsmith.engine.outputs.bundle_output import BundleFolder

    return BundleFolder.of_models(resolved)


def _single_file(resolved: Resolved) -> str:
    """What the config source's library looks for: diffusers, whose configurations name a class, has its own name."""
    config = resolved.checkpoints[resolved.config_source].config or {}
    return "diffusion_pytorch_model.safetensors" if "_class_name" in config else SINGLE_FILE
