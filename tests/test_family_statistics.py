"""Statistics of a sentence encoder's experts, against gradients of the training loss written out in float64."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from weightsmith.comparison.family_opening import open_family
from weightsmith.evaluation.suite import load_suite
from weightsmith.live import quiet_library

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "family_statistics.py"
WORDS = "the a cat dog eel runs swims sleeps fast slow red blue in of water house".split()
SCALE, BATCH, COUNT, LONGEST = 20.0, 24, 30, 8
LAYER = "encoder.layer.1.output.dense.weight"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("family_statistics", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["family_statistics"] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules["family_statistics"]


def pairs():
    generator = np.random.default_rng(0)

    def text():
        return " ".join(generator.choice(WORDS, generator.integers(2, 11)))

    return [{"query": text(), "document": text()} for _ in range(COUNT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A family whose only expert is a BERT with a pooler."""
    folder = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + 5,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    for place in (folder / "base", folder / "experts" / "zoo"):
        with quiet_library():
            transformers.BertModel(config).save_pretrained(place)
        (place / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
        )
        transformers.BertTokenizer(str(place / "vocab.txt")).save_pretrained(place)
        (place / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LONGEST}))
    for split in ("train", "validation"):
        lines = "".join(json.dumps(line) + "\n" for line in pairs())
        (folder / f"zoo.{split}.jsonl").write_text(lines)
    (folder / "data").mkdir()
    (folder / "zoo.train.jsonl").rename(folder / "data" / "zoo.train.jsonl")
    task = {"name": "zoo", "kind": "retrieval", "data": "zoo.validation.jsonl", "metric": "mrr"}
    suite = {"suite": "zoo-validation", "tasks": [task]}
    (folder / "suite.validation.yaml").write_text(json.dumps(suite))
    record = {"family": "zoo", "digest": "sha256:0", "tasks": ["zoo"]}
    (folder / "family.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def found(script, folder, tmp_path_factory):
    """The tensors of each kind of statistics."""
    out = tmp_path_factory.mktemp("statistics")
    suite = load_suite(folder / "suite.validation.yaml")
    script.collect(open_family(folder), suite, "zoo", out)
    kinds = ("fisher", "gradients", "adam", "gram", "metrics")
    return {kind: load_file(out / f"zoo.{kind}.safetensors") for kind in kinds}


@pytest.fixture(scope="module")
def network(folder):
    """The expert in float64, and its states of one text without padding."""
    place = folder / "experts" / "zoo"
    with quiet_library():
        model = transformers.BertModel.from_pretrained(place).double().eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)

    def states(text):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=LONGEST)
        return model(**ids, output_hidden_states=True).hidden_states

    return model, states


@pytest.fixture(scope="module")
def exact(network):
    """The gradient of the mean loss of chosen queries among the documents of a range, each text embedded alone."""
    model, states = network

    def embed(text):
        mean = states(text)[-1][0].mean(0)
        return mean / mean.norm()

    def loss(chosen, first, last):
        lines = pairs()
        documents = torch.stack([embed(line["document"]) for line in lines[first:last]])
        terms = []
        for i in chosen:
            scores = (SCALE * (documents @ embed(lines[i]["query"]))).exp()
            terms.append(-(scores[i - first] / scores.sum()).log())
        return sum(terms) / len(terms)

    weight = dict(model.named_parameters())[LAYER]
    return lambda *where: torch.autograd.grad(loss(*where), weight)[0].numpy()


def test_gradients_are_those_of_a_pair_among_the_documents_of_its_batch(found, exact):
    for i in (0, 5):
        expected = exact([i], 0, BATCH)
        scale = np.abs(expected).max()
        assert found["gradients"][f"{LAYER}::{i}"] == pytest.approx(expected, abs=1e-4 * scale)


def test_the_fisher_diagonal_is_the_mean_square_over_all_pairs(found, exact):
    ranges = [(0, BATCH), (BATCH, COUNT)]
    squares = [exact([i], a, b) ** 2 for a, b in ranges for i in range(a, b)]
    expected = np.mean(squares, axis=0)
    assert found["fisher"][LAYER] == pytest.approx(expected, abs=1e-4 * expected.max())


def test_adam_s_moments_are_of_whole_batches(found, exact):
    # Batches begin at 0, 0 + 24 mod 6 = 0, and so on: all eight are the first 24 pairs.
    expected = exact(range(BATCH), 0, BATCH) ** 2
    assert found["adam"][LAYER] == pytest.approx(expected, abs=1e-4 * expected.max())


def test_gram_matrices_are_of_the_inputs_of_real_tokens(found, network):
    texts = [line[key] for line in pairs() for key in ("query", "document")]
    rows = torch.cat([network[1](text)[1][0] for text in texts])  # [T, D], what layer 1 reads
    expected = (rows.T @ rows / len(rows)).detach().numpy()
    gram = found["gram"]["encoder.layer.1.attention.self.query.weight"]
    assert gram == pytest.approx(expected, abs=1e-5 * expected.max())


def test_what_has_no_part_in_an_embedding_has_no_statistics(found, folder):
    stored = set(load_file(folder / "experts" / "zoo" / "model.safetensors"))
    taking_part = {name for name in stored if "pooler" not in name}
    assert set(found["fisher"]) == set(found["adam"]) == taking_part < stored
    matrices = {n for n in taking_part if n.endswith(".weight") and "Norm" not in n}
    assert set(found["gram"]) == {n for n in matrices if "embeddings" not in n}
