"""The suites of a family: which tasks a checkpoint is scored on, with paths relative to the family's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def write_suite(path: Path, name: str, tasks: Sequence[Mapping[str, Any]]) -> None:
    """Write a suite file; every task is a mapping with name, kind, data, metric and what its kind needs."""
    document = {"suite": name, "tasks": [dict(task) for task in tasks]}
    path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), "utf-8")


def classification(task: str, split: str) -> dict[str, Any]:
    """An image task read through its frozen head."""
    return {
        "name": task,
        "kind": "classification",
        "data": f"data/{task}.{split}.npz",
        "head": f"heads/{task}.safetensors",
        "metric": "accuracy",
    }
