"""A vocabulary with tokens taken out or put behind it, such that text it could cut before is cut the same way.

An *added* token is looked for in all text before anything else, so only tokens that were added tokens somewhere become
added ones. All others go into the model's own vocabulary, without merges:

    BPE         no pair merges into a new token, so it is never produced
    Unigram     its score is hopeless, so it is produced only where nothing but the unknown token was
    WordPiece   the longest match wins, so a new token is produced wherever its text is
    WordLevel   likewise: a word that was unknown

What is not kept is said by a finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weightsmith.errors import TokenizerError
from weightsmith.findings import Finding, Severity
from weightsmith.tensors import shown
from weightsmith.tokenizers.documents import Part, added_entry
from weightsmith.tokenizers.vocabulary import AddedFlags, Vocabulary

# Below the worst score by more than any path through a token's own text can cost.
_HOPELESS = 1e4


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token to put behind a vocabulary; without flags it is an ordinary one."""

    text: str
    flags: AddedFlags | None


def extended(
    base: Vocabulary, new: Sequence[NewToken], promoted: Mapping[str, AddedFlags]
) -> tuple[Vocabulary, tuple[Finding, ...]]:
    """`base` with new tokens in their order behind its largest id; `promoted` are tokens that become added ones.

    The base itself where there is nothing to do.
    """
    if not new and not promoted:
        return base, ()
    first = base.size
    ids = {**base.ids, **{token.text: first + number for number, token in enumerate(new)}}
    flags = {token.text: token.flags for token in new if token.flags is not None}
    added = _by_id({**base.added, **promoted, **flags}, ids)
    plain = [token.text for token in new if token.flags is None]
    model = dict(base.document["model"])
    if plain or not _is_dense(base):
        # In the vocabulary as well: the library numbers added tokens that are not there by the vocabulary's length.
        _put(model, ids, [*added, *plain])
        if plain and model.get("ignore_merges") and _merges_suffice(base):
            model["ignore_merges"] = False
    result = _with(base, ids, added, model)
    return result, tuple(_production(base, result, plain))


def _is_dense(vocabulary: Vocabulary) -> bool:
    return len(vocabulary.ids) == vocabulary.size


def _by_id(added: Mapping[str, AddedFlags], ids: Mapping[str, int]) -> dict[str, AddedFlags]:
    return {text: added[text] for text in sorted(added, key=ids.__getitem__)}


def _put(model: Part, ids: Mapping[str, int], texts: Iterable[str]) -> None:
    """Put tokens into a model's own vocabulary, under their ids."""
    if model["type"] != "Unigram":
        model["vocab"] = {**model["vocab"], **{text: ids[text] for text in texts}}
        return
    pieces = list(model["vocab"])
    score = min((score for _, score in pieces), default=0.0) - _HOPELESS
    known = {text for text, _ in pieces}
    behind = sorted((text for text in texts if text not in known), key=ids.__getitem__)
    model["vocab"] = pieces + [[text, score] for text in behind]


def _merges_suffice(base: Vocabulary) -> bool:
    """Whether merges alone give every token of a model that ignores them for whole tokens, so that they need not be."""
    from tokenizers import models

    model = base.document["model"]
    merges = [
        tuple(pair) if isinstance(pair, list) else tuple(pair.split(" "))
        for pair in model["merges"]
    ]
    merging = models.BPE(dict(model["vocab"]), merges)
    return all(
        text in base.added or [token.value for token in merging.tokenize(text)] == [text]
        for text in model["vocab"]
    )


def _with(
    base: Vocabulary, ids: Mapping[str, int], added: Mapping[str, AddedFlags], model: Part
) -> Vocabulary:
    entries = [added_entry(ids[text], text, flags) for text, flags in added.items()]
    document = {**base.document, "added_tokens": entries, "model": model}
    return replace(base, ids=ids, added=added, document=document)


def _production(base: Vocabulary, result: Vocabulary, plain: Sequence[str]) -> list[Finding]:
    """What text becomes of the new ordinary tokens."""
    if not plain:
        return []
    produced = _produced(result, plain)
    findings: list[Finding] = []
    if produced:
        names = ", ".join(map(shown, produced[:3]))
        findings.append(
            Finding(
                Severity.WARNING,
                "segmentation-changed",
                base.identity,
                f"{len(produced)} of {len(plain)} new tokens ({names}{', ...' if len(produced) > 3 else ''}) are now "
                f"produced where the tokenizer of {base.identity} cut their text otherwise",
                "use the base's tokenizer to keep its cuts",
            )
        )
    hidden = len(plain) - len(produced)
    if hidden:
        findings.append(
            Finding(
                Severity.NOTE,
                "tokens-not-produced",
                base.identity,
                f"{hidden} of {len(plain)} new tokens are never produced from text, so that the tokenizer of "
                f"{base.identity} cuts text as before; their rows are reached by id only",
            )
        )
    return findings


def _produced(result: Vocabulary, plain: Sequence[str]) -> list[str]:
    model = result.document["model"]
    if model["type"] in ("WordPiece", "WordLevel"):
        return list(plain)
    marks = ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    if model["type"] == "BPE" and not any(model.get(mark) for mark in marks):
        # Without a merge that makes it, only a single character is ever a token.
        return [text for text in plain if len(text) == 1]
    return [text for text in plain if result.cut(text) == [text]]


def stripped(vocabulary: Vocabulary, rows: int) -> tuple[Vocabulary, tuple[Finding, ...]]:
    """The vocabulary without the tokens whose ids are `rows` or more, and the merges that name them.

    Raises TokenizerError where such a token is put around every text, for the tokenizer cannot do without.
    """
    gone = [text for text, index in vocabulary.ids.items() if index >= rows]
    if not gone:
        return vocabulary, ()
    lost = set(gone)
    _require_free(vocabulary, lost)
    model = _model_without(vocabulary.document["model"], lost)
    ids = {text: index for text, index in vocabulary.ids.items() if text not in lost}
    added = {text: flags for text, flags in vocabulary.added.items() if text not in lost}
    special = {role: text for role, text in vocabulary.special.items() if text not in lost}
    additional = tuple(text for text in vocabulary.additional if text not in lost)
    result = replace(_with(vocabulary, ids, added, model), special=special, additional=additional)
    return result, (_stripping(vocabulary, gone, rows),)


def _require_free(vocabulary: Vocabulary, lost: set[str]) -> None:
    unknown = vocabulary.unknown
    around = sorted(lost.intersection(_texts_in(vocabulary.document.get("post_processor"))))
    needed = [unknown] if unknown in lost else around
    if needed:
        raise TokenizerError(
            f"{vocabulary.identity}: the token {shown(needed[0])}, which the tokenizer puts into texts, lies beyond "
            "the rows of the embedding: take another model's tokenizer."
        )


def _texts_in(part: Any) -> set[str]:
    """All texts anywhere in a part of the document."""
    if isinstance(part, str):
        return {part}
    if isinstance(part, dict):
        return {text for value in part.values() for text in _texts_in(value)}
    if isinstance(part, list):
        return {text for value in part for text in _texts_in(value)}
    return set()


def _model_without(model: Mapping[str, Any], lost: set[str]) -> Part:
    vocab = model["vocab"]
    if model["type"] == "Unigram":
        return {**model, "vocab": [piece for piece in vocab if piece[0] not in lost]}
    result = {**model, "vocab": {text: i for text, i in vocab.items() if text not in lost}}
    if "merges" in model:
        result["merges"] = [pair for pair in model["merges"] if not _names(pair, lost)]
    return result


def _names(pair: Any, lost: set[str]) -> bool:
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return first in lost or second in lost or first + second in lost


def _stripping(vocabulary: Vocabulary, gone: Sequence[str], rows: int) -> Finding:
    names = ", ".join(map(shown, gone[:3]))
    roles = [role for role, text in vocabulary.special.items() if text in set(gone)]
    also = f"; {', '.join(roles)} had one of them and has none now" if roles else ""
    return Finding(
        Severity.WARNING,
        "token-without-row",
        vocabulary.identity,
        f"{len(gone)} tokens ({names}{', ...' if len(gone) > 3 else ''}) of {vocabulary.identity} lie beyond the "
        f"{rows} rows of its table and are left out of the tokenizer{also}",
    )
