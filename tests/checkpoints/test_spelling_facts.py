"""The table of spellings against transformers: what it would do with the files of a family, name by name."""

from __future__ import annotations

import re

import pytest
from tests.checkpoints.spelled_models import MODELS, build, config_of, save, stored

from weightsmith.checkpoints import spelling_of
from weightsmith.checkpoints.spelling.spelling_facts import (
    FAMILIES,
    ROUTERS_APART,
    STACKED_IN_MEMORY,
)

pytest.importorskip("transformers.conversion_mapping")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Of each family the network, its configuration, shapes in its file, and how transformers would load that."""
    from weightsmith.live.transformers_names import transformers_names

    def of(name):
        if name not in made:
            model = build(name)
            folder = save(model, tmp_path_factory.mktemp("model"))
            shapes = {key: tuple(tensor.shape) for key, tensor in stored(folder).items()}
            made[name] = (model, config_of(folder), shapes, transformers_names(model, shapes))
        return made[name]

    made = {}
    return of


@pytest.mark.parametrize("name", MODELS)
def test_names_in_files_become_those_that_transformers_loads_them_under(families, name):
    _, config, shapes, found = families(name)
    spelling = spelling_of(config, shapes)
    assert not found.unexpected
    for origin in found.origins:
        memory = origin.memory[0]
        canonical = [spelling.canonical(file) for file in origin.files]
        if len(origin.files) == len(origin.memory) == 1:
            assert canonical == [memory]
        elif len(origin.memory) == 1:
            experts = {re.search(r"experts\.(\d+)\.", file)[1] for file in origin.files}
            # transformers has all gates before all ups; which belongs where is the array's layout.
            assert sorted(spelling.pieces(memory, (len(experts), 1, 1))) == sorted(canonical)
        else:
            assert spelling.pieces(canonical[0], shapes[origin.files[0]]) == origin.memory
        # A name in memory is what it is, whichever file it stands in.
        assert [spelling.canonical(known) for known in origin.memory] == list(origin.memory)


OLD = {
    "gemma3": (r"^vision_tower\.", "vision_tower.vision_model."),
    "llava": (r"^vision_tower\.", "vision_tower.vision_model."),
    "llava_next": (r"^language_model\.model\.", "model.language_model.model."),
    "siglip vision": (r"^", "vision_model."),
    "clip text": (r"^", "text_model."),
    "bert": (r"LayerNorm\.weight$", "LayerNorm.gamma"),
}


@pytest.mark.parametrize("name", OLD)
def test_names_of_earlier_versions_become_the_same(families, name):
    from weightsmith.live.transformers_names import transformers_names

    model, config, shapes, _ = families(name)
    before, after = OLD[name]
    old = {re.sub(before, after, key): shape for key, shape in shapes.items()}
    assert old.keys() != shapes.keys()
    found = transformers_names(model, old)
    assert not found.unexpected
    spelling = spelling_of(config, old)
    assert {file: spelling.canonical(file) for file in old} == {
        origin.files[0]: origin.memory[0] for origin in found.origins
    }


def test_files_without_a_configuration_are_known_by_their_names(families):
    for name in ("llava", "qwen2_vl", "vit", "gpt_neox", "granitemoe", "mixtral", "nemotron_h"):
        _, config, shapes, _ = families(name)
        known, guessed = spelling_of(config, shapes), spelling_of(None, shapes)
        names = [key for key in shapes if not key.startswith("vision_tower.vision_model.")]
        assert [guessed.canonical(key) for key in names] == [known.canonical(key) for key in names]


def test_families_whose_experts_are_stacked_in_memory_are_those_of_transformers():
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    def stacks(kind):
        rules = get_checkpoint_conversion_mapping(kind) or []
        steps = [step for rule in rules for step in getattr(rule, "operations", None) or []]
        return any(type(step).__name__ == "MergeModulelist" for step in steps)

    assert [kind for kind in STACKED_IN_MEMORY if not stacks(kind)] == []


@pytest.mark.parametrize("name", ["granitemoe", "aria", "mixtral", "qwen2_moe", "phimoe"])
def test_routers_are_parameters_where_their_module_is_no_linear_layer(families, name):
    import torch

    model, config, _, _ = families(name)
    modules = {
        key: module
        for key, module in model.named_modules()
        if type(module).__name__.endswith("Router")
    }
    assert modules
    kinds = {str(config["model_type"]), str(config.get("text_config", {}).get("model_type"))}
    expected = bool(kinds & ROUTERS_APART)
    assert {not isinstance(module, torch.nn.Linear) for module in modules.values()} == {expected}


def test_no_type_belongs_to_two_families():
    types = [kind for family in FAMILIES for kind in family.types]
    assert len(types) == len(set(types))
