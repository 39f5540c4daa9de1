"""Checkpoints of one network in two spellings: what is merged of them is what is merged of them in one."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tests.checkpoints.spelled_models import IMAGES, build, config_of, save, stored, write

import weightsmith
from weightsmith.checkpoints import open_checkpoint, write_statistics
from weightsmith.errors import WeightsmithError
from weightsmith.findings import errors_among
from weightsmith.inspection import compare_checkpoints
from weightsmith.lora.extraction import extract

pytest.importorskip("transformers.conversion_mapping")
pytestmark = pytest.mark.filterwarnings("ignore")

RECIPE = """weightsmith: 1
merge_method: dare_ties
base_model: {base}
seed: 3
parameters: {{density: 0.6, lambda: 0.9}}
models:
  - {{model: {one}, parameters: {{weight: 0.5}}}}
  - {{model: {other}, parameters: {{weight: 0.7}}}}
"""
FAMILIES = [
    "gemma3",
    "llava_next",
    "aria",
    "qwen2_vl",
    "qwen2_audio",
    "vit",
    "beit",
    "dinov2 gated",
    "swin",
    "segformer",
    "gpt_neox",
    "granitemoe",
    "mixtral",
    "qwen3_moe",
    "lfm2_moe",
    "nemotron_h",
]


def in_memory(model):
    """Every tensor of a network once, by its name in memory."""
    kept, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept[name] = tensor
    return kept


def three(name, root):
    """A base and two models as transformers saves them, the second of these also under its names in memory."""
    models = [build(name, seed) for seed in range(3)]
    # Models of one name have the same random masks, wherever they lie.
    folders = [save(model, root / "files" / key) for model, key in zip(models, "abc", strict=True)]
    memory = [
        write(root / "memory" / folder.name, in_memory(model), config_of(folder))
        for model, folder in zip(models, folders, strict=True)
    ]
    assert stored(folders[0]).keys() != stored(memory[0]).keys()
    return folders, memory


def merged(root, base, one, other, name):
    text = RECIPE.format(base=base, one=one, other=other)
    (root / f"{name}.yaml").write_text(text)
    weightsmith.merge(root / f"{name}.yaml", root / name)
    content = (root / name / "model.safetensors").read_bytes()
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_in_another_spelling_gives_the_bytes_of_the_model_in_this_one(tmp_path, name):
    files, memory = three(name, tmp_path)
    in_one = merged(tmp_path, *files, "one")
    assert merged(tmp_path, files[0], memory[1], files[2], "mixed") == in_one
    assert stored(tmp_path / "mixed").keys() == stored(files[0]).keys()


@pytest.mark.parametrize("name", ["gemma3", "vit", "dinov2 gated", "mixtral"])
def test_the_result_has_the_names_of_its_base_also_where_these_are_those_in_memory(tmp_path, name):
    files, memory = three(name, tmp_path)
    in_one = merged(tmp_path, *memory, "one")
    assert merged(tmp_path, memory[0], files[1], memory[2], "mixed") == in_one
    assert stored(tmp_path / "mixed").keys() == stored(memory[0]).keys()
    assert weightsmith.verify(tmp_path / "mixed", recompute=5).ok


WRAPPED = {
    "around a model that is trained in parallel": lambda key: f"module.{key}",
    "around a compiled model": lambda key: f"_orig_mod.{key}",
    "inside a compiled model": lambda key: key.replace("layers.", "layers._orig_mod.", 1),
    "without the name of the body": lambda key: key.removeprefix("model."),
    "with a name of a trainer in front": lambda key: f"policy.{key}",
}


@pytest.mark.parametrize("rename", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("has_config", [True, False])
def test_names_in_a_wrapper_are_those_within(tmp_path, rename, has_config):
    base, one, other = (save(build("llama", seed), tmp_path / k) for seed, k in enumerate("abc"))
    in_one = merged(tmp_path, base, one, other, "plain")
    tensors = {rename(key): tensor for key, tensor in stored(other).items()}
    wrapped = write(tmp_path / "wrapped" / "c", tensors, config_of(other))
    if not has_config:
        (wrapped / "config.json").unlink()
    assert merged(tmp_path, base, one, wrapped, "mixed") == in_one


def test_the_plan_says_which_model_is_spelled_otherwise_and_nothing_of_ordinary_ones(tmp_path):
    files, memory = three("vit", tmp_path)
    text = RECIPE.format(base=files[0], one=files[1], other=files[2])
    (tmp_path / "r.yaml").write_text(text)
    assert weightsmith.plan(tmp_path / "r.yaml").findings == ()
    (tmp_path / "r.yaml").write_text(text.replace(str(files[2]), str(memory[2])))
    (found,) = weightsmith.plan(tmp_path / "r.yaml").findings
    assert (found.severity.value, found.code, found.subject) == ("note", "spelling", "c")
    assert "vit.layers.0.attention.k_proj.bias" in found.sentence
    assert "vit.encoder.layer.0.attention.attention.key.bias" in found.sentence
    assert "32 tensors" in found.sentence


def _net(prefix, seed):
    generator = np.random.default_rng(seed)
    return {
        f"{prefix}.{layer}.{part}.weight": generator.normal(size=(3, 3)).astype(np.float32)
        for layer in range(4)
        for part in ("up", "down")
    }


@pytest.mark.parametrize("missing", ["error", "skip"])
def test_models_with_few_names_in_common_are_refused_with_both_spellings(tmp_path, missing):
    save_file(_net("trunk", 0), tmp_path / "a.safetensors")
    shared = {"trunk.0.up.weight": np.zeros((3, 3), np.float32)}
    save_file(_net("unknown.blocks", 1) | shared, tmp_path / "b.safetensors")
    text = (
        f"weightsmith: 1\nmerge_method: linear\nmissing: {missing}\n"
        "models: [{model: a.safetensors}, {model: b.safetensors}]\n"
    )
    (tmp_path / "r.yaml").write_text(text)
    errors = errors_among(weightsmith.plan(tmp_path / "r.yaml").findings)
    assert [finding.code for finding in errors] == ["few-names"]
    assert "Only 1 of the 9 tensors" in errors[0].sentence
    assert "'unknown.blocks.0.down.weight'" in errors[0].sentence
    assert "'trunk.0.down.weight'" in errors[0].sentence
    assert "skip" not in errors[0].fix
    with pytest.raises(WeightsmithError):
        weightsmith.merge(tmp_path / "r.yaml", tmp_path / "out")


def test_a_model_that_has_both_spellings_is_read_in_neither(tmp_path):
    """As a merge with `missing: skip` once wrote them."""
    files, memory = three("vit", tmp_path)
    both = write(tmp_path / "both", {**stored(files[1]), **stored(memory[1])}, config_of(files[1]))
    (tmp_path / "r.yaml").write_text(RECIPE.format(base=memory[0], one=both, other=memory[2]))
    codes = {f.code for f in weightsmith.plan(tmp_path / "r.yaml").findings}
    assert "spelling" not in codes


def test_statistics_of_a_model_go_by_the_names_in_its_own_file(tmp_path):
    files, memory = three("vit", tmp_path)

    def weighted(folders, name):
        models = []
        for number, folder in enumerate(folders):
            tensors = {k: (t.numpy() + number) ** 2 for k, t in stored(folder).items()}
            file = tmp_path / f"{name}-{number}.safetensors"
            write_statistics(file, tensors, kind="fisher", of=folder, data="none", samples=4)
            models.append({"model": str(folder), "statistics": str(file)})
        recipe = {"weightsmith": 1, "merge_method": "fisher", "models": models}
        weightsmith.merge(recipe, tmp_path / name)
        return stored(tmp_path / name)

    wanted = weighted(files[:2], "one")
    found = weighted([files[0], memory[1]], "mixed")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())


def test_labels_follow_the_recipe_whichever_model_gives_the_names(tmp_path):
    """They seed random masks, so that another order would give other bytes."""
    for place, seed in (("p", 1), ("q", 2), ("r", 3)):
        save(build("llama", seed), tmp_path / place / "x")
    text = RECIPE.format(base="r/x", one="p/x", other="q/x")
    (tmp_path / "r.yaml").write_text(text)
    resolved = weightsmith.plan(tmp_path / "r.yaml").resolved
    places = {label: found.path.parent.name for label, found in resolved.checkpoints.items()}
    assert list(places.values()) == ["p", "q", "r"]
    assert places[resolved.base] == "r"


def test_experts_apart_are_those_of_a_stack_in_comparisons_and_adapters(tmp_path):
    files, memory = three("mixtral", tmp_path)
    found = compare_checkpoints(files[0], memory[0])
    assert not found.missing
    assert not found.extra
    assert found.total.changed == 0
    assert len(found.names) == 2 * (3 * 4 + 1)
    assert not found.identical
    base = open_checkpoint(files[0])
    first, _ = extract(open_checkpoint(files[1]), base, rank=2)
    second, _ = extract(open_checkpoint(memory[1]), base, rank=2)
    assert first.factors.keys() == second.factors.keys()
    for key, factors in first.factors.items():
        np.testing.assert_array_equal(factors.change.left, second.factors[key].change.left)


def test_families_that_the_table_has_not_are_read_by_transformers_own_mapping(
    tmp_path, monkeypatch
):
    import transformers

    config = transformers.VideoMAEConfig(**IMAGES, num_frames=2)
    folders, memory = [], []
    for seed, name in enumerate("abc"):
        torch.manual_seed(seed)
        model = transformers.VideoMAEModel(config)
        folders.append(save(model, tmp_path / "files" / name))
        own = in_memory(model)
        memory.append(write(tmp_path / "memory" / name, own, config_of(folders[-1])))
    assert stored(folders[0]).keys() != stored(memory[0]).keys()
    in_one = merged(tmp_path, *folders, "one")
    assert merged(tmp_path, folders[0], memory[1], folders[2], "mixed") == in_one
    (found,) = [
        f for f in weightsmith.plan(tmp_path / "mixed.yaml").findings if f.code == "spelling"
    ]
    assert "by the mapping of the transformers that is installed here" in found.sentence
    monkeypatch.setitem(sys.modules, "transformers.core_model_loading", None)
    codes = [f.code for f in weightsmith.plan(tmp_path / "mixed.yaml").findings]
    assert "spelling" not in codes
    assert codes


def _experts(kind, seed):
    """Names and tensors of two layers of experts in a stack, and of the same ones apart."""
    generator = torch.Generator().manual_seed(seed)
    has_bias = kind == "gpt_oss"
    start = f"model.layers.{{}}.{'feed_forward' if kind == 'llama4_text' else 'mlp'}.experts."
    stacked, apart = {}, {}
    for layer in range(2):
        here = start.format(layer)
        parts = {
            name: [torch.randn(*shape, generator=generator) for _ in range(3)]
            for name, shape in {"gate": (6, 4), "up": (6, 4), "down": (4, 6)}.items()
        }
        biases = {name: [w[:, 0].clone() for w in parts[name]] for name in parts}
        for name, own in parts.items():
            apart |= {f"{here}{e}.{name}_proj.weight": w for e, w in enumerate(own)}
        if has_bias:
            for name, own in biases.items():
                apart |= {f"{here}{e}.{name}_proj.bias": b for e, b in enumerate(own)}
        stacked[f"{here}down_proj"] = torch.stack([w.T for w in parts["down"]])
        gates = zip(parts["gate"], parts["up"], strict=True)
        if has_bias:
            woven = [torch.stack(pair, 1).reshape(12, 4).T for pair in gates]
            bias_pairs = zip(biases["gate"], biases["up"], strict=True)
            stacked[f"{here}gate_up_proj_bias"] = torch.stack(
                [torch.stack(pair, 1).reshape(12) for pair in bias_pairs]
            )
            stacked[f"{here}down_proj_bias"] = torch.stack(biases["down"])
        else:
            woven = [torch.cat(pair).T for pair in gates]
        stacked[f"{here}gate_up_proj"] = torch.stack(woven)
    more = {
        f"model.layers.{layer}.self_attn.{part}_proj.weight": torch.randn(4, 4, generator=generator)
        for layer in range(2)
        for part in "qkvo"
    }
    return more | stacked, more | apart


@pytest.mark.parametrize("kind", ["llama4_text", "gpt_oss", "aria_text"])
def test_experts_stored_inputs_first_are_merged_with_those_that_are_stored_apart(tmp_path, kind):
    config = {"model_type": kind}
    folders = {"stacked": [], "apart": []}
    for seed, name in enumerate("abc"):
        for form, tensors in zip(folders, _experts(kind, seed), strict=True):
            folders[form].append(write(tmp_path / form / name, tensors, config))
    stacked, apart = folders.values()
    in_one = merged(tmp_path, *stacked, "one")
    assert merged(tmp_path, stacked[0], apart[1], stacked[2], "mixed") == in_one
    in_parts = merged(tmp_path, *apart, "parts")
    assert merged(tmp_path, apart[0], stacked[1], apart[2], "mixed parts") == in_parts


def test_experts_that_transformers_once_stored_the_other_way_are_turned(tmp_path):
    config = {"model_type": "qwen3_vl_moe_text"}
    stacks = [_experts("aria_text", seed)[0] for seed in range(3)]
    ends = (".experts.gate_up_proj", ".experts.down_proj")
    old, new = [], []
    for name, tensors in zip("abc", stacks, strict=True):
        old.append(write(tmp_path / "old" / name, tensors, config))
        as_in_memory = {k: t.mT if k.endswith(ends) else t for k, t in tensors.items()}
        new.append(write(tmp_path / "new" / name, as_in_memory, config))
    assert merged(tmp_path, old[0], new[1], old[2], "mixed") == merged(tmp_path, *old, "one")
    assert merged(tmp_path, *new[:2], old[2], "back") == merged(tmp_path, *new, "new one")
    (found,) = weightsmith.plan(tmp_path / "back.yaml").findings
    assert "4 tensors of 'c' are stored with their axes in another order" in found.sentence


def test_a_delta_package_of_a_base_in_another_spelling_gives_the_model_back(tmp_path):
    files, memory = three("vit", tmp_path)
    for name, tensor in (tuned := stored(files[0])).items():
        if "query" in name:
            tensor[0] += 1.0
    write(tmp_path / "t", tuned, config_of(files[0]))
    weightsmith.pack_delta(tmp_path / "t", memory[0], tmp_path / "package")
    weightsmith.unpack_delta(tmp_path / "package", tmp_path / "back")
    back = stored(tmp_path / "back")
    assert all(torch.equal(back[key], tensor) for key, tensor in tuned.items())
    size = (tmp_path / "package" / "delta.safetensors").stat().st_size
    assert size < 0.5 * (files[0] / "model.safetensors").stat().st_size
