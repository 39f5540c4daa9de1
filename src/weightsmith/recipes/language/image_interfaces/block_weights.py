"""A number for each block of an image model, as interfaces of Stable Diffusion write them, where one number may stand.

    weight: {blocks: "0,0.1,0.2,..."}                    BASE, IN00 and on, M00, OUT00 and on
    weight: {blocks: {BASE: 0, IN00-IN11: [0, 1], M00: 0.5, OUT: 1}}

They are short for conditions. The last number of a list is also that of what follows the last block, as in supermerger.
"""

from __future__ import annotations

from typing import Any

from weightsmith.wording import literal

_KEY = "blocks"


def _labels(each_way: int) -> tuple[str, ...]:
    down, up = ([f"{way}{i:02d}" for i in range(each_way)] for way in ("IN", "OUT"))
    return ("BASE", *down, "M00", *up)


# Blocks each way of Stable Diffusion 1 and 2, and of XL.
_LISTS = {len(labels): labels for labels in (_labels(12), _labels(9))}


def has_block_weights(given: Any) -> bool:
    """Whether data of a recipe are weights of blocks."""
    return isinstance(given, dict) and _KEY in given


def spelled_out(given: dict[str, Any]) -> list[dict[str, Any]]:
    """The conditions that weights of blocks are short for; raises ValueError where they mean nothing."""
    others = [key for key in given if key != _KEY]
    if others:
        raise ValueError(
            f"weights of blocks stand alone, but {others[0]!r} is beside {_KEY!r}; write it as a condition with match"
        )
    weights = given[_KEY]
    if isinstance(weights, str):
        weights = [text.strip() for text in weights.split(",")]
    if isinstance(weights, dict) and weights:
        return [{"match": {"block": label}, "value": value} for label, value in weights.items()]
    if isinstance(weights, (list, tuple)):
        return _of_list(weights)
    raise ValueError(
        f"{_KEY}: expected a mapping from blocks to numbers, or numbers with commas, not {literal(given[_KEY])}"
    )


def _of_list(weights: list[Any] | tuple[Any, ...]) -> list[dict[str, Any]]:
    labels = _LISTS.get(len(weights)) or _LISTS.get(len(weights) + 1, ("",))[1:]
    if not labels:
        counts = " or ".join(f"{count} ({count - 1} without BASE)" for count in _LISTS)
        raise ValueError(f"{_KEY}: a list has {counts} numbers, but this one has {len(weights)}")
    found: list[dict[str, Any]] = [
        {"match": {"block": label}, "value": value}
        for label, value in zip(labels, weights, strict=True)
    ]
    return [*found, {"match": {"block": "HEAD"}, "value": weights[-1]}]
