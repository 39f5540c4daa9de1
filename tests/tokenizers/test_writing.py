"""Written folders: transformers loads them, every token has its id, and the donor's text is cut as before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenizers import Tokenizer
from weightsmith.tokenizers.target import TargetVocabulary, TokenizerMember, copy_target
from weightsmith.tokenizers.tokenizer_reading import read_tokenizer_folder
from weightsmith.tokenizers.union import union_target
from weightsmith.tokenizers.vocabulary import Vocabulary

from .tokenizers_made_here import (
    CHATML,
    FAMILIES,
    SAMPLES,
    same_tokens,
    write_json,
    write_tokenizer,
)

SENTENCEPIECE = ("t5-slow", "xlmr-slow", "llama2-slow")


def member(folder: Path, family: str, corpus: str, *extra: str) -> TokenizerMember:
    vocabulary = read_tokenizer_folder(write_tokenizer(folder, family, extra, corpus=corpus))
    assert vocabulary is not None
    return TokenizerMember(vocabulary, folder, None, corpus)


def union_of(root: Path, family: str) -> tuple[TokenizerMember, TargetVocabulary]:
    base = member(root / "a", family, "english", "<|mine|>")
    other = member(root / "b", family, "code", "<|theirs|>", "plainadded")
    return base, union_target([base, other], tokens=["<extra>"])


def written(target: TargetVocabulary, folder: Path) -> Path:
    assert target.files is not None
    folder.mkdir()
    for name, content in target.files.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    return folder


def read(folder: Path) -> Vocabulary:
    vocabulary = read_tokenizer_folder(folder)
    assert vocabulary is not None
    return vocabulary


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_a_written_union_with_every_id_and_special_token(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    if family in SENTENCEPIECE:
        pytest.importorskip("sentencepiece")
    base, target = union_of(tmp_path, family)
    loaded = transformers.AutoTokenizer.from_pretrained(written(target, tmp_path / "out"))
    donor = transformers.AutoTokenizer.from_pretrained(base.folder)
    assert loaded.is_fast
    assert type(loaded) is type(donor)
    assert loaded.get_vocab() == dict(target.vocabulary.ids)
    assert len(loaded) == target.vocabulary.size == target.rows
    assert loaded.special_tokens_map == donor.special_tokens_map
    assert set(donor.all_special_ids) <= set(loaded.all_special_ids)
    text = "a <|mine|> b <|theirs|> plainadded<extra>"
    expected = [
        target.vocabulary.ids[t] for t in ("<|mine|>", "<|theirs|>", "plainadded", "<extra>")
    ]
    assert [i for i in loaded(text).input_ids if i in expected] == expected
    special = {i for i, token in loaded.added_tokens_decoder.items() if token.special}
    flags = target.vocabulary.added
    assert special == {target.vocabulary.ids[t] for t, entry in flags.items() if entry.special}


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_what_was_written_gives_the_target_again(family, tmp_path):
    _, target = union_of(tmp_path, family)
    again = read(written(target, tmp_path / "out"))
    assert same_tokens(again, target.vocabulary)
    assert again.chat_templates == target.vocabulary.chat_templates
    assert again.findings == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_cut_as_the_donor_cuts_it_unless_a_finding_says_otherwise(family, tmp_path):
    base, target = union_of(tmp_path, family)
    again = read(written(target, tmp_path / "out"))
    changed = [text for text in SAMPLES if again.encode(text) != base.vocabulary.encode(text)]
    says_so = any(finding.code == "segmentation-changed" for finding in target.findings)
    assert bool(changed) == says_so
    for text in changed:
        # Only new tokens take the place of old ones.
        used = {again.texts[index] for index in again.encode(text)}
        assert used - base.vocabulary.ids.keys()


@pytest.mark.parametrize("family", ["gpt2", "qwen", "llama3", "gpt2-slow"])
def test_byte_level_tokenizers_keep_every_cut_in_transformers_too(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    base, target = union_of(tmp_path, family)
    loaded = transformers.AutoTokenizer.from_pretrained(written(target, tmp_path / "out"))
    donor = transformers.AutoTokenizer.from_pretrained(base.folder)
    assert [finding.code for finding in target.findings][:1] == ["tokens-not-produced"]
    for text in SAMPLES:
        assert loaded(text).input_ids == donor(text).input_ids
        assert loaded.decode(loaded(text).input_ids) == donor.decode(donor(text).input_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_extending_alone_leaves_all_other_text_alone(family, tmp_path):
    base = member(tmp_path / "a", family, "mixed", "<|mine|>")
    target = copy_target(base, source="base", tokens=["<extra>", "<more>"])
    again = read(written(target, tmp_path / "out"))
    for text in SAMPLES:
        assert again.encode(text) == base.vocabulary.encode(text)
    assert again.ids["<more>"] == base.vocabulary.size + 1
    assert [f.code for f in target.findings if f.code != "slow-tokenizer-left-out"] == []


def test_tokens_that_merges_do_not_reach_stay_whole_where_merges_are_ignored(tmp_path):
    base = member(tmp_path / "a", "llama3", "english")
    document = json.loads((base.folder / "tokenizer.json").read_text(encoding="utf-8"))
    # Without its merge the last token is reached as a whole word only.
    document["model"]["merges"].pop()
    write_json(base.folder / "tokenizer.json", document)
    first = TokenizerMember(read(base.folder), base.folder, None, "a")
    target = union_target([first, member(tmp_path / "b", "llama3", "code")])
    model = target.vocabulary.document["model"]
    assert model["ignore_merges"] is True
    assert "segmentation-changed" in [finding.code for finding in target.findings]
    whole = list(document["model"]["vocab"])[-1]
    text = first.vocabulary.decode([first.vocabulary.ids[whole]])
    assert target.vocabulary.encode(text) == [target.vocabulary.ids[whole]]


@pytest.mark.parametrize("family", ["gpt2-slow", "bert-slow", *SENTENCEPIECE])
def test_no_file_that_disagrees_is_left(family, tmp_path):
    base, target = union_of(tmp_path, family)
    assert target.files is not None
    assert set(target.files) == {
        "added_tokens.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    left_out = [finding for finding in target.findings if finding.code == "slow-tokenizer-left-out"]
    assert len(left_out) == 1
    added_tokens = json.loads(target.files["added_tokens.json"])
    assert added_tokens.items() <= target.vocabulary.ids.items()
    assert added_tokens.keys() == target.vocabulary.added.keys()
    # The donor's own forms are still on its side.
    assert same_tokens(read(base.folder), base.vocabulary)


def test_settings_and_templates_of_the_donor_are_kept(tmp_path):
    base = member(tmp_path / "a", "qwen", "english")
    (base.folder / "additional_chat_templates").mkdir()
    (base.folder / "additional_chat_templates" / "rag.jinja").write_text("R")
    target = copy_target(base, source="base", tokens=["<extra>"])
    assert target.files is not None
    assert target.files["additional_chat_templates/rag.jinja"] == b"R"
    config = json.loads(target.files["tokenizer_config.json"])
    donor = json.loads((base.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == CHATML
    assert {key: config[key] for key in donor if key != "added_tokens_decoder"} == {
        key: value for key, value in donor.items() if key != "added_tokens_decoder"
    }
    document = Tokenizer.from_str(target.files["tokenizer.json"].decode())
    assert document.token_to_id("<extra>") == base.vocabulary.size


def test_a_role_whose_token_is_left_out_is_left_out_too(tmp_path):
    base = member(tmp_path / "a", "qwen", "english")
    rows = base.vocabulary.ids["<|im_end|>"]
    target = copy_target(
        TokenizerMember(base.vocabulary, base.folder, rows, "a"), source="base", strip=True
    )
    assert target.files is not None
    assert "eos_token" in target.findings[0].message
    assert "eos_token" not in json.loads(target.files["tokenizer_config.json"])
    again = read(written(target, tmp_path / "out"))
    assert dict(again.special) == {"pad_token": "<|endoftext|>"}
    assert again.additional == ("<|im_start|>",)
    assert again.size == rows
