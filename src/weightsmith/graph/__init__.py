"""The value graph: what a method is written in, and how often its inputs are streamed for it.

A method is called once with lazy values and returns a graph; passes, order statistics, statistics of the model, ranks
among equals and randomness follow from its nodes. `backends` run passes: the native register machine, and torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.graph import scalars as scalars
    from weightsmith.graph.backends import native as native
    from weightsmith.graph.backends.torch_backend import TorchBackend as TorchBackend
    from weightsmith.graph.backends.torch_backend import use_one_thread as use_one_thread
    from weightsmith.graph.backends.torch_gradients import GradientTile as GradientTile
    from weightsmith.graph.backends.torch_gradients import Pull as Pull
    from weightsmith.graph.backends.torch_gradients import pull_scalars as pull_scalars
    from weightsmith.graph.backends.torch_gradients import pull_sources as pull_sources
    from weightsmith.graph.backends.torch_gradients import pull_tensor as pull_tensor
    from weightsmith.graph.backends.torch_implicit import implicit as implicit
    from weightsmith.graph.backends.torch_interpreter import torch_dtype as torch_dtype
    from weightsmith.graph.backends.torch_memory import evaluate_model as evaluate_model
    from weightsmith.graph.by_column import column_dot as column_dot
    from weightsmith.graph.columns import Columns as Columns
    from weightsmith.graph.columns import ColumnSums as ColumnSums
    from weightsmith.graph.equal_graphs import shared_graph as shared_graph
    from weightsmith.graph.equal_graphs import substitute as substitute
    from weightsmith.graph.equal_graphs import walked as walked
    from weightsmith.graph.equal_magnitudes import EqualMagnitudes as EqualMagnitudes
    from weightsmith.graph.equal_magnitudes import model_ranks as model_ranks
    from weightsmith.graph.equal_magnitudes import rank_key as rank_key
    from weightsmith.graph.free_numbers import FreeNumber as FreeNumber
    from weightsmith.graph.free_numbers import ValuedPath as ValuedPath
    from weightsmith.graph.free_numbers import free as free
    from weightsmith.graph.free_numbers import free_in as free_in
    from weightsmith.graph.free_numbers import refuse_hidden as refuse_hidden
    from weightsmith.graph.free_numbers import valued as valued
    from weightsmith.graph.graph import Extent as Extent
    from weightsmith.graph.graph import Node as Node
    from weightsmith.graph.graph import Number as Number
    from weightsmith.graph.graph import Operand as Operand
    from weightsmith.graph.graph import Scalar as Scalar
    from weightsmith.graph.graph import Scope as Scope
    from weightsmith.graph.graph import Threshold as Threshold
    from weightsmith.graph.graph import Value as Value
    from weightsmith.graph.graph import above as above
    from weightsmith.graph.graph import add_all as add_all
    from weightsmith.graph.graph import adds_to as adds_to
    from weightsmith.graph.graph import apply as apply
    from weightsmith.graph.graph import clamp as clamp
    from weightsmith.graph.graph import count as count
    from weightsmith.graph.graph import dot as dot
    from weightsmith.graph.graph import exp as exp
    from weightsmith.graph.graph import largest as largest
    from weightsmith.graph.graph import largest_share as largest_share
    from weightsmith.graph.graph import linear_combination as linear_combination
    from weightsmith.graph.graph import log as log
    from weightsmith.graph.graph import maximum as maximum
    from weightsmith.graph.graph import minimum as minimum
    from weightsmith.graph.graph import part as part
    from weightsmith.graph.graph import peak as peak
    from weightsmith.graph.graph import rounded as rounded
    from weightsmith.graph.graph import row_rank as row_rank
    from weightsmith.graph.graph import scalar as scalar
    from weightsmith.graph.graph import sign as sign
    from weightsmith.graph.graph import solve as solve
    from weightsmith.graph.graph import source as source
    from weightsmith.graph.graph import sqrt as sqrt
    from weightsmith.graph.graph import statistic_of as statistic_of
    from weightsmith.graph.graph import total as total
    from weightsmith.graph.graph import value as value
    from weightsmith.graph.graph import walk as walk
    from weightsmith.graph.graph import where as where
    from weightsmith.graph.graph import whole as whole
    from weightsmith.graph.graph import whole_parts as whole_parts
    from weightsmith.graph.model_statistics import ModelStatistic as ModelStatistic
    from weightsmith.graph.order import Gate as Gate
    from weightsmith.graph.order import Selection as Selection
    from weightsmith.graph.order import SummedHistograms as SummedHistograms
    from weightsmith.graph.order import gate_for as gate_for
    from weightsmith.graph.order import local_threshold as local_threshold
    from weightsmith.graph.passes import Backend as Backend
    from weightsmith.graph.passes import Collect as Collect
    from weightsmith.graph.passes import CollectPart as CollectPart
    from weightsmith.graph.passes import Equal as Equal
    from weightsmith.graph.passes import HistogramPart as HistogramPart
    from weightsmith.graph.passes import PassSpec as PassSpec
    from weightsmith.graph.passes import Request as Request
    from weightsmith.graph.passes import ShareOf as ShareOf
    from weightsmith.graph.passes import ThresholdPoint as ThresholdPoint
    from weightsmith.graph.passes import TilePass as TilePass
    from weightsmith.graph.passes import TileResult as TileResult
    from weightsmith.graph.passes import evaluate_scalar as evaluate_scalar
    from weightsmith.graph.passes import has_row_nodes as has_row_nodes
    from weightsmith.graph.passes import is_row_reduction as is_row_reduction
    from weightsmith.graph.passes import matrix_nodes as matrix_nodes
    from weightsmith.graph.passes import pass_roots as pass_roots
    from weightsmith.graph.passes import reduction_levels as reduction_levels
    from weightsmith.graph.passes import rows_to_keep as rows_to_keep
    from weightsmith.graph.passes import selected_count as selected_count
    from weightsmith.graph.passes import used_sources as used_sources
    from weightsmith.graph.passes import work_dtype as work_dtype
    from weightsmith.graph.range_finder import row_blocks as row_blocks
    from weightsmith.graph.range_finder import sketched_spectrum as sketched_spectrum
    from weightsmith.graph.range_finder import times as times
    from weightsmith.graph.scalars import exact_sum as exact_sum
    from weightsmith.graph.shares import floor_of_share as floor_of_share
    from weightsmith.graph.singular import Spectrum as Spectrum
    from weightsmith.graph.singular import arbitrary as arbitrary
    from weightsmith.graph.singular import differentiable as differentiable
    from weightsmith.graph.singular import exact as exact
    from weightsmith.graph.singular import falling as falling
    from weightsmith.graph.singular import gram_spectrum as gram_spectrum
    from weightsmith.graph.singular import orthonormal as orthonormal
    from weightsmith.graph.singular import signs as signs
    from weightsmith.graph.singular import without_gradient as without_gradient
    from weightsmith.graph.site import Site as Site
    from weightsmith.graph.site import Statistic as Statistic
    from weightsmith.graph.unknown import NumberNotKnown as NumberNotKnown
    from weightsmith.graph.unknown import followed as followed
    from weightsmith.graph.unknown import following as following
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Backend": "weightsmith.graph.passes",
            "Collect": "weightsmith.graph.passes",
            "CollectPart": "weightsmith.graph.passes",
            "ColumnSums": "weightsmith.graph.columns",
            "Columns": "weightsmith.graph.columns",
            "Threshold": "weightsmith.graph.graph",
            "ThresholdPoint": "weightsmith.graph.passes",
            "Equal": "weightsmith.graph.passes",
            "EqualMagnitudes": "weightsmith.graph.equal_magnitudes",
            "Extent": "weightsmith.graph.graph",
            "FreeNumber": "weightsmith.graph.free_numbers",
            "Gate": "weightsmith.graph.order",
            "GradientTile": "weightsmith.graph.backends.torch_gradients",
            "HistogramPart": "weightsmith.graph.passes",
            "ModelStatistic": "weightsmith.graph.model_statistics",
            "Node": "weightsmith.graph.graph",
            "Number": "weightsmith.graph.graph",
            "NumberNotKnown": "weightsmith.graph.unknown",
            "Operand": "weightsmith.graph.graph",
            "PassSpec": "weightsmith.graph.passes",
            "Pull": "weightsmith.graph.backends.torch_gradients",
            "Request": "weightsmith.graph.passes",
            "Scalar": "weightsmith.graph.graph",
            "Scope": "weightsmith.graph.graph",
            "Selection": "weightsmith.graph.order",
            "ShareOf": "weightsmith.graph.passes",
            "Site": "weightsmith.graph.site",
            "Spectrum": "weightsmith.graph.singular",
            "Statistic": "weightsmith.graph.site",
            "SummedHistograms": "weightsmith.graph.order",
            "TilePass": "weightsmith.graph.passes",
            "TileResult": "weightsmith.graph.passes",
            "TorchBackend": "weightsmith.graph.backends.torch_backend",
            "Value": "weightsmith.graph.graph",
            "ValuedPath": "weightsmith.graph.free_numbers",
            "above": "weightsmith.graph.graph",
            "add_all": "weightsmith.graph.graph",
            "adds_to": "weightsmith.graph.graph",
            "apply": "weightsmith.graph.graph",
            "arbitrary": "weightsmith.graph.singular",
            "clamp": "weightsmith.graph.graph",
            "column_dot": "weightsmith.graph.by_column",
            "count": "weightsmith.graph.graph",
            "differentiable": "weightsmith.graph.singular",
            "dot": "weightsmith.graph.graph",
            "evaluate_model": "weightsmith.graph.backends.torch_memory",
            "evaluate_scalar": "weightsmith.graph.passes",
            "exact": "weightsmith.graph.singular",
            "exact_sum": "weightsmith.graph.scalars",
            "exp": "weightsmith.graph.graph",
            "falling": "weightsmith.graph.singular",
            "floor_of_share": "weightsmith.graph.shares",
            "followed": "weightsmith.graph.unknown",
            "following": "weightsmith.graph.unknown",
            "free": "weightsmith.graph.free_numbers",
            "free_in": "weightsmith.graph.free_numbers",
            "gate_for": "weightsmith.graph.order",
            "gram_spectrum": "weightsmith.graph.singular",
            "has_row_nodes": "weightsmith.graph.passes",
            "implicit": "weightsmith.graph.backends.torch_implicit",
            "is_row_reduction": "weightsmith.graph.passes",
            "largest": "weightsmith.graph.graph",
            "largest_share": "weightsmith.graph.graph",
            "linear_combination": "weightsmith.graph.graph",
            "local_threshold": "weightsmith.graph.order",
            "log": "weightsmith.graph.graph",
            "matrix_nodes": "weightsmith.graph.passes",
            "maximum": "weightsmith.graph.graph",
            "minimum": "weightsmith.graph.graph",
            "model_ranks": "weightsmith.graph.equal_magnitudes",
            "native": "weightsmith.graph.backends.native:*",
            "orthonormal": "weightsmith.graph.singular",
            "part": "weightsmith.graph.graph",
            "pass_roots": "weightsmith.graph.passes",
            "peak": "weightsmith.graph.graph",
            "pull_scalars": "weightsmith.graph.backends.torch_gradients",
            "pull_sources": "weightsmith.graph.backends.torch_gradients",
            "pull_tensor": "weightsmith.graph.backends.torch_gradients",
            "torch_dtype": "weightsmith.graph.backends.torch_interpreter",
            "rank_key": "weightsmith.graph.equal_magnitudes",
            "reduction_levels": "weightsmith.graph.passes",
            "refuse_hidden": "weightsmith.graph.free_numbers",
            "rounded": "weightsmith.graph.graph",
            "row_blocks": "weightsmith.graph.range_finder",
            "row_rank": "weightsmith.graph.graph",
            "rows_to_keep": "weightsmith.graph.passes",
            "scalar": "weightsmith.graph.graph",
            "scalars": "weightsmith.graph.scalars:*",
            "selected_count": "weightsmith.graph.passes",
            "shared_graph": "weightsmith.graph.equal_graphs",
            "sign": "weightsmith.graph.graph",
            "signs": "weightsmith.graph.singular",
            "sketched_spectrum": "weightsmith.graph.range_finder",
            "solve": "weightsmith.graph.graph",
            "source": "weightsmith.graph.graph",
            "sqrt": "weightsmith.graph.graph",
            "statistic_of": "weightsmith.graph.graph",
            "substitute": "weightsmith.graph.equal_graphs",
            "times": "weightsmith.graph.range_finder",
            "total": "weightsmith.graph.graph",
            "use_one_thread": "weightsmith.graph.backends.torch_backend",
            "used_sources": "weightsmith.graph.passes",
            "value": "weightsmith.graph.graph",
            "valued": "weightsmith.graph.free_numbers",
            "walk": "weightsmith.graph.graph",
            "walked": "weightsmith.graph.equal_graphs",
            "where": "weightsmith.graph.graph",
            "whole": "weightsmith.graph.graph",
            "whole_parts": "weightsmith.graph.graph",
            "without_gradient": "weightsmith.graph.singular",
            "work_dtype": "weightsmith.graph.passes",
        },
    )
