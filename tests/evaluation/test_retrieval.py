"""Retrieval: rankings of embeddings against sklearn's metrics and hand-made ranks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from sklearn.metrics import ndcg_score

from weightsmith import evaluate
from weightsmith.errors import UsageError
from weightsmith.evaluation.retrieval import embed, ndcg, ranks_of, recall, reciprocal
from weightsmith.live import load_model, quiet_library
from weightsmith.progress import Silence

WORDS = "the a cat dog eel runs swims sleeps fast slow red blue in of water house".split()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + 5,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    with quiet_library():
        transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    )
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def pairs():
    generator = np.random.default_rng(0)

    def text():
        return " ".join(generator.choice(WORDS, generator.integers(2, 8)))

    return [{"query": text(), "document": text(), "half": i % 2} for i in range(25)]


def reference(folder, text, pooling="mean"):
    """The embedding of one text alone, without padding."""
    with quiet_library():
        model = transformers.BertModel.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    pooled = {"mean": states.mean(0), "cls": states[0], "max": states.amax(0), "last": states[-1]}[
        pooling
    ]
    return (pooled / pooled.norm()).numpy()


def settings(encoder, tmp_path, **files):
    made = tmp_path / "model"
    made.mkdir()
    for file in encoder.iterdir():
        (made / file.name).write_bytes(file.read_bytes())
    for name, content in files.items():
        path = made / {"pooling": "1_Pooling/config.json", "modules": "modules.json"}[name]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return made


def test_ndcg_recall_and_rank_are_sklearn_s_and_a_sort_s(encoder, suite, jsonl):
    lines = pairs()
    data = jsonl("pairs.jsonl", *lines)
    queries = np.stack([reference(encoder, line["query"]) for line in lines])
    documents = np.stack([reference(encoder, line["document"]) for line in lines])
    scores = queries @ documents.T
    ranks = [(-row).argsort().tolist().index(i) + 1 for i, row in enumerate(scores)]
    tasks = [
        {"name": metric, "kind": "retrieval", "data": data, "metric": metric, "slice": "half"}
        for metric in ("ndcg@5", "recall@3", "mrr")
    ]
    found = evaluate(encoder, suite(*tasks), batch_size=4)
    assert found.score("ndcg@5").value == pytest.approx(ndcg_score(np.eye(25), scores, k=5))
    assert found.score("recall@3").value == pytest.approx(np.mean([rank <= 3 for rank in ranks]))
    assert found.score("mrr").value == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert found.items["recall@3"].binary
    assert not found.items["mrr"].binary
    assert found.items["mrr"].slices == tuple(str(i % 2) for i in range(25))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last"])
def test_pooling_is_what_the_folder_says(encoder, tmp_path, pooling):
    mode = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "last": "lasttoken"}[
        pooling
    ]
    made = settings(encoder, tmp_path, pooling={f"pooling_mode_{mode}": True})
    texts = [line["query"] for line in pairs()[:6]]
    found = embed(load_model(made), texts, 3, Silence(), "task")
    assert found == pytest.approx(
        np.stack([reference(encoder, t, pooling) for t in texts]), abs=1e-5
    )
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(6))


def test_a_module_that_is_not_applied_is_told(encoder, tmp_path, suite, jsonl):
    made = settings(encoder, tmp_path, modules=[{"type": "sentence_transformers.models.Dense"}])
    data = jsonl("pairs.jsonl", *pairs())
    with pytest.raises(UsageError, match="has a module 'Dense', which is not applied"):
        evaluate(made, suite({"name": "r", "kind": "retrieval", "data": data}))


def test_a_pooling_that_is_not_known_is_told(encoder, tmp_path, suite, jsonl):
    made = settings(encoder, tmp_path, pooling={"pooling_mode_mean_sqrt_len_tokens": True})
    data = jsonl("pairs.jsonl", *pairs())
    with pytest.raises(UsageError, match="is not known"):
        evaluate(made, suite({"name": "r", "kind": "retrieval", "data": data}))


def test_documents_that_tie_with_the_right_one_stand_before_it():
    same = np.ones(10)
    assert ranks_of(same, np.array([0])).tolist() == [10]
    assert ranks_of(np.array([0.1, 0.9, 0.5, 0.9]), np.array([1, 2])).tolist() == [2, 3]


def test_metrics_of_several_right_documents():
    ranks = np.array([1, 3, 7])
    ideal = 1 + 1 / np.log2(3) + 0.5
    assert ndcg(ranks, 5) == pytest.approx((1 + 0.5) / ideal)
    assert ndcg(ranks, 1) == 1
    assert recall(ranks, 5) == pytest.approx(2 / 3)
    assert reciprocal(np.array([4, 9]), 10) == 0.25
    assert reciprocal(np.array([4, 9]), 3) == 0


def test_lines_with_one_query_are_one_item(encoder, suite, jsonl):
    lines = pairs()
    lines[1]["query"] = lines[0]["query"]
    data = jsonl("pairs.jsonl", *lines)
    task = {"name": "r", "kind": "retrieval", "data": data, "metric": "recall@1"}
    items = evaluate(encoder, suite(task)).items["r"]
    assert len(items) == 24
    assert items.ids[:2] == ("0", "2")
    assert not items.binary


def test_one_document_is_no_retrieval(encoder, suite, jsonl):
    data = jsonl("pairs.jsonl", {"query": "cat", "document": "dog"})
    with pytest.raises(UsageError, match="one document only"):
        evaluate(encoder, suite({"name": "r", "kind": "retrieval", "data": data}))
