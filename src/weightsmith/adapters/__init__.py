"""Adapters: every dialect read into one meaning, applied while a base is read, combined in factored form, written.

`adapted_models` opens BASE+ADAPTER wherever a model may stand, so nothing above knows of dialects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.adapters import facts as facts
    from weightsmith.adapters.adapted_models import PlacedAdapter as PlacedAdapter
    from weightsmith.adapters.adapted_models import form_of as form_of
    from weightsmith.adapters.adapted_models import open_model as open_model
    from weightsmith.adapters.adapted_models import open_with as open_with
    from weightsmith.adapters.adapted_models import place_of as place_of
    from weightsmith.adapters.adapted_models import reference_of as reference_of
    from weightsmith.adapters.adapted_models import stored_tensors as stored_tensors
    from weightsmith.adapters.adapter import Adapter as Adapter
    from weightsmith.adapters.adapter import Form as Form
    from weightsmith.adapters.adapter import Update as Update
    from weightsmith.adapters.adapter_reading import open_adapter as open_adapter
    from weightsmith.adapters.adapter_writing import Dialect as Dialect
    from weightsmith.adapters.adapter_writing import adapter_files as adapter_files
    from weightsmith.adapters.adapter_writing import check_output as check_output
    from weightsmith.adapters.adapter_writing import write_adapter as write_adapter
    from weightsmith.adapters.algebra import concatenated as concatenated
    from weightsmith.adapters.algebra import spectrum as spectrum
    from weightsmith.adapters.algebra import zeros as zeros
    from weightsmith.adapters.alignment import absences as absences
    from weightsmith.adapters.alignment import aligned as aligned
    from weightsmith.adapters.as_changes import ChangedTarget as ChangedTarget
    from weightsmith.adapters.as_changes import Loaded as Loaded
    from weightsmith.adapters.as_changes import changes_of as changes_of
    from weightsmith.adapters.as_changes import load_changes as load_changes
    from weightsmith.adapters.as_changes import named_by as named_by
    from weightsmith.adapters.as_changes import targets_of as targets_of
    from weightsmith.adapters.as_changes import unchanged as unchanged
    from weightsmith.adapters.basis_files import check_basis as check_basis
    from weightsmith.adapters.basis_files import open_basis as open_basis
    from weightsmith.adapters.basis_files import write_basis as write_basis
    from weightsmith.adapters.bounds import CutChange as CutChange
    from weightsmith.adapters.bounds import RankBound as RankBound
    from weightsmith.adapters.bounds import cut_matrix as cut_matrix
    from weightsmith.adapters.bounds import cut_spectrum as cut_spectrum
    from weightsmith.adapters.converting import Conversion as Conversion
    from weightsmith.adapters.converting import convert as convert
    from weightsmith.adapters.coordinates import Coordinates as Coordinates
    from weightsmith.adapters.extraction import extract as extract
    from weightsmith.adapters.extraction_report import ExtractedTensor as ExtractedTensor
    from weightsmith.adapters.extraction_report import ExtractionReport as ExtractionReport
    from weightsmith.adapters.facts import AdapterFacts as AdapterFacts
    from weightsmith.adapters.facts import TensorFacts as TensorFacts
    from weightsmith.adapters.lego import Lego as Lego
    from weightsmith.adapters.lego import clustered as clustered
    from weightsmith.adapters.low_rank_adapters import Array as Array
    from weightsmith.adapters.low_rank_adapters import Factors as Factors
    from weightsmith.adapters.low_rank_adapters import LowRankAdapter as LowRankAdapter
    from weightsmith.adapters.low_rank_adapters import low_rank_adapter as low_rank_adapter
    from weightsmith.adapters.references import AdapterReference as AdapterReference
    from weightsmith.adapters.references import Reference as Reference
    from weightsmith.adapters.references import base_of as base_of
    from weightsmith.adapters.references import exists_locally as exists_locally
    from weightsmith.adapters.references import is_ambiguous as is_ambiguous
    from weightsmith.adapters.references import locate as locate
    from weightsmith.adapters.references import located as located
    from weightsmith.adapters.references import parse_adapter as parse_adapter
    from weightsmith.adapters.references import parse_reference as parse_reference
    from weightsmith.adapters.reversible import ReversibleBasis as ReversibleBasis
    from weightsmith.adapters.reversible import reversible_basis as reversible_basis
    from weightsmith.adapters.spaces import CoreSpace as CoreSpace
    from weightsmith.adapters.spaces import KnotsSpace as KnotsSpace
    from weightsmith.adapters.storing import KOHYA_WEIGHTS as KOHYA_WEIGHTS
    from weightsmith.adapters.storing import SUFFIX as SUFFIX
    from weightsmith.adapters.storing import Files as Files
    from weightsmith.adapters.storing import earlier_problem as earlier_problem
    from weightsmith.adapters.storing import put as put
    from weightsmith.adapters.storing import words as words
    from weightsmith.adapters.storing import write_into as write_into
    from weightsmith.adapters.treatments import Choices as Choices
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Adapter": "weightsmith.adapters.adapter",
            "AdapterFacts": "weightsmith.adapters.facts",
            "AdapterReference": "weightsmith.adapters.references",
            "Array": "weightsmith.adapters.low_rank_adapters",
            "ChangedTarget": "weightsmith.adapters.as_changes",
            "Choices": "weightsmith.adapters.treatments",
            "Conversion": "weightsmith.adapters.converting",
            "Coordinates": "weightsmith.adapters.coordinates",
            "CoreSpace": "weightsmith.adapters.spaces",
            "CutChange": "weightsmith.adapters.bounds",
            "Dialect": "weightsmith.adapters.adapter_writing",
            "ExtractedTensor": "weightsmith.adapters.extraction_report",
            "ExtractionReport": "weightsmith.adapters.extraction_report",
            "Factors": "weightsmith.adapters.low_rank_adapters",
            "Files": "weightsmith.adapters.storing",
            "Form": "weightsmith.adapters.adapter",
            "KOHYA_WEIGHTS": "weightsmith.adapters.storing",
            "KnotsSpace": "weightsmith.adapters.spaces",
            "Lego": "weightsmith.adapters.lego",
            "Loaded": "weightsmith.adapters.as_changes",
            "LowRankAdapter": "weightsmith.adapters.low_rank_adapters",
            "PlacedAdapter": "weightsmith.adapters.adapted_models",
            "RankBound": "weightsmith.adapters.bounds",
            "Reference": "weightsmith.adapters.references",
            "ReversibleBasis": "weightsmith.adapters.reversible",
            "SUFFIX": "weightsmith.adapters.storing",
            "TensorFacts": "weightsmith.adapters.facts",
            "Update": "weightsmith.adapters.adapter",
            "absences": "weightsmith.adapters.alignment",
            "adapter_files": "weightsmith.adapters.adapter_writing",
            "aligned": "weightsmith.adapters.alignment",
            "base_of": "weightsmith.adapters.references",
            "changes_of": "weightsmith.adapters.as_changes",
            "check_basis": "weightsmith.adapters.basis_files",
            "check_output": "weightsmith.adapters.adapter_writing",
            "clustered": "weightsmith.adapters.lego",
            "concatenated": "weightsmith.adapters.algebra",
            "convert": "weightsmith.adapters.converting",
            "cut_matrix": "weightsmith.adapters.bounds",
            "cut_spectrum": "weightsmith.adapters.bounds",
            "earlier_problem": "weightsmith.adapters.storing",
            "exists_locally": "weightsmith.adapters.references",
            "extract": "weightsmith.adapters.extraction",
            "facts": "weightsmith.adapters.facts:*",
            "form_of": "weightsmith.adapters.adapted_models",
            "is_ambiguous": "weightsmith.adapters.references",
            "load_changes": "weightsmith.adapters.as_changes",
            "locate": "weightsmith.adapters.references",
            "located": "weightsmith.adapters.references",
            "low_rank_adapter": "weightsmith.adapters.low_rank_adapters",
            "named_by": "weightsmith.adapters.as_changes",
            "open_adapter": "weightsmith.adapters.adapter_reading",
            "open_basis": "weightsmith.adapters.basis_files",
            "open_model": "weightsmith.adapters.adapted_models",
            "open_with": "weightsmith.adapters.adapted_models",
            "parse_adapter": "weightsmith.adapters.references",
            "parse_reference": "weightsmith.adapters.references",
            "place_of": "weightsmith.adapters.adapted_models",
            "put": "weightsmith.adapters.storing",
            "reference_of": "weightsmith.adapters.adapted_models",
            "reversible_basis": "weightsmith.adapters.reversible",
            "spectrum": "weightsmith.adapters.algebra",
            "stored_tensors": "weightsmith.adapters.adapted_models",
            "targets_of": "weightsmith.adapters.as_changes",
            "unchanged": "weightsmith.adapters.as_changes",
            "words": "weightsmith.adapters.storing",
            "write_adapter": "weightsmith.adapters.adapter_writing",
            "write_basis": "weightsmith.adapters.basis_files",
            "write_into": "weightsmith.adapters.storing",
            "zeros": "weightsmith.adapters.algebra",
        },
    )
