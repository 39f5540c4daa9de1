"""Work on a recipe grows with the number of its models, not with its square."""

from __future__ import annotations

import time

from weightsmith.engine.planning.trace import Tracer
from weightsmith.recipes.resolution.formula import Leaf, Merge, OutputTensor
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.place import Place


def seconds(models: int) -> float:
    """The time that a tensor merged from so many models takes to be traced."""
    labels = tuple(f"step{i}" for i in range(models))
    merge = Merge(
        method="linear",
        preset="paper",
        shared=(),
        base=None,
        experts=tuple(Leaf(label, "a.weight") for label in labels),
        per_expert=((("weight", 1.0),),) * models,
        labels=labels,
        scope_id="merge",
        place=Place("a.weight"),
        shape=(2, 2),
        seed=0,
    )
    tensor = OutputTensor(merge.place, merge, DType.FLOAT32, (2, 2))
    began = time.process_time()
    assert len(Tracer().trace(tensor).sources) == models
    return time.process_time() - began


def test_a_tensor_of_thousands_of_models_is_traced_in_linear_time() -> None:
    seconds(10)
    few = min(seconds(250) for _ in range(5))
    # Sixteen times as many take some twenty times as long; looking each up among all others took two hundred.
    assert min(seconds(4000) for _ in range(2)) < 80 * few
