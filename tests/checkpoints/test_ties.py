"""Tied tensors, and what happens where tied and untied checkpoints meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from weightsmith.checkpoints import Checkpoint, Tying, open_checkpoint, untied
from weightsmith.checkpoints.ties import require_equal_ties, tie_findings
from weightsmith.errors import CompatibilityError

Llama = Callable[..., Checkpoint]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def test_an_absent_head_is_tied_whether_the_config_says_so_or_is_silent(llama: Llama) -> None:
    assert llama("said", head=False).tying is Tying.TIED
    silent = llama("silent", head=False, tie_word_embeddings=None)
    assert silent.tying is Tying.TIED
    assert silent.ties == ()


def test_a_stored_head_is_its_own_unless_the_config_ties_it(llama: Llama) -> None:
    assert llama("own").tying is Tying.UNTIED
    assert llama("silent", tie_word_embeddings=None).tying is Tying.UNTIED
    both = llama("both", tie_word_embeddings=True)
    assert both.tying is Tying.TIED
    assert both.ties == (frozenset({EMBEDDING, HEAD}),)


def test_a_nested_text_config_is_asked(llama: Llama) -> None:
    both = llama(tie_word_embeddings=None, text_config={"tie_word_embeddings": True})
    assert both.tying is Tying.TIED


def test_a_model_without_a_language_head_is_neither(llama: Llama, folder: Callable) -> None:
    encoder = llama(head=False, architectures=["LlamaModel"], tie_word_embeddings=True)
    assert encoder.tying is Tying.NO_HEAD
    raw = open_checkpoint(folder("raw", {"w.weight": (4, 4)}))
    assert raw.tying is Tying.NO_HEAD


def test_equal_bytes_are_no_tie(llama: Llama) -> None:
    same = np.ones((32, 8), np.float32)
    assert llama(extra={EMBEDDING: same, HEAD: same}).ties == ()


def test_names_that_share_a_storage_of_a_pickle_are_tied(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    shared = torch.ones(32, 8)
    state = {
        "shared.weight": shared,
        "encoder.embed_tokens.weight": shared,
        "decoder.embed_tokens.weight": shared,
        "lm_head.weight": shared.clone(),
        "half.weight": shared[:16],
    }
    torch.save(state, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.ties == (frozenset(list(state)[:3]),)
    assert checkpoint.tying is Tying.UNTIED


def test_a_tied_and_an_untied_checkpoint_do_not_mix(llama: Llama) -> None:
    tied, own = llama("tied-one", head=False), llama("own-head")
    with pytest.raises(CompatibilityError, match=r"tied-one.*untie: true"):
        require_equal_ties([own, tied])
    (finding,) = tie_findings([tied, own])
    assert finding.code == "tied-untied-mix"
    assert "own-head" in finding.message
    require_equal_ties([tied, tied])
    require_equal_ties([own, llama("b")])


def test_untying_reads_the_embedding_as_the_head_and_then_mixes(llama: Llama) -> None:
    values = np.arange(32 * 8, dtype=np.float32).reshape(32, 8)
    tied = llama("tied", head=False, extra={EMBEDDING: values})
    freed = untied(tied, HEAD)
    tensor = freed.tensors[HEAD]
    assert tensor.name == HEAD
    buffer = bytearray(tensor.nbytes)
    tensor.read_into(0, tensor.numel, memoryview(buffer))
    assert np.array_equal(np.frombuffer(buffer, np.float32).reshape(32, 8), values)
    assert HEAD not in tied.tensors
    assert freed.tying is Tying.UNTIED
    require_equal_ties([freed, llama("own")])
    assert untied(freed, HEAD) is freed


def test_untying_what_has_no_embedding_is_refused(folder: Callable) -> None:
    raw = open_checkpoint(folder("raw", {"w.weight": (4, 4)}))
    with pytest.raises(CompatibilityError, match="no stored embedding"):
        untied(raw, HEAD)
