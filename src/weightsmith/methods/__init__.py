"""Merge methods: one file each, a formula over the value graph with typed parameters, as its paper has it.

`parts` has what they share, and the registry by which recipes find them; a module is imported when its method is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.methods.parts import method_index as method_index
    from weightsmith.methods.parts import modifiers as modifiers
    from weightsmith.methods.parts import registry as registry
    from weightsmith.methods.parts.modifiers import ModifierSpec as ModifierSpec
    from weightsmith.methods.parts.registry import METRICS as METRICS
    from weightsmith.methods.parts.registry import PAPER as PAPER
    from weightsmith.methods.parts.registry import REQUIRED as REQUIRED
    from weightsmith.methods.parts.registry import Base as Base
    from weightsmith.methods.parts.registry import MeasuredOn as MeasuredOn
    from weightsmith.methods.parts.registry import MethodSpec as MethodSpec
    from weightsmith.methods.parts.registry import Parameter as Parameter
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Base": "weightsmith.methods.parts.registry",
            "METRICS": "weightsmith.methods.parts.registry",
            "MeasuredOn": "weightsmith.methods.parts.registry",
            "MethodSpec": "weightsmith.methods.parts.registry",
            "ModifierSpec": "weightsmith.methods.parts.modifiers",
            "PAPER": "weightsmith.methods.parts.registry",
            "Parameter": "weightsmith.methods.parts.registry",
            "REQUIRED": "weightsmith.methods.parts.registry",
            "method_index": "weightsmith.methods.parts.method_index:*",
            "modifiers": "weightsmith.methods.parts.modifiers:*",
            "registry": "weightsmith.methods.parts.registry:*",
        },
    )
