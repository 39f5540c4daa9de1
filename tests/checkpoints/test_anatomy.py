"""Stacks and roles are found once for checkpoints that are built alike, and apart for all others."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.checkpoints import open_checkpoint, untied
from weightsmith.checkpoints.roles import Kind

from .conftest import llama_shapes


def test_checkpoints_that_are_built_alike_share_their_stacks_and_roles(folder):
    first, second = (open_checkpoint(folder(name, config={"vocab_size": 32})) for name in "ab")
    assert first.places is second.places
    assert first.stacks is second.stacks


@pytest.mark.parametrize(
    "shapes",
    [
        llama_shapes(vocab=40),
        llama_shapes(layers=3),
        {**llama_shapes(), "model.norm.weight": np.zeros(8, np.int64)},
        {f"x.{name}": shape for name, shape in llama_shapes().items()},
    ],
    ids=["other shapes", "another layer", "another dtype", "other names"],
)
def test_every_other_checkpoint_has_roles_for_its_own_tensors(folder, shapes):
    first = open_checkpoint(folder("a"))
    other = open_checkpoint(folder("b", shapes))
    assert other.places is not first.places
    assert set(other.places) == set(other.tensors)


def test_a_configuration_that_names_the_vocabulary_tells_a_head(folder):
    """`scores` says nothing; as many rows as the vocabulary has tokens do."""
    shapes = {**llama_shapes(head=False), "scores.weight": (32, 8)}
    silent = open_checkpoint(folder("a", shapes))
    declared = open_checkpoint(folder("b", shapes, config={"vocab_size": 32}))
    assert silent.places["scores.weight"].kind is Kind.LINEAR
    assert declared.places["scores.weight"].kind is Kind.HEAD


def test_untying_one_checkpoint_leaves_the_roles_of_its_twin_alone(folder):
    tied = {"tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}
    first, second = (
        open_checkpoint(folder(name, llama_shapes(head=False), config=tied)) for name in "ab"
    )
    assert "lm_head.weight" in untied(first, "lm_head.weight").places
    assert "lm_head.weight" not in second.places
