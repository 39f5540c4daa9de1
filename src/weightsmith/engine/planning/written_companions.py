"""What lies beside the weights of a result: its configuration and the files that it takes over, decided in the plan."""

from __future__ import annotations

import math
from collections import Counter

from weightsmith.checkpoints import (
    Checkpoint,
    LayerStructure,
    Tying,
    declared_tied,
    merged_config,
    structure_of,
    vocabulary_head,
)
from weightsmith.errors import WeightsmithError
from weightsmith.findings import Finding, Severity, errors_among
from weightsmith.recipes import Resolved
from weightsmith.tensors import DType, Kind
from weightsmith.vocabularies import Papers, papers


def result_papers(resolved: Resolved) -> tuple[Papers | None, list[Finding]]:
    """The papers of a result and what is noteworthy about them; None where a plan cannot be run anyway."""
    if errors_among(resolved.findings):
        return None, []
    donor = resolved.checkpoints[resolved.donor]
    change = None if resolved.vocabulary is None else resolved.vocabulary.change
    try:
        made = papers(donor, _config(resolved, donor), change)
    except WeightsmithError as problem:
        message = str(problem).rstrip(".")
        return None, [Finding(Severity.ERROR, "papers", resolved.donor, message)]
    return made, list(made.findings)


def _config(resolved: Resolved, donor: Checkpoint) -> dict[str, object] | None:
    if donor.config is None:
        return None
    elements: Counter[DType] = Counter()
    for output in resolved.outputs:
        if output.dtype.is_float:
            elements[output.dtype] += math.prod(output.shape)
    dtype = elements.most_common(1)[0][0] if elements else None
    return merged_config(
        donor.config,
        dtype=dtype,
        layer_sources=resolved.layer_sources,
        tied=_tied(resolved, donor),
        stack=resolved.stack,
        structure=_structure(resolved, donor),
        further_layers=_further_layers(resolved, donor),
    )


def _structure(resolved: Resolved, donor: Checkpoint) -> LayerStructure | None:
    """What the donor stores of the layers that are moved; None where none are."""
    stack, main = resolved.stack, donor.main_stack
    if resolved.layer_sources is None or stack not in donor.stacks or main is None:
        return None
    count = donor.layer_count if stack == main.prefix else donor.stacks[stack].count
    return structure_of(donor.tensors, stack, count)


def _further_layers(resolved: Resolved, donor: Checkpoint) -> int | None:
    """How many blocks that predict further tokens the result has; None where the donor has none behind its layers."""
    if not donor.further_layers or resolved.stack is None:
        return None
    places = (output.place for output in resolved.outputs)
    last = max((p.layer or 0 for p in places if p.stack == resolved.stack), default=-1)
    sources = resolved.layer_sources
    return last + 1 - (donor.layer_count if sources is None else len(sources))


def _tied(resolved: Resolved, donor: Checkpoint) -> bool | None:
    """False where the result has a head of its own although the donor's is or is said to be tied; else its word."""
    if donor.tying is not Tying.TIED and not declared_tied(donor.config):
        return None
    # Biases and the layers before the scores belong to a tied head too.
    named = {o.name: o for o in resolved.outputs if o.place.kind in (Kind.EMBEDDING, Kind.HEAD)}
    head = vocabulary_head(named, {name: output.place for name, output in named.items()})
    if head is None:
        return None
    # Of several models in one (Bark), the configuration of another may say that it is tied.
    own = (donor.config or {}).get(
        f"{head.partition('.')[0]}_config", {"tie_word_embeddings": True}
    )
    return False if own.get("tie_word_embeddings") else None
