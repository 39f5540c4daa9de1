"""Language tasks on disk: one JSON object a line, and how a model does on them.

A text task has the field `text`; a skill has `prompt` and `answer`, and `choices` where it is one of those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from weightsmith.testbeds.data.tasks import Split
from weightsmith.testbeds.models import byte_llama

Group = Literal["own", "general", "unseen"]
Kind = Literal["language_modeling", "generation", "choice"]
Row = dict[str, Any]
Figures = dict[str, dict[str, float]]
_METRICS: Mapping[Kind, str] = {
    "language_modeling": "bits_per_byte",
    "generation": "exact_match",
    "choice": "accuracy",
}


@dataclass(frozen=True, slots=True)
class LanguageTask:
    """A task by its name; `group` says whether an expert is trained on it, the base only, or nobody."""

    name: str
    kind: Kind
    group: Group = "own"

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger score is a better one."""
        return self.kind != "language_modeling"

    def suite_row(self, split: Split) -> dict[str, Any]:
        """The task in a suite file."""
        row: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "data": f"data/{self.name}.{split}.jsonl",
            "metric": _METRICS[self.kind],
            "group": self.group,
        }
        if self.kind == "language_modeling":
            row["context"] = byte_llama.ROW
        if self.kind == "generation":
            row["max_new_tokens"] = 12
        return row

    def score(self, model: Any, rows: Sequence[Row]) -> float:
        """Bits per byte of texts, the share of exact matches, or the share of right choices."""
        if self.kind == "language_modeling":
            return byte_llama.bits_per_byte(model, [row["text"] for row in rows])
        if self.kind == "generation":
            prompts, answers = [row["prompt"] for row in rows], [row["answer"] for row in rows]
            return byte_llama.exact_matches(model, prompts, answers)
        return _share_of_right_choices(model, rows)


def _share_of_right_choices(model: Any, rows: Sequence[Row]) -> float:
    """How often the answer is the likeliest of the choices; all rows have the same number of choices."""
    columns = zip(*(row["choices"] for row in rows), strict=True)
    prompts = [row["prompt"] for row in rows]
    losses = torch.stack([byte_llama.answer_losses(model, prompts, list(c)) for c in columns], 1)
    right = torch.tensor([row["answer"] for row in rows])
    return (losses.argmin(1) == right).double().mean().item()


def measure(
    model: Any, root: Path, tasks: Sequence[LanguageTask], splits: Sequence[Split]
) -> Figures:
    """The scores of a model on tasks whose data lie under `root`."""
    return {
        task.name: {
            split: round(task.score(model, read_rows(root / f"data/{task.name}.{split}.jsonl")), 4)
            for split in splits
        }
        for task in tasks
    }


def gain(
    figures: Figures, base: Figures, experts: Figures, tasks: Sequence[LanguageTask], split: Split
) -> float:
    """Mean over tasks of (score - base) / (expert - base): 1 keeps every expert's skill, 0 is the base.

    A task on which the expert is not better than the base counts for nothing; without any other the gain is 0.
    """
    shares = []
    for task in tasks:
        sign = 1 if task.higher_is_better else -1
        start, own = base[task.name][split], experts[task.name][split]
        if sign * (own - start) > 0:
            shares.append((figures[task.name][split] - start) / (own - start))
    return sum(shares) / len(shares) if shares else 0.0


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write one JSON object a line."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), "utf-8")


def read_rows(path: Path) -> list[Row]:
    """The objects of a file of one JSON object a line."""
    # Only "\n" ends a line: a passage may hold other separators, which str.splitlines would cut at.
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def text_of(row: Row) -> str:
    """What is trained on: a text, or a prompt with its answer."""
    if "text" in row:
        return str(row["text"])
    answer = row["choices"][row["answer"]] if "choices" in row else row["answer"]
    return f"{row['prompt']}{answer}"
