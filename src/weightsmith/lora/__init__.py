"""Adapters made: combined in factored form or in a space, extracted from fine-tunes, resized, converted, and written.

An adapter in memory is factors of low rank by tensor (`low_rank_adapters`); a *space* gives its changes as coordinates,
small tensors through which any method runs as it does on models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.lora import adapter_facts as adapter_facts
    from weightsmith.lora.adapter_facts import AdapterFacts as AdapterFacts
    from weightsmith.lora.adapter_facts import TensorFacts as TensorFacts
    from weightsmith.lora.adapter_writing import Dialect as Dialect
    from weightsmith.lora.adapter_writing import adapter_files as adapter_files
    from weightsmith.lora.adapter_writing import check_output as check_output
    from weightsmith.lora.adapter_writing import write_adapter as write_adapter
    from weightsmith.lora.algebra import concatenated as concatenated
    from weightsmith.lora.algebra import spectrum as spectrum
    from weightsmith.lora.algebra import zeros as zeros
    from weightsmith.lora.alignment import absences as absences
    from weightsmith.lora.alignment import aligned as aligned
    from weightsmith.lora.as_changes import ChangedTarget as ChangedTarget
    from weightsmith.lora.as_changes import Loaded as Loaded
    from weightsmith.lora.as_changes import changes_of as changes_of
    from weightsmith.lora.as_changes import load_changes as load_changes
    from weightsmith.lora.as_changes import named_by as named_by
    from weightsmith.lora.as_changes import targets_of as targets_of
    from weightsmith.lora.as_changes import unchanged as unchanged
    from weightsmith.lora.basis_files import check_basis as check_basis
    from weightsmith.lora.basis_files import open_basis as open_basis
    from weightsmith.lora.basis_files import write_basis as write_basis
    from weightsmith.lora.bounds import RankBound as RankBound
    from weightsmith.lora.bounds import TruncatedChange as TruncatedChange
    from weightsmith.lora.bounds import truncate_matrix as truncate_matrix
    from weightsmith.lora.bounds import truncate_spectrum as truncate_spectrum
    from weightsmith.lora.converting import Conversion as Conversion
    from weightsmith.lora.converting import convert as convert
    from weightsmith.lora.coordinates import Coordinates as Coordinates
    from weightsmith.lora.extraction import extract as extract
    from weightsmith.lora.extraction_report import ExtractedTensor as ExtractedTensor
    from weightsmith.lora.extraction_report import ExtractionReport as ExtractionReport
    from weightsmith.lora.lego import Lego as Lego
    from weightsmith.lora.lego import clustered as clustered
    from weightsmith.lora.low_rank_adapters import Array as Array
    from weightsmith.lora.low_rank_adapters import Factors as Factors
    from weightsmith.lora.low_rank_adapters import LowRankAdapter as LowRankAdapter
    from weightsmith.lora.low_rank_adapters import low_rank_adapter as low_rank_adapter
    from weightsmith.lora.reversible import ReversibleBasis as ReversibleBasis
    from weightsmith.lora.reversible import reversible_basis as reversible_basis
    from weightsmith.lora.spaces import CoreSpace as CoreSpace
    from weightsmith.lora.spaces import KnotsSpace as KnotsSpace
    from weightsmith.lora.storing import KOHYA_WEIGHTS as KOHYA_WEIGHTS
    from weightsmith.lora.storing import SUFFIX as SUFFIX
    from weightsmith.lora.storing import Files as Files
    from weightsmith.lora.storing import earlier_problem as earlier_problem
    from weightsmith.lora.storing import put as put
    from weightsmith.lora.storing import words as words
    from weightsmith.lora.storing import write_into as write_into
    from weightsmith.lora.treatments import Choices as Choices
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "AdapterFacts": "weightsmith.lora.adapter_facts",
            "Array": "weightsmith.lora.low_rank_adapters",
            "ChangedTarget": "weightsmith.lora.as_changes",
            "Choices": "weightsmith.lora.treatments",
            "Conversion": "weightsmith.lora.converting",
            "Coordinates": "weightsmith.lora.coordinates",
            "CoreSpace": "weightsmith.lora.spaces",
            "TruncatedChange": "weightsmith.lora.bounds",
            "Dialect": "weightsmith.lora.adapter_writing",
            "ExtractedTensor": "weightsmith.lora.extraction_report",
            "ExtractionReport": "weightsmith.lora.extraction_report",
            "Factors": "weightsmith.lora.low_rank_adapters",
            "Files": "weightsmith.lora.storing",
            "KOHYA_WEIGHTS": "weightsmith.lora.storing",
            "KnotsSpace": "weightsmith.lora.spaces",
            "Lego": "weightsmith.lora.lego",
            "Loaded": "weightsmith.lora.as_changes",
            "LowRankAdapter": "weightsmith.lora.low_rank_adapters",
            "RankBound": "weightsmith.lora.bounds",
            "ReversibleBasis": "weightsmith.lora.reversible",
            "SUFFIX": "weightsmith.lora.storing",
            "TensorFacts": "weightsmith.lora.adapter_facts",
            "absences": "weightsmith.lora.alignment",
            "adapter_facts": "weightsmith.lora.adapter_facts:*",
            "adapter_files": "weightsmith.lora.adapter_writing",
            "aligned": "weightsmith.lora.alignment",
            "changes_of": "weightsmith.lora.as_changes",
            "check_basis": "weightsmith.lora.basis_files",
            "check_output": "weightsmith.lora.adapter_writing",
            "clustered": "weightsmith.lora.lego",
            "concatenated": "weightsmith.lora.algebra",
            "convert": "weightsmith.lora.converting",
            "truncate_matrix": "weightsmith.lora.bounds",
            "truncate_spectrum": "weightsmith.lora.bounds",
            "earlier_problem": "weightsmith.lora.storing",
            "extract": "weightsmith.lora.extraction",
            "load_changes": "weightsmith.lora.as_changes",
            "low_rank_adapter": "weightsmith.lora.low_rank_adapters",
            "named_by": "weightsmith.lora.as_changes",
            "open_basis": "weightsmith.lora.basis_files",
            "put": "weightsmith.lora.storing",
            "reversible_basis": "weightsmith.lora.reversible",
            "spectrum": "weightsmith.lora.algebra",
            "targets_of": "weightsmith.lora.as_changes",
            "unchanged": "weightsmith.lora.as_changes",
            "words": "weightsmith.lora.storing",
            "write_adapter": "weightsmith.lora.adapter_writing",
            "write_basis": "weightsmith.lora.basis_files",
            "write_into": "weightsmith.lora.storing",
            "zeros": "weightsmith.lora.algebra",
        },
    )
