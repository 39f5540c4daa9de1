"""Ids in configurations name the same tokens after a change of vocabulary."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from weightsmith.findings import Severity
from weightsmith.tokenizers.special_ids import consistent

from .words import words

OLD = words(
    ["<s>", "</s>", "a", "b", "<image>", "<pad>"],
    {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
)
NEW = words(
    ["b", "a", "<pad>", None, "</s>", "<s>", "<image>", "c"],
    {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
)
CONFIG: dict[str, Any] = {
    "image_token_index": 4,
    "bos_token_id": 0,
    "text_config": {"vocab_size": 6, "eos_token_id": [1, 3], "pad_token_id": None},
    "vision_config": {"vocab_size": 6, "bos_token_id": 0},
    "qformer_config": {"vocab_size": 30522, "pad_token_id": 0},
}


def test_every_id_of_the_language_model_is_carried_by_its_text() -> None:
    """Top level and text section, single ids and lists; other modalities and absent ids stay."""
    made, _, findings = consistent(CONFIG, None, OLD, NEW, rows=8)
    assert made == {
        "image_token_index": 6,
        "bos_token_id": 5,
        "text_config": {"vocab_size": 8, "eos_token_id": [4, 0], "pad_token_id": None},
        "vision_config": {"vocab_size": 6, "bos_token_id": 0},
        "qformer_config": {"vocab_size": 30522, "pad_token_id": 0},
    }
    assert findings == []


def test_what_was_given_is_not_changed() -> None:
    """The donor's configuration is shared by others."""
    config, generation = copy.deepcopy(CONFIG), {"eos_token_id": [1], "bad_words_ids": [[2]]}
    consistent(config, generation, OLD, NEW, rows=8)
    assert config == CONFIG
    assert generation == {"eos_token_id": [1], "bad_words_ids": [[2]]}


def test_every_kind_of_id_in_the_generation_settings_is_carried() -> None:
    """Lists, lists of lists, pairs, names and biases; a sequence without one of its tokens goes."""
    generation = {
        "pad_token_id": 5,
        "decoder_start_token_id": 0,
        "suppress_tokens": [2, 3],
        "begin_suppress_tokens": [-1, 2],
        "bad_words_ids": [[2, 3], [4, 9]],
        "force_words_ids": [[[2], [3]]],
        "forced_decoder_ids": [[1, 2], [2, None]],
        "sequence_bias": [[[2, 3], -5.0]],
        "lang_to_id": {"<|de|>": 3},
        "temperature": 0.5,
        "max_length": 5,
        "num_beams": 1,
    }
    _, made, findings = consistent({"vocab_size": 6}, generation, OLD, NEW)
    assert made == {
        "pad_token_id": 2,
        "decoder_start_token_id": 5,
        "suppress_tokens": [1, 0],
        "begin_suppress_tokens": [-1, 1],
        "bad_words_ids": [[1, 0]],
        "force_words_ids": [[[1], [0]]],
        "forced_decoder_ids": [[1, 1], [2, None]],
        "sequence_bias": [[[1, 0], -5.0]],
        "lang_to_id": {"<|de|>": 0},
        "temperature": 0.5,
        "max_length": 5,
        "num_beams": 1,
    }
    assert [f.code for f in findings] == ["special-id-dropped"]


def test_ids_of_a_token_that_is_gone_take_the_tokenizers_own() -> None:
    """The special token of the same name answers for it, with a warning."""
    new = words(["a", "<|end|>"], {"eos_token": "<|end|>"})
    made, _, findings = consistent({"vocab_size": 6, "eos_token_id": 1}, None, OLD, new, rows=2)
    assert made == {"vocab_size": 2, "eos_token_id": 1}
    (finding,) = findings
    assert (finding.code, finding.severity) == ("special-id-replaced", Severity.WARNING)
    assert "'</s>'" in finding.message


def test_ids_without_any_answer_are_dropped_from_lists_and_keys() -> None:
    """None where a model can do without the token."""
    config = {"vocab_size": 6, "pad_token_id": 5, "eos_token_id": [5, 2]}
    made, _, findings = consistent(config, None, OLD, words(["a"]), rows=1)
    assert made == {"vocab_size": 1, "pad_token_id": None, "eos_token_id": [0]}
    assert {f.code for f in findings} == {"special-id-dropped"}


def test_a_lost_image_token_is_an_error_that_says_what_to_do() -> None:
    """The model cannot place its images without it."""
    _, _, findings = consistent(CONFIG, None, OLD, words(["<s>", "</s>", "b"]), rows=3)
    (error,) = [f for f in findings if f.severity is Severity.ERROR]
    assert (error.code, error.subject) == ("special-id-lost", "image_token_index")
    assert "'<image>'" in error.message
    assert "tokens:" in error.fix


def test_an_id_beyond_the_table_takes_the_tokenizers() -> None:
    """Only there the tokenizer wins over the configuration."""
    config = {"vocab_size": 6, "pad_token_id": 32000}
    made, _, findings = consistent(config, None, OLD, OLD)
    assert made == {"vocab_size": 6, "pad_token_id": 5}
    assert [f.code for f in findings] == ["special-id-replaced"]
    made, _, findings = consistent(config, None, None, None)
    assert made == {"vocab_size": 6, "pad_token_id": None}
    assert [f.code for f in findings] == ["special-id-dropped"]


@pytest.mark.parametrize("vocabulary", [OLD, None])
@pytest.mark.parametrize("rows", [None, 6])
def test_an_image_token_behind_the_declared_rows_stays(vocabulary: Any, rows: int | None) -> None:
    """Mllama's embedding has rows behind `vocab_size` for it, its head does not."""
    config = {"text_config": {"vocab_size": 6}, "image_token_index": 6}
    made, _, findings = consistent(config, None, vocabulary, vocabulary, rows=rows)
    assert made == config
    assert findings == []


def test_an_id_that_disagrees_is_kept_with_a_warning() -> None:
    """What generation uses may differ from the tokenizer on purpose."""
    config = {"vocab_size": 6, "eos_token_id": 3}
    made, _, findings = consistent(config, None, OLD, OLD)
    assert made == config
    assert [f.code for f in findings] == ["special-id-differs"]
    generation = {"eos_token_id": [1, 3]}
    assert consistent(config, generation, OLD, OLD)[2] == []


def test_a_padded_row_without_a_token_stays_where_nothing_changes() -> None:
    """Ids inside the table are left alone if the vocabulary is the same."""
    config = {"vocab_size": 64, "pad_token_id": 40}
    made, _, findings = consistent(config, {"pad_token_id": 40}, OLD, OLD)
    assert made == config
    assert [f.code for f in findings] == ["special-id-differs"]


def test_a_checkpoint_without_papers_has_nothing_to_carry() -> None:
    """None in, None out."""
    assert consistent(None, None, OLD, NEW, rows=8) == (None, None, [])
