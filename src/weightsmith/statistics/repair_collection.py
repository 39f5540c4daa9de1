"""Collecting what the method `repair` reads: the merged model corrected unit by unit, and the corrections written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from weightsmith.checkpoints import Checkpoint, checkpoint_fingerprint
from weightsmith.errors import UsageError
from weightsmith.live import open_source
from weightsmith.statistics.collected import (
    WAITING,
    Collected,
    CollectionMeans,
    CollectionTarget,
    request_digest,
    takes_blocks,
)
from weightsmith.statistics.data_files import DataChoice, read_data
from weightsmith.statistics.kept_parts import KeptParts
from weightsmith.statistics.repair_run import KIND, RepairParent, RepairRun
from weightsmith.statistics.wanted import Wanted
from weightsmith.version import __version__


def repaired(
    target: CollectionTarget,
    choice: DataChoice,
    means: CollectionMeans,
    parents: Sequence[tuple[Checkpoint, str, float]],
) -> Collected:
    """Correct the model of a target, brought to its parents (opened, by name, with shares of 1), and write how."""
    model = target.model
    samples = read_data(model, choice).forward
    blocks = takes_blocks(model, Wanted((KIND,)), means.memory_bytes)
    goals = [(checkpoint_fingerprint(parent), share) for parent, _, share in parents]
    said = [target.digest, goals, blocks, means.batch_size, model.device, samples.digest]
    said.append(target.dtype)
    with KeptParts(target.out, request_digest([__version__, KIND, *said])) as parts:
        run = RepairRun(
            model,
            samples,
            parts,
            blocks,
            means.batch_size,
            means.memory_bytes // WAITING,
            means.progress,
        )
        run.run([RepairParent(open_source(name), share) for _, name, share in parents])
        named = ", ".join(f"{share:g} {parent.name}" for parent, _, share in parents)
        header = target.header(KIND, samples.described, len(samples.items))
        file = target.write(replace(header, goals=named), parts)
        parts.discard()
    return Collected(model.name, samples.name, "", "", blocks, (file,))


def parents_shares(wanted: Wanted, parents: Mapping[str, float]) -> dict[str, float]:
    """The parents' weights, divided by their sum; raises UsageError where they are none, or nothing takes them."""
    if KIND in wanted.kinds and len(wanted.kinds) > 1:
        raise UsageError("repair changes the model while it is measured; ask for it alone.")
    if parents and KIND not in wanted.kinds:
        raise UsageError("Only repair has parents; leave them out.")
    total = math.fsum(parents.values())
    if parents and (not math.isfinite(total) or min(parents.values()) < 0 or total <= 0):
        listed = ", ".join(f"{weight:g}" for weight in parents.values())
        raise UsageError(
            f"The parents' weights are those of a mean, none below 0 and not all 0, but are {listed}."
        )
    return {name: weight / total for name, weight in parents.items()}
