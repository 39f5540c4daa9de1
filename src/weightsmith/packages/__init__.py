"""Delta packages: fine-tunes stored as small changes of a base that the package names by its digests.

Made, measured, unpacked, and kept in libraries that share equal streams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.packages.goal import budget_bytes as budget_bytes
    from weightsmith.packages.package_library import Member as Member
    from weightsmith.packages.package_library import materialise as materialise
    from weightsmith.packages.package_library import members as members
    from weightsmith.packages.packing import pack as pack
    from weightsmith.packages.sharing import Deduped as Deduped
    from weightsmith.packages.sharing import Removal as Removal
    from weightsmith.packages.sharing import dedupe as dedupe
    from weightsmith.packages.sharing import gc as gc
    from weightsmith.packages.unpacking import copy_plan as copy_plan
    from weightsmith.packages.unpacking import unpack as unpack
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Deduped": "weightsmith.packages.sharing",
            "Member": "weightsmith.packages.package_library",
            "Removal": "weightsmith.packages.sharing",
            "budget_bytes": "weightsmith.packages.goal",
            "copy_plan": "weightsmith.packages.unpacking",
            "dedupe": "weightsmith.packages.sharing",
            "gc": "weightsmith.packages.sharing",
            "materialise": "weightsmith.packages.package_library",
            "members": "weightsmith.packages.package_library",
            "pack": "weightsmith.packages.packing",
            "unpack": "weightsmith.packages.unpacking",
        },
    )
