"""Language models on texts: bits per byte and perplexity, and the likeliest of several continuations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from weightsmith.errors import UsageError
from weightsmith.evaluation.items import numbered, read_lines, slices_of
from weightsmith.evaluation.likelihood import Window, nats_of, windows
from weightsmith.evaluation.metrics import Finish, find_metric
from weightsmith.evaluation.scores import ItemScores
from weightsmith.evaluation.suite import Task
from weightsmith.evaluation.tokens import Tokens, check_language_model, context_of, tokens_of
from weightsmith.live import LiveModel
from weightsmith.progress import Progress


def score_language_modeling(
    task: Task, model: LiveModel, batch_size: int | None, progress: Progress
) -> ItemScores:
    """Bits and bytes, or nats and tokens, of every text.

    The end of a text is not predicted. Bytes are those of the text in UTF-8; where the first token has nothing to be
    predicted from, neither it nor its bytes count.
    """
    check_language_model(model, task.name)
    lines = read_lines(task, {task.field: str})
    tokens = tokens_of(model)
    context = context_of(model, task.context)
    stride = min(task.stride or context, context)
    metric = find_metric(str(task.metric), task.kind)
    perplexity = metric.finish is Finish.EXPONENTIAL
    rows: list[Window] = []
    owners: list[int] = []
    weights = np.zeros(len(lines))
    for i, line in enumerate(lines):
        text = str(line[task.field])
        encoded = tokens.encode(text)
        own = windows(tokens.prefix, encoded, context, stride)
        if not own:
            raise UsageError(
                f"The data of task {task.name!r} has in item {i} the text {text!r}, of which no token can be "
                "predicted; leave it out."
            )
        rows += own
        owners += [i] * len(own)
        weights[i] = sum(w.scored for w in own) if perplexity else _bytes(text, encoded, tokens)
    nats, _ = nats_of(model, rows, batch_size or task.batch_size, progress)
    values = np.zeros(len(lines))
    np.add.at(values, owners, nats if perplexity else nats / math.log(2))
    return ItemScores(
        task.name,
        metric.name,
        numbered(len(lines)),
        values,
        weights,
        higher_is_better=False,
        finish=metric.finish,
        slices=slices_of(task, lines),
    )


def _bytes(text: str, encoded: list[int], tokens: Tokens) -> int:
    count = len(text.encode())
    return count if tokens.prefix else count - len(tokens.decode(encoded[:1]).encode())


def score_choice(
    task: Task, model: LiveModel, batch_size: int | None, progress: Progress
) -> ItemScores:
    """Whether the right continuation of every prompt is the likeliest one, as a whole or for each of its characters.

    Choices are appended to the prompt as they stand. Of equally likely choices the first one counts.
    """
    check_language_model(model, task.name)
    lines = read_lines(task, {"prompt": str, "choices": list, "answer": (int, str)})
    tokens = tokens_of(model)
    context = context_of(model, task.context)
    right = [_answer(line, i, task) for i, line in enumerate(lines)]
    rows = [
        _continuation(tokens, str(line["prompt"]), str(choice), context, task)
        for line in lines
        for choice in line["choices"]
    ]
    nats, _ = nats_of(model, rows, batch_size or task.batch_size, progress)
    guesses: list[int] = []
    at = 0
    for line in lines:
        own = -nats[at : at + len(line["choices"])]
        at += len(own)
        if task.metric == "accuracy_normalized":
            own = own / np.array([len(choice) for choice in line["choices"]])
        guesses.append(int(own.argmax()))
    return ItemScores(
        task.name,
        str(task.metric),
        numbered(len(lines)),
        np.array([float(g == r) for g, r in zip(guesses, right, strict=True)]),
        np.ones(len(lines)),
        binary=True,
        answers=tuple(str(line["choices"][g]) for line, g in zip(lines, guesses, strict=True)),
        expected=tuple(str(line["choices"][r]) for line, r in zip(lines, right, strict=True)),
        slices=slices_of(task, lines),
    )


def _answer(line: dict[str, Any], item: int, task: Task) -> int:
    """The position of the right choice, which a line gives by number or by text."""
    choices: list[str] = line["choices"]
    answer: int | str = line["answer"]
    where = f"The data of task {task.name!r} has in item {item}"
    if len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise UsageError(f"{where} the choices {choices!r}; give two texts or more.")
    if len(set(choices)) < len(choices):
        raise UsageError(f"{where} a choice twice; leave one out.")
    if isinstance(answer, str):
        if answer not in choices:
            raise UsageError(
                f"{where} the answer {answer!r}, which is none of the choices; correct it."
            )
        return choices.index(answer)
    if not 0 <= answer < len(choices):
        raise UsageError(
            f"{where} answer {answer} of {len(choices)} choices, counted from 0; correct it."
        )
    return answer


def _continuation(tokens: Tokens, prompt: str, choice: str, context: int, task: Task) -> Window:
    """A choice after its prompt, cut on the left to the context; spaces at the seam go with the choice."""
    spaces = len(prompt) - len(prompt.rstrip(" "))
    if spaces:
        prompt, choice = prompt[:-spaces], prompt[-spaces:] + choice
    before = tokens.encode(prompt)
    whole = tokens.encode(prompt + choice)
    scored = max(len(whole) - len(before), 1)
    row = [*tokens.prefix, *whole]
    if scored >= len(row) or scored > context:
        raise UsageError(
            f"Task {task.name!r} has the choice {choice!r}, of {scored} tokens, which follows nothing or does not "
            f"fit the context of {context}; give a prompt or a larger context."
        )
    return Window(tuple(row[-(context + 1) :]), scored)
