"""Retrieval pairs and the sentence encoder's score."""

from __future__ import annotations

import math

import pytest
import torch

from weightsmith.errors import VerificationError
from weightsmith.testbeds.data.pair_tasks import PairTask, functions_of
from weightsmith.testbeds.families import embedding
from weightsmith.testbeds.models import sentence_encoder
from weightsmith.testbeds.models.sentence_encoder import Encoder, read_encoder, write_encoder

SOURCE = '''
def one(first):
    """Say in one line
    what it does.

    And more.
    """
    second = first + 1
    return [second, first, "and so on"]


class Two:
    """A class of its own, with a method."""

    value = "an attribute of the class, long enough"

    async def three(self):
        """Short."""
        return self.value
'''


METHOD = 'value = "an attribute of the class, long enough"  async def three(self): """Short.""" return self.value'


def test_a_docstring_finds_the_code_below_it():
    assert list(functions_of(SOURCE)) == [
        ("Say in one line what it does.", 'second = first + 1 return [second, first, "and so on"]'),
        (
            "A class of its own, with a method.",
            METHOD,
        ),
    ]


def test_no_query_and_no_document_occurs_twice():
    def pairs():
        for k in range(200):
            yield str(k), f"query {k % 90}", f"document {k % 70}"

    rows = PairTask("toy", pairs).rows({"train": 99, "validation": 99, "test": 99})
    everything = [row for split in rows.values() for row in split]
    assert len(everything) == 70
    for side in ("query", "document"):
        assert len({row[side] for row in everything}) == 70


class Lookup:
    """A model and a tokenizer in one: the vector of a text is given."""

    def __init__(self, vectors):
        self.vectors = {text: torch.tensor(v) for text, v in vectors.items()}
        self.config = type("Config", (), {"hidden_size": 2})

    def tokenize(self, texts, **_):
        states = torch.stack([self.vectors[text] for text in texts])
        return {"states": states[:, None], "attention_mask": torch.ones(len(texts), 1)}

    def __call__(self, states, attention_mask):
        return type("Output", (), {"last_hidden_state": states})


def test_the_score_is_the_discount_of_the_rank_and_a_tie_counts_against_it():
    documents = {f"d{k}": [math.cos(k / 10), math.sin(k / 10)] for k in range(12)}
    queries = {f"q{k}": [1.0, 0.0] for k in range(12)}
    lookup = Lookup({**documents, **queries, "same": [1.0, 0.0]})
    encoder = Encoder(lookup, lookup.tokenize)
    expected = [1 / math.log2(1 + rank) if rank <= 10 else 0 for rank in range(1, 13)]
    assert encoder.scores(list(queries), list(documents)).tolist() == pytest.approx(expected)
    assert encoder.scores(["q0", "q1"], ["d0", "same"]).tolist() == pytest.approx([expected[1]] * 2)


def test_the_own_document_is_in_column_0_of_the_contrast():
    texts = {f"{side}{k}": [math.cos(k), math.sin(k)] for k in range(5) for side in "qd"}
    lookup = Lookup(texts)
    rows = [{"query": f"q{k}", "document": f"d{k}"} for k in range(5)]
    logits = embedding.contrast(Encoder(lookup, lookup.tokenize), rows)
    found = logits(torch.tensor([3, 0, 4]))
    for row, k in enumerate((3, 0, 4)):
        own, others = found[row, 0].item(), sorted(found[row, 1:].tolist())
        assert own == pytest.approx(20.0)
        assert others == pytest.approx(
            sorted(20 * math.cos(k - other) for other in (3, 0, 4) if other != k), abs=1e-4
        )


@pytest.fixture
def small(tmp_path):
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    base = tmp_path / "base"
    for name in sentence_encoder.FILES:
        place = base / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("{}")
    config.save_pretrained(base)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123))]
    (base / "vocab.txt").write_text("\n".join(words) + "\n")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (base / "tokenizer.json").unlink()
    save_file(BertModel(config).state_dict(), base / "model.safetensors", metadata={"format": "pt"})
    return base


def test_a_tuned_encoder_has_the_tensors_of_the_base(small, tmp_path):
    encoder = read_encoder(small)
    (small / "tokenizer.json").write_text("{}")
    with torch.no_grad():
        encoder.model.encoder.layer[0].output.dense.weight += 1
    write_encoder(encoder, small, tmp_path / "expert")
    again = sentence_encoder.load_weights(tmp_path / "expert")
    base = sentence_encoder.load_weights(small)
    assert list(again) == list(base)
    changed = [name for name in base if not torch.equal(base[name], again[name])]
    assert changed == ["encoder.layer.0.output.dense.weight"]


def test_other_names_in_memory_than_on_disk_are_refused(small, tmp_path):
    encoder = read_encoder(small)
    encoder.model.extra = torch.nn.Linear(1, 1)
    with pytest.raises(VerificationError, match=r"extra\.bias"):
        write_encoder(encoder, small, tmp_path / "expert")
