"""A model that runs: a network built once from a configuration, its weights exchanged in place.

Names in memory are mapped to those in files, ties and stacked experts included. It runs whole, or block by block with
the weights of one block in memory, and tells what passes the modules that hold a tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.live.blocks.activations import ActivationStore as ActivationStore
    from weightsmith.live.blocks.block_gradients import BlockGradients as BlockGradients
    from weightsmith.live.blocks.block_gradients import PartGradients as PartGradients
    from weightsmith.live.blocks.block_run import Block as Block
    from weightsmith.live.blocks.block_run import BlockRun as BlockRun
    from weightsmith.live.blocks.block_structure import count_parts as count_parts
    from weightsmith.live.gradient_catching import GradientCatcher as GradientCatcher
    from weightsmith.live.gradient_catching import gradients_of as gradients_of
    from weightsmith.live.libraries import asking_library as asking_library
    from weightsmith.live.libraries import quiet_library as quiet_library
    from weightsmith.live.libraries import reason_of as reason_of
    from weightsmith.live.live_merge import LiveMerge as LiveMerge
    from weightsmith.live.live_model import KeptNetwork as KeptNetwork
    from weightsmith.live.live_model import LiveModel as LiveModel
    from weightsmith.live.live_model import load_model as load_model
    from weightsmith.live.model_source import ModelSource as ModelSource
    from weightsmith.live.model_source import Source as Source
    from weightsmith.live.model_source import check_config as check_config
    from weightsmith.live.model_source import open_source as open_source
    from weightsmith.live.name_map import NameMap as NameMap
    from weightsmith.live.network_kinds import NetworkKind as NetworkKind
    from weightsmith.live.plain_models import register as register
    from weightsmith.live.plain_models import residual_perceptron as residual_perceptron
    from weightsmith.live.residency import requiring_gradients as requiring_gradients
    from weightsmith.live.running_model import IGNORED as IGNORED
    from weightsmith.live.running_model import Batch as Batch
    from weightsmith.live.running_model import RunningModel as RunningModel
    from weightsmith.live.tensor_reading import as_torch as as_torch
    from weightsmith.live.watching import Passage as Passage
    from weightsmith.live.weight_gradients import WeightGradient as WeightGradient
    from weightsmith.live.weight_gradients import Whole as Whole
    from weightsmith.live.weight_gradients import gradients_by_files as gradients_by_files
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "ActivationStore": "weightsmith.live.blocks.activations",
            "Batch": "weightsmith.live.running_model",
            "requiring_gradients": "weightsmith.live.residency",
            "Block": "weightsmith.live.blocks.block_run",
            "BlockGradients": "weightsmith.live.blocks.block_gradients",
            "BlockRun": "weightsmith.live.blocks.block_run",
            "PartGradients": "weightsmith.live.blocks.block_gradients",
            "GradientCatcher": "weightsmith.live.gradient_catching",
            "IGNORED": "weightsmith.live.running_model",
            "KeptNetwork": "weightsmith.live.live_model",
            "LiveMerge": "weightsmith.live.live_merge",
            "LiveModel": "weightsmith.live.live_model",
            "ModelSource": "weightsmith.live.model_source",
            "NameMap": "weightsmith.live.name_map",
            "NetworkKind": "weightsmith.live.network_kinds",
            "Passage": "weightsmith.live.watching",
            "RunningModel": "weightsmith.live.running_model",
            "Source": "weightsmith.live.model_source",
            "WeightGradient": "weightsmith.live.weight_gradients",
            "Whole": "weightsmith.live.weight_gradients",
            "as_torch": "weightsmith.live.tensor_reading",
            "asking_library": "weightsmith.live.libraries",
            "check_config": "weightsmith.live.model_source",
            "count_parts": "weightsmith.live.blocks.block_structure",
            "gradients_by_files": "weightsmith.live.weight_gradients",
            "gradients_of": "weightsmith.live.gradient_catching",
            "load_model": "weightsmith.live.live_model",
            "open_source": "weightsmith.live.model_source",
            "quiet_library": "weightsmith.live.libraries",
            "reason_of": "weightsmith.live.libraries",
            "register": "weightsmith.live.plain_models",
            "residual_perceptron": "weightsmith.live.plain_models",
        },
    )
