"""Thousands of hostile inputs: each ends with a known code and one sentence, in bounded time and memory, without a trace.

`make hostile` runs them all; a sample of them runs with the other tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice

import pytest

from . import commands, companions, evaluations, outputs, recipes, stored, weights
from .conftest import COUNTS, WORST
from .running import Input, World, described, tally
from .world import CONTROLS, ENDS

GROUPS = (
    "commands",
    "options",
    "places",
    "recipes",
    "expressions",
    "patterns",
    "overrides",
    "nested",
    "files",
    "weights",
    "indices",
    "pickles",
    "bytes",
    "configurations",
    "tokenizers",
    "adapters",
    "records",
    "suites",
    "data",
    "results",
    "families",
    "outputs",
    "leftovers",
    "factors",
    "statistics",
    "bases",
    "leagues",
    "libraries",
    "networks",
)
# Inputs of these groups are answered before torch would be loaded, which takes longer than all of the sample.
_SAMPLED = frozenset(GROUPS) - {"networks", "data", "results", "leagues"}
_IN_SAMPLE = 4


def corpus() -> Iterable[Input]:
    """All inputs."""
    return chain(
        commands.inputs(),
        recipes.inputs(),
        weights.inputs(),
        companions.inputs(),
        evaluations.inputs(),
        outputs.inputs(),
        stored.inputs(),
        evaluations.networks(),
    )


def sample() -> Iterable[Input]:
    """A few inputs of each group, from all over it; none that takes long to be made."""
    by_group: dict[str, list[Input]] = {}
    for one in corpus():
        if one.group in _SAMPLED and "MB" not in one.name and not one.name.startswith("evaluate"):
            by_group.setdefault(one.group, []).append(one)
    for found in by_group.values():
        yield from islice(found[len(found) // 8 :: max(1, len(found) // _IN_SAMPLE)], _IN_SAMPLE)


def check(world: World, inputs: Iterable[Input]) -> int:
    """Try inputs and fail with all that were answered wrongly; returns how many there were."""
    wrong: list[str] = []
    count = 0
    for one in inputs:
        problems, answer = world.problems(one)
        count += 1
        COUNTS[one.group, tally(answer)] += 1
        seconds, peak = WORST.get(one.group, (0.0, 0))
        WORST[one.group] = max(seconds, answer.seconds), max(peak, answer.peak_bytes)
        if problems:
            COUNTS[one.group, "wrong"] += 1
            wrong.append(described(one, problems, answer))
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:40])
    return count


def test_a_valid_use_of_every_command_ends_as_it_should(world: World) -> None:
    for name, line in CONTROLS.items():
        control = Input("controls", name, tuple(line.split()), may=frozenset({ENDS.get(name, 0)}))
        if name in ("evaluate", "report"):
            continue
        _, answer = world.problems(control)
        assert answer.code == ENDS.get(name, 0), (name, answer)


def test_a_sample_of_hostile_inputs_is_answered_in_one_sentence_each(world: World) -> None:
    assert check(world, sample()) >= _IN_SAMPLE * len(_SAMPLED) // 2


@pytest.mark.hostile
@pytest.mark.parametrize("group", GROUPS)
def test_every_hostile_input_is_answered_in_one_sentence(world: World, group: str) -> None:
    assert check(world, (one for one in corpus() if one.group == group)) > 10


@pytest.mark.hostile
def test_no_two_inputs_are_the_same() -> None:
    names = [one.id for one in corpus()]
    assert len(set(names)) > 0.98 * len(names)
