"""What jobs of a run share, and what a finished tensor is recorded with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from weightsmith.engine.planning.trace import Tracer
from weightsmith.engine.running.scratch import Scratch
from weightsmith.graph import Backend


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What all jobs of a run share: the backend and the number of elements per tile that the memory budget allows.

    `scratch` keeps the results of matrix methods that statistics of the whole model need, until they are written out.
    `tracer` gives the graphs of tensors. `records_sources`: what is read is digested, for the record of inputs.
    """

    backend: Backend
    tile_elements: int
    scratch: Scratch | None = None
    tracer: Tracer = field(default_factory=Tracer)
    records_sources: bool = True


@dataclass(frozen=True, slots=True)
class Finished:
    """What a finished tensor is recorded with; sources are counted in the order in which its formula reads them."""

    digest: str
    source_digests: Mapping[int, str]
    nonfinite: tuple[int, int]
    nonfinite_sources: tuple[tuple[int, int], ...]
