"""What lies beside the weights is taken over whole, and only what must change does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.checkpoints import Checkpoint, open_checkpoint
from weightsmith.errors import CheckpointError
from weightsmith.vocabularies.companion_files import VocabularyChange, companions

from ..tokenizers.words import words  # noqa: TID252 - two rooms share it

CONFIG: dict[str, Any] = {"vocab_size": 4, "eos_token_id": 1}
FILES = {
    "tokenizer.json": '{"version":"1.0"}',
    "tokenizer_config.json": '{"chat_template": "old"}',
    "spm.model": "x",
    "generation_config.json": '{ "eos_token_id":[1,2], "top_p":0.5 }',
    "preprocessor_config.json": "{ }",
    "processor_config.json": "{  }",
    "video_preprocessor_config.json": "{}",
    "chat_template.jinja": "old",
    "additional_chat_templates/rag.jinja": "rag",
    "qformer_tokenizer/vocab.txt": "w",
    "modeling_x.py": "raise SystemExit",
    "README.md": "mine",
    "qformer_tokenizer/code.py": "1",
}
OLD = words(["a", "</s>", "b", "c"], {"eos_token": "</s>"})
NEW = words(["</s>", "b", "a"], {"eos_token": "</s>"})


@pytest.fixture
def donor(tmp_path: Path) -> Checkpoint:
    """A checkpoint with papers of every kind, and some that are not to be carried."""
    save_file({"embed.weight": np.zeros((4, 2), np.float32)}, tmp_path / "model.safetensors")
    for name, text in {**FILES, "config.json": json.dumps(CONFIG)}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return open_checkpoint(tmp_path)


def test_without_a_change_every_paper_is_the_donors_byte_for_byte(donor: Checkpoint) -> None:
    """Tokenizer, templates, generation and processors, but neither code nor card."""
    made = companions(donor, CONFIG)
    carried = {k: v for k, v in FILES.items() if not k.endswith((".py", ".md"))}
    assert made.files == {name: text.encode() for name, text in carried.items()}
    assert list(made.files) == sorted(made.files)
    assert made.config == CONFIG
    assert made.findings == ()


def test_another_tokenizer_loses_none_of_the_other_papers(donor: Checkpoint) -> None:
    """Generation settings and processors survive a tokenizer section, with their ids made true."""
    change = VocabularyChange(OLD, NEW, rows=3, tokenizer={"tokenizer.json": b"{}"})
    made = companions(donor, CONFIG, change)
    assert set(made.files) == {
        "tokenizer.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
        "qformer_tokenizer/vocab.txt",
    }
    assert made.files["tokenizer.json"] == b"{}"
    assert made.files["preprocessor_config.json"] == b"{ }"
    assert json.loads(made.files["generation_config.json"]) == {
        "eos_token_id": [0, 1],
        "top_p": 0.5,
    }
    assert made.config == {"vocab_size": 3, "eos_token_id": 0}


def test_generation_settings_whose_ids_stay_keep_their_bytes(donor: Checkpoint) -> None:
    """Nothing is written anew for its own sake."""
    made = companions(donor, CONFIG, VocabularyChange(OLD, OLD, rows=4))
    assert made.files["generation_config.json"] == FILES["generation_config.json"].encode()


def test_a_template_changes_in_both_places(donor: Checkpoint) -> None:
    """The jinja file and the tokenizer's configuration, also where the latter is written anew."""
    made = companions(donor, CONFIG, VocabularyChange(template="new"))
    assert made.files["chat_template.jinja"] == b"new"
    assert json.loads(made.files["tokenizer_config.json"])["chat_template"] == "new"
    assert made.files["additional_chat_templates/rag.jinja"] == b"rag"
    rewritten = {"tokenizer_config.json": b'{"chat_template": "mine", "x": 1}'}
    made = companions(donor, CONFIG, VocabularyChange(OLD, NEW, 3, rewritten, "new"))
    assert json.loads(made.files["tokenizer_config.json"]) == {"chat_template": "new", "x": 1}


def test_damaged_generation_settings_are_an_error(donor: Checkpoint) -> None:
    """A result that generates in another way than its donor would be a silent change."""
    (donor.path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="generation_config"):
        companions(donor, CONFIG)


def test_a_single_file_has_no_papers(tmp_path: Path) -> None:
    """Only folders have files beside the weights."""
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    assert companions(open_checkpoint(tmp_path / "x.safetensors"), None).files == {}


def test_a_link_out_of_the_folder_is_not_followed(donor: Checkpoint, tmp_path_factory: Any) -> None:
    """A checkpoint cannot make its papers out of the reader's files."""
    secret = tmp_path_factory.mktemp("secret") / "vocab.txt"
    secret.write_text("secret")
    inner = donor.path / "qformer_tokenizer"
    (inner / "vocab.txt").unlink()
    (inner / "vocab.txt").symlink_to(secret)
    assert "qformer_tokenizer/vocab.txt" not in companions(donor, CONFIG).files
    (inner / "vocab.txt").unlink()
    (inner / "code.py").unlink()
    inner.rmdir()
    inner.symlink_to(secret.parent)
    assert "qformer_tokenizer/vocab.txt" not in companions(donor, CONFIG).files


FORMS = ["jinja", "config", "named", "none"]


@pytest.mark.parametrize("form", FORMS)
def test_transformers_reads_the_new_template_from_every_form(
    donor: Checkpoint, tmp_path_factory: Any, form: str
) -> None:
    """As a file, in the configuration, among named ones, and where there was none."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from tokenizers import Tokenizer, models

    for name in ("chat_template.jinja", "additional_chat_templates/rag.jinja"):
        (donor.path / name).unlink()
    inner = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(donor.path)
    file = donor.path / "tokenizer_config.json"
    given = json.loads(file.read_text())
    named = [{"name": "default", "template": "old"}, {"name": "rag", "template": "rag"}]
    if form == "jinja":
        (donor.path / "chat_template.jinja").write_text("old")
    elif form != "none":
        given["chat_template"] = "old" if form == "config" else named
        file.write_text(json.dumps(given))
    out = tmp_path_factory.mktemp("out")
    for name, data in companions(
        donor, CONFIG, VocabularyChange(template="{{ 'new' }}")
    ).files.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
    (out / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer = AutoTokenizer.from_pretrained(out)
    turns = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "new"
    if form == "named":
        assert tokenizer.chat_template["rag"] == "rag"
