"""Texts as items of a network of any kind: what it reads, and what it is to predict from that.

causal      windows of a text; every token is predicted from those before it
masked      windows of which 15 % of the tokens are hidden, which are predicted
sequences   a prompt is read, an answer predicted
classes     a text is read, its label predicted
features    a text is read, nothing predicted
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from weightsmith.errors import UsageError
from weightsmith.evaluation import context_of, tokens_of
from weightsmith.live import IGNORED, LiveModel, NetworkKind
from weightsmith.statistics.samples import Inputs, Sample, Samples
from weightsmith.wording import literal

if TYPE_CHECKING:
    from torch import Tensor

# The share of the tokens that are hidden from a masked language model.
_HIDDEN = 0.15
_FIELDS = {
    NetworkKind.SEQUENCE: (("prompt", "answer"), ("source", "target")),
    NetworkKind.CLASSIFIER: (("text", "label"),),
    NetworkKind.ENCODER: (("text",), ("query", "document")),
}
_TEXTS = (("text",), ("prompt", "answer"))
Row = Mapping[str, Any]


def text_samples(
    model: LiveModel, rows: Iterable[Row], name: str, *, limit: int, context: int | None, seed: int
) -> Samples:
    """The first `limit` items of rows with the fields that a network of this kind reads.

    `context` bounds the tokens of an item. Raises UsageError for rows without the fields, for labels and tokens that
    the network has not, for texts that are too long to be one item, and where there is nothing.
    """
    if model.plain:
        raise UsageError(
            f"{model.name!r} reads no texts; give a suite and the task whose arrays it reads."
        )
    reader = _Reader(model, context_of(model, context), seed)
    items = list(islice(reader.items(rows, name), limit))
    if not items:
        raise UsageError(f"{name} has no text that something could be collected over.")
    return Samples(name, items, _OBJECTIVES[model.kind], _predictions(model), is_text=True)


_OBJECTIVES = {
    NetworkKind.CAUSAL: "log-likelihood of every token after those before it",
    NetworkKind.MASKED: "log-likelihood of 15 % of the tokens, hidden, given the others",
    NetworkKind.SEQUENCE: "log-likelihood of every token of the answer",
    NetworkKind.CLASSIFIER: "log-likelihood of the label",
    NetworkKind.ENCODER: "",
}


def _predictions(model: LiveModel) -> Any:
    if model.kind is NetworkKind.CAUSAL:
        return next_tokens
    if model.kind is NetworkKind.CLASSIFIER:
        return one_class
    return every_token if model.kind.has_logits else None


def next_tokens(model: LiveModel, inputs: Inputs) -> Tensor:
    """Logits of every token but the first [B, T - 1, V]."""
    return model.logits(inputs)[:, :-1]


def every_token(model: LiveModel, inputs: Inputs) -> Tensor:
    """Logits of every token [B, T, V]."""
    return model.logits(inputs)


def one_class(model: LiveModel, inputs: Inputs) -> Tensor:
    """Logits of the classes of every item [B, 1, C]."""
    return model.logits(inputs)[:, None]


@dataclass(slots=True)
class _Reader:
    model: LiveModel
    context: int
    seed: int
    _drawn: int = 0

    @property
    def classes(self) -> int:
        if self.model.kind is NetworkKind.CLASSIFIER:
            return int(self.model.module.config.num_labels)
        return self.model.number("vocab_size") or 0

    def items(self, rows: Iterable[Row], name: str) -> Iterator[Sample]:
        """Every item of every row."""
        made = {
            NetworkKind.CAUSAL: self._causal,
            NetworkKind.MASKED: self._masked,
            NetworkKind.SEQUENCE: self._pair,
            NetworkKind.CLASSIFIER: self._classified,
            NetworkKind.ENCODER: self._read,
        }[self.model.kind]
        fields = _FIELDS.get(self.model.kind, _TEXTS)
        for number, row in enumerate(rows, start=1):
            where = f"{name}, item {number},"
            chosen = next((own for own in fields if all(key in row for key in own)), None)
            if chosen is None:
                wanted = ", or ".join(" and ".join(own) for own in fields)
                raise UsageError(
                    f"{where} has the fields {', '.join(row) or 'none'}, but {self.model.name!r} is "
                    f"{self.model.kind.value}: give {wanted}."
                )
            yield from made([row[key] for key in chosen], where)

    def _causal(self, texts: Sequence[Any], where: str) -> Iterator[Sample]:
        import torch

        tokens = tokens_of(self.model)
        encoded = [*tokens.prefix, *tokens.encode("".join(_text(text, where) for text in texts))]
        for window in self._windows(encoded, where):
            if len(window) > 1:
                ids = torch.tensor(window)
                yield Sample({"input_ids": ids}, ids[1:], self.classes)

    def _masked(self, texts: Sequence[Any], where: str) -> Iterator[Sample]:
        import torch

        tokenizer = self.model.tokenizer()
        hidden, special = tokenizer.mask_token_id, set(tokenizer.all_special_ids)
        if hidden is None:
            raise UsageError(
                f"The tokenizer of {self.model.name!r} has no mask token, by which tokens are hidden."
            )
        for window in self._windows(self._encoded("".join(texts), where), where):
            ids = torch.tensor(window)
            free = [place for place, token in enumerate(window) if token not in special]
            if not free:
                continue
            draw = torch.Generator().manual_seed(self.seed + self._drawn)
            self._drawn += 1
            chosen = torch.randperm(len(free), generator=draw)[: max(1, round(_HIDDEN * len(free)))]
            places = torch.tensor(free)[chosen.sort().values]
            labels = torch.full_like(ids, IGNORED)
            labels[places] = ids[places]
            yield Sample({"input_ids": ids.index_fill(0, places, hidden)}, labels, self.classes)

    def _pair(self, texts: Sequence[Any], where: str) -> Iterator[Sample]:
        import torch

        source, target = (self._whole(self._encoded(_text(t, where), where), where) for t in texts)
        inputs = {
            "input_ids": torch.tensor(source),
            "decoder_input_ids": torch.tensor([self.model.decoder_start, *target[:-1]]),
        }
        yield Sample(inputs, torch.tensor(target), self.classes)

    def _classified(self, given: Sequence[Any], where: str) -> Iterator[Sample]:
        import torch

        text, label = given
        number = self._class_of(label, where)
        ids = torch.tensor(self._whole(self._encoded(_text(text, where), where), where))
        yield Sample({"input_ids": ids}, torch.tensor([number]), self.classes)

    def _read(self, texts: Sequence[Any], where: str) -> Iterator[Sample]:
        import torch

        for text in texts:
            for window in self._windows(self._encoded(_text(text, where), where), where):
                yield Sample({"input_ids": torch.tensor(window)})

    def _class_of(self, label: Any, where: str) -> int:
        names = {str(k): int(v) for k, v in (self.model.module.config.label2id or {}).items()}
        number = names.get(label) if isinstance(label, str) else label
        if (
            not isinstance(number, int)
            or isinstance(number, bool)
            or not 0 <= number < self.classes
        ):
            raise UsageError(
                f"{where} has label {literal(label)}, which is none of the {self.classes} classes of "
                f"{self.model.name!r}."
            )
        return number

    def _encoded(self, text: str, where: str) -> list[int]:
        """The tokens of a text with the special ones that its network expects."""
        if not self.model.has_tokenizer:
            return list(tokens_of(self.model).encode(_text(text, where)))
        return list(self.model.tokenizer()(text)["input_ids"])

    def _windows(self, tokens: Sequence[int], where: str) -> Iterator[list[int]]:
        self._check_vocabulary(tokens, where)
        for start in range(0, len(tokens), self.context):
            yield list(tokens[start : start + self.context])

    def _whole(self, tokens: list[int], where: str) -> list[int]:
        self._check_vocabulary(tokens, where)
        if not tokens or len(tokens) > self.context:
            raise UsageError(
                f"{where} has {len(tokens)} tokens in one text, but {self.model.name!r} reads 1 to {self.context}; "
                "leave it out or shorten it."
            )
        return tokens

    def _check_vocabulary(self, tokens: Sequence[int], where: str) -> None:
        size = self.model.number("vocab_size")
        if size is not None and tokens and max(tokens) >= size:
            raise UsageError(
                f"{where} has token {max(tokens)}, but the vocabulary of {self.model.name!r} has {size}; its tokenizer "
                "belongs to another model."
            )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where} has {literal(value)} where a text should be.")
    return value
