"""One merge in a process of its own: merge_once.py RECIPE OUT OPTIONS, all JSON but OUT.

A WeightsmithError is one line on stderr and its exit code, as on the command line.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightsmith.engine.planning.plan import Plan
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.engine.running.run import run
from weightsmith.errors import WeightsmithError
from weightsmith.recipes import Recipe

TILE = 1 << 18


def plan_of(recipe: dict[str, Any], *, tile_elements: int | None = TILE, **options: Any) -> Plan:
    """A plan with the smallest tiles, or with those that its memory budget allows."""
    plan = make_plan(Recipe.load(recipe), **{"threads": 2, **options})
    return plan if tile_elements is None else replace(plan, tile_elements=tile_elements)


def main() -> int:
    """Run it; `limits` of the options are set as resource limits first, `force` is for the run."""
    recipe, options = json.loads(sys.argv[1]), json.loads(sys.argv[3])
    for name, value in options.pop("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (value, value))
    force = options.pop("force", False)
    try:
        run(plan_of(recipe, **options), Path(sys.argv[2]), force=force)
    except WeightsmithError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
