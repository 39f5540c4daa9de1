"""A checkpoint on disk: its tensors by name, configuration, roles, ties, stacks, and the files beside the weights.

`opening` is the door: it finds where a name leads and hands the place to the format that recognises it. What two
checkpoints need to be combined is judged here too, from headers alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.checkpoints.anatomy import anatomy_of as anatomy_of
    from weightsmith.checkpoints.card import MethodUse as MethodUse
    from weightsmith.checkpoints.card import Parent as Parent
    from weightsmith.checkpoints.card import model_card as model_card
    from weightsmith.checkpoints.checkpoint import Attached as Attached
    from weightsmith.checkpoints.checkpoint import Checkpoint as Checkpoint
    from weightsmith.checkpoints.checkpoint import assemble as assemble
    from weightsmith.checkpoints.checkpoint import not_saved as not_saved
    from weightsmith.checkpoints.checkpoint import own_head_name as own_head_name
    from weightsmith.checkpoints.checkpoint import untied as untied
    from weightsmith.checkpoints.compatibility import agreeing as agreeing
    from weightsmith.checkpoints.compatibility import compare as compare
    from weightsmith.checkpoints.compatibility import tie_findings as tie_findings
    from weightsmith.checkpoints.config import merged_config as merged_config
    from weightsmith.checkpoints.config_comparison import (
        compare_configurations as compare_configurations,
    )
    from weightsmith.checkpoints.copied_files import absence as absence
    from weightsmith.checkpoints.copied_files import companion_paths as companion_paths
    from weightsmith.checkpoints.copied_files import is_inside as is_inside
    from weightsmith.checkpoints.copied_files import is_template as is_template
    from weightsmith.checkpoints.copied_files import tokenizer_files as tokenizer_files
    from weightsmith.checkpoints.fingerprint import fingerprint as checkpoint_fingerprint
    from weightsmith.checkpoints.fingerprint import tensors_fingerprint as tensors_fingerprint
    from weightsmith.checkpoints.formats import bundles as bundles
    from weightsmith.checkpoints.formats import merge_state as merge_state
    from weightsmith.checkpoints.formats.bundles import BundleHeader as BundleHeader
    from weightsmith.checkpoints.formats.bundles import BundleTask as BundleTask
    from weightsmith.checkpoints.formats.bundles import CodedTensor as CodedTensor
    from weightsmith.checkpoints.formats.bundles import part_names as part_names
    from weightsmith.checkpoints.formats.bundles import read_bundle_header as read_bundle_header
    from weightsmith.checkpoints.formats.channel_statistics import by_weight as by_weight
    from weightsmith.checkpoints.formats.merge_state import MergeState as MergeState
    from weightsmith.checkpoints.formats.merge_state import TensorState as TensorState
    from weightsmith.checkpoints.formats.merge_state import read_state as read_state
    from weightsmith.checkpoints.formats.package_header import STREAMS as STREAMS
    from weightsmith.checkpoints.formats.package_header import PackageHeader as PackageHeader
    from weightsmith.checkpoints.formats.package_header import PackedPiece as PackedPiece
    from weightsmith.checkpoints.formats.package_header import PackedTensor as PackedTensor
    from weightsmith.checkpoints.formats.package_header import (
        read_package_header as read_package_header,
    )
    from weightsmith.checkpoints.formats.package_header import stream_name as stream_name
    from weightsmith.checkpoints.formats.package_header import tensor_json as tensor_json
    from weightsmith.checkpoints.formats.packages import SHARED as SHARED
    from weightsmith.checkpoints.formats.packages import as_base as as_base
    from weightsmith.checkpoints.formats.packages import shared_file as shared_file
    from weightsmith.checkpoints.formats.packages import shared_stream as shared_stream
    from weightsmith.checkpoints.formats.statistics import Statistics as Statistics
    from weightsmith.checkpoints.formats.statistics import is_of as is_of
    from weightsmith.checkpoints.formats.statistics import listed as listed
    from weightsmith.checkpoints.formats.statistics import misfit as misfit
    from weightsmith.checkpoints.formats.statistics import read_statistics as read_statistics
    from weightsmith.checkpoints.formats.statistics import require_match as require_match
    from weightsmith.checkpoints.formats.statistics import require_names as require_names
    from weightsmith.checkpoints.formats.statistics import statistics_of as statistics_of
    from weightsmith.checkpoints.formats.statistics_header import (
        StatisticsHeader as StatisticsHeader,
    )
    from weightsmith.checkpoints.formats.statistics_writer import (
        STATISTICS_KIND as STATISTICS_KIND,
    )
    from weightsmith.checkpoints.formats.statistics_writer import (
        statistics_metadata as statistics_metadata,
    )
    from weightsmith.checkpoints.formats.statistics_writer import (
        write_measured as write_measured,
    )
    from weightsmith.checkpoints.formats.statistics_writer import (
        write_statistics as write_statistics,
    )
    from weightsmith.checkpoints.formats.weights import BareAdapter as BareAdapter
    from weightsmith.checkpoints.formats.weights import ListedWeights as ListedWeights
    from weightsmith.checkpoints.formats.weights import read_weights as read_weights
    from weightsmith.checkpoints.image_models.image_blocks import COMPONENTS as COMPONENTS
    from weightsmith.checkpoints.image_models.image_blocks import FAMILIES as FAMILIES
    from weightsmith.checkpoints.image_models.image_blocks import block_label as block_label
    from weightsmith.checkpoints.image_models.image_blocks import (
        is_component_file as is_component_file,
    )
    from weightsmith.checkpoints.image_models.image_blocks import is_in_block as is_in_block
    from weightsmith.checkpoints.image_models.image_blocks import is_in_component as is_in_component
    from weightsmith.checkpoints.image_models.image_blocks import labels_in as labels_in
    from weightsmith.checkpoints.json_files import json_bytes as json_bytes
    from weightsmith.checkpoints.json_files import read_json as read_json
    from weightsmith.checkpoints.layer_structure import LayerStructure as LayerStructure
    from weightsmith.checkpoints.layer_structure import structure_of as structure_of
    from weightsmith.checkpoints.licence import Licence as Licence
    from weightsmith.checkpoints.licence import licence_of as licence_of
    from weightsmith.checkpoints.locate import find_location as find_location
    from weightsmith.checkpoints.locate import member_of as member_of
    from weightsmith.checkpoints.nested_config import first_of as first_of
    from weightsmith.checkpoints.nested_config import layer_count_of as layer_count_of
    from weightsmith.checkpoints.nested_config import sections as sections
    from weightsmith.checkpoints.nested_config import vocabulary_size_of as vocabulary_size_of
    from weightsmith.checkpoints.opening import open_checkpoint as open_checkpoint
    from weightsmith.checkpoints.opening import open_output as open_output
    from weightsmith.checkpoints.opening import open_packed as open_packed
    from weightsmith.checkpoints.opening import open_task as open_task
    from weightsmith.checkpoints.recognition import ADAPTER_CONFIG as ADAPTER_CONFIG
    from weightsmith.checkpoints.recognition import ADAPTER_WEIGHTS as ADAPTER_WEIGHTS
    from weightsmith.checkpoints.recognition import BUNDLE_HEADER as BUNDLE_HEADER
    from weightsmith.checkpoints.recognition import PACKAGE_HEADER as PACKAGE_HEADER
    from weightsmith.checkpoints.recognition import is_bundle as is_bundle
    from weightsmith.checkpoints.recognition import is_package as is_package
    from weightsmith.checkpoints.roles import (
        stores_experts_input_first as stores_experts_input_first,
    )
    from weightsmith.checkpoints.spelling.image_spellings import (
        image_spelling_of as image_spelling_of,
    )
    from weightsmith.checkpoints.spelling.respelling import respelled as respelled
    from weightsmith.checkpoints.spelling.spelling_facts import HEADS as HEADS
    from weightsmith.checkpoints.spelling.spelling_facts import STACKED as STACKED
    from weightsmith.checkpoints.spelling.spellings import Spelling as Spelling
    from weightsmith.checkpoints.spelling.spellings import (
        keeps_routers_apart as keeps_routers_apart,
    )
    from weightsmith.checkpoints.spelling.spellings import spelling_of as spelling_of
    from weightsmith.checkpoints.spelling.spellings import stacks_experts as stacks_experts
    from weightsmith.checkpoints.spelling.stable_diffusion_names import (
        from_openclip as from_openclip,
    )
    from weightsmith.checkpoints.spelling.stable_diffusion_names import (
        levels_with_attention as levels_with_attention,
    )
    from weightsmith.checkpoints.spelling.stable_diffusion_names import to_diffusers as to_diffusers
    from weightsmith.checkpoints.spelling.stable_diffusion_names import to_ldm as to_ldm
    from weightsmith.checkpoints.stacks import Stack as Stack
    from weightsmith.checkpoints.stacks import find_stacks as find_stacks
    from weightsmith.checkpoints.stacks import place as place
    from weightsmith.checkpoints.tied_tensors import Tying as Tying
    from weightsmith.checkpoints.tied_tensors import declared_tied as declared_tied
    from weightsmith.checkpoints.tied_tensors import vocabulary_embedding as vocabulary_embedding
    from weightsmith.checkpoints.tied_tensors import vocabulary_head as vocabulary_head

    # Called otherwise where it comes from, since the module has its name.
    __all__ = ["checkpoint_fingerprint"]
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Attached": "weightsmith.checkpoints.checkpoint",
            "ADAPTER_CONFIG": "weightsmith.checkpoints.recognition",
            "ADAPTER_WEIGHTS": "weightsmith.checkpoints.recognition",
            "BUNDLE_HEADER": "weightsmith.checkpoints.recognition",
            "PACKAGE_HEADER": "weightsmith.checkpoints.recognition",
            "HEADS": "weightsmith.checkpoints.spelling.spelling_facts",
            "Licence": "weightsmith.checkpoints.licence",
            "LayerStructure": "weightsmith.checkpoints.layer_structure",
            "ListedWeights": "weightsmith.checkpoints.formats.weights",
            "BareAdapter": "weightsmith.checkpoints.formats.weights",
            "BundleHeader": "weightsmith.checkpoints.formats.bundles",
            "BundleTask": "weightsmith.checkpoints.formats.bundles",
            "Checkpoint": "weightsmith.checkpoints.checkpoint",
            "CodedTensor": "weightsmith.checkpoints.formats.bundles",
            "MergeState": "weightsmith.checkpoints.formats.merge_state",
            "MethodUse": "weightsmith.checkpoints.card",
            "PackageHeader": "weightsmith.checkpoints.formats.package_header",
            "PackedPiece": "weightsmith.checkpoints.formats.package_header",
            "PackedTensor": "weightsmith.checkpoints.formats.package_header",
            "Parent": "weightsmith.checkpoints.card",
            "SHARED": "weightsmith.checkpoints.formats.packages",
            "STREAMS": "weightsmith.checkpoints.formats.package_header",
            "Spelling": "weightsmith.checkpoints.spelling.spellings",
            "Stack": "weightsmith.checkpoints.stacks",
            "STACKED": "weightsmith.checkpoints.spelling.spelling_facts",
            "STATISTICS_KIND": "weightsmith.checkpoints.formats.statistics_writer",
            "Statistics": "weightsmith.checkpoints.formats.statistics",
            "StatisticsHeader": "weightsmith.checkpoints.formats.statistics_header",
            "TensorState": "weightsmith.checkpoints.formats.merge_state",
            "Tying": "weightsmith.checkpoints.tied_tensors",
            "absence": "weightsmith.checkpoints.copied_files",
            "agreeing": "weightsmith.checkpoints.compatibility",
            "anatomy_of": "weightsmith.checkpoints.anatomy",
            "as_base": "weightsmith.checkpoints.formats.packages",
            "assemble": "weightsmith.checkpoints.checkpoint",
            "bundles": "weightsmith.checkpoints.formats.bundles:*",
            "compare": "weightsmith.checkpoints.compatibility",
            "COMPONENTS": "weightsmith.checkpoints.image_models.image_blocks",
            "FAMILIES": "weightsmith.checkpoints.image_models.image_blocks",
            "block_label": "weightsmith.checkpoints.image_models.image_blocks",
            "is_component_file": "weightsmith.checkpoints.image_models.image_blocks",
            "is_in_block": "weightsmith.checkpoints.image_models.image_blocks",
            "is_in_component": "weightsmith.checkpoints.image_models.image_blocks",
            "labels_in": "weightsmith.checkpoints.image_models.image_blocks",
            "compare_configurations": "weightsmith.checkpoints.config_comparison",
            "declared_tied": "weightsmith.checkpoints.tied_tensors",
            "companion_paths": "weightsmith.checkpoints.copied_files",
            "find_location": "weightsmith.checkpoints.locate",
            "find_stacks": "weightsmith.checkpoints.stacks",
            "first_of": "weightsmith.checkpoints.nested_config",
            "is_bundle": "weightsmith.checkpoints.recognition",
            "is_inside": "weightsmith.checkpoints.copied_files",
            "is_package": "weightsmith.checkpoints.recognition",
            "is_template": "weightsmith.checkpoints.copied_files",
            "json_bytes": "weightsmith.checkpoints.json_files",
            "from_openclip": "weightsmith.checkpoints.spelling.stable_diffusion_names",
            "levels_with_attention": "weightsmith.checkpoints.spelling.stable_diffusion_names",
            "to_diffusers": "weightsmith.checkpoints.spelling.stable_diffusion_names",
            "to_ldm": "weightsmith.checkpoints.spelling.stable_diffusion_names",
            "image_spelling_of": "weightsmith.checkpoints.spelling.image_spellings",
            "keeps_routers_apart": "weightsmith.checkpoints.spelling.spellings",
            "layer_count_of": "weightsmith.checkpoints.nested_config",
            "checkpoint_fingerprint": "weightsmith.checkpoints.fingerprint:fingerprint",
            "licence_of": "weightsmith.checkpoints.licence",
            "listed": "weightsmith.checkpoints.formats.statistics",
            "member_of": "weightsmith.checkpoints.locate",
            "merge_state": "weightsmith.checkpoints.formats.merge_state:*",
            "merged_config": "weightsmith.checkpoints.config",
            "by_weight": "weightsmith.checkpoints.formats.channel_statistics",
            "is_of": "weightsmith.checkpoints.formats.statistics",
            "misfit": "weightsmith.checkpoints.formats.statistics",
            "model_card": "weightsmith.checkpoints.card",
            "not_saved": "weightsmith.checkpoints.checkpoint",
            "open_checkpoint": "weightsmith.checkpoints.opening",
            "open_output": "weightsmith.checkpoints.opening",
            "open_packed": "weightsmith.checkpoints.opening",
            "open_task": "weightsmith.checkpoints.opening",
            "own_head_name": "weightsmith.checkpoints.checkpoint",
            "part_names": "weightsmith.checkpoints.formats.bundles",
            "place": "weightsmith.checkpoints.stacks",
            "read_bundle_header": "weightsmith.checkpoints.formats.bundles",
            "read_json": "weightsmith.checkpoints.json_files",
            "read_package_header": "weightsmith.checkpoints.formats.package_header",
            "read_state": "weightsmith.checkpoints.formats.merge_state",
            "read_statistics": "weightsmith.checkpoints.formats.statistics",
            "read_weights": "weightsmith.checkpoints.formats.weights",
            "require_match": "weightsmith.checkpoints.formats.statistics",
            "require_names": "weightsmith.checkpoints.formats.statistics",
            "respelled": "weightsmith.checkpoints.spelling.respelling",
            "sections": "weightsmith.checkpoints.nested_config",
            "shared_file": "weightsmith.checkpoints.formats.packages",
            "shared_stream": "weightsmith.checkpoints.formats.packages",
            "spelling_of": "weightsmith.checkpoints.spelling.spellings",
            "stacks_experts": "weightsmith.checkpoints.spelling.spellings",
            "stores_experts_input_first": "weightsmith.checkpoints.roles",
            "statistics_of": "weightsmith.checkpoints.formats.statistics",
            "stream_name": "weightsmith.checkpoints.formats.package_header",
            "structure_of": "weightsmith.checkpoints.layer_structure",
            "tensor_json": "weightsmith.checkpoints.formats.package_header",
            "tie_findings": "weightsmith.checkpoints.compatibility",
            "tokenizer_files": "weightsmith.checkpoints.copied_files",
            "untied": "weightsmith.checkpoints.checkpoint",
            "tensors_fingerprint": "weightsmith.checkpoints.fingerprint",
            "vocabulary_embedding": "weightsmith.checkpoints.tied_tensors",
            "vocabulary_head": "weightsmith.checkpoints.tied_tensors",
            "vocabulary_size_of": "weightsmith.checkpoints.nested_config",
            "statistics_metadata": "weightsmith.checkpoints.formats.statistics_writer",
            "write_measured": "weightsmith.checkpoints.formats.statistics_writer",
            "write_statistics": "weightsmith.checkpoints.formats.statistics_writer",
        },
    )
