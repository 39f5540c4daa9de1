"""Greedy generation: does a model answer a prompt exactly?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightsmith.errors import UsageError
from weightsmith.evaluation.batches import ROW
from weightsmith.evaluation.items import numbered, read_lines, slices_of
from weightsmith.evaluation.scores import ItemScores
from weightsmith.evaluation.suite import Task
from weightsmith.evaluation.tokens import Tokens, check_language_model, context_of, tokens_of
from weightsmith.live import LiveModel, RunningModel
from weightsmith.progress import Progress

_BATCH = 32


def score_generation(
    task: Task, model: LiveModel, batch_size: int | None, progress: Progress
) -> ItemScores:
    """Whether the likeliest continuation of every prompt is its answer.

    Decoding takes the likeliest token each time, whatever the checkpoint's own generation settings say. It ends after
    `max_new_tokens` tokens, at a token that ends a text, or before the first of the texts `until`. White space around
    answers does not count.
    """
    check_language_model(model, task.name)
    lines = read_lines(task, {"prompt": str, "answer": str})
    tokens = tokens_of(model)
    context = context_of(model, task.context)
    prompts = [[*tokens.prefix, *tokens.encode(str(line["prompt"]))] for line in lines]
    for i, prompt in enumerate(prompts):
        if not prompt or len(prompt) + task.max_new_tokens > context:
            raise UsageError(
                f"The data of task {task.name!r} has in item {i} a prompt of {len(prompt)} tokens, which with "
                f"{task.max_new_tokens} new ones does not fit the context of {context}; shorten it or max_new_tokens."
            )
    answers = [""] * len(lines)
    rows = progress.begin("", len(lines), ROW)
    for chosen in _alike(prompts, batch_size or task.batch_size or _BATCH):
        continued = _continued(model, tokens, [prompts[i] for i in chosen], task.max_new_tokens)
        for i, new in zip(chosen, continued, strict=True):
            answers[i] = _text(tokens.decode(new), task.until)
        rows.advance(len(chosen))
    rows.end()
    expected = [str(line["answer"]).strip() for line in lines]
    return ItemScores(
        task.name,
        str(task.metric),
        numbered(len(lines)),
        np.array([float(a == e) for a, e in zip(answers, expected, strict=True)]),
        np.ones(len(lines)),
        binary=True,
        answers=tuple(answers),
        expected=tuple(expected),
        slices=slices_of(task, lines),
    )


def _alike(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Positions of prompts in batches of one length: padding would change what some networks compute."""
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    return [
        positions[start : start + size]
        for _, positions in sorted(by_length.items(), reverse=True)
        for start in range(0, len(positions), size)
    ]


def _continued(
    model: RunningModel, tokens: Tokens, prompts: Sequence[Sequence[int]], most: int
) -> list[list[int]]:
    """The new tokens of every prompt, without the one that ended it."""
    import torch

    rows = torch.tensor(prompts, device=model.device)
    with torch.inference_mode():
        return model.generate({"input_ids": rows}, most=most, ends=tokens.end)


def _text(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.partition(stop)[0]
    return text.strip()
