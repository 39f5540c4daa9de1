"""Retrieval: is a query's own document nearest to it among all documents of the task?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import NonFiniteError, UsageError
from weightsmith.evaluation.batches import batches
from weightsmith.evaluation.items import read_lines, slices_of
from weightsmith.evaluation.metrics import Floats, find_metric
from weightsmith.evaluation.scores import ItemScores
from weightsmith.evaluation.suite import Task
from weightsmith.live import LiveModel
from weightsmith.progress import Progress
from weightsmith.tensors import NotJson, loads_json
from weightsmith.wording import literal

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 32
_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}


def score_retrieval(
    task: Task, model: LiveModel, batch_size: int | None, progress: Progress
) -> ItemScores:
    """nDCG@k, recall@k or the reciprocal rank of every query, by the cosine of embeddings.

    A document that occurs in several lines is one document; a query that does has several right ones.
    """
    lines = read_lines(task, {"query": str, "document": str})
    queries = list(dict.fromkeys(str(line["query"]) for line in lines))
    documents = list(dict.fromkeys(str(line["document"]) for line in lines))
    if len(documents) < 2:
        raise UsageError(f"Task {task.name!r} has one document only; retrieval needs several.")
    place = {text: i for i, text in enumerate(documents)}
    wanted: dict[str, set[int]] = {}
    for line in lines:
        wanted.setdefault(line["query"], set()).add(place[line["document"]])
    both = list(dict.fromkeys([*queries, *documents]))
    vectors = embed(model, both, batch_size or task.batch_size, progress, task.name)
    row = {text: i for i, text in enumerate(both)}
    found = vectors[[row[text] for text in documents]]
    ranks = [
        ranks_of(found @ vectors[row[query]], np.array(sorted(wanted[query]))) for query in queries
    ]
    metric = find_metric(str(task.metric), task.kind)
    cutoff = metric.cutoff or len(documents)
    scored = {"ndcg": ndcg, "recall": recall, "mrr": reciprocal}[metric.name.partition("@")[0]]
    slices = slices_of(task, lines)
    first = {str(line["query"]): i for i, line in reversed(list(enumerate(lines)))}
    return ItemScores(
        task.name,
        metric.name,
        tuple(str(first[query]) for query in queries),
        np.array([scored(own, cutoff) for own in ranks]),
        np.ones(len(queries)),
        binary=metric.binary and all(len(own) == 1 for own in ranks),
        slices=None if slices is None else tuple(slices[first[query]] for query in queries),
    )


def ranks_of(scores: Floats, right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranks, from 1 and ascending, of the right documents; wrong ones of the same score stand before them.

    So a model whose embeddings are all the same finds nothing.
    """
    others = np.delete(scores, right)
    own = np.sort(scores[right])[::-1]
    return np.array([(others >= s).sum() + i + 1 for i, s in enumerate(own)], np.int64)


def ndcg(ranks: NDArray[np.int64], cutoff: int) -> float:
    """sum of 1 / log2(rank + 1) over right documents up to rank k, over the most that it can be."""
    gains = 1 / np.log2(ranks[ranks <= cutoff] + 1)
    most = min(len(ranks), cutoff)
    return float(gains.sum() / (1 / np.log2(np.arange(most) + 2)).sum())


def recall(ranks: NDArray[np.int64], cutoff: int) -> float:
    """The share of right documents that stand up to rank k."""
    return float((ranks <= cutoff).mean())


def reciprocal(ranks: NDArray[np.int64], cutoff: int) -> float:
    """1 / rank of the first right document, 0 beyond rank k."""
    return float(1 / ranks.min()) if ranks.min() <= cutoff else 0.0


def embed(
    model: LiveModel, texts: Sequence[str], batch_size: int | None, progress: Progress, task: str
) -> Floats:
    """Embeddings of length 1, [N, D], pooled as the modules.json of sentence-transformers says (default: mean).

    Raises UsageError for a network or a module that gives none, NonFiniteError for NaN.
    """
    import torch

    encode = embedder_of(model, task)
    lengths = [len(text) for text in texts]
    vectors: dict[int, Any] = {}
    with torch.inference_mode():
        for chosen in batches(lengths, batch_size or _BATCH, progress):
            unit = encode([texts[i] for i in chosen]).double().cpu().numpy()
            vectors.update(zip(chosen, unit, strict=True))
    stacked = np.stack([vectors[i] for i in range(len(texts))])
    if not np.isfinite(stacked).all():
        raise NonFiniteError(
            f"{model.name!r} gives NaN embeddings on task {task!r}; its weights are broken."
        )
    return np.asarray(stacked, np.float64)


@dataclass(frozen=True, slots=True)
class Embedder:
    """Embeddings of length 1 as `embed` has them, in float32, with gradients where the network has them."""

    model: LiveModel
    pooling: str
    longest: int

    def tokens(self, texts: Sequence[str], *, padded: bool = True) -> Any:
        """What the network reads of texts, cut to the tokens that it reads at most."""
        return self.model.tokenizer()(
            list(texts),
            padding=padded,
            truncation=True,
            max_length=self.longest,
            return_tensors="pt" if padded else None,
        )

    def vectors(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """The embeddings [B, D] of tokens."""
        from torch.nn import functional

        states = self.model.features(encoded).float()
        return functional.normalize(_pooled(states, encoded["attention_mask"], self.pooling), dim=1)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The embeddings [B, D] of texts."""
        return self.vectors(self.tokens(texts).to(self.model.device))


def embedder_of(model: LiveModel, task: str) -> Embedder:
    """How a model embeds texts; raises UsageError for a network or a module that gives no embeddings."""
    if model.plain:
        raise UsageError(f"Task {task!r} needs a text encoder, which {model.name!r} is not.")
    return Embedder(model, *_settings(model))


def _pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector of each text, [B, D], from states [B, T, D] where the mask [B, T] is 1."""
    import torch

    if pooling == "cls":
        first = mask.argmax(1)
        return states[torch.arange(len(states)), first]
    if pooling == "last":
        positions = torch.arange(mask.shape[1], device=mask.device)
        return states[torch.arange(len(states)), (positions * mask).argmax(1)]
    wide = mask[..., None].to(states.dtype)
    if pooling == "max":
        return states.masked_fill(wide == 0, float("-inf")).amax(1)
    return (states * wide).sum(1) / wide.sum(1).clamp(min=1e-9)


def _settings(model: LiveModel) -> tuple[str, int]:
    """The pooling, and the most tokens of a text."""
    modules = _json(model, "modules.json", list)
    kinds = [
        str(module.get("type", "") if isinstance(module, dict) else module).rpartition(".")[2]
        for module in modules
    ]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UsageError(
                f"The modules.json of {model.name!r} has a module {kind!r}, which is not applied here; only "
                "pooling and normalisation are."
            )
    asked = _json(model, "1_Pooling/config.json", dict)
    asked_length = _json(model, "sentence_bert_config.json", dict).get("max_seq_length")
    chosen = [name for mode, name in _POOLINGS.items() if asked.get(mode)]
    if isinstance(asked.get("pooling_mode"), str):
        chosen = [str(asked["pooling_mode"]).replace("lasttoken", "last")]
    unknown = [
        mode for mode, on in asked.items() if on is True and mode.startswith("pooling_mode_")
    ]
    if (
        len(chosen) > 1
        or (chosen and chosen[0] not in _POOLINGS.values())
        or (unknown and not chosen)
    ):
        raise UsageError(
            f"The pooling of {model.name!r} ({', '.join(chosen or unknown)}) is not known; use mean, cls, max or last."
        )
    positions = model.number("max_position_embeddings") or 512
    longest = asked_length if isinstance(asked_length, int) and asked_length > 0 else positions
    return chosen[0] if chosen else "mean", min(longest, positions)


def _json(model: LiveModel, name: str, kind: type[Any]) -> Any:
    """The list or object in a file, empty where there is no such file."""
    if name not in model.files:
        return kind()
    try:
        found = loads_json(model.files[name])
    except NotJson as error:
        raise UsageError(f"The file {name} of {model.name!r} cannot be read ({error}).") from error
    if not isinstance(found, kind):
        raise UsageError(f"The file {name} of {model.name!r} holds {literal(found)}; correct it.")
    return found
