"""The tensors of a tuner's file by module, and what each module's do to the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from weightsmith.adapters.adapter import Update
from weightsmith.adapters.peft_config import PeftConfig
from weightsmith.adapters.tuners.additions import bounded, sharded, sparse, spectral
from weightsmith.adapters.tuners.module_tensors import ModuleTensors
from weightsmith.adapters.tuners.projections import based, projected
from weightsmith.adapters.tuners.rotations import butterflied, rotated
from weightsmith.adapters.tuners.scalings import modulated, scaled
from weightsmith.tensors import LazyTensor

_UPDATES: Mapping[str, Callable[[ModuleTensors], list[Update]]] = {
    "IA3": scaled,
    "OFT": rotated,
    "BOFT": butterflied,
    "VERA": projected,
    "HIRA": modulated,
    "MISS": sharded,
    "RANDLORA": based,
    "FOURIERFT": spectral,
    "SHIRA": sparse,
    "DELORA": bounded,
}


def tuned_updates(
    modules: Mapping[str, Mapping[str, LazyTensor]],
    shared: Mapping[str, LazyTensor],
    config: PeftConfig,
) -> list[Update]:
    """What a tuner of `tuner_facts.TUNERS` does, from the parts of each module and those of all.

    Raises CheckpointError for parts without partner and of wrong shapes, CompatibilityError for what the file does not
    tell.
    """
    make = _UPDATES[config.peft_type]
    return [
        update for path in modules for update in make(ModuleTensors(path, modules, shared, config))
    ]
