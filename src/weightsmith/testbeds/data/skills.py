"""Skills with exact answers, written as text: a prompt that ends with `=`, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from weightsmith.testbeds.data.language_tasks import Kind, Row
from weightsmith.testbeds.data.tasks import Split, generator_of

Shown = tuple[str, str]
_LETTERS = "abcd"
_MOST_TRAINING = 2500
_BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}


@dataclass(frozen=True, slots=True)
class PromptSkill:
    """One skill: `draw` gives a prompt and its answer; `choices`, if any, the answers to choose from."""

    name: str
    kind: Kind
    draw: Callable[[np.random.Generator], Shown]
    choices: Callable[[str], list[str]] | None = None

    def rows(self, counts: Mapping[Split, int], seed: int) -> dict[Split, list[Row]]:
        """Rows of every split; no prompt occurs twice. The answer of a choice is its place among the choices."""
        generator = generator_of("skill", self.name, seed)
        wanted = {**counts, "train": min(counts["train"], _MOST_TRAINING)}
        shown: dict[str, str] = {}
        while len(shown) < sum(wanted.values()):
            prompt, answer = self.draw(generator)
            shown.setdefault(prompt, answer)
        # Short prompts are soon used up, so the last ones drawn are longer: every split gets a fair share.
        prompts = generator.permutation(list(shown))
        rows = iter([self._row(str(prompt), shown[prompt]) for prompt in prompts])
        return {split: [next(rows) for _ in range(n)] for split, n in wanted.items()}

    def _row(self, prompt: str, answer: str) -> Row:
        if self.choices is None:
            return {"prompt": prompt, "answer": answer}
        choices = self.choices(prompt)
        return {"prompt": prompt, "choices": choices, "answer": choices.index(answer)}


def _reverse(generator: np.random.Generator) -> Shown:
    letters = "".join(generator.choice(list(_LETTERS), int(generator.integers(4, 7))))
    return f"reverse {letters}=", letters[::-1]


def _last(generator: np.random.Generator) -> Shown:
    letters = "".join(generator.choice(list(_LETTERS), 8))
    return f"last {letters}=", letters[-1]


def _brackets(generator: np.random.Generator) -> Shown:
    opened = generator.choice(list(_BRACKETS), int(generator.integers(4, 7)))
    return f"close {''.join(opened)}=", "".join(_BRACKETS[sign] for sign in reversed(opened))


def _larger(generator: np.random.Generator) -> Shown:
    first, second = (int(n) for n in generator.choice(np.arange(100, 1000), 2, replace=False))
    return f"larger {first} {second}=", str(max(first, second))


def _numbers(prompt: str) -> list[str]:
    return prompt.removesuffix("=").split(" ")[1:]


def reverse() -> PromptSkill:
    """Four to six letters backwards."""
    return PromptSkill("reverse", "generation", _reverse)


def last() -> PromptSkill:
    """The last of eight letters."""
    return PromptSkill("last", "generation", _last)


def brackets() -> PromptSkill:
    """The brackets that close four to six open ones."""
    return PromptSkill("brackets", "generation", _brackets)


def larger() -> PromptSkill:
    """The larger of two numbers of three digits."""
    return PromptSkill("larger", "choice", _larger, _numbers)
