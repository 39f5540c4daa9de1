"""weightsmith: merge neural-network checkpoints, planned, streamed, verified and replayed.

The public names are loaded on first use, so that `import weightsmith` costs milliseconds and
loads neither numpy nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door
from weightsmith.version import __version__ as __version__

if TYPE_CHECKING:
    from weightsmith.adapters.adapter_reading import open_adapter as open_adapter
    from weightsmith.checkpoints.formats.statistics import read_statistics as read_statistics
    from weightsmith.checkpoints.formats.statistics_writer import (
        write_statistics as write_statistics,
    )
    from weightsmith.comparison.ranking import league as league
    from weightsmith.comparison.versions import compare as compare
    from weightsmith.engine.adapter_api import combine_adapters as combine_adapters
    from weightsmith.engine.adapter_api import convert_adapter as convert_adapter
    from weightsmith.engine.adapter_api import extract_adapter as extract_adapter
    from weightsmith.engine.adapter_api import inspect_adapter as inspect_adapter
    from weightsmith.engine.adapter_api import resize_adapter as resize_adapter
    from weightsmith.engine.api import merge as merge
    from weightsmith.engine.api import merge_state_dicts as merge_state_dicts
    from weightsmith.engine.api import open as open  # noqa: A004 - weightsmith.open is its name
    from weightsmith.engine.api import plan as plan
    from weightsmith.engine.api import replay as replay
    from weightsmith.engine.api import rollback as rollback
    from weightsmith.engine.api import verify as verify
    from weightsmith.errors import WeightsmithError as WeightsmithError
    from weightsmith.evaluation.scoring import evaluate as evaluate
    from weightsmith.inspection.checkpoint_difference import compare_checkpoints as diff
    from weightsmith.inspection.checkpoint_summary import summarize_checkpoint as inspect
    from weightsmith.learning import learn as learn
    from weightsmith.packages.packing import pack as pack_delta
    from weightsmith.packages.unpacking import unpack as unpack_delta
    from weightsmith.recipes import Recipe as Recipe
    from weightsmith.recipes import free as free
    from weightsmith.reports.making import report as report
    from weightsmith.statistics.collecting import collect as collect

    # Names that are called otherwise where they come from are handed on by this list alone.
    __all__ = ["diff", "inspect", "pack_delta", "unpack_delta"]
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Recipe": "weightsmith.recipes",
            "WeightsmithError": "weightsmith.errors",
            "collect": "weightsmith.statistics.collecting",
            "combine_adapters": "weightsmith.engine.adapter_api",
            "compare": "weightsmith.comparison.versions",
            "convert_adapter": "weightsmith.engine.adapter_api",
            "diff": "weightsmith.inspection.checkpoint_difference:compare_checkpoints",
            "evaluate": "weightsmith.evaluation.scoring",
            "extract_adapter": "weightsmith.engine.adapter_api",
            "free": "weightsmith.recipes",
            "inspect": "weightsmith.inspection.checkpoint_summary:summarize_checkpoint",
            "inspect_adapter": "weightsmith.engine.adapter_api",
            "league": "weightsmith.comparison.ranking",
            "learn": "weightsmith.learning",
            "merge": "weightsmith.engine.api",
            "merge_state_dicts": "weightsmith.engine.api",
            "open": "weightsmith.engine.api",
            "open_adapter": "weightsmith.adapters.adapter_reading",
            "pack_delta": "weightsmith.packages.packing:pack",
            "plan": "weightsmith.engine.api",
            "read_statistics": "weightsmith.checkpoints.formats.statistics",
            "replay": "weightsmith.engine.api",
            "report": "weightsmith.reports.making",
            "resize_adapter": "weightsmith.engine.adapter_api",
            "rollback": "weightsmith.engine.api",
            "unpack_delta": "weightsmith.packages.unpacking:unpack",
            "verify": "weightsmith.engine.api",
            "write_statistics": "weightsmith.checkpoints.formats.statistics_writer",
        },
    )
