"""weightsmith: merge neural-network checkpoints, planned, streamed, verified and replayed.

The public names are loaded on first use, so that `import weightsmith` costs milliseconds and
loads neither numpy nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weightsmith.adapters.reading import open_adapter as open_adapter
    from weightsmith.checkpoints.statistics import read_statistics as read_statistics
    from weightsmith.checkpoints.statistics_writer import write_statistics as write_statistics
    from weightsmith.comparison.compare import compare as compare
    from weightsmith.engine.adapter_api import combine_adapters as combine_adapters
    from weightsmith.engine.adapter_api import extract_adapter as extract_adapter
    from weightsmith.engine.api import merge as merge
    from weightsmith.engine.api import merge_state_dicts as merge_state_dicts
    from weightsmith.engine.api import open as open  # noqa: A004 - weightsmith.open is its name
    from weightsmith.engine.api import plan as plan
    from weightsmith.engine.api import replay as replay
    from weightsmith.engine.api import verify as verify
    from weightsmith.errors import WeightsmithError as WeightsmithError
    from weightsmith.evaluation.evaluate import evaluate as evaluate
    from weightsmith.recipes import Recipe as Recipe

__version__ = "0.1.0"

_MODULE_OF = {
    "Recipe": "weightsmith.recipes",
    "WeightsmithError": "weightsmith.errors",
    "combine_adapters": "weightsmith.engine.adapter_api",
    "compare": "weightsmith.comparison.compare",
    "evaluate": "weightsmith.evaluation.evaluate",
    "extract_adapter": "weightsmith.engine.adapter_api",
    "merge": "weightsmith.engine.api",
    "merge_state_dicts": "weightsmith.engine.api",
    "open": "weightsmith.engine.api",
    "open_adapter": "weightsmith.adapters.reading",
    "plan": "weightsmith.engine.api",
    "read_statistics": "weightsmith.checkpoints.statistics",
    "replay": "weightsmith.engine.api",
    "verify": "weightsmith.engine.api",
    "write_statistics": "weightsmith.checkpoints.statistics_writer",
}


def __getattr__(name: str) -> object:
    """Import the module that holds a public name."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'weightsmith' has no attribute {name!r}")
    value: object = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *_MODULE_OF})
