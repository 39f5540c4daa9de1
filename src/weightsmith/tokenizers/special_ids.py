"""Special-token ids in a configuration, carried over to another vocabulary.

Every id stands for a token: it is read as that token's text in the old vocabulary, and written as that text's id in
the new one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from weightsmith.checkpoints import vocabulary_size_of
from weightsmith.findings import Finding, Severity

if TYPE_CHECKING:
    from weightsmith.tokenizers.vocabulary import Vocabulary

Config = dict[str, Any]

# Ids that a model can do without: dropped where their token is gone.
_OPTIONAL = frozenset(
    """bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id""".split()
)
_ID_ENDINGS = ("_token_id", "_token_ids", "_token_index", "_token_indices")
# Keys of generation whose numbers are ids, by how deep they lie in lists.
_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
_SEQUENCES = ("bad_words_ids", "force_words_ids")
_NAMED_IDS = ("lang_to_id", "task_to_id")
# Sections about other modalities, whose ids are not of this vocabulary.
_OTHER_SECTIONS = (
    "vision",
    "audio",
    "image",
    "speech",
    "codec",
    "qformer",
    "quantization",
    "talker",
    "code2wav",
)


def consistent(
    config: Config | None,
    generation_config: Config | None,
    old: Vocabulary | None,
    new: Vocabulary | None,
    *,
    rows: int | None = None,
) -> tuple[Config | None, Config | None, list[Finding]]:
    """Both configurations made true for another vocabulary; those given are not changed.

    `old` is the vocabulary that their ids speak of, `new` that of the result (None: no tokenizer could be read, and
    ids are only compared with the table), `rows` the rows of the result's embedding, padding included, which become
    `vocab_size` in every section of this vocabulary (None: as declared). Ids of a token that the new vocabulary lacks
    are replaced by the tokenizer's own special token of that name, else dropped with a warning; those that the model
    cannot do without (an image token) give an error. An id that disagrees with the tokenizer's is kept, with a warning.
    """
    declared = vocabulary_size_of(config)
    carrier = _Carrier(old, new, rows if rows is not None else declared)
    made = copy.deepcopy(config)
    if made is not None:
        for path, section in _language_sections(made, declared):
            if rows is not None and declared is not None and section.get("vocab_size") == declared:
                section["vocab_size"] = rows
            carrier.section(section, path)
    generation = copy.deepcopy(generation_config)
    if generation is not None:
        carrier.section(generation, "generation_config.json:")
    carrier.compare(made, generation)
    return made, generation, carrier.findings


def _language_sections(
    config: Config, size: int | None, path: str = ""
) -> Iterator[tuple[str, Config]]:
    """(dotted path, section) of the configuration and of every nested one about this vocabulary."""
    yield path, config
    for key, value in config.items():
        if not isinstance(value, dict) or not (
            key.endswith("_config") or key in ("encoder", "decoder")
        ):
            continue
        own = value.get("vocab_size")
        is_other = any(word in key for word in _OTHER_SECTIONS) or (own is not None and own != size)
        if not is_other:
            yield from _language_sections(value, size, f"{path}{key}.")


@dataclass(slots=True)
class _Carrier:
    """Carries ids from one vocabulary to another and notes those that cannot go."""

    old: Vocabulary | None
    new: Vocabulary | None
    rows: int | None
    findings: list[Finding] = field(default_factory=list)
    _texts: Mapping[int, str] = field(default_factory=dict)
    _is_same: bool = False

    def __post_init__(self) -> None:
        self._is_same = self.old is None or self.new is None or self.old.ids == self.new.ids
        if not self._is_same and self.old is not None:
            self._texts = self.old.texts

    def section(self, section: Config, path: str) -> None:
        """Carry the ids of one section, in place."""
        for key in list(section):
            value = section[key]
            if key.endswith(_ID_ENDINGS):
                section[key] = self._value(value, key, path)
            elif key in _SUPPRESSED and isinstance(value, list):
                section[key] = self._list(value, key, path)
            elif key in _SEQUENCES and isinstance(value, list):
                section[key] = self._sequences(value, key, path)
            elif key in _NAMED_IDS and isinstance(value, dict):
                section[key] = self._named(value, key, path)
            elif key == "forced_decoder_ids" and isinstance(value, list):
                section[key] = self._forced(value, key, path)
            elif key == "sequence_bias" and isinstance(value, list):
                section[key] = self._biases(value, key, path)

    def compare(self, config: Config | None, generation: Config | None) -> None:
        """Warn where the ids in force for generation are not those of the tokenizer's special tokens."""
        if self.new is None:
            return
        found = [
            section for _, section in _language_sections(config or {}, vocabulary_size_of(config))
        ]
        for name, theirs in self.new.special_ids.items():
            key = f"{name}_id"
            sections = [generation] if generation and generation.get(key) is not None else found
            given = next(
                (s[key] for s in sections if s is not None and s.get(key) is not None), None
            )
            ids = given if isinstance(given, list) else [given]
            if given is None or theirs in ids:
                continue
            self._warn(
                "special-id-differs",
                key,
                f"{key} is {given} in the configuration, but the tokenizer's {name} is "
                f"{self.new.special[name]!r}, number {theirs}",
                "the configuration's is kept, and decides how text is generated; correct the wrong one of the two",
            )

    def _value(self, value: Any, key: str, path: str) -> Any:
        if isinstance(value, list):
            return self._list(value, key, path)
        return self._one(value, key, path) if _is_id(value) else value

    def _list(self, values: list[Any], key: str, path: str) -> list[Any]:
        carried = [self._one(v, key, path) if _is_id(v) else v for v in values]
        kept = [
            new for old, new in zip(values, carried, strict=True) if new is not None or old is None
        ]
        return list(dict.fromkeys(kept)) if all(isinstance(k, int) for k in kept) else kept

    def _sequences(self, values: list[Any], key: str, path: str) -> list[Any]:
        """Lists of ids, at any depth; a sequence that loses one of its tokens means nothing and goes."""
        made = []
        for value in values:
            if isinstance(value, list) and any(isinstance(inner, list) for inner in value):
                made.append(self._sequences(value, key, path))
            elif isinstance(value, list):
                carried = [self._one(v, key, path) if _is_id(v) else v for v in value]
                made += [carried] if None not in carried else []
            else:
                made.append(value)
        return made

    def _named(self, values: Mapping[str, Any], key: str, path: str) -> dict[str, Any]:
        carried = {n: self._one(v, key, path) if _is_id(v) else v for n, v in values.items()}
        return {name: value for name, value in carried.items() if value is not None}

    def _forced(self, values: list[Any], key: str, path: str) -> list[Any]:
        """Pairs of a position and an id, or of a position and None."""

        def pair(value: Any) -> Any:
            if isinstance(value, list) and len(value) == 2 and _is_id(value[1]):
                return [value[0], self._one(value[1], key, path)]
            return value

        return [pair(value) for value in values]

    def _biases(self, values: list[Any], key: str, path: str) -> list[Any]:
        made = []
        for value in values:
            if isinstance(value, list) and len(value) == 2 and isinstance(value[0], list):
                sequences = self._sequences([value[0]], key, path)
                made += [[sequences[0], value[1]]] if sequences else []
            else:
                made.append(value)
        return made

    def _one(self, number: int, key: str, path: str) -> int | None:
        """The new number of one id, or None where its token is gone."""
        if number < 0:
            return number
        if self._is_same:
            return self._in_range(number, key, path)
        assert self.new is not None
        text = self._texts.get(number)
        found = None if text is None else self.new.ids.get(text)
        if found is not None:
            return found
        what = "no token of the old vocabulary" if text is None else f"the token {text!r}"
        return self._without(
            number, key, path, f"{what}, which the vocabulary of the result does not have"
        )

    def _in_range(self, number: int, key: str, path: str) -> int | None:
        # Embeddings may have more rows than `vocab_size` says, for an image token just behind it (Mllama).
        if self.rows is None or number < self.rows or _is_required(key):
            return number
        return self._without(number, key, path, f"no row of the embedding, which has {self.rows}")

    def _without(self, number: int, key: str, path: str, why: str) -> int | None:
        own = self.new.special_ids.get(key.removesuffix("_id")) if self.new is not None else None
        if own is not None and self.rows is not None and own >= self.rows:
            own = None
        if own is not None:
            self._warn(
                "special-id-replaced",
                f"{path}{key}",
                f"{path}{key} is {number}, which is {why}",
                f"the tokenizer's own, {own}, is written instead",
            )
            return own
        if not _is_required(key):
            self._warn(
                "special-id-dropped",
                f"{path}{key}",
                f"{path}{key} is {number}, which is {why}",
                "it is left out; give it by hand if the model needs it",
            )
            return None
        self.findings.append(
            Finding(
                Severity.ERROR,
                "special-id-lost",
                f"{path}{key}",
                f"{path}{key} is {number}, which is {why}",
                "add the token under `tokenizer: tokens:`, or choose a `source:` that has it",
            )
        )
        return number

    def _warn(self, code: str, subject: str, message: str, fix: str) -> None:
        finding = Finding(Severity.WARNING, code, subject, message, fix)
        if finding not in self.findings:
            self.findings.append(finding)


def _is_required(key: str) -> bool:
    """Whether a model cannot do without this id, such as an image token's."""
    return key not in _OPTIONAL and key.endswith(_ID_ENDINGS)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
