"""Sentencepiece models as documents of the tokenizers library, with the ids of each family's own class.

A family that renumbers its pieces (fairseq's offset, T5's sentinels) is converted by its own rule; an unknown one is
refused, for its ids could be silently wrong.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace as changed
from pathlib import Path

from weightsmith.errors import TokenizerError
from weightsmith.tensors import shown
from weightsmith.tokenizers.documents import (
    Part,
    added_entry,
    bpe_model,
    byte_fallback_decoder,
    metaspace,
    replace,
    sequence,
    template,
    tokenizer_document,
)
from weightsmith.tokenizers.sentencepiece_file import (
    BPE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePiece,
    SentencepieceModel,
    read_sentencepiece,
)
from weightsmith.tokenizers.tokenizer_settings import TokenizerSettings
from weightsmith.tokenizers.vocabulary import SPACE_MARK, AddedFlags

_Renumber = Callable[[SentencepieceModel, TokenizerSettings], SentencepieceModel]


def convert_sentencepiece(file: Path, settings: TokenizerSettings) -> Part:
    """The document of a sentencepiece file, by the class that tokenizer_config.json names.

    Without a class, or with one that adds nothing, ids are the file's own.
    """
    name = settings.tokenizer_class
    if name not in _RENUMBER or (name is None and file.name in _RENUMBERED_FILES):
        who = "its class (tokenizer_config.json names none)" if name is None else shown(name)
        raise TokenizerError(
            f"{shown(file)}: the ids that {who} gives to sentencepiece pieces are not known here: save the tokenizer "
            "with transformers, so that the folder has a tokenizer.json."
        )
    model = _named(_RENUMBER[name](read_sentencepiece(file), settings), settings)
    texts = [piece.text for piece in model.pieces]
    if len(set(texts)) != len(texts):
        twice = next(text for number, text in enumerate(texts) if text in texts[:number])
        raise TokenizerError(f"{shown(file)} has the piece {shown(twice)} twice: fetch it again.")
    if not 0 <= model.unk_id < len(texts):
        raise TokenizerError(f"{shown(file)} has no unknown piece: fetch it again.")
    if model.algorithm == UNIGRAM:
        document = _unigram(model)
    elif model.algorithm == BPE:
        document = _byte_pairs(model, name)
    else:
        raise TokenizerError(
            f"{shown(file)} is of sentencepiece's word or character kind, which is not supported: use a unigram or "
            "BPE model."
        )
    ids = {text: index for index, text in enumerate(texts)}
    document["added_tokens"] = _added(model)
    document["post_processor"] = _post_processor(name, model, settings, ids)
    return document


def _named(model: SentencepieceModel, settings: TokenizerSettings) -> SentencepieceModel:
    """The model with placeholder pieces renamed as tokenizer_config.json declares them."""
    pieces = list(model.pieces)
    for index, token in settings.declared.items():
        if index < len(pieces) and pieces[index].text != token.text:
            pieces[index] = pieces[index]._replace(text=token.text)
    return changed(model, pieces=tuple(pieces))


def _added(model: SentencepieceModel) -> list[Part]:
    found: list[Part] = []
    for index, piece in enumerate(model.pieces):
        if piece.kind in (CONTROL, UNKNOWN):
            found.append(added_entry(index, piece.text, AddedFlags(normalized=False, special=True)))
        elif _is_found_in_text(piece, model):
            # ▁ is there in normalized text only.
            flags = AddedFlags(normalized=SPACE_MARK in piece.text)
            found.append(added_entry(index, piece.text, flags))
    return found


def _is_found_in_text(piece: SentencePiece, model: SentencepieceModel) -> bool:
    """Whether a user-defined piece is looked for before the others.

    One with a raw space never is, for spaces are ▁ by then. One with ▁ is left to the merges where a ▁ is put before
    each text: the library would put it before the piece too.
    """
    is_marked = SPACE_MARK in piece.text and model.adds_prefix
    return piece.kind == USER_DEFINED and " " not in piece.text and not is_marked


def _spaces(model: SentencepieceModel) -> list[Part]:
    steps: list[Part] = []
    if model.charsmap:
        encoded = base64.b64encode(model.charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if model.joins_spaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append(replace(" {2,}", " ", regex=True))
    return steps


def _unigram(model: SentencepieceModel) -> Part:
    scores = [[text, _score(score, kind)] for text, score, kind in model.pieces]
    unigram = {
        "type": "Unigram",
        "unk_id": model.unk_id,
        "vocab": scores,
        "byte_fallback": model.byte_fallback,
    }
    # Cutting at spaces first gives the same pieces, faster, unless a piece reaches across one.
    splits = not any(SPACE_MARK in piece.text[1:] for piece in model.pieces)
    space = metaspace(prepend=model.adds_prefix, split=splits)
    decoder = space
    if model.byte_fallback:
        decoder = byte_fallback_decoder(strip=model.adds_prefix)
    return tokenizer_document(
        unigram,
        normalizer=sequence("normalizers", _spaces(model)),
        pre_tokenizer=space,
        decoder=decoder,
    )


def _score(score: float, kind: int) -> float:
    # Sentencepiece never gives out an unused piece; the library knows no such thing but a hopeless score.
    return score - 1e5 if kind == UNUSED else score


def _byte_pairs(model: SentencepieceModel, name: str | None) -> Part:
    ids = {piece.text: index for index, piece in enumerate(model.pieces)}
    bpe = bpe_model(
        ids,
        _merges(model, ids),
        unk_token=model.pieces[model.unk_id].text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )
    steps = _spaces(model)
    if model.adds_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE_MARK})
    steps.append(replace(" ", SPACE_MARK))
    split: Part = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    return tokenizer_document(
        bpe,
        normalizer=sequence("normalizers", steps),
        pre_tokenizer=split if name == "GemmaTokenizer" else None,
        decoder=byte_fallback_decoder(strip=model.adds_prefix),
    )


def _merges(model: SentencepieceModel, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best piece first.

    Sentencepiece merges the pair whose piece has the best score; a rank list says the same.
    """
    kinds = (NORMAL, UNUSED, USER_DEFINED)
    joined = {
        piece.text: piece.score
        for piece in model.pieces
        if piece.kind in kinds and not _is_found_in_text(piece, model)
    }
    found: list[tuple[str, str]] = []
    for text in sorted(joined, key=joined.__getitem__, reverse=True):
        cuts = [(text[:cut], text[cut:]) for cut in range(1, len(text)) if text[:cut] in joined]
        pairs = [pair for pair in cuts if pair[1] in joined]
        found += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return found


def _as_is(model: SentencepieceModel, _: TokenizerSettings) -> SentencepieceModel:
    return model


def _fairseq(*, mask: bool) -> _Renumber:
    """Ids of models trained with fairseq: its four special tokens first, then the pieces from the fourth on."""

    def renumber(model: SentencepieceModel, settings: TokenizerSettings) -> SentencepieceModel:
        names = [settings.special.get(role) or default for role, default in _FAIRSEQ]
        first = [SentencePiece(text, 0.0, CONTROL) for text in names[:3]] + [
            SentencePiece(names[3], 0.0, UNKNOWN)
        ]
        last = (
            [SentencePiece(settings.special.get("mask_token") or "<mask>", 0.0, CONTROL)]
            if mask
            else []
        )
        return changed(model, pieces=(*first, *model.pieces[3:], *last), unk_id=3)

    return renumber


_FAIRSEQ = (
    ("bos_token", "<s>"),
    ("pad_token", "<pad>"),
    ("eos_token", "</s>"),
    ("unk_token", "<unk>"),
)


def _sentinels(model: SentencepieceModel, settings: TokenizerSettings) -> SentencepieceModel:
    """T5's sentinels behind the pieces, the last one first: <extra_id_99> ... <extra_id_0>."""
    known = {piece.text for piece in model.pieces}
    named = sum(text.startswith("<extra_id_") for text in settings.additional)
    count = settings.config.get("extra_ids", named or 100)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 10_000:
        raise TokenizerError(
            f"tokenizer_config.json: extra_ids is {shown(count)}, but it must be a number of tokens."
        )
    texts = [f"<extra_id_{number}>" for number in reversed(range(count))]
    extras = [SentencePiece(text, 0.0, CONTROL) for text in texts if text not in known]
    return changed(model, pieces=(*model.pieces, *extras))


# What the classes that renumber pieces call their files; without a class their ids cannot be told.
_RENUMBERED_FILES = ("sentencepiece.bpe.model", "spiece.model")
_RENUMBER: dict[str | None, _Renumber] = {
    None: _as_is,
    "PreTrainedTokenizer": _as_is,
    "TokenizersBackend": _as_is,
    "LlamaTokenizer": _as_is,
    "CodeLlamaTokenizer": _as_is,
    "GemmaTokenizer": _as_is,
    "T5Tokenizer": _sentinels,
    "MT5Tokenizer": _sentinels,
    "XLMRobertaTokenizer": _fairseq(mask=True),
}


def _post_processor(
    name: str | None, model: SentencepieceModel, settings: TokenizerSettings, ids: dict[str, int]
) -> Part | None:
    begin = settings.special.get("bos_token") or _piece_at(model, model.bos_id, "<s>", name)
    end = settings.special.get("eos_token") or _piece_at(model, model.eos_id, "</s>", name)
    if name in ("T5Tokenizer", "MT5Tokenizer"):
        before, after, between = [], [end], None
    elif name == "XLMRobertaTokenizer":
        before, after, between = [begin], [end], [end]
    else:
        adds_begin = settings.config.get("add_bos_token", name in _BEGINS)
        before = [begin] if adds_begin else []
        after, between = ([end] if settings.config.get("add_eos_token", False) else []), None
    missing = next((text for text in (*before, *after) if text not in ids), None)
    if missing is not None:
        raise TokenizerError(
            f"The special token {shown(missing)} that begins or ends a text is not among the sentencepiece pieces: "
            "name the right one in tokenizer_config.json."
        )
    return template(before, after, ids, pair_after=between)


def _piece_at(model: SentencepieceModel, index: int, default: str, name: str | None) -> str:
    """The special piece that the file itself names; fairseq's numbers are others than the file's."""
    is_known = 0 <= index < len(model.pieces) and name != "XLMRobertaTokenizer"
    return model.pieces[index].text if is_known else default


_BEGINS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
