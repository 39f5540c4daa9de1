"""Target vocabularies: what the merged checkpoint's tokenizer will be, and how many rows its tables have.

A target is made of one tokenizer, its base: copied, stripped of the tokens that have no row, and extended. Ids of the
base never change; new tokens take the ids behind its largest one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightsmith.errors import UsageError
from weightsmith.findings import Finding
from weightsmith.tokenizers.extending import NewToken, extended, stripped
from weightsmith.tokenizers.tokenizer_writing import written_files
from weightsmith.tokenizers.vocabulary import AddedFlags, Vocabulary


@dataclass(frozen=True, slots=True)
class TokenizerMember:
    """One model's tokenizer: where its files are, and the rows of its table (None: as many as it has tokens).

    `label` is what the recipe calls the model.
    """

    vocabulary: Vocabulary
    folder: Path
    rows: int | None
    label: str


@dataclass(frozen=True)
class TargetVocabulary:
    """The vocabulary of the result.

    `rows` are those of its tables, padding included. `files` are the tokenizer's files by relative path; None means
    that the source model's are carried byte for byte. `source` is "union", "base" or a label. `findings` is what the
    plan should say about it.
    """

    vocabulary: Vocabulary
    rows: int
    files: Mapping[str, bytes] | None
    source: str
    findings: tuple[Finding, ...] = ()


def copy_target(
    origin: TokenizerMember,
    *,
    source: str,
    tokens: Iterable[str] = (),
    flags: Mapping[str, AddedFlags] | None = None,
    pad_to_multiple_of: int | None = None,
    strip: bool = False,
) -> TargetVocabulary:
    """The tokenizer of one model, with `tokens` that it lacks behind it as added tokens, plain ones without `flags`.

    `strip` leaves out the tokens whose ids lie beyond the source model's rows, as mergekit does for `base` (and not for
    a model that is named). An unchanged tokenizer keeps the source model's number of rows, so that nothing moves; a
    changed one has a row for each id up to the largest.
    """
    base, findings = stripped_base(origin) if strip else (origin.vocabulary, ())
    return finished(
        origin,
        base,
        wanted_tokens(base, tokens, flags or {}),
        source,
        pad_to_multiple_of,
        findings=findings,
    )


def stripped_base(origin: TokenizerMember) -> tuple[Vocabulary, tuple[Finding, ...]]:
    """The source model's vocabulary without tokens that have no row."""
    if origin.rows is None:
        return origin.vocabulary, ()
    return stripped(origin.vocabulary, origin.rows)


def wanted_tokens(
    vocabulary: Vocabulary, tokens: Iterable[str], flags: Mapping[str, AddedFlags]
) -> list[NewToken]:
    """The texts that a vocabulary lacks, as added tokens with their flags or the library's default, in their order."""
    missing = dict.fromkeys(text for text in tokens if text not in vocabulary.ids)
    return [NewToken(text, flags.get(text, AddedFlags())) for text in missing]


def finished(
    origin: TokenizerMember,
    base: Vocabulary,
    new: Sequence[NewToken],
    source: str,
    pad_to_multiple_of: int | None,
    *,
    promoted: Mapping[str, AddedFlags] | None = None,
    findings: tuple[Finding, ...] = (),
) -> TargetVocabulary:
    """The target of `base` with new tokens behind it; its files where anything changed."""
    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise UsageError(f"pad_to_multiple_of is {pad_to_multiple_of}, but it must be at least 1.")
    vocabulary, more = extended(base, new, promoted or {})
    findings += more
    is_changed = vocabulary is not origin.vocabulary
    files = None
    if is_changed:
        written = written_files(vocabulary, origin.folder)
        files, findings = written.files, findings + written.findings
    needed = vocabulary.size
    if not is_changed and pad_to_multiple_of is None:
        needed = max(needed, origin.rows or 0)
    rows = _padded(needed, pad_to_multiple_of or 1)
    return TargetVocabulary(vocabulary, rows, files, source, findings)


def _padded(rows: int, multiple: int) -> int:
    return -(-rows // multiple) * multiple
