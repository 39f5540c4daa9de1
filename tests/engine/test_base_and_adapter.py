"""A base with adapters is a model wherever one may stand, and is merged as if it had been written first."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.adapters import AdapterReference, Reference
from weightsmith.adapters.adapted_models import open_model
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.engine.planning.planned_tensors import Action
from weightsmith.errors import (
    CheckpointError,
    CompatibilityError,
    OutputError,
    VerificationError,
)
from weightsmith.evaluation.subjects import open_subject
from weightsmith.inspection.checkpoint_difference import compare_checkpoints
from weightsmith.inspection.checkpoint_summary import summarize_checkpoint
from weightsmith.recipes import Recipe
from weightsmith.recipes.resolution.inputs import Inputs
from weightsmith.tensors.digests import digest_tensor

from ..adapters.peft_family import llama, lora, merged  # noqa: TID252 - two rooms share it
from .interrupted import Recorder, Stop, merge_in_process

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` with adapters `a` and `b`, and `base-a`, `base-b` as peft merges them."""
    root = tmp_path_factory.mktemp("family")
    base = llama(root)
    for seed, name in enumerate(("a", "b"), start=1):
        merged(base, lora(base, name, seed), f"base-{name}")
    return root


@pytest.fixture
def family(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "family"))


def passthrough(reference: Any, **more: Any) -> dict[str, Any]:
    return {
        "weightsmith": 1,
        "merge_method": "passthrough",
        "models": [{"model": reference}],
        **more,
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def stored(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.glob("*.safetensors")))


def change(adapter: Path, module: str) -> torch.Tensor:
    """s B A in float64, from the adapter's own file."""
    factors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    a, b = (factors[f"base_model.model.{module}.lora_{side}.weight"].double() for side in "AB")
    return b @ a * (config["lora_alpha"] / config["r"])


def test_it_is_written_as_peft_merges_it(family: Path) -> None:
    weightsmith.merge(passthrough(f"{family}/base+{family}/a"), family / "out")
    found, expected = weights(family / "out"), weights(family / "base-a")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    assert (family / "out/config.json").is_file()


@pytest.mark.parametrize(
    ("method", "parameters", "has_base"),
    [
        ("linear", {}, False),
        ("task_arithmetic", {"lambda": 0.7}, True),
        ("ties", {"density": 0.5}, True),
        ("model_stock", {}, True),
        ("nuslerp", {}, False),
    ],
)
def test_a_merge_of_them_is_the_merge_of_the_written_ones(
    family: Path, method: str, parameters: dict[str, Any], has_base: bool
) -> None:
    def recipe(models: list[str]) -> dict[str, Any]:
        made: dict[str, Any] = {
            "weightsmith": 1,
            "merge_method": method,
            "models": [
                {"model": model, "parameters": {"weight": w}}
                if method != "model_stock"
                else {"model": model}
                for model, w in zip(models, (0.3, 0.6), strict=True)
            ],
            "parameters": parameters,
        }
        return made | ({"base_model": str(family / "base")} if has_base else {})

    adapted = [f"{family}/base+{family}/{name}" for name in "ab"]
    weightsmith.merge(recipe(adapted), family / "out")
    weightsmith.merge(recipe([f"{family}/base-{name}" for name in "ab"]), family / "expected")
    found, expected = weights(family / "out"), weights(family / "expected")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_rounded_once(family: Path) -> None:
    base = llama(family, "narrow", torch.bfloat16)
    weightsmith.merge(passthrough(f"{base}+{family}/a"), family / "out")
    found, before = weights(family / "out"), weights(base)
    for name, tensor in before.items():
        assert found[name].dtype is torch.bfloat16
        module = name.removesuffix(".weight")
        if module.split(".")[-1] in ("q_proj", "v_proj", "down_proj"):
            exact = tensor.double() + change(family / "a", module)
            assert torch.equal(found[name], exact.float().bfloat16())
        else:
            assert torch.equal(found[name], tensor)


def test_what_no_adapter_changes_is_copied(family: Path) -> None:
    base = llama(family, "narrow", torch.bfloat16)
    plan = make_plan(Recipe.load(passthrough(f"{base}+{family}/a")))
    computed = {t.output.name for t in plan.tensors if t.work.action is Action.COMPUTE}
    assert len(computed) == 6
    assert all(name.split(".")[-2] in ("q_proj", "v_proj", "down_proj") for name in computed)
    factors = load_file(family / "a/adapter_model.safetensors").values()
    assert plan.read_bytes == sum(
        t.numel() * t.element_size() for t in (*weights(base).values(), *factors)
    )


def test_the_bytes_are_the_same_for_all_threads_tiles_and_backends(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = passthrough(f"{family}/base+{family}/a+{family}/b:0.5", dtype="bfloat16")
    weightsmith.merge(recipe, family / "out", threads=1)
    expected = stored(family / "out")
    weightsmith.merge(recipe, family / "threads", threads=3)
    weightsmith.merge(recipe, family / "torch", backend="torch")
    monkeypatch.setattr("weightsmith.engine.planning.plan_making._SMALLEST_TILE", 100)
    weightsmith.merge(recipe, family / "tiles", memory_bytes=1)
    assert all(stored(family / name) == expected for name in ("threads", "torch", "tiles"))


def test_several_adapters_add_up_with_their_strengths(family: Path) -> None:
    lora_list = [{"path": f"{family}/a", "scale": 0.25}, f"{family}/b:-2"]
    weightsmith.merge(passthrough({"model": f"{family}/base", "lora": lora_list}), family / "out")
    found, before = weights(family / "out"), weights(family / "base")
    module = "model.layers.1.self_attn.v_proj"
    exact = before[f"{module}.weight"].double()
    exact = exact + 0.25 * change(family / "a", module) - 2 * change(family / "b", module)
    torch.testing.assert_close(found[f"{module}.weight"], exact.float(), rtol=0, atol=1e-6)


def test_mergekits_spellings_say_the_same(family: Path) -> None:
    text = f"merge_method: passthrough\nmodels:\n- model: {family}/base+{family}/a\n"
    nested = {"path": f"{family}/base", "revision": None}
    theirs = {
        "merge_method": "passthrough",
        "models": [{"model": {"model": nested, "lora": {"path": f"{family}/a"}}}],
    }
    assert Recipe.load(text) == Recipe.load(theirs)
    weightsmith.merge(theirs, family / "out")
    torch.testing.assert_close(
        weights(family / "out"), weights(family / "base-a"), rtol=0, atol=1e-6
    )


def test_a_run_that_was_stopped_goes_on(family: Path) -> None:
    recipe = passthrough(f"{family}/base+{family}/a", dtype="bfloat16")
    weightsmith.merge(recipe, family / "expected")
    with pytest.raises(Stop):
        weightsmith.merge(recipe, family / "out", threads=1, progress=Recorder(stop_at=12))
    resumed = Recorder()
    weightsmith.merge(recipe, family / "out", threads=1, progress=resumed)
    assert resumed.resumed > 0
    assert stored(family / "out") == stored(family / "expected")


def test_a_stopped_run_does_not_go_on_with_another_alpha(family: Path) -> None:
    recipe = passthrough(f"{family}/base+{family}/a")
    with pytest.raises(Stop):
        weightsmith.merge(recipe, family / "out", threads=1, progress=Recorder(stop_at=12))
    _set_alpha(family / "a", 16)
    with pytest.raises(OutputError, match="unfinished run"):
        weightsmith.merge(recipe, family / "out", threads=1)


def test_a_replay_has_the_same_bytes_wherever_the_folders_are(family: Path, tmp_path: Path) -> None:
    reference = f"{family}/base+{family}/a+{family}/b:0.5"
    first = weightsmith.merge(passthrough(reference), family / "out")
    expected = stored(family / "out")
    assert weightsmith.verify(family / "out", recompute=4).ok
    second = weightsmith.replay(family / "out", family / "again")
    assert first.inputs == second.inputs
    moved = tmp_path / "moved"
    family.rename(moved)
    assert weightsmith.verify(moved / "out", recompute=30).ok
    weightsmith.replay(moved / "out", moved / "new")
    assert stored(moved / "new") == expected
    away = tmp_path / "elsewhere"
    (moved / "a").rename(away)
    with pytest.raises(CheckpointError):
        weightsmith.replay(moved / "out", moved / "third")
    weightsmith.replay(moved / "out", moved / "third", inputs={f"{family}/a": away})
    assert stored(moved / "third") == expected


def test_another_adapter_in_its_place_is_found_out(family: Path) -> None:
    weightsmith.merge(passthrough(f"{family}/base+{family}/a"), family / "out")
    _set_alpha(family / "a", 16)
    assert not weightsmith.verify(family / "out", recompute=30).ok
    with pytest.raises(VerificationError, match="6 of 21"):
        weightsmith.replay(family / "out", family / "again")


def test_the_record_and_the_card_name_base_and_adapter(family: Path) -> None:
    made = weightsmith.merge(passthrough(f"{family}/base+{family}/a:0.5"), family / "out")
    (given,) = made.inputs.values()
    assert list(made.inputs) == ["base+a"]
    assert (given.model, given.path) == (f"{family}/base", "../base")
    (adapter,) = given.adapters
    assert (adapter.reference, adapter.path, adapter.strength) == (f"{family}/a", "../a", 0.5)
    card = (family / "out/README.md").read_text()
    assert "base_model" not in card  # where the Hub would look for models of its own
    assert "adapter of base" in card
    assert str(family) not in card


def test_an_output_may_not_lie_in_an_adapter(family: Path) -> None:
    with pytest.raises(OutputError, match="inside the input"):
        weightsmith.merge(passthrough(f"{family}/base+{family}/a"), family / "a/out")


def test_masks_and_record_do_not_depend_on_the_folder_that_a_merge_is_started_from(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (family / "recipe.yaml").write_text(
        "weightsmith: 1\nmerge_method: dare_linear\nbase_model: base\nparameters: {density: 0.5}\n"
        "models: [{model: base+a}]\n"
    )
    made = []
    for folder in (family, family / "base"):
        monkeypatch.chdir(folder)
        made.append(weightsmith.merge(family / "recipe.yaml", family / f"out-{folder.name}"))
    here, elsewhere = made
    assert elsewhere.outputs == here.outputs
    assert elsewhere.inputs == here.inputs
    given = here.inputs["base+a"]
    assert (given.reference, given.model, given.adapters[0].reference) == ("base+a", "base", "a")


def test_a_record_that_calls_the_base_like_the_whole_keeps_the_label_that_masks_were_drawn_by(
    family: Path,
) -> None:
    reference = Reference("base", None, (AdapterReference("a"),))
    opened = open_model(f"{family}/base+{family}/a")
    recorded = replace(opened, source="base+a", base_source="base+a")
    labels = []
    for checkpoint in (opened, recorded):
        inputs = Inputs(lambda _, found=checkpoint: found)
        labels.append(inputs.view(reference).label)
    assert labels == ["base+a", "base+a+a"]


def test_paths_may_be_meant_from_the_recipes_folder(family: Path) -> None:
    (family / "recipe.yaml").write_text(
        "weightsmith: 1\nmerge_method: passthrough\nmodels: [{model: base+a}]\n"
    )
    weightsmith.merge(family / "recipe.yaml", family / "out")
    torch.testing.assert_close(
        weights(family / "out"), weights(family / "base-a"), rtol=0, atol=1e-6
    )


def test_a_recipe_that_is_a_model_keeps_its_adapters_places(family: Path) -> None:
    inner = family / "inner"
    inner.mkdir()
    for name in ("base", "a"):
        shutil.move(family / name, inner / name)
    (inner / "inner.yaml").write_text(
        "weightsmith: 1\nmerge_method: passthrough\n"
        "models: [{model: {model: {path: base}, lora: [{path: a, scale: 1.0}]}}]\n"
    )
    (family / "outer.yaml").write_text(
        "weightsmith: 1\nmerge_method: linear\nmodels: [{model: inner/inner.yaml}, {model: inner/base+inner/a}]\n"
    )
    weightsmith.merge(family / "outer.yaml", family / "out")
    torch.testing.assert_close(
        weights(family / "out"), weights(family / "base-a"), rtol=0, atol=1e-6
    )


def test_a_tied_base_with_an_adapter_is_untied_for_a_merge(family: Path) -> None:
    tied = llama(family, "tied", tie_word_embeddings=True)
    recipe = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [{"model": f"{family}/base"}, {"model": f"{tied}+{family}/a"}],
        "untie": True,
    }
    weightsmith.merge(recipe, family / "out")
    found, first, second = (weights(f) for f in (family / "out", family / "base", tied))
    mean = (first["lm_head.weight"] + second["model.embed_tokens.weight"]) / 2
    torch.testing.assert_close(found["lm_head.weight"], mean, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_table_and_a_head_that_were_trained_apart_untie_their_base(family: Path) -> None:
    """What is written computes what the base does with the adapter beside it."""
    import transformers
    from peft import PeftModel

    tied = llama(family, "tied", tie_word_embeddings=True)
    both = lora(tied, "both", 5, target_modules=["embed_tokens", "lm_head", "q_proj"])
    made = weightsmith.plan(passthrough(f"{tied}+{both}"))
    assert [f.code for f in made.findings if f.code != "copied"] == ["untied-by-adapter"]
    weightsmith.merge(passthrough(f"{tied}+{both}"), family / "out")
    tokens = torch.arange(8)[None]
    network = transformers.AutoModelForCausalLM.from_pretrained(tied)
    right = PeftModel.from_pretrained(network, both)(tokens).logits
    written = transformers.AutoModelForCausalLM.from_pretrained(family / "out")
    torch.testing.assert_close(written(tokens).logits, right, rtol=1e-5, atol=1e-5)
    assert not written.config.tie_word_embeddings


def test_an_adapted_embedding_is_put_into_another_vocabulary(family: Path) -> None:
    """Rows of a computed table are moved like stored ones, and count as the base's dtype."""
    base = llama(family, "narrow", torch.bfloat16)
    table = lora(base, "table", 3, target_modules=["embed_tokens", "q_proj"])
    for folder, words in ((base, "ab"), (family / "base", "ba")):
        _write_tokenizer(folder, words)
    recipe = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [{"model": f"{base}+{table}"}],
        "tokenizer": {"source": str(family / "base")},
    }
    weightsmith.merge(recipe, family / "out")
    factors = load_file(table / "adapter_model.safetensors")
    prefix = "base_model.model.model.embed_tokens.lora_embedding_"
    delta = (factors[f"{prefix}B"].double() @ factors[f"{prefix}A"].double()).T * 2
    before = weights(base)["model.embed_tokens.weight"].double()
    changed = (before + delta).float().bfloat16()
    order = [1, 0, *range(2, 64)]
    assert torch.equal(weights(family / "out")["model.embed_tokens.weight"], changed[order])


def test_it_is_inspected_compared_and_evaluated_like_a_checkpoint(family: Path) -> None:
    reference = f"{family}/base+{family}/a"
    base = llama(family, "narrow", torch.bfloat16)
    summary = summarize_checkpoint(f"{base}+{family}/a:0.5")
    assert summary.adapters == (f"{family}/a:0.5",)
    assert summary.dtypes == {"bfloat16": summary.parameters}
    assert summary.nbytes == 2 * summary.parameters
    found = compare_checkpoints(reference, family / "base-a", base=family / "base")
    assert (found.missing, found.extra, found.shapes, found.dtypes) == ((), (), (), ())
    assert found.total.largest < 1e-6
    subject = open_subject(reference)
    assert subject.tensors.keys() == weights(family / "base").keys()
    assert subject.digest != open_subject(family / "base").digest


@pytest.mark.parametrize(
    ("reference", "error", "words"),
    [
        ("{0}/base+{0}/missing", CheckpointError, "No checkpoint is at"),
        ("{0}/base++{0}/a", CheckpointError, "empty part beside"),
        ("{0}/base+", CheckpointError, "empty part beside"),
        ("{0}/a", CheckpointError, "BASE+"),
        ("{0}/base+{0}/base-a", CheckpointError, "no adapter"),
        ("{0}/small+{0}/a", CompatibilityError, "the base that the adapter was trained on"),
    ],
)
def test_mistakes_are_sentences(
    family: Path, reference: str, error: type[Exception], words: str
) -> None:
    llama(family, "small", hidden_size=16)
    with pytest.raises(error) as caught:
        open_model(reference.format(family))
    assert words in str(caught.value).replace("\n", " ")


def test_a_folder_whose_name_has_a_plus_is_what_it_is(family: Path) -> None:
    plus = family / "c++"
    (family / "base").rename(plus)
    assert open_model(plus).attached == ()
    found = open_model(f"{plus}+{family}/a")
    assert [adapter.name for adapter in found.attached] == ["a"]
    weightsmith.merge(passthrough(f"{plus}+{family}/a"), family / "out")
    assert weightsmith.verify(family / "out", recompute=3).ok


def _set_alpha(adapter: Path, alpha: int) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_alpha"] = alpha
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def _write_tokenizer(folder: Path, words: str) -> None:
    from tokenizers import Tokenizer, models

    vocabulary = {word: i for i, word in enumerate([*words, *map(str, range(62))])}
    Tokenizer(models.WordLevel(vocabulary, unk_token="0")).save(str(folder / "tokenizer.json"))


def test_damaged_factors_are_an_error_and_leave_nothing(family: Path) -> None:
    file = family / "a/adapter_model.safetensors"
    factors = load_file(file)
    name = next(name for name in factors if "q_proj.lora_B" in name)
    factors[name][0, 0] = float("nan")
    save_file(factors, file)
    with pytest.raises(weightsmith.WeightsmithError, match="NaN"):
        weightsmith.merge(passthrough(f"{family}/base+{family}/a"), family / "out")
    assert not (family / "out").exists()


def test_a_killed_run_goes_on(family: Path) -> None:
    recipe = passthrough(f"{family}/base+{family}/a+{family}/b:0.5", dtype="bfloat16")
    weightsmith.merge(recipe, family / "expected")
    killed = merge_in_process(recipe, family / "out", kill_at=12, threads=1)
    assert killed.returncode == -signal.SIGKILL
    assert not (family / "out").exists()
    resumed = Recorder()
    weightsmith.merge(recipe, family / "out", threads=1, progress=resumed)
    assert resumed.resumed > 0
    assert stored(family / "out") == stored(family / "expected")


def test_base_and_adapter_may_come_from_the_hub(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, source in (("tiny", "base"), ("lora", "a")):
        _cache(tmp_path / "cache", name, family / source)
    made = weightsmith.merge(passthrough("owner/tiny@main+owner/lora@main:0.5"), family / "out")
    (given,) = made.inputs.values()
    assert list(made.inputs) == ["owner/tiny+owner/lora"]
    assert (given.hub_id, given.model) == ("owner/tiny", "owner/tiny@main")
    assert [(a.hub_id, a.reference) for a in given.adapters] == [("owner/lora", "owner/lora@main")]
    card = (family / "out/README.md").read_text()
    assert "- owner/tiny\n- owner/lora\n" in card
    again = weightsmith.replay(family / "out", family / "again")
    assert again.inputs == made.inputs
    assert again.outputs == made.outputs


def test_bundles_are_made_of_adapted_models_and_their_tasks_have_names(family: Path) -> None:
    recipe = {
        "weightsmith": 1,
        "merge_method": "tall_masks",
        "base_model": str(family / "base"),
        "models": [{"model": f"{family}/base+{family}/{name}"} for name in "ab"],
        "bundle": {},
    }
    weightsmith.merge(recipe, family / "bundle")
    task = open_model(f"{family}/bundle#base+a")
    assert task.member == "base+a"
    again = open_model(f"{family}/bundle#base+a+{family}/b:0")
    assert (again.member, len(again.attached)) == ("base+a", 1)


def test_an_open_model_can_be_sent_to_another_process(family: Path) -> None:
    """As a cluster's workers get it: factors are read where they are needed."""
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    opened = open_model(f"{family}/base+{family}/a+{family}/b:0.5")
    sent = cloudpickle.loads(cloudpickle.dumps(opened))
    assert {n: digest_tensor(t) for n, t in sent.tensors.items()} == {
        n: digest_tensor(t) for n, t in opened.tensors.items()
    }


def _cache(cache: Path, name: str, source: Path) -> None:
    """A Hub cache in the library's own layout: blobs, and a snapshot of links to them."""
    repo, commit = cache / f"models--owner--{name}", "0123456789abcdef0123456789abcdef01234567"
    for folder in ("refs", "blobs", f"snapshots/{commit}"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    for i, file in enumerate(sorted(source.iterdir())):
        shutil.copy(file, repo / "blobs" / f"{i:064x}")
        (repo / "snapshots" / commit / file.name).symlink_to(Path("../../blobs") / f"{i:064x}")
