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
from weightsmith.vocabularies import CompanionFiles, companions


def companions_of_result(resolved: Resolved) -> tuple[CompanionFiles | None, list[Finding]]:
    """The companion files of a result and what is noteworthy about them; None where a plan cannot be run anyway."""
    if errors_among(resolved.findings):
        return None, []
    config_source = resolved.checkpoints[resolved.config_source]
    change = None if resolved.vocabulary is None else resolved.vocabulary.change
    try:
        made = companions(config_source, _config(resolved, config_source), change)
    except WeightsmithError as problem:
        message = str(problem).rstrip(".")
        return None, [Finding(Severity.ERROR, "papers", resolved.config_source, message)]
    return made, list(made.findings)


def _config(resolved: Resolved, config_source: Checkpoint) -> dict[str, object] | None:
    if config_source.config is None:
        return None
    elements: Counter[DType] = Counter()
    for output in resolved.outputs:
        if output.dtype.is_float:
            elements[output.dtype] += math.prod(output.shape)
    dtype = elements.most_common(1)[0][0] if elements else None
    return merged_config(
        config_source.config,
        dtype=dtype,
        layer_sources=resolved.layer_sources,
        tied=_tied(resolved, config_source),
        stack=resolved.stack,
        structure=_structure(resolved, config_source),
        further_layers=_further_layers(resolved, config_source),
    )


def _structure(resolved: Resolved, config_source: Checkpoint) -> LayerStructure | None:
    """What the config source stores of the layers that are moved; None where none are."""
    stack, main = resolved.stack, config_source.main_stack
    if resolved.layer_sources is None or stack not in config_source.stacks or main is None:
        return None
    count = config_source.layer_count if stack == main.prefix else config_source.stacks[stack].count
    return structure_of(config_source.tensors, stack, count)


def _further_layers(resolved: Resolved, config_source: Checkpoint) -> int | None:
    """How many blocks that predict further tokens the result has; None where the config source has none."""
    if not config_source.further_layers or resolved.stack is None:
        return None
    places = (output.place for output in resolved.outputs)
    last = max((p.layer or 0 for p in places if p.stack == resolved.stack), default=-1)
    sources = resolved.layer_sources
    return last + 1 - (config_source.layer_count if sources is None else len(sources))


def _tied(resolved: Resolved, config_source: Checkpoint) -> bool | None:
    """False where the result has a head of its own although the config source ties it or says so; else its word."""
    if config_source.tying is not Tying.TIED and not declared_tied(config_source.config):
        return None
    # Biases and the layers before the scores belong to a tied head too.
    named = {o.name: o for o in resolved.outputs if o.place.kind in (Kind.EMBEDDING, Kind.HEAD)}
    head = vocabulary_head(named, {name: output.place for name, output in named.items()})
    if head is None:
        return None
    # Of several models in one (Bark), the configuration of another may say that it is tied.
    own = (config_source.config or {}).get(
        f"{head.partition('.')[0]}_config", {"tie_word_embeddings": True}
    )
    return False if own.get("tie_word_embeddings") else None
