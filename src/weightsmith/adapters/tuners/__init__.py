"""What each of PEFT's tuners makes of a tensor: one function of the tensors that it stores for a module.

A function gives the updates of the module, whose effects are worked out where the base's tensor is known: a change that
is added to it, or a rewriting of its rows (see `effects`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.adapters.tuners.tuned_modules import tuned_updates as tuned_updates
else:
    __getattr__, __dir__, __all__ = door(
        __name__, {"tuned_updates": "weightsmith.adapters.tuners.tuned_modules"}
    )
