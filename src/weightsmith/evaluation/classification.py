"""Classification: inputs through the network, and its own or a frozen head, to the likeliest class."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import CompatibilityError, NonFiniteError, UsageError
from weightsmith.evaluation.batches import ROW
from weightsmith.evaluation.frozen_head import FrozenHead, read_head
from weightsmith.evaluation.items import LabelledInputs, numbered, read_labelled
from weightsmith.evaluation.scores import ItemScores
from weightsmith.evaluation.suite import Task
from weightsmith.live import Batch, LiveModel, reason_of
from weightsmith.naming import nearest
from weightsmith.progress import Progress
from weightsmith.wording import literal

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 64
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """From inputs [B, ...] to logits [B, C] of the named classes, and the class numbers of a task's items [N]."""

    logits: Callable[[Tensor], Tensor]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]


def classifier_of(task: Task, model: LiveModel, items: LabelledInputs) -> Classifier:
    """The network with its own head or the task's; raises UsageError where model, head and items do not match."""
    head = None if task.head is None else read_head(task.head, model.device)
    classes = head.classes if head else _own_classes(model, task)
    labels = _labels(items, classes, task)
    return Classifier(_forward(model, head, items, task), classes, labels)


def score_classification(
    task: Task, model: LiveModel, batch_size: int | None, progress: Progress
) -> ItemScores:
    """The accuracy of every item of a classification task."""
    import torch

    items = read_labelled(task)
    classifier = classifier_of(task, model, items)
    classes, labels, forward = classifier.classes, classifier.labels, classifier.logits
    size = batch_size or task.batch_size or _BATCH
    guesses: list[NDArray[np.int64]] = []
    rows = progress.begin("", len(labels), ROW)
    with torch.inference_mode():
        for start in range(0, len(labels), size):
            part = torch.from_numpy(items.inputs[start : start + size]).to(model.device)
            logits = forward(part)
            if logits.shape[1] != len(classes):
                raise UsageError(
                    f"Task {task.name!r} names {len(classes)} classes, but {model.name!r} gives {logits.shape[1]} "
                    "logits; correct id2label of its config.json or the head."
                )
            if not bool(torch.isfinite(logits).all()):
                raise NonFiniteError(
                    f"{model.name!r} gives NaN or infinite logits on task {task.name!r}, in items {start} to "
                    f"{start + len(part) - 1}; its weights or buffers are broken."
                )
            guesses.append(logits.argmax(1).cpu().numpy())
            rows.advance(len(part))
    rows.end()
    guessed = np.concatenate(guesses)
    return ItemScores(
        task.name,
        str(task.metric),
        numbered(len(labels)),
        (guessed == labels).astype(np.float64),
        np.ones(len(labels)),
        binary=True,
        answers=tuple(classes[i] for i in guessed),
        expected=tuple(classes[i] for i in labels),
        slices=items.slices,
    )


def _own_classes(model: LiveModel, task: Task) -> tuple[str, ...]:
    """The names of the network's own classes, from id2label, or their numbers."""
    if not model.plain and "ForImageClassification" not in type(model.module).__name__:
        raise UsageError(
            f"Task {task.name!r} has no head, and {model.name!r} is a {type(model.module).__name__}, which classifies "
            "no images; give the task a `head`."
        )
    # The network's configuration has names of its own making where the file has none.
    labels = model.config.get("id2label") if model.plain else model.module.config.id2label
    count = model.number("num_labels") or 0
    by_number = _by_number(model, labels) if labels else {}
    if max(count, *by_number, 0) > _MOST_CLASSES:
        raise UsageError(
            f"The config.json of {model.name!r} has more than {_MOST_CLASSES} classes; correct it, or give the task a "
            "`head`."
        )
    if by_number:
        return tuple(by_number.get(i, str(i)) for i in range(max(by_number) + 1))
    return numbered(count)


def _by_number(model: LiveModel, labels: Any) -> dict[int, str]:
    """`id2label`: names by numbers, which JSON has as texts."""
    keys = list(labels) if isinstance(labels, dict) else [None]
    if not all(
        isinstance(k, int) or (isinstance(k, str) and re.fullmatch(r"\d{1,9}", k)) for k in keys
    ):
        raise UsageError(
            f"The config.json of {model.name!r} has id2label: {literal(labels)}, which are no names by number; correct "
            "it."
        )
    return {int(number): str(name) for number, name in labels.items()}


def _labels(items: LabelledInputs, classes: tuple[str, ...], task: Task) -> NDArray[np.int64]:
    """Class numbers of the items; raises UsageError where labels and head do not match."""
    if not classes:
        raise UsageError(
            f"Task {task.name!r} has no head, and the model names no classes; give the task a `head`."
        )
    known = {name: i for i, name in enumerate(classes)}
    labels = items.labels
    if np.issubdtype(labels.dtype, np.integer):
        if items.classes is None:
            return _numbers(labels, classes, task)
        _numbers(labels, items.classes, task)
        labels = np.array(items.classes)[labels]
    for name in map(str, np.unique(labels.astype(str))):
        if name not in known:
            near = nearest(name, classes)
            hint = f"did you mean {near!r}?" if near else f"it has {', '.join(classes[:8])}."
            raise UsageError(
                f"The data of task {task.name!r} has label {name!r}, which the head has not; {hint}"
            )
    return np.array([known[name] for name in labels.astype(str)], np.int64)


def _numbers(labels: NDArray[Any], classes: tuple[str, ...], task: Task) -> NDArray[np.int64]:
    outside = labels[(labels < 0) | (labels >= len(classes))]
    if len(outside):
        raise UsageError(
            f"The data of task {task.name!r} has label {outside[0]}, but there are {len(classes)} classes, numbered "
            "from 0; give the head that belongs to the data."
        )
    return labels.astype(np.int64)


def _forward(
    model: LiveModel, head: FrozenHead | None, items: LabelledInputs, task: Task
) -> Callable[[Tensor], Tensor]:
    """From inputs [B, ...] to logits [B, C]."""
    if model.plain:
        if head is not None and not hasattr(model.module, "features"):
            raise UsageError(
                f"{model.name!r} gives no features, which the head of {task.name!r} reads."
            )
        network = _plain_of(model.logits if head is None else model.features)
    else:
        network = _logits_of(model) if head is None else _features_of(model, head.pooling)
        _check_images(model, items, task)
    if head is None:
        return _checked(network, model, items, task)
    features = _checked(network, model, items, task)

    def through_head(inputs: Tensor) -> Tensor:
        found = features(inputs)
        if found.shape[1] != head.width:
            raise UsageError(
                f"The head of task {task.name!r} reads {head.width} features, but {model.name!r} gives "
                f"{found.shape[1]}; give the head of this family."
            )
        return head.logits(found)

    return through_head


def _checked(
    network: Callable[[Tensor], Tensor], model: LiveModel, items: LabelledInputs, task: Task
) -> Callable[[Tensor], Tensor]:
    """The network, with one sentence where it cannot take inputs of this shape."""

    def checked(inputs: Tensor) -> Tensor:
        try:
            return network(inputs)
        except CompatibilityError as error:
            shape = list(items.inputs.shape[1:])
            raise UsageError(
                f"{model.name!r} cannot take the inputs {shape} of task {task.name!r} ({reason_of(error)}); give data "
                "made for it."
            ) from error

    return checked


def _plain_of(ask: Callable[[Batch], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda inputs: ask({"inputs": inputs})


def _logits_of(model: LiveModel) -> Callable[[Tensor], Tensor]:
    return lambda inputs: model.logits({"pixel_values": inputs})


def _features_of(model: LiveModel, pooling: str) -> Callable[[Tensor], Tensor]:
    def features(inputs: Tensor) -> Tensor:
        if pooling == "pooled":
            return model.pooled({"pixel_values": inputs}).flatten(1)
        states = model.features({"pixel_values": inputs})
        if pooling == "first_token":
            return states[:, 0]
        return (states[:, 1:] if pooling == "mean_patch_tokens" else states).mean(1)

    return features


def _check_images(model: LiveModel, items: LabelledInputs, task: Task) -> None:
    channels = model.number("num_channels")
    shape = items.inputs.shape
    if len(shape) != 4 or (channels is not None and shape[1] != channels):
        raise UsageError(
            f"Task {task.name!r} has inputs of shape {shape}, but {model.name!r} takes images "
            f"[N, {channels or 'channels'}, height, width]; give data made for it."
        )
