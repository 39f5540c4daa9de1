"""Adapters read: every dialect in one meaning, attached to a base, and applied while its tensors are read.

`adapted_models` opens BASE+ADAPTER wherever a model may stand, so nothing above knows of dialects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.adapters.adapted_models import PlacedAdapter as PlacedAdapter
    from weightsmith.adapters.adapted_models import called as called
    from weightsmith.adapters.adapted_models import form_of as form_of
    from weightsmith.adapters.adapted_models import open_model as open_model
    from weightsmith.adapters.adapted_models import open_with as open_with
    from weightsmith.adapters.adapted_models import place_of as place_of
    from weightsmith.adapters.adapted_models import stored_tensors as stored_tensors
    from weightsmith.adapters.adapter import Adapter as Adapter
    from weightsmith.adapters.adapter import Form as Form
    from weightsmith.adapters.adapter import Update as Update
    from weightsmith.adapters.adapter_reading import open_adapter as open_adapter
    from weightsmith.adapters.applying import applied as applied
    from weightsmith.adapters.applying import is_embedding as is_embedding
    from weightsmith.adapters.attaching import Turned as Turned
    from weightsmith.adapters.attaching import fitted_updates as fitted_updates
    from weightsmith.adapters.attaching import stores_input_first as stores_input_first
    from weightsmith.adapters.attaching import turned_stacks as turned_stacks
    from weightsmith.adapters.components import COMPONENTS as COMPONENTS
    from weightsmith.adapters.components import ENCODERS as ENCODERS
    from weightsmith.adapters.components import UNET as UNET
    from weightsmith.adapters.components import kohya_prefix as kohya_prefix
    from weightsmith.adapters.components import split as split
    from weightsmith.adapters.diffusers_files import METADATA as METADATA
    from weightsmith.adapters.peft_files import PARAMETER_ORDER as PARAMETER_ORDER
    from weightsmith.adapters.peft_files import PREFIX as PREFIX
    from weightsmith.adapters.references import AdapterReference as AdapterReference
    from weightsmith.adapters.references import Reference as Reference
    from weightsmith.adapters.references import exists_locally as exists_locally
    from weightsmith.adapters.references import is_ambiguous as is_ambiguous
    from weightsmith.adapters.references import locate as locate
    from weightsmith.adapters.references import located as located
    from weightsmith.adapters.references import parse_adapter as parse_adapter
    from weightsmith.adapters.references import parse_reference as parse_reference
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Adapter": "weightsmith.adapters.adapter",
            "AdapterReference": "weightsmith.adapters.references",
            "COMPONENTS": "weightsmith.adapters.components",
            "ENCODERS": "weightsmith.adapters.components",
            "Form": "weightsmith.adapters.adapter",
            "METADATA": "weightsmith.adapters.diffusers_files",
            "PARAMETER_ORDER": "weightsmith.adapters.peft_files",
            "PREFIX": "weightsmith.adapters.peft_files",
            "PlacedAdapter": "weightsmith.adapters.adapted_models",
            "Reference": "weightsmith.adapters.references",
            "Turned": "weightsmith.adapters.attaching",
            "UNET": "weightsmith.adapters.components",
            "Update": "weightsmith.adapters.adapter",
            "applied": "weightsmith.adapters.applying",
            "exists_locally": "weightsmith.adapters.references",
            "fitted_updates": "weightsmith.adapters.attaching",
            "form_of": "weightsmith.adapters.adapted_models",
            "is_ambiguous": "weightsmith.adapters.references",
            "is_embedding": "weightsmith.adapters.applying",
            "kohya_prefix": "weightsmith.adapters.components",
            "locate": "weightsmith.adapters.references",
            "located": "weightsmith.adapters.references",
            "open_adapter": "weightsmith.adapters.adapter_reading",
            "open_model": "weightsmith.adapters.adapted_models",
            "open_with": "weightsmith.adapters.adapted_models",
            "parse_adapter": "weightsmith.adapters.references",
            "parse_reference": "weightsmith.adapters.references",
            "place_of": "weightsmith.adapters.adapted_models",
            "called": "weightsmith.adapters.adapted_models",
            "split": "weightsmith.adapters.components",
            "stored_tensors": "weightsmith.adapters.adapted_models",
            "stores_input_first": "weightsmith.adapters.attaching",
            "turned_stacks": "weightsmith.adapters.attaching",
        },
    )
