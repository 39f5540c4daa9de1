"""Small real tokenizers of every family, trained here and laid out as on the Hub.

    write_tokenizer(folder, "qwen", extra_tokens=("<think>",), size=400, corpus="code")

Equal arguments give equal files. Families with a fast tokenizer (`FAST`) write tokenizer.json and its
papers; `SLOW` ones only what the slow classes read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from weightsmith.tokenizers import Vocabulary

ENGLISH = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind the fox at all.",
    "A merge of models is the mean of their weights; the tokens of the models may differ.",
    "There is nothing new under the sun, but there are many old things that nobody knows.",
    "It was the best of times, it was the worst of times, it was the age of wisdom.",
)
SCRIPTS = (
    "Der schnelle braune Fuchs springt über den faulen Hund, größer als früher.",
    "Быстрая коричневая лиса прыгает через ленивую собаку, и собака не возражает.",
    "素早い茶色の狐がのろまな犬を飛び越える。犬は気にしない。",
    "敏捷的棕色狐狸跳过了懒狗，狗并不介意。",
    "الثعلب البني السريع يقفز فوق الكلب الكسول",
    "तेज भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है",
)
CODE = (
    "def total(values):\n    result = 0\n    for value in values:\n        result += value\n    return result\n",
    'for (int i = 0; i < 10; i++) {\n\tprintf("%d\\n", i);\n}\n',
    "import numpy as np\nx = np.zeros((3, 4), dtype=np.float32)  # a matrix\n",
)
CORPORA: Mapping[str, tuple[str, ...]] = {
    "mixed": ENGLISH + SCRIPTS + CODE,
    "english": ENGLISH,
    "code": CODE + ENGLISH[:1],
    "scripts": SCRIPTS + ENGLISH[1:2],
}
# Text for round trips: scripts, emoji with joiners, code, controls, runs of spaces, combining marks.
SAMPLES = (
    "The quick brown fox",
    "  leading and   many    spaces  ",
    "Größe naïve façade Ångström e\u0301",
    "Привет, мир! 狐と犬。 狗不介意 الثعلب लोमड़ी",
    "emoji 🦊🐶 👩\u200d💻 🏳️\u200d🌈",
    "def f(x):\n    return x + 1\n\n\tprint(f(2))\r\n",
    "control \x01 \x7f tokens <s> </s> <|im_start|>user\nhi<|im_end|> [MASK] [CLS]",
    "numbers 12345678 3.14159 1,000,000",
    "I'll can't we're THE END",
    "",
)
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN_SPLIT.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
Piece = tuple[str, float, int]


def added(
    token_id: int,
    content: str,
    *,
    special: bool = True,
    lstrip: bool = False,
    normalized: bool = False,
) -> dict[str, Any]:
    """An entry of tokenizer.json's `added_tokens`."""
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": lstrip,
        "rstrip": False,
        "normalized": normalized,
        "special": special,
    }


@cache
def _trained_bpe(
    split: str | None, size: int, corpus: str
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Tokens in order and merges: byte-level with a `split`, ▁-style without."""
    tokenizer = Tokenizer(models.BPE())
    alphabet: list[str] = []
    if split is None:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(CORPORA[corpus], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = tuple(sorted(model["vocab"], key=model["vocab"].__getitem__))
    return tokens, tuple((first, second) for first, second in model["merges"])


@cache
def _trained_unigram(size: int, corpus: str) -> tuple[tuple[str, float], ...]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, show_progress=False)
    tokenizer.train_from_iterator(CORPORA[corpus], trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    # Rounded to float32, as a sentencepiece file stores them, so that both forms are one model.
    return tuple((text, struct.unpack("<f", struct.pack("<f", score))[0]) for text, score in pieces)


@cache
def _trained_wordpiece(size: int, corpus: str) -> tuple[str, ...]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPORA[corpus], trainer)
    return tuple(tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size()))


def same_tokens(one: Vocabulary, other: Vocabulary) -> bool:
    """Whether texts, ids, added tokens' flags and special tokens are all equal."""

    def facts(known: Vocabulary) -> tuple[Any, ...]:
        return known.ids, known.added, known.special, set(known.additional)

    return facts(one) == facts(other)


def write_json(file: Path, document: Any) -> None:
    file.write_text(json.dumps(document, ensure_ascii=False, indent=2), encoding="utf-8")


def _bpe_model(
    tokens: Iterable[str], merges: Iterable[tuple[str, str]], **settings: Any
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {text: index for index, text in enumerate(tokens)},
        "merges": [list(merge) for merge in merges],
        **settings,
    }


def _document(
    model: dict[str, Any], added_tokens: list[dict[str, Any]], **parts: Any
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        **parts,
        "model": model,
    }


def _state(part: Any) -> Any:
    return json.loads(part.__getstate__())


def _byte_level(split: str | None) -> dict[str, Any]:
    pre: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is not None:
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        pre = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), behavior="isolated"), last]
        )
    return {"pre_tokenizer": _state(pre), "decoder": _state(decoders.ByteLevel())}


def _template(first: list[str], last: list[str], ids: Mapping[str, int]) -> dict[str, Any]:
    def special(text: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": text, "type_id": 0}}

    single = [*map(special, first), {"Sequence": {"id": "A", "type_id": 0}}, *map(special, last)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}, *map(special, last)],
        "special_tokens": {
            text: {"id": text, "ids": [ids[text]], "tokens": [text]}
            for text in dict.fromkeys([*first, *last])
        },
    }


def _write_fast(
    folder: Path, document: dict[str, Any], config: dict[str, Any], extra_tokens: Iterable[str]
) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json of one tokenizer."""
    entries = list(document["added_tokens"])
    vocab = document["model"]["vocab"]
    known = set(vocab) if isinstance(vocab, dict) else {text for text, _ in vocab}
    free = 1 + max(len(known) - 1, *(entry["id"] for entry in entries)) if entries else len(known)
    for text in extra_tokens:
        entries.append(added(free, text, special=text.startswith("<|")))
        free += 1
    document["added_tokens"] = sorted(entries, key=lambda entry: entry["id"])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", document)
    decoder = {
        str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
        for entry in document["added_tokens"]
    }
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder, **config})
    names = {
        key: value
        for key, value in config.items()
        if key.endswith("_token") and isinstance(value, str)
    }
    write_json(folder / "special_tokens_map.json", names)


def _write_gpt2(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    tokens, merges = _trained_bpe(GPT2_SPLIT, size - 1, corpus)
    end = "<|endoftext|>"
    document = _document(
        _bpe_model([*tokens, end], merges), [added(len(tokens), end)], **_byte_level(None)
    )
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
        "add_prefix_space": False,
        "model_max_length": 1024,
    }
    _write_fast(folder, document, config, extra_tokens)


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _write_qwen(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    tokens, merges = _trained_bpe(QWEN_SPLIT, size - 3, corpus)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    document = _document(
        _bpe_model(tokens, merges, continuing_subword_prefix="", end_of_word_suffix=""),
        [added(len(tokens) + index, text) for index, text in enumerate(special)],
        normalizer={"type": "NFC"},
        **_byte_level(QWEN_SPLIT),
    )
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_bos_token": False,
        "add_prefix_space": False,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "chat_template": CHATML,
        "model_max_length": 32768,
    }
    _write_fast(folder, document, config, extra_tokens)


def _write_llama3(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    tokens, merges = _trained_bpe(LLAMA3_SPLIT, size - 6, corpus)
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"]
    special += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    entries = [added(len(tokens) + index, text) for index, text in enumerate(special)]
    ids = {entry["content"]: entry["id"] for entry in entries}
    document = _document(
        _bpe_model(tokens, merges, ignore_merges=True),
        entries,
        post_processor={
            "type": "Sequence",
            "processors": [
                {
                    "type": "ByteLevel",
                    "add_prefix_space": True,
                    "trim_offsets": False,
                    "use_regex": True,
                },
                _template(["<|begin_of_text|>"], [], ids),
            ],
        },
        **_byte_level(LLAMA3_SPLIT),
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
    }
    _write_fast(folder, document, config, extra_tokens)


def _sentencepiece_bpe(
    special: list[str], size: int, corpus: str
) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens in the order of a sentencepiece file (specials, bytes, merged pieces, characters), and merges."""
    trained, merges = _trained_bpe(None, size - len(special) - 256, corpus)
    merged = list(dict.fromkeys(first + second for first, second in merges))
    characters = [text for text in trained if len(text) == 1]
    return [*special, *BYTES, *merged, *characters], list(merges)


def _write_llama2(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    tokens, merges = _sentencepiece_bpe(["<unk>", "<s>", "</s>"], size, corpus)
    model = _bpe_model(tokens, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    ids = model["vocab"]
    document = _document(
        model,
        [added(index, text) for index, text in enumerate(tokens[:3])],
        normalizer={
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        post_processor=_template(["<s>"], [], ids),
        decoder=_sentencepiece_decoder(strip=True),
    )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": None,
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,
        "sp_model_kwargs": {},
        "model_max_length": 4096,
    }
    _write_fast(folder, document, config, extra_tokens)


def _write_gemma(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens, merges = _sentencepiece_bpe(special, size, corpus)
    model = _bpe_model(tokens, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    document = _document(
        model,
        [added(index, text) for index, text in enumerate(special)],
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        pre_tokenizer={
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        post_processor=_template(["<bos>"], [], model["vocab"]),
        decoder=_sentencepiece_decoder(strip=False),
    )
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "add_bos_token": True,
        "add_eos_token": False,
        "model_max_length": 8192,
    }
    _write_fast(folder, document, config, extra_tokens)


def _sentencepiece_decoder(*, strip: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strip:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _write_bert(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    tokens = _trained_wordpiece(size, corpus)
    ids = {text: index for index, text in enumerate(tokens)}
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": ids,
    }
    document = _document(
        model,
        [added(index, text) for index, text in enumerate(tokens[:5])],
        normalizer=_state(normalizers.BertNormalizer(lowercase=True)),
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=_template(["[CLS]"], ["[SEP]"], ids),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )
    _write_fast(folder, document, _BERT_CONFIG, extra_tokens)


_BERT_CONFIG: dict[str, Any] = {
    "tokenizer_class": "BertTokenizer",
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "do_lower_case": True,
    "tokenize_chinese_chars": True,
    "strip_accents": None,
    "model_max_length": 512,
}
_T5_EXTRA = 4
_T5_CONFIG: dict[str, Any] = {
    "tokenizer_class": "T5Tokenizer",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "extra_ids": _T5_EXTRA,
    "additional_special_tokens": [f"<extra_id_{index}>" for index in range(_T5_EXTRA)],
    "model_max_length": 512,
}


def _metaspace() -> dict[str, Any]:
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, space],
        },
        "decoder": space,
    }


def _write_t5(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += _trained_unigram(size - 3 - _T5_EXTRA, corpus)
    extras = [f"<extra_id_{index}>" for index in reversed(range(_T5_EXTRA))]
    first = len(pieces)
    pieces += [(text, 0.0) for text in extras]
    ids = {text: index for index, (text, _) in enumerate(pieces)}
    model = {
        "type": "Unigram",
        "unk_id": 2,
        "vocab": [list(piece) for piece in pieces],
        "byte_fallback": False,
    }
    entries = [added(index, pieces[index][0]) for index in range(3)]
    entries += [added(first + index, text) for index, text in enumerate(extras)]
    document = _document(
        model, entries, post_processor=_template([], ["</s>"], ids), **_metaspace()
    )
    _write_fast(folder, document, _T5_CONFIG, extra_tokens)


_XLMR_CONFIG: dict[str, Any] = {
    "tokenizer_class": "XLMRobertaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
    "model_max_length": 512,
}


def _write_xlmr(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += _trained_unigram(size - 5, corpus)
    pieces.append(("<mask>", 0.0))
    ids = {text: index for index, (text, _) in enumerate(pieces)}
    model = {
        "type": "Unigram",
        "unk_id": 3,
        "vocab": [list(piece) for piece in pieces],
        "byte_fallback": False,
    }
    entries = [added(index, pieces[index][0]) for index in range(4)]
    entries.append(added(len(pieces) - 1, "<mask>", lstrip=True))
    document = _document(
        model, entries, post_processor=_template(["<s>"], ["</s>"], ids), **_metaspace()
    )
    config = {**_XLMR_CONFIG, "mask_token": {"__type": "AddedToken", **_flags(entries[-1])}}
    _write_fast(folder, document, config, extra_tokens)


def _flags(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "id"}


def _write_wordlevel(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    words = sorted({word for line in CORPORA[corpus] for word in line.split()})
    tokens = ["<unk>", "<pad>", *words[: size - 2]]
    model = {
        "type": "WordLevel",
        "vocab": {text: index for index, text in enumerate(tokens)},
        "unk_token": "<unk>",
    }
    document = _document(
        model,
        [added(index, text) for index, text in enumerate(tokens[:2])],
        pre_tokenizer={"type": "WhitespaceSplit"},
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }
    _write_fast(folder, document, config, extra_tokens)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def sentencepiece_model(
    pieces: Iterable[Piece],
    *,
    kind: str,
    ids: Mapping[str, int],
    add_dummy_prefix: bool = True,
    remove_extra_whitespaces: bool = True,
    byte_fallback: bool = False,
    charsmap: bytes = b"",
) -> bytes:
    """A sentencepiece model file; `kind` is unigram or bpe, `ids` has unk, bos, eos and pad."""
    body = b"".join(
        _field(1, _field(1, text.encode()) + _field(2, score) + _field(3, kind_of_piece))
        for text, score, kind_of_piece in pieces
    )
    trainer = _field(3, {"unigram": 1, "bpe": 2}[kind]) + _field(35, int(byte_fallback))
    for number, name in ((40, "unk"), (41, "bos"), (42, "eos"), (43, "pad")):
        # An id of -1 is a negative int32: ten bytes on the wire.
        trainer += _field(number, ids.get(name, -1) % (1 << 64))
    normalizer = _field(1, b"identity") + (_field(2, charsmap) if charsmap else b"")
    normalizer += _field(3, int(add_dummy_prefix)) + _field(4, int(remove_extra_whitespaces))
    return body + _field(2, trainer) + _field(3, normalizer + _field(5, 1))


def _write_extra_slow(
    folder: Path, config: dict[str, Any], extra_tokens: tuple[str, ...], free: int
) -> None:
    names = {
        key: value
        for key, value in config.items()
        if key.endswith("_token") and isinstance(value, str)
    }
    write_json(folder / "special_tokens_map.json", names)
    write_json(folder / "tokenizer_config.json", config)
    if extra_tokens:
        write_json(
            folder / "added_tokens.json", {text: free + i for i, text in enumerate(extra_tokens)}
        )


def _write_gpt2_slow(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    tokens, merges = _trained_bpe(GPT2_SPLIT, size - 1, corpus)
    end = "<|endoftext|>"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", {text: index for index, text in enumerate([*tokens, end])})
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
    }
    _write_extra_slow(folder, config, extra_tokens, len(tokens) + 1)


def _write_bert_slow(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    tokens = _trained_wordpiece(size, corpus)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{text}\n" for text in tokens), encoding="utf-8")
    _write_extra_slow(folder, _BERT_CONFIG, extra_tokens, len(tokens))


def _write_t5_slow(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    pieces: list[Piece] = [("<pad>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN)]
    pieces += [(*piece, NORMAL) for piece in _trained_unigram(size - 3 - _T5_EXTRA, corpus)]
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(pieces, kind="unigram", ids={"pad": 0, "eos": 1, "unk": 2})
    (folder / "spiece.model").write_bytes(model)
    _write_extra_slow(folder, _T5_CONFIG, extra_tokens, len(pieces) + _T5_EXTRA)


def _write_xlmr_slow(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    pieces: list[Piece] = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(*piece, NORMAL) for piece in _trained_unigram(size - 5, corpus)]
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(pieces, kind="unigram", ids={"unk": 0, "bos": 1, "eos": 2})
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    _write_extra_slow(folder, _XLMR_CONFIG, extra_tokens, len(pieces) + 2)


def _write_llama2_slow(folder: Path, extra_tokens: tuple[str, ...], size: int, corpus: str) -> None:
    tokens, _ = _sentencepiece_bpe(["<unk>", "<s>", "</s>"], size, corpus)
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(tokens) - 259)]
    scores = [0.0] * 259 + [float(-index) for index in range(len(tokens) - 259)]
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(
        zip(tokens, scores, kinds, strict=True),
        kind="bpe",
        ids={"unk": 0, "bos": 1, "eos": 2},
        remove_extra_whitespaces=False,
        byte_fallback=True,
    )
    (folder / "tokenizer.model").write_bytes(model)
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,
    }
    _write_extra_slow(folder, config, extra_tokens, len(tokens))


_Writer = Callable[[Path, tuple[str, ...], int, str], None]
FAST: dict[str, _Writer] = {
    "gpt2": _write_gpt2,
    "qwen": _write_qwen,
    "llama3": _write_llama3,
    "llama2": _write_llama2,
    "gemma": _write_gemma,
    "bert": _write_bert,
    "t5": _write_t5,
    "xlmr": _write_xlmr,
    "wordlevel": _write_wordlevel,
}
SLOW: dict[str, _Writer] = {
    "gpt2-slow": _write_gpt2_slow,
    "bert-slow": _write_bert_slow,
    "t5-slow": _write_t5_slow,
    "xlmr-slow": _write_xlmr_slow,
    "llama2-slow": _write_llama2_slow,
}
FAMILIES = {**FAST, **SLOW}


def write_tokenizer(
    folder: Path,
    family: str,
    extra_tokens: Iterable[str] = (),
    *,
    size: int = 600,
    corpus: str = "mixed",
) -> Path:
    """Write the tokenizer of a family to `folder` (made if absent) and return the folder.

    `extra_tokens` become added tokens behind the vocabulary, special where they begin with `<|`. `size` is an upper
    bound of the tokens without them: families with byte tokens need about 450. `corpus` (mixed, english, code,
    scripts) decides which tokens are learned, so two corpora give two overlapping vocabularies of one family.
    """
    FAMILIES[family](folder, tuple(extra_tokens), size, corpus)
    return folder
