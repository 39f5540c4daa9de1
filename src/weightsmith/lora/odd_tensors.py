"""Tensors that PEFT has no place for once the others have theirs: it adapts modules, and replaces modules whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weightsmith.lora.treatments import TreatedTensor, Treatment

_BARE = "it is a parameter of no module, and adapters change modules"
_HOLDER = "its module holds others with factors, and PEFT replaces modules whole"
_ALIKE = (
    "its module's path is the end of that of another with factors, and PEFT replaces both whole"
)


def placeless(parts: Sequence[TreatedTensor]) -> Mapping[str, str]:
    """Of parts that change, those that cannot be written beside the others by `TreatedTensor.key`, and why."""
    factored = {p.name.rpartition(".")[0] for p in parts if p.treatment is Treatment.FACTORED}
    found: dict[str, str] = {}
    for part in parts:
        why = _why(part, factored)
        if why:
            found[part.key] = why
    return found


def _why(part: TreatedTensor, factored: set[str]) -> str:
    if part.treatment not in (Treatment.REPLACED, Treatment.ADDED):
        return ""
    module, _, leaf = part.name.rpartition(".")
    if not module:
        return _BARE
    if module in factored or (leaf == "bias" and part.treatment is Treatment.ADDED):
        return ""
    if any(other.startswith(f"{module}.") for other in factored):
        return _HOLDER
    return _ALIKE if any(other.endswith(module) for other in factored) else ""
