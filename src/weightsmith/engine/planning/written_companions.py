"""What lies beside the weights of a result: its configuration and the files that it takes over, decided in the plan."""

from __future__ import annotations

import math
from collections import Counter

from weightsmith.checkpoints import Checkpoint, Tying, declared_tied, merged_config
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
    )


def _tied(resolved: Resolved, config_source: Checkpoint) -> bool | None:
    """False where the result has a head of its own although the config source's is or is said to be tied; else its
    word.
    """
    if config_source.tying is not Tying.TIED and not declared_tied(config_source.config):
        return None
    rows = {o.shape[0] for o in resolved.outputs if o.place.kind is Kind.EMBEDDING and o.shape}
    heads = (o.shape for o in resolved.outputs if o.place.kind is Kind.HEAD)
    # Biases and the layers before the scores belong to a tied head too.
    return False if any(len(shape) == 2 and shape[0] in rows for shape in heads) else None
