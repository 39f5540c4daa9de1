"""Delta packages: fine-tunes stored as small changes of a base that the package names by its digests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.packages.package_library import Member as Member
    from weightsmith.packages.package_library import materialise as materialise
    from weightsmith.packages.package_library import members as members
    from weightsmith.packages.packing import pack as pack
    from weightsmith.packages.sharing import dedupe as dedupe
    from weightsmith.packages.sharing import gc as gc
    from weightsmith.packages.unpacking import unpack as unpack
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Member": "weightsmith.packages.package_library",
            "dedupe": "weightsmith.packages.sharing",
            "gc": "weightsmith.packages.sharing",
            "materialise": "weightsmith.packages.package_library",
            "members": "weightsmith.packages.package_library",
            "pack": "weightsmith.packages.packing",
            "unpack": "weightsmith.packages.unpacking",
        },
    )
