"""The union of tokenizers: mergekit's set of tokens, in an order that is defined.

    the base's tokens, ids unchanged
    + every token of every model that is no added token there and absent so far     (order of models, then of ids)
    + every added token of every model that is absent so far                        (the same order)

Tokens are compared by the text that the tokenizers store, so "Ġthe" and "▁the" are two. A token beyond the rows of its
model's table counts as absent from that model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from weightsmith.findings import Finding, Severity
from weightsmith.tensors import shown
from weightsmith.tokenizers.extending import NewToken
from weightsmith.tokenizers.target import (
    TargetVocabulary,
    TokenizerMember,
    finished,
    stripped_base,
    wanted_tokens,
)
from weightsmith.tokenizers.vocabulary import AddedFlags, Vocabulary


def union_target(
    members: Sequence[TokenizerMember],
    *,
    tokens: Iterable[str] = (),
    flags: Mapping[str, AddedFlags] | None = None,
    pad_to_multiple_of: int | None = None,
) -> TargetVocabulary:
    """The union of the members' tokenizers on that of the first, its base; `tokens` that are in none go last.

    A union with nothing new is the base itself. An added token that models define with different flags has those of
    the first of them. One that is an ordinary token of the base becomes special there where a model has it as special,
    and stays ordinary otherwise: matching it in all text would change how the base cuts text.
    """
    origin, *others = members
    base, findings = stripped_base(origin)
    added, conflicts = _added_tokens(base, others)
    plain = _plain_tokens(base, others, added)
    new = [NewToken(text, None) for text in plain]
    new += [NewToken(text, flags) for text, flags in added.items() if text not in base.ids]
    promoted = {
        text: flags
        for text, flags in added.items()
        if flags.special and text in base.ids and text not in base.added
    }
    texts = {token.text for token in new}
    new += [token for token in wanted_tokens(base, tokens, flags or {}) if token.text not in texts]
    findings += (*_beyond(others), *conflicts, *_kinds(base, others))
    return finished(
        origin, base, new, "union", pad_to_multiple_of, promoted=promoted, findings=findings
    )


def _rows_of(member: TokenizerMember) -> int:
    return member.vocabulary.size if member.rows is None else member.rows


def _added_tokens(
    base: Vocabulary, others: Sequence[TokenizerMember]
) -> tuple[dict[str, AddedFlags], list[Finding]]:
    """Flags by text, by first definition, and a finding for each model that defines some differently."""
    found = dict(base.added)
    findings: list[Finding] = []
    for member in others:
        vocabulary, rows = member.vocabulary, _rows_of(member)
        mine = {
            text: flags for text, flags in vocabulary.added.items() if vocabulary.ids[text] < rows
        }
        different = [text for text, flags in mine.items() if found.setdefault(text, flags) != flags]
        if different:
            findings.append(_conflict(member, different))
    return found, findings


def _conflict(member: TokenizerMember, texts: list[str]) -> Finding:
    return Finding(
        Severity.WARNING,
        "added-token-conflict",
        member.label,
        f"{_some(texts)} of {shown(member.label)} had other flags in a model before it, whose flags are used",
    )


def _plain_tokens(
    base: Vocabulary, others: Sequence[TokenizerMember], added: dict[str, AddedFlags]
) -> dict[str, None]:
    found: dict[str, None] = {}
    for member in others:
        rows = _rows_of(member)
        for text, index in member.vocabulary.ids.items():
            if text not in base.ids and text not in added and index < rows:
                found.setdefault(text)
    return found


def _beyond(others: Sequence[TokenizerMember]) -> list[Finding]:
    findings = []
    for member in others:
        rows = _rows_of(member)
        texts = [text for text, index in member.vocabulary.ids.items() if index >= rows]
        if texts:
            findings.append(
                Finding(
                    Severity.WARNING,
                    "token-without-row",
                    member.label,
                    f"{_some(texts)} of {shown(member.label)} beyond the {rows} rows of its table count as absent "
                    "from this model",
                )
            )
    return findings


def _kinds(base: Vocabulary, others: Sequence[TokenizerMember]) -> list[Finding]:
    return [
        Finding(
            Severity.WARNING,
            "union-of-kinds",
            member.label,
            f"the tokenizer of {shown(member.label)} is of the kind {member.vocabulary.model} and the base's of "
            f"{base.model}: tokens are matched by the text that is stored, so few are shared",
            "use the base's tokenizer, or transplant one model's onto the other",
        )
        for member in others
        if member.vocabulary.model != base.model
    ]


def _some(texts: Sequence[str]) -> str:
    """How many tokens, and the first of them."""
    names = ", ".join(map(shown, texts[:3]))
    return f"{len(texts)} token{'s'[: len(texts) > 1]} ({names}{', ...' if len(texts) > 3 else ''})"
