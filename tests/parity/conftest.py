"""mergekit 0.1.5, loaded only when a test of this folder runs: its import takes seconds and warns."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def peer() -> SimpleNamespace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(
            "mergekit", reason="mergekit's environment is another one (make parity)"
        )
        names = "architecture config merge merge_methods options parameter_resolver plan"
        loaded = {name: importlib.import_module(f"mergekit.{name}") for name in names.split()}
        loaded["api"] = importlib.import_module("mergekit.merge_methods.api")
        found = importlib.metadata.version("mergekit")
    if found != "0.1.5":
        pytest.skip(f"the rules pinned here are those of mergekit 0.1.5, not {found}")
    return SimpleNamespace(**loaded)


SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}
LAYERS = 4


def model_config(family: str):
    import transformers

    common = {**SHAPE, "num_hidden_layers": LAYERS, "max_position_embeddings": 32}
    if family == "llama":
        return transformers.LlamaConfig(**common, tie_word_embeddings=False)
    if family == "llama-tied":
        return transformers.LlamaConfig(**common, tie_word_embeddings=True)
    if family == "mistral":
        return transformers.MistralConfig(**common, tie_word_embeddings=False)
    if family == "qwen2":
        return transformers.Qwen2Config(**common, tie_word_embeddings=False)
    if family == "gpt2":
        # The ids that GPT2Config has by default lie beyond so few tokens, and such are mended here but not by mergekit.
        return transformers.GPT2Config(
            n_embd=16,
            n_layer=LAYERS,
            n_head=4,
            vocab_size=40,
            n_positions=32,
            bos_token_id=1,
            eos_token_id=2,
        )
    raise AssertionError(family)


@pytest.fixture(scope="session")
def checkpoints(peer, tmp_path_factory):  # noqa: ARG001 - skips where mergekit is not installed
    """Folders of three float32 models of a family (a base and two others), made when first asked for."""
    import torch
    import transformers

    made: dict[str, list[str]] = {}

    def make(family: str) -> list[str]:
        if family not in made:
            made[family] = []
            for number in range(3):
                torch.manual_seed(number)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = transformers.AutoModelForCausalLM.from_config(
                        model_config(family)
                    ).float()
                    with torch.no_grad():  # norms and biases start equal in all models
                        for parameter in model.parameters():
                            parameter += 0.02 * torch.randn_like(parameter)
                    folder = tmp_path_factory.mktemp(family) / "base m1 m2".split()[number]
                    model.save_pretrained(folder)
                made[family].append(str(folder))
        return made[family]

    return make


@pytest.fixture(scope="session")
def planned(peer):
    """What mergekit plans for a configuration: output tensor name -> its task; an exception is mergekit's refusal."""

    def plan(text: str) -> dict[str, object]:
        import yaml

        config = peer.config.MergeConfiguration.model_validate(yaml.safe_load(text))
        options = peer.options.MergeOptions(copy_tokenizer=False, quiet=True)
        architecture = peer.merge.get_architecture_info(config, options)
        peer.merge.LoaderCache().setup(options=options)
        out = peer.merge._model_out_config(config, architecture)
        planner = peer.plan.MergePlanner(config, architecture, options, out)
        planner._plan()
        return {weight.name: task for weight, task in planner._tensors}

    return plan
