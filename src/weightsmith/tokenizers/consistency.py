"""Does the tokenizers library give every token the id that the files say? Answered without it where that is certain.

Building the library's tokenizer of 128,000 tokens takes a second. A byte-pair model whose merges name tokens of its
vocabulary, and whose added tokens are in it or follow it in order, cannot be read in another way; of such a document
the library only has to read the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from weightsmith.errors import TokenizerError
from weightsmith.tensors import shown
from weightsmith.tokenizers.vocabulary import Vocabulary

# Below this the library is fast enough to be asked in any case.
_LARGE = 20_000


def disagreement(vocabulary: Vocabulary, where: str) -> tuple[str, int | None, int | None] | None:
    """A token with its id in the files and in the library, or None where they agree on all.

    Raises TokenizerError where the library cannot read the tokenizer at all.
    """
    try:
        if len(vocabulary.ids) > _LARGE and _is_certain(vocabulary):
            vocabulary.require_readable_pipeline()
            return None
        library = vocabulary.library_ids()
    except BaseException as problem:
        # The library raises plain Exception for malformed documents, and its panics are not even that.
        if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"{where}: the tokenizers library cannot read the tokenizer ({shown(problem)}): fetch its files again."
        ) from None
    if library == vocabulary.ids:
        return None
    for text, index in vocabulary.ids.items():
        if library.get(text) != index:
            return text, index, library.get(text)
    text = next(text for text in library if text not in vocabulary.ids)
    return text, None, library[text]


def _is_certain(vocabulary: Vocabulary) -> bool:
    model = vocabulary.document["model"]
    vocab = model.get("vocab")
    if model.get("type") != "BPE" or not isinstance(vocab, dict) or not vocab:
        return False
    following = len(vocab)
    for entry in vocabulary.document.get("added_tokens") or ():
        text = entry["content"]
        if text not in vocab:
            if entry["id"] != following or vocabulary.ids.get(text) != following:
                return False
            following += 1
        elif entry["id"] != vocab[text]:
            return False
    return (
        following == len(vocabulary.ids)
        and vocab.items() <= vocabulary.ids.items()
        and min(vocab.values()) >= 0
        and max(vocab.values()) < 2**32
        and _merges_are_plain(model, vocab)
    )


def _merges_are_plain(model: Mapping[str, Any], vocab: Mapping[str, int]) -> bool:
    merges = model.get("merges")
    plain = {"continuing_subword_prefix", "end_of_word_suffix"}
    if not isinstance(merges, list) or any(model.get(key) for key in plain):
        return False
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if set(map(len, pairs)) - {2}:
        return False
    known = vocab.keys()
    return known >= set(chain.from_iterable(pairs)) and known >= set(map("".join, pairs))
