"""The language part of a vision-language model merged with plain language models; nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import weightsmith
from weightsmith.errors import RecipeError, WeightsmithError

from . import vision_language as made

Weights = dict[str, torch.Tensor]
LLAVA = "language_model."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `llava`, `llama1..2`, `qwen2_vl`, `qwen1..2`, made once."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    made.llava(root / "llava")
    made.qwen2_vl(root / "qwen2_vl")
    for number in (1, 2):
        made.llama(root / f"llama{number}")
        made.qwen2(root / f"qwen{number}")
    return root


def text_names(vlm: Weights, llm: Weights, prefix: str) -> dict[str, str]:
    """The vision-language model's name for each tensor of the plain one."""
    names = {prefix + name: name for name in llm}
    assert names.keys() <= vlm.keys()
    return names


def recipe(method: str, vlm: Path, llms: list[Path], **more: Any) -> dict[str, Any]:
    """Merge the language models into the vision-language one, which is the base."""
    entries = [{"model": str(path)} for path in llms]
    if method == "linear":
        entries.insert(0, {"model": str(vlm)})
    return {
        "weightsmith": 1,
        "base_model": str(vlm),
        "merge_method": method,
        "modules": {"text_decoder": {"models": entries}},
        **more,
    }


def plain_linear(base: torch.Tensor, experts: list[torch.Tensor]) -> torch.Tensor:
    """The mean of all."""
    return torch.stack([base, *experts]).double().mean(0)


def plain_task_arithmetic(base: torch.Tensor, experts: list[torch.Tensor]) -> torch.Tensor:
    """The base and 0.4 of every difference."""
    return base.double() + 0.4 * sum(e.double() - base.double() for e in experts)


def plain_ties(base: torch.Tensor, experts: list[torch.Tensor]) -> torch.Tensor:
    """Nothing trimmed: the mean of the differences of the elected sign."""
    deltas = torch.stack([e.double() - base.double() for e in experts])
    sign = torch.sign(deltas.sum(0))
    agree = (torch.sign(deltas) == sign) & (sign != 0)
    return base.double() + (deltas * agree).sum(0) / agree.sum(0).clamp(min=1)


METHODS: list[tuple[str, dict[str, Any], Callable[..., torch.Tensor]]] = [
    ("linear", {"weight": 1}, plain_linear),
    ("task_arithmetic", {"weight": 0.4}, plain_task_arithmetic),
    ("ties", {"weight": 1, "density": 1}, plain_ties),
]
FAMILIES = [("llava", ["llama1", "llama2"], LLAVA), ("qwen2_vl", ["qwen1", "qwen2"], "")]


def forward(model: torch.nn.Module, family: str) -> torch.Tensor:
    """The logits of a text with one image in it."""
    generator = torch.Generator().manual_seed(1)
    images = 4 if family == "llava" else 1
    ids = [1, 5, *([62] if family != "llava" else []), *[made.IMAGE] * images, 7, 9]
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
    if family == "llava":
        inputs["pixel_values"] = torch.randn(1, 3, 8, 8, generator=generator)
    else:
        inputs["pixel_values"] = torch.randn(4, 3 * 4 * 4, generator=generator)
        inputs["image_grid_thw"] = torch.tensor([[1, 2, 2]])
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == made.IMAGE).int()
    with torch.no_grad():
        return model.eval()(**inputs).logits


def load(folder: Path, family: str) -> torch.nn.Module:
    """The checkpoint as transformers reads it, with nothing missing and nothing left over."""
    from transformers import LlavaForConditionalGeneration, Qwen2VLForConditionalGeneration

    kind = LlavaForConditionalGeneration if family == "llava" else Qwen2VLForConditionalGeneration
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model


@pytest.mark.parametrize(("method", "parameters", "plain"), METHODS, ids=[m[0] for m in METHODS])
@pytest.mark.parametrize(("family", "experts", "prefix"), FAMILIES, ids=["llava", "qwen2_vl"])
def test_the_language_part_is_merged_and_the_rest_is_the_bases_bit_for_bit(
    models: Path,
    tmp_path: Path,
    family: str,
    experts: list[str],
    prefix: str,
    method: str,
    parameters: dict[str, Any],
    plain: Callable[..., torch.Tensor],
) -> None:
    """As plain torch code does it; the result loads, and sees the image, as the merge made in memory does."""
    written = recipe(method, models / family, [models / e for e in experts], parameters=parameters)
    weightsmith.merge(written, tmp_path / "out")
    base, result = made.tensors(models / family), made.tensors(tmp_path / "out")
    llms = [made.tensors(models / e) for e in experts]
    assert result.keys() == base.keys()
    names = text_names(base, llms[0], prefix)
    wanted = dict(base)
    for name, own in names.items():
        wanted[name] = plain(base[name], [llm[own] for llm in llms]).float()
        torch.testing.assert_close(result[name], wanted[name], rtol=1e-6, atol=1e-7)
    for name in base.keys() - names.keys():
        assert torch.equal(result[name].view(torch.uint8), base[name].view(torch.uint8))

    from safetensors.torch import save_file

    config = (models / family / "config.json").read_text()
    memory = tmp_path / "memory"
    memory.mkdir()
    save_file(wanted, memory / "model.safetensors", metadata={"format": "pt"})
    (memory / "config.json").write_text(config)
    logits = forward(load(tmp_path / "out", family), family)
    torch.testing.assert_close(logits, forward(load(memory, family), family), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits, forward(load(models / family, family), family), atol=1e-4)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(config)
    assert (tmp_path / "out" / "generation_config.json").exists()


def test_layers_of_the_language_part_can_be_chosen_in_slices(models: Path, tmp_path: Path) -> None:
    """Each slice has its layers from both models, numbered anew; what lies around the layers is merged too."""
    vlm, llm = models / "llava", models / "llama1"

    def part(first: int, second: int) -> dict[str, Any]:
        return {
            "sources": [
                {"model": str(vlm), "layer_range": [first, first + 1]},
                {"model": str(llm), "layer_range": [second, second + 1]},
            ]
        }

    weightsmith.merge(
        {
            "weightsmith": 1,
            "base_model": str(vlm),
            "merge_method": "linear",
            "parameters": {"weight": 1},
            "modules": {"text_decoder": {"slices": [part(0, 1), part(1, 0), part(1, 1)]}},
        },
        tmp_path / "out",
    )
    base, plain, result = made.tensors(vlm), made.tensors(llm), made.tensors(tmp_path / "out")
    layer = LLAVA + "model.layers.{}."
    rests = [n.removeprefix(layer.format(0)) for n in base if n.startswith(layer.format(0))]
    assert len(rests) == 9
    for out, (ours, theirs) in enumerate([(0, 1), (1, 0), (1, 1)]):
        for rest in rests:
            own = base[layer.format(ours) + rest].double()
            other = plain[f"model.layers.{theirs}.{rest}"].double()
            wanted = ((own + other) / 2).float()
            torch.testing.assert_close(result[layer.format(out) + rest], wanted)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 3
    assert config["vision_config"]["num_hidden_layers"] == 2
    assert len(result) == len(base) + len(rests)
    forward(load(tmp_path / "out", "llava"), "llava")


LAYOUTS = {
    "in memory": {"language_model.model.": "model.language_model.", "language_model.": ""},
    "text model": {"language_model.model.": "model.text_model.", "language_model.": ""},
    "bare": {"language_model.model.": "language_model.", "language_model.": ""},
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_other_layouts_of_the_same_network_are_understood(
    models: Path, tmp_path: Path, layout: str
) -> None:
    """Where a family keeps its language part elsewhere the same tensors are merged."""
    vlm = made.renamed(models / "llava", tmp_path / "vlm", LAYOUTS[layout])
    weightsmith.merge(
        recipe("linear", vlm, [models / "llama1"], parameters={"weight": 1}), tmp_path / "out"
    )
    weightsmith.merge(
        recipe("linear", models / "llava", [models / "llama1"], parameters={"weight": 1}),
        tmp_path / "reference",
    )
    made.renamed(tmp_path / "reference", tmp_path / "wanted", LAYOUTS[layout])
    wanted, result = made.tensors(tmp_path / "wanted"), made.tensors(tmp_path / "out")
    assert result.keys() == wanted.keys()
    assert all(torch.equal(result[name], wanted[name]) for name in wanted)


def test_a_vision_language_model_can_give_to_a_plain_one(models: Path, tmp_path: Path) -> None:
    """The other way round: the base is the plain model, and its names count."""
    weightsmith.merge(
        {
            "weightsmith": 1,
            "base_model": str(models / "llama1"),
            "merge_method": "linear",
            "parameters": {"weight": 1},
            "modules": {
                "text": {
                    "match": {"glob": "*"},
                    "prefix": {"": "language_model"},
                    "models": [{"model": str(models / m)} for m in ("llama1", "llava")],
                }
            },
        },
        tmp_path / "out",
    )
    plain, vlm = made.tensors(models / "llama1"), made.tensors(models / "llava")
    result = made.tensors(tmp_path / "out")
    assert result.keys() == plain.keys()
    for name, tensor in result.items():
        wanted = (plain[name].double() + vlm[LLAVA + name].double()) / 2
        torch.testing.assert_close(tensor, wanted.float())


def test_mergekits_dialect_reads_the_names_and_drops_the_rest(models: Path) -> None:
    """As mergekit does with parts that no module names, but said beforehand."""
    written = recipe("linear", models / "llava", [models / "llama1"], parameters={"weight": 1})
    del written["weightsmith"]
    plan = weightsmith.plan(written)
    assert {f.code for f in plan.findings} >= {"not-written", "module-names"}


@pytest.mark.parametrize("tied", [True, False])
def test_tied_heads_stay_tied(tmp_path: Path, tied: bool) -> None:
    """The small ones of a family keep their head in the embedding."""
    torch.manual_seed(0)
    made.qwen2_vl(tmp_path / "vlm", tied=tied)
    made.qwen2(tmp_path / "llm", tied=tied)
    written = recipe("linear", tmp_path / "vlm", [tmp_path / "llm"], parameters={"weight": 1})
    weightsmith.merge(written, tmp_path / "out")
    result = made.tensors(tmp_path / "out")
    assert result.keys() == made.tensors(tmp_path / "vlm").keys()
    assert ("lm_head.weight" in result) is not tied
    forward(load(tmp_path / "out", "qwen2_vl"), "qwen2_vl")


def test_image_tokens_beyond_the_plain_vocabulary_name_the_keys_that_help(
    models: Path, tmp_path: Path
) -> None:
    """More rows in the vision-language model are an error without a word about them, and kept with a rule."""
    torch.manual_seed(0)
    small = made.llama(tmp_path / "small", vocab_size=50)
    written = recipe("linear", models / "llava", [small], parameters={"weight": 1})
    with pytest.raises(WeightsmithError, match=r"64 entries .* 50 .*tokenizer.*keep"):
        weightsmith.merge(written, tmp_path / "out")
    kept = {"match": {"role": ["embedding", "head"]}, "keep": str(models / "llava")}
    weightsmith.merge({**written, "rules": [kept]}, tmp_path / "out")
    base, result = made.tensors(models / "llava"), made.tensors(tmp_path / "out")
    changed = {name for name in base if not torch.equal(base[name], result[name])}
    wanted = {n for n in base if n.startswith(LLAVA) and "embed" not in n and "head" not in n}
    assert changed == wanted
    forward(load(tmp_path / "out", "llava"), "llava")


def test_a_language_model_of_another_architecture_is_refused_by_tensor(
    models: Path, tmp_path: Path
) -> None:
    """Biases that the vision-language model does not have are named."""
    written = recipe("linear", models / "llava", [models / "qwen1"], parameters={"weight": 1})
    named = r"no counterpart in 'llava': 'model\.layers\.0\.self_attn\.k_proj\.bias'"
    with pytest.raises(WeightsmithError, match=named):
        weightsmith.merge(written, tmp_path / "out")


def test_a_prefix_that_no_tensor_has_is_refused(models: Path, tmp_path: Path) -> None:
    """With the prefixes that there are."""
    written = recipe("linear", models / "llava", [models / "llama1"], parameters={"weight": 1})
    written["modules"]["text_decoder"]["prefix"] = "text"
    with pytest.raises(RecipeError, match=r"'text' is no prefix .*language_model\.model\.layers"):
        weightsmith.merge(written, tmp_path / "out")
    written["modules"]["text_decoder"]["prefix"] = {"language_model": "decoder"}
    with pytest.raises(RecipeError, match=r"'decoder' is no prefix of a tensor of 'llama1'"):
        weightsmith.merge(written, tmp_path / "out")
