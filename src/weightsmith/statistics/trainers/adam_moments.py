"""Adam's second moments from a trainer's checkpoint, as statistics of the weights that it trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weightsmith.errors import UsageError
from weightsmith.live import LiveModel
from weightsmith.statistics.forward_sums import Measured
from weightsmith.statistics.kept_parts import KeptParts
from weightsmith.statistics.trainers.trainer_files import read_moments


@dataclass(frozen=True, slots=True)
class TakenMoments:
    """What was taken: from where, and of how many steps."""

    name: str
    steps: int


def take_moments(model: LiveModel, place: Path, parts: KeptParts) -> TakenMoments:
    """v / (1 - beta_2^t) of every parameter that was trained, by stored names.

    Raises what `read_moments` does, and UsageError for parameters that only together make a stored tensor.
    """
    import torch

    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in model.module.named_parameters()
        if model.names.owners.get(name) == name
    }
    found = read_moments(place, shapes)
    for number, (name, moment) in enumerate(found.moments):
        tensor = torch.from_numpy(moment / found.correction)
        try:
            stored = model.names.to_files({name: tensor})
        except KeyError:
            raise UsageError(
                f"{name} of {model.name!r} is only together with others what its files hold, so its moments cannot be "
                "taken one by one."
            ) from None
        parts.put("adam", number, Measured({k: t.contiguous() for k, t in stored.items()}))
    return TakenMoments(found.name, found.steps)
