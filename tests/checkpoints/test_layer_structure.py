"""Layers that differ in their tensors, and whether a configuration says which."""

from __future__ import annotations

import pytest

from weightsmith.checkpoints.layer_structure import LayerStructure, require_movable
from weightsmith.errors import CompatibilityError

USUAL = frozenset({("weight", (4, 4))})
ODD = USUAL | {("bias", (4,))}


def movable(layers: str, kinds: str, sources: list[int]) -> bool:
    """Whether layers (`o` for an odd one) of kinds (equal letters) may be moved."""
    made = tuple(ODD if layer == "o" else USUAL for layer in layers)
    structure = LayerStructure("layers", made, {"layers": len(layers)})
    try:
        require_movable(structure, list(kinds), sources)
    except CompatibilityError as problem:
        return "'bias'" not in str(problem)
    return True


@pytest.mark.parametrize(
    ("layers", "sources", "right"),
    [
        # As in T5, whose first layer has a bias of positions.
        ("o-----", [0, 1, 4, 5], True),
        ("o-----", [0, 1, 2, 1, 2], True),
        ("o-----", [1, 2, 3], False),
        ("o-----", [0, 1, 0, 1], False),
        # As in GPT-NeoX Japanese, whose last layer has a bias.
        ("-----o", [0, 1, 5], True),
        ("-----o", [0, 1, 2], False),
        ("-----o", [0, 5, 5], False),
        # As in a Q-Former, where every second layer differs.
        ("o-o-o-", [0, 1, 2, 3], True),
        ("o-o-o-", [0, 2], False),
    ],
)
def test_layers_that_position_alone_tells_apart_keep_their_positions(
    layers: str, sources: list[int], right: bool
) -> None:
    assert movable(layers, "aaaaaa", sources) is right


def test_layers_that_the_configuration_tells_apart_may_move() -> None:
    assert movable("o-o-o-", "ababab", [1, 0, 0])
    assert movable("oo----", "ababab", [0, 1, 2, 5])
    assert not movable("oo----", "ababab", [2, 1])
