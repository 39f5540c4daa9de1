"""Learning: the free numbers of a recipe found from data by their gradients, out of core.

An objective is asked of the merged network, its gradient goes to the weights and from there to the numbers, and an
optimiser moves them. What comes out is an ordinary recipe and a log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.learning.learning import Learned as Learned
    from weightsmith.learning.learning import learn as learn
    from weightsmith.learning.objectives import NAMES as NAMES
    from weightsmith.learning.optimisers import OPTIMIZERS as OPTIMIZERS
    from weightsmith.learning.optimisers import STEPS as STEPS
    from weightsmith.learning.parametrisations import PARAMETRISATIONS as PARAMETRISATIONS
    from weightsmith.learning.settings import PRESETS as PRESETS
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Learned": "weightsmith.learning.learning",
            "NAMES": "weightsmith.learning.objectives",
            "OPTIMIZERS": "weightsmith.learning.optimisers",
            "PARAMETRISATIONS": "weightsmith.learning.parametrisations",
            "PRESETS": "weightsmith.learning.settings",
            "STEPS": "weightsmith.learning.optimisers",
            "learn": "weightsmith.learning.learning",
        },
    )
