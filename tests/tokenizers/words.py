"""Vocabularies of a few words, for what needs no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weightsmith.tokenizers.vocabulary import AddedFlags, Vocabulary


def words(
    texts: Sequence[str | None],
    special: Mapping[str, str] | None = None,
    templates: str | Mapping[str, str] = "",
    name: str = "a",
    additional: Sequence[str] = (),
) -> Vocabulary:
    """A vocabulary whose token i is `texts[i]` (None: an id without a token)."""
    special = dict(special or {})
    ids = {text: i for i, text in enumerate(texts) if text is not None}
    named = {"default": templates} if isinstance(templates, str) else dict(templates)
    return Vocabulary(
        identity=f"'{name}'",
        model="WordLevel",
        ids=ids,
        added={text: AddedFlags(special=True) for text in (*special.values(), *additional)},
        special=special,
        additional=tuple(additional),
        chat_templates={key: text for key, text in named.items() if text},
        document={"model": {"type": "WordLevel", "vocab": ids, "unk_token": None}},
        settings={},
    )
