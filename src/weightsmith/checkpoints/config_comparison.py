"""What configurations say of the computation, compared between checkpoints whose tensors are combined.

Tensors of one name and shape may be computed with in other ways: with more heads, other rotary frequencies, another
activation, other labels. The result has one configuration, its config source's. Keys are compared in every nested
section; one that is absent counts as its default where that is known (`library_defaults`), and spellings of one meaning
are one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.checkpoints.checkpoint import Checkpoint
from weightsmith.checkpoints.computing_keys import DERIVED, Consequence, consequence_of
from weightsmith.checkpoints.library_defaults import default_of
from weightsmith.checkpoints.nested_config import LANGUAGE_SECTIONS, nested_sections
from weightsmith.checkpoints.rotary_facts import ROTARY_KEYS, rotary_facts, spread
from weightsmith.findings import Finding, Severity
from weightsmith.tensors import shown
from weightsmith.wording import literal

_MOST_SHOWN = 4
_LABELS = "id2label"
_ROPE = "rope_parameters"
_ACTIVATIONS = {
    "swish": "silu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_python": "gelu",
}
# What the libraries compute for what old configurations of these families say.
_ACTIVATIONS_OF_FAMILY = {("gemma", "gelu"): "gelu_pytorch_tanh"}
_ABSENT = object()
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_WIDTHS = ("hidden_size", "n_embd", "d_model")


@dataclass(frozen=True, slots=True)
class Difference:
    """A key in which a configuration differs from the reference's, with both values."""

    key: str
    consequence: Consequence
    reference: Any
    other: Any

    def is_called(self, name: str) -> bool:
        """Whether a recipe means it by `name`: its last word, or any run of its words."""
        return f".{name}." in f".{self.key}."


@dataclass(frozen=True, slots=True)
class ConfigComparison:
    """What was found between a configuration and others, and which of the accepted keys it was about."""

    findings: tuple[Finding, ...]
    accepted: frozenset[str]


def compare_configurations(
    reference: Checkpoint,
    others: Sequence[Checkpoint],
    *,
    accepted: Collection[str] = (),
    is_partial: bool = False,
) -> ConfigComparison:
    """What stands against computing with `reference`'s configuration what the others' tensors become a part of.

    `accepted` are keys in which a recipe says that they may differ. `is_partial`: only parts of the others are used,
    which may be those that the keys do not concern.
    """
    findings: list[Finding] = []
    used: set[str] = set()
    for other in others:
        if reference.config is None or other.config is None or other.config == reference.config:
            continue
        found = differences(reference.config, other.config)
        names = {d.key: {name for name in accepted if d.is_called(name)} for d in found}
        used.update(*names.values())
        known = [d for d in found if names[d.key]]
        if known:
            findings.append(_accepted(reference, other, known))
        for consequence in (Consequence.MEANING, Consequence.CALCULATION, Consequence.UNKNOWN):
            own = [d for d in found if d.consequence is consequence and not names[d.key]]
            if own:
                findings.append(_finding(reference, other, own, consequence, is_partial))
    return ConfigComparison(tuple(findings), frozenset(used))


def differences(reference: dict[str, Any], other: dict[str, Any]) -> list[Difference]:
    """The keys that change a computation, or may, and in which two configurations differ."""
    mine, theirs = dict(nested_sections(reference)), dict(nested_sections(other))
    for path in LANGUAGE_SECTIONS:
        if (path in mine) != (path in theirs):
            # A language model alone, or one whose keys an older version wrote beside those of its vision tower.
            holder = mine if path in mine else theirs
            inner = {k: v for k, v in holder.pop(path).items() if k != "model_type"}
            holder[""] = {**holder[""], **inner}
    pairs = ((path, section, theirs[path]) for path, section in mine.items() if path in theirs)
    return [found for pair in pairs for found in _compared(*pair)]


def _compared(
    path: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[Difference]:
    families = _family(mine), _family(theirs)
    is_one_family = families[0] == families[1]
    if not is_one_family and None not in families:
        yield Difference(_join(path, "model_type"), Consequence.CALCULATION, *families)
    first, second = _Facts(mine, families[0]), _Facts(theirs, families[1])
    first.rope, second.rope = spread(first.rope, second.rope), spread(second.rope, first.rope)
    for key in dict.fromkeys([*first.values, *second.values]):
        consequence = consequence_of(key)
        if consequence is Consequence.NONE:
            continue
        one, two = first.at(key), second.at(key)
        if one is _ABSENT or two is _ABSENT:
            present = two if one is _ABSENT else one
            if not is_one_family or key in DERIVED or _is_unsaid(present, consequence):
                continue
        elif _same(one, two) or _are_of_other_depths(one, two):
            continue
        yield Difference(_join(path, key), consequence, one, two)
    yield from _rotary(path, first, second)
    yield from _labels(path, first.labels, second.labels)


class _Facts:
    """What a section says, in one spelling."""

    def __init__(self, section: Mapping[str, Any], family: str | None) -> None:
        self.family = family
        self.section = section
        self.rope = rotary_facts(section, family)
        self.labels = _named_labels(section.get(_LABELS))
        ignored = _without_effect(section)
        self.values = {
            key: value
            for key, value in section.items()
            if key not in ROTARY_KEYS
            and key not in ignored
            and key != _LABELS
            and not isinstance(value, Mapping)
        }
        if family == "gemma" and self.values.get("hidden_activation") is not None:
            self.values["hidden_act"] = self.values.pop("hidden_activation")

    def at(self, key: str) -> Any:
        """The value of a key, its default where it is absent, `_ABSENT` where that is not known."""
        value = self.values.get(key, _ABSENT)
        if value is _ABSENT:
            is_known, value = default_of(key, self.family)
            if key in _without_effect(self.section):
                value = None
            elif not is_known and key not in ("num_key_value_heads", "head_dim"):
                return _ABSENT
        if value is None:
            value = self._derived(key)
        if isinstance(value, str):
            value = _ACTIVATIONS_OF_FAMILY.get((self.family or "", value), value)
            return _ACTIVATIONS.get(value, value)
        return value

    def _derived(self, key: str) -> Any:
        heads = next((self.section[k] for k in _HEADS if self.section.get(k)), None)
        heads = heads or default_of("num_attention_heads", self.family)[1]
        if key == "num_key_value_heads":
            return heads
        width = next((self.section[k] for k in _WIDTHS if self.section.get(k)), None)
        if key == "head_dim" and isinstance(heads, int) and isinstance(width, int):
            return width // heads
        return None


def _without_effect(section: Mapping[str, Any]) -> frozenset[str]:
    """Keys that another one switches off or spells out."""
    found: set[str] = set()
    if section.get("use_sliding_window") is False:
        found |= {"sliding_window", "max_window_layers"}
    if section.get("feed_forward_proj") is not None:
        found |= {"dense_act_fn", "is_gated_act"}
    return frozenset(found)


def _rotary(path: str, first: _Facts, second: _Facts) -> Iterator[Difference]:
    if not first.rope or not second.rope:
        return
    for key in dict.fromkeys([*first.rope, *second.rope]):
        one, two = first.rope.get(key), second.rope.get(key)
        if one != two and not (
            None in (one, two) and key.endswith(("rope_theta", "rotary_factor"))
        ):
            yield Difference(_join(path, f"{_ROPE}.{key}"), Consequence.CALCULATION, one, two)


def _labels(
    path: str, mine: Mapping[str, str] | None, theirs: Mapping[str, str] | None
) -> Iterator[Difference]:
    if mine is None or theirs is None:
        return
    for number, label in mine.items():
        other = theirs.get(number)
        if other is not None and label.casefold() != other.casefold():
            key = _join(path, f"{_LABELS}.{number}")
            yield Difference(key, Consequence.MEANING, label, other)


def _named_labels(labels: Any) -> dict[str, str] | None:
    """Labels by number; None where they are the names that are given to labels without a name."""
    if not isinstance(labels, Mapping):
        return None
    named = {str(number): str(label) for number, label in labels.items()}
    if all(label == f"LABEL_{number}" for number, label in named.items()):
        return None
    return named


def _family(section: Mapping[str, Any]) -> str | None:
    family = section.get("model_type")
    return family if isinstance(family, str) else None


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, bool) != isinstance(two, bool):
        return not one and not two
    return bool(one == two)


def _is_unsaid(value: Any, consequence: Consequence) -> bool:
    """Whether a key that only one configuration has says nothing: it is switched off, or nobody knows it."""
    return value in (None, False) or consequence is Consequence.UNKNOWN


def _are_of_other_depths(one: Any, two: Any) -> bool:
    """Whether both are lists with an entry for every layer of networks that differ in depth."""
    return isinstance(one, list) and isinstance(two, list) and len(one) != len(two)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _finding(
    reference: Checkpoint,
    other: Checkpoint,
    found: Sequence[Difference],
    consequence: Consequence,
    is_partial: bool,
) -> Finding:
    listed = _listed(found, reference, other)
    names = dict.fromkeys(_called(d.key) for d in found)
    know = f"if that is meant, say `accept: [{', '.join(names)}]` in the recipe"
    if consequence is Consequence.MEANING and not is_partial:
        return Finding(
            Severity.ERROR,
            "config-differs",
            other.identity,
            f"by its configuration {other.identity} means something else by equal tensors than {reference.identity}, "
            f"whose configuration the result has: {listed}",
            f"merge models of one architecture, or correct the configuration that is wrong; {know}",
        )
    if consequence is Consequence.UNKNOWN:
        return Finding(
            Severity.NOTE,
            "config-differs",
            other.identity,
            f"the configuration of {other.identity} differs from that of {reference.identity}, which the result has, "
            f"in keys that may change what is computed: {listed}",
            know,
        )
    return Finding(
        Severity.WARNING,
        "config-differs",
        other.identity,
        f"{other.identity} is computed otherwise than {reference.identity}, whose configuration the result has: "
        f"{listed}",
        f"choose the configuration with `donor:`, or correct it in the result; {know}",
    )


def _called(key: str) -> str:
    """The shortest name by which a recipe accepts a difference, for labels all of them."""
    words = key.split(".")
    return _LABELS if _LABELS in words else words[-1]


def _accepted(reference: Checkpoint, other: Checkpoint, found: Sequence[Difference]) -> Finding:
    return Finding(
        Severity.NOTE,
        "config-accepted",
        other.identity,
        f"the recipe accepts that {other.identity} differs from {reference.identity}: "
        f"{_listed(found, reference, other)}",
    )


def _listed(found: Sequence[Difference], reference: Checkpoint, other: Checkpoint) -> str:
    parts = [
        f"{shown(d.key)} is {_value(d.other)} in {other.identity} and {_value(d.reference)} in {reference.identity}"
        if i == 0
        else f"{shown(d.key)} {_value(d.other)} and {_value(d.reference)}"
        for i, d in enumerate(found[:_MOST_SHOWN])
    ]
    more = len(found) - _MOST_SHOWN
    return ", ".join(parts) + (f", and {more} more" if more > 0 else "")


def _value(value: Any) -> str:
    return "not given" if value is None or value is _ABSENT else literal(value)
