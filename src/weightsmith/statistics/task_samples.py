"""Items of suites' tasks that are no single texts: labelled arrays, and queries with their documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightsmith.evaluation import Embedder, Task, classifier_of, embedder_of, read_labelled
from weightsmith.live import LiveModel
from weightsmith.statistics.samples import Inputs, Sample, Samples

if TYPE_CHECKING:
    from torch import Tensor

# A query stands among the documents of so many lines, and cosines are multiplied by SCALE before the softmax.
_AMONG = 24
_SCALE = 20.0


def labelled_samples(model: LiveModel, task: Task, name: str) -> Samples:
    """Arrays with the classes that the network's own head, or the task's, predicts."""
    import torch

    items = read_labelled(task)
    classifier = classifier_of(task, model, items)
    classes = len(classifier.classes)
    samples = [
        Sample({"inputs": torch.from_numpy(inputs)}, torch.tensor([int(label)]), classes)
        for inputs, label in zip(items.inputs, classifier.labels, strict=True)
    ]
    return Samples(name, samples, "log-likelihood of the label", Classes(classifier.logits))


@dataclass(frozen=True, slots=True)
class Classes:
    """Logits of the classes of arrays [B, ...], as [B, 1, C]."""

    logits: Callable[[Tensor], Tensor]

    def __call__(self, model: LiveModel, inputs: Inputs) -> Tensor:
        """The logits."""
        return self.logits(inputs["inputs"])[:, None]


def pair_samples(model: LiveModel, rows: Sequence[Mapping[str, Any]], name: str) -> Samples:
    """Queries, each of which is to find its own document among those of the lines around it.

    Lines are taken 24 at a time; what is predicted is softmax(20 cos(query, document)).
    """
    import torch

    embedder = embedder_of(model, name)
    samples = []
    for start in range(0, len(rows), _AMONG):
        lines = rows[start : start + _AMONG]
        documents = embedder.tokens([str(line["document"]) for line in lines])
        for own, line in enumerate(lines):
            query = embedder.tokens([str(line["query"])])
            inputs = {f"document.{key}": value for key, value in documents.items()}
            inputs |= {f"query.{key}": value for key, value in query.items()}
            samples.append(Sample(inputs, torch.tensor([own]), len(lines)))
    objective = (
        f"log-likelihood of a query's document among {_AMONG}, softmax of {_SCALE:g} cosines"
    )
    return Samples(name, samples, objective, Cosines(embedder))


@dataclass(frozen=True, slots=True)
class Cosines:
    """Scaled cosines of a query and documents, as logits [1, 1, N] of one item."""

    embedder: Embedder

    def __call__(self, model: LiveModel, inputs: Inputs) -> Tensor:
        """The logits."""
        query, documents = (
            self.embedder.vectors(
                {k.partition(".")[2]: t[0] for k, t in inputs.items() if k.startswith(who)}
            )
            for who in ("query.", "document.")
        )
        return _SCALE * (query @ documents.T)[None]
