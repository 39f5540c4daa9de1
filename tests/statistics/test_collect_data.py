"""Data files of every form as items of a network, and what does not fit in one sentence."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from tests.live.architectures import FEW, SIZE

import weightsmith
from weightsmith.errors import NonFiniteError, OutputError, UsageError, WeightsmithError
from weightsmith.live import IGNORED, load_model, quiet_library
from weightsmith.statistics.data_files import DataChoice, read_data

WORDS = "the a cat dog eel runs swims sleeps fast slow red blue in of water house".split()


def with_tokenizer(model, folder):
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    )
    with quiet_library():
        model.save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Folders of BERTs with words for tokens, by class."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**SIZE, "max_position_embeddings": 16}, num_labels=3)
    return {
        name: with_tokenizer(getattr(transformers, name)(config), tmp_path_factory.mktemp(name))
        for name in ("BertModel", "BertForMaskedLM", "BertForSequenceClassification")
    }


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    config = transformers.T5Config(
        vocab_size=48,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return with_tokenizer(
        transformers.T5ForConditionalGeneration(config), tmp_path_factory.mktemp("t5")
    )


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def items_of(model, path, **options):
    return read_data(load_model(model, filled=False), DataChoice(path, **options)).backward.items


def test_a_text_is_cut_into_windows_without_a_rest_of_one_token(saved, tmp_path):
    (tmp_path / "t.txt").write_text("abcdefghijk" * 3)  # 33 bytes, and the token that begins
    items = items_of(saved("family language and lora"), tmp_path / "t.txt", context=11)
    assert [len(item.inputs["input_ids"]) for item in items] == [11, 11, 11]
    for item in items:
        assert item.labels.tolist() == item.inputs["input_ids"][1:].tolist()
    assert (
        len(items_of(saved("family language and lora"), tmp_path / "t.txt", context=11, limit=2))
        == 2
    )


def test_arrow_files_and_json_lines_give_the_same(saved, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"text": "one text"}, {"text": "another one"}]
    jsonl = lines(tmp_path / "d.jsonl", *rows)
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "arrow")
    model = saved("family language and lora")
    expected = [item.inputs["input_ids"].tolist() for item in items_of(model, jsonl)]
    for path in (tmp_path / "arrow", next((tmp_path / "arrow").glob("*.arrow"))):
        found = [item.inputs["input_ids"].tolist() for item in items_of(model, path)]
        assert found == expected


def test_prompts_and_answers_are_one_text_to_a_causal_model_and_two_to_the_other_kind(
    saved, tmp_path, t5
):
    path = lines(tmp_path / "p.jsonl", {"prompt": "the cat ", "answer": "runs"})
    (item,) = items_of(saved("family language and lora"), path)
    assert bytes(t for t in item.inputs["input_ids"].tolist() if t < 256) == b"the cat runs"
    (pair,) = items_of(t5, path)
    assert pair.inputs["decoder_input_ids"].tolist() == [0, *pair.labels.tolist()[:-1]]


def test_some_tokens_are_hidden_from_a_masked_model_and_none_that_are_special(bert, tmp_path):
    path = lines(tmp_path / "m.jsonl", *[{"text": "the cat runs fast in water"}] * 3)
    items = items_of(bert["BertForMaskedLM"], path)
    for item in items:
        hidden = item.inputs["input_ids"] == 4
        assert hidden.sum() == 1
        assert not hidden[0]
        assert ((item.labels != IGNORED) == hidden).all()
    assert len({tuple(item.inputs["input_ids"].tolist()) for item in items}) > 1


def test_classes_are_given_by_number_or_name(bert, tmp_path):
    path = lines(
        tmp_path / "c.jsonl", {"text": "the cat", "label": 2}, {"text": "a dog", "label": "LABEL_1"}
    )
    items = items_of(bert["BertForSequenceClassification"], path)
    assert [item.labels.tolist() for item in items] == [[2], [1]]


def test_pairs_have_losses_and_all_their_texts_pass(bert, tmp_path):
    rows = [{"query": f"{a} cat", "document": f"{a} dog runs"} for a in ("the", "a", "red")]
    path = lines(tmp_path / "q.jsonl", *rows)
    made = weightsmith.collect(
        "gram,fisher,gradients:3",
        bert["BertModel"],
        data=path,
        out=tmp_path / "o.safetensors",
    )
    assert made.estimator == "exact"
    gram, fisher, gradients = (weightsmith.read_statistics(file.path) for file in made.files)
    assert gram.header.rows["encoder.layer.0.attention.self.query.weight"] == 3 * 4 + 3 * 5
    assert fisher.header.samples == 3
    key = "encoder.layer.1.output.dense.weight"
    single = gradients.checkpoint.tensors[f"{key}::1"]
    found = torch.frombuffer(bytearray(single.nbytes), dtype=torch.float32)
    single.read_into(0, single.numel, memoryview(found.numpy()).cast("B"))
    expected = pair_gradient(bert["BertModel"], rows, 1)
    torch.testing.assert_close(found.view(16, 24), expected, rtol=1e-3, atol=1e-6)


def pair_gradient(folder, rows, own):
    """The gradient of a query's loss among the documents, each text run alone."""
    with quiet_library():
        model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=True).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def embed(text):
        mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        return mean / mean.norm()

    scores = 20 * torch.stack([embed(row["document"]) for row in rows]) @ embed(rows[own]["query"])
    weight = model.encoder.layer[1].output.dense.weight
    return torch.autograd.grad(-scores.log_softmax(0)[own], weight)[0]


def test_tasks_of_suites_are_data(saved, tmp_path):
    lines(tmp_path / "a.jsonl", {"text": "a text"})
    lines(tmp_path / "b.jsonl", {"prompt": "2 ", "choices": ["x", "y"], "answer": 1})
    suite = {
        "suite": "s",
        "tasks": [
            {"name": "a", "kind": "language_modeling", "data": "a.jsonl"},
            {"name": "b", "kind": "choice", "data": "b.jsonl"},
        ],
    }
    (tmp_path / "s.yaml").write_text(json.dumps(suite))
    model = saved("family language and lora")
    (item,) = items_of(model, tmp_path / "s.yaml", task="b")
    assert bytes(t for t in item.inputs["input_ids"].tolist() if t < 256) == b"2 y"
    with pytest.raises(UsageError, match="several tasks \\(a, b\\)"):
        items_of(model, tmp_path / "s.yaml")
    with pytest.raises(UsageError, match="no suite"):
        items_of(model, tmp_path / "a.jsonl", task="a")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no items"),
        ([{"words": "x"}], "has the fields words"),
        ([{"text": "the cat", "label": 3}], "none of the 3 classes"),
        ([{"text": "the cat", "label": "red"}], "none of the 3 classes"),
        ([{"text": "the " * 30, "label": 1}], "32 tokens in one text"),
        ([{"text": 5, "label": 1}], "where a text should be"),
    ],
)
def test_data_that_do_not_fit_are_refused_in_a_sentence(bert, tmp_path, rows, says):
    path = lines(tmp_path / "d.jsonl", *rows)
    with pytest.raises(WeightsmithError, match=says):
        items_of(bert["BertForSequenceClassification"], path)


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path):
    folder = tmp_path / "small"
    config = transformers.LlamaConfig(**{**FEW, "vocab_size": 8})
    with_tokenizer(transformers.LlamaForCausalLM(config), folder.mkdir() or folder)
    path = lines(tmp_path / "d.jsonl", {"text": "the house"})
    with pytest.raises(UsageError, match=r"vocabulary of .* has 8"):
        items_of(folder, path)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("fishes", "did you mean 'fisher'"),
        ("gram,gram", "asked for twice"),
        ("gram:3", "takes no number"),
    ],
)
def test_what_there_is_not_is_refused(saved, corpus, tmp_path, what, says):
    with pytest.raises(UsageError, match=says):
        weightsmith.collect(what, saved("llama"), data=corpus, out=tmp_path / "o.safetensors")


def test_an_estimator_that_there_is_not_is_refused(saved, corpus, tmp_path):
    for estimator in ("mcmc", "mc:0", "mc:x", "full"):
        with pytest.raises(UsageError, match="There is no estimator"):
            weightsmith.collect(
                "fisher",
                saved("llama"),
                data=corpus,
                out=tmp_path / "o.safetensors",
                estimator=estimator,
            )


def test_an_encoder_has_no_losses_on_texts(bert, tmp_path):
    path = lines(tmp_path / "d.jsonl", {"text": "the cat"})
    with pytest.raises(UsageError, match="nothing to predict"):
        weightsmith.collect("fisher", bert["BertModel"], data=path, out=tmp_path / "o.safetensors")


def test_a_nan_loss_ends_it_in_a_sentence_and_leaves_an_earlier_file(saved, corpus, tmp_path):
    from safetensors.torch import load_file, save_file

    good, bad = saved("family language and lora"), tmp_path / "bad"
    out = tmp_path / "o.safetensors"
    weightsmith.collect("fisher", good, data=corpus, out=out, limit=2, context=16)
    before = out.read_bytes()
    bad.mkdir()
    for file in good.iterdir():
        (bad / file.name).write_bytes(file.read_bytes())
    tensors = load_file(bad / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, bad / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"item 1 of the data .corpus\.txt. is NaN"):
        weightsmith.collect("fisher", bad, data=corpus, out=out, limit=2, context=16)
    assert out.read_bytes() == before
    assert not (tmp_path / "o.safetensors.partial").exists()


def test_other_files_are_not_replaced(saved, corpus, tmp_path):
    (tmp_path / "o.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="no statistics of weightsmith's"):
        weightsmith.collect("gram", saved("llama"), data=corpus, out=tmp_path / "o.safetensors")
    with pytest.raises(OutputError, match=r"ending \.safetensors"):
        weightsmith.collect("gram", saved("llama"), data=corpus, out=tmp_path / "o.npz")
