"""Real model families, trained on this machine from data that comes inside packages; an extra of the installation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.testbeds import build as build
    from weightsmith.testbeds.build import RECORD as RECORD
    from weightsmith.testbeds.data.sources import file_digest as file_digest
    from weightsmith.testbeds.family_places import family_folder as family_folder
    from weightsmith.testbeds.family_registry import FAMILIES as FAMILIES
    from weightsmith.testbeds.family_registry import TrainedFamily as TrainedFamily
    from weightsmith.testbeds.family_registry import find_family as find_family
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "FAMILIES": "weightsmith.testbeds.family_registry",
            "RECORD": "weightsmith.testbeds.build",
            "TrainedFamily": "weightsmith.testbeds.family_registry",
            "build": "weightsmith.testbeds.build:*",
            "family_folder": "weightsmith.testbeds.family_places",
            "file_digest": "weightsmith.testbeds.data.sources",
            "find_family": "weightsmith.testbeds.family_registry",
        },
    )
