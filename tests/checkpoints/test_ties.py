"""Tied tensors, and what happens where tied and untied checkpoints meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import weightsmith
from weightsmith.checkpoints import Checkpoint, Tying, open_checkpoint, untied
from weightsmith.checkpoints.compatibility import tie_findings
from weightsmith.checkpoints.head_names import head_name
from weightsmith.errors import CompatibilityError

Llama = Callable[..., Checkpoint]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
VALUES = np.arange(32 * 8, dtype=np.float32).reshape(32, 8)
COPIES = {EMBEDDING: VALUES, HEAD: VALUES}


def test_an_absent_head_is_tied_whether_the_config_says_so_or_is_silent(llama: Llama) -> None:
    assert llama("said", head=False).tying is Tying.TIED
    silent = llama("silent", head=False, tie_word_embeddings=None)
    assert silent.tying is Tying.TIED
    assert silent.ties == ()


def test_a_stored_head_is_its_own_unless_the_config_ties_it(llama: Llama) -> None:
    assert llama("own").tying is Tying.UNTIED
    assert llama("silent", tie_word_embeddings=None).tying is Tying.UNTIED
    both = llama("both", tie_word_embeddings=True, extra=COPIES)
    assert both.tying is Tying.TIED
    assert both.ties == (frozenset({EMBEDDING, HEAD}),)
    assert "head-of-its-own" not in [f.code for f in both.findings()]


def test_an_equal_head_is_tied_where_the_config_is_silent_and_its_own_where_it_is_said_to_be(
    llama: Llama,
) -> None:
    silent = llama("silent", tie_word_embeddings=None, extra=COPIES)
    assert silent.tying is Tying.TIED
    said = llama("said", tie_word_embeddings=False, extra=COPIES)
    assert said.tying is Tying.UNTIED
    assert said.ties == ()


def test_a_bias_that_older_files_have_twice_is_tied(llama: Llama) -> None:
    same = np.ones(32, np.float32)
    twice = llama(extra={"cls.predictions.bias": same, "cls.predictions.decoder.bias": same})
    assert twice.ties == (frozenset({"cls.predictions.bias", "cls.predictions.decoder.bias"}),)
    apart = llama(extra={"cls.predictions.bias": same, "cls.predictions.decoder.bias": 2 * same})
    assert apart.ties == ()


@pytest.mark.parametrize("trained", [slice(None), slice(-1, None), slice(0, 1)], ids=str)
def test_a_head_with_numbers_of_its_own_is_not_tied_by_a_word(llama: Llama, trained: slice) -> None:
    """As training table and head apart leaves them: it was dropped, where transformers loads it."""
    head = VALUES.copy()
    head[trained] += 1.0
    model = llama(tie_word_embeddings=True, extra={EMBEDDING: VALUES, HEAD: head})
    assert model.tying is Tying.UNTIED
    assert model.ties == ()
    (finding,) = [f for f in model.findings() if f.code == "head-of-its-own"]
    assert HEAD in finding.message


def test_a_merge_keeps_a_head_of_its_own_and_says_so(llama: Llama, tmp_path: Path) -> None:
    heads = []
    for name, size in (("a", 1.0), ("b", 3.0)):
        heads.append(VALUES * size + 1.0)
        llama(name, tie_word_embeddings=True, extra={EMBEDDING: VALUES, HEAD: heads[-1]})
    models = [{"model": str(tmp_path / name)} for name in "ab"]
    recipe = {"weightsmith": 1, "merge_method": "linear", "models": models}
    weightsmith.merge(recipe, tmp_path / "out")
    merged = open_checkpoint(tmp_path / "out")
    assert merged.config["tie_word_embeddings"] is False
    buffer = bytearray(merged.tensors[HEAD].nbytes)
    merged.tensors[HEAD].read_into(0, VALUES.size, memoryview(buffer))
    found = np.frombuffer(buffer, np.float32).reshape(VALUES.shape)
    np.testing.assert_allclose(found, np.mean(heads, axis=0))


def test_a_nested_text_config_is_asked(llama: Llama) -> None:
    said = {"text_config": {"tie_word_embeddings": True}}
    both = llama(tie_word_embeddings=None, extra=COPIES, **said)
    assert both.tying is Tying.TIED


def test_a_model_without_a_language_head_is_neither(llama: Llama, folder: Callable) -> None:
    encoder = llama(head=False, architectures=["LlamaModel"], tie_word_embeddings=True)
    assert encoder.tying is Tying.NO_HEAD
    raw = open_checkpoint(folder("raw", {"w.weight": (4, 4)}))
    assert raw.tying is Tying.NO_HEAD


def test_numbers_beside_a_quantised_table_are_no_head(folder: Callable) -> None:
    table = {"ibert.embeddings.word_embeddings.weight": (32, 8)}
    beside = {"ibert.embeddings.word_embeddings.weight_integer": (32, 8), "lm_head.bias": (32,)}
    config = {"model_type": "ibert", "architectures": ["IBertForMaskedLM"], "vocab_size": 32}
    assert open_checkpoint(folder("ibert", table | beside, config)).tying is Tying.TIED


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
    (finding,) = tie_findings([tied, own])
    assert finding.code == "tied-untied-mix"
    assert "own-head" in finding.message
    assert finding == tie_findings([own, tied])[0]
    assert "tied-one" in finding.sentence
    assert "untie: true" in finding.sentence
    assert not tie_findings([tied, tied])
    assert not tie_findings([own, llama("b")])


def test_untying_reads_the_embedding_as_the_head_and_then_mixes(llama: Llama) -> None:
    tied = llama("tied", head=False, extra={EMBEDDING: VALUES})
    freed = untied(tied, HEAD)
    tensor = freed.tensors[HEAD]
    assert tensor.name == HEAD
    buffer = bytearray(tensor.nbytes)
    tensor.read_into(0, tensor.numel, memoryview(buffer))
    assert np.array_equal(np.frombuffer(buffer, np.float32).reshape(32, 8), VALUES)
    assert HEAD not in tied.tensors
    assert freed.tying is Tying.UNTIED
    assert not tie_findings([freed, llama("own")])
    assert untied(freed, HEAD) is freed


@pytest.mark.parametrize(
    ("embedding", "family", "head"),
    [
        ("model.embed_tokens.weight", "llama", "lm_head.weight"),
        ("model.language_model.embed_tokens.weight", "gemma3", "lm_head.weight"),
        ("language_model.model.embed_tokens.weight", "llava", "language_model.lm_head.weight"),
        ("transformer.wte.weight", "gpt2", "lm_head.weight"),
        ("bert.embeddings.word_embeddings.weight", "bert", "cls.predictions.decoder.weight"),
        ("model.decoder.embed_tokens.weight", "whisper", "proj_out.weight"),
        ("some.table.weight", "unheard_of", None),
    ],
)
def test_a_head_that_is_not_stored_has_the_name_that_libraries_give_it(
    embedding: str, family: str, head: str | None
) -> None:
    assert head_name(embedding, {"model_type": family}) == head


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_head_that_transformers_ties_is_called_as_there_or_not_known() -> None:
    import importlib

    transformers = pytest.importorskip("transformers")
    families = Path(transformers.models.__file__).parent.iterdir()
    found = 0
    for family in sorted(f.name for f in families if f.is_dir()):
        try:
            module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        except ImportError:
            continue
        for network in vars(module).values():
            if getattr(network, "__module__", "") != module.__name__:
                continue
            ties = getattr(network, "_tied_weights_keys", None)
            for head, embedding in ties.items() if isinstance(ties, dict) else ():
                own = getattr(getattr(network, "config_class", None), "model_type", family)
                name = head_name(embedding, {"model_type": own})
                is_head = "embed" not in head and head.endswith(".weight")
                if is_head and name is not None and head != "embed_out.weight":
                    found += 1
                    assert name in (head, "embed_out.weight"), (network, embedding)
    assert found > 250


def test_a_network_that_scales_a_tied_head_alone_is_not_untied(llama: Llama) -> None:
    tied = llama(head=False, model_type="t5")
    with pytest.raises(CompatibilityError, match="scales what a tied head scores"):
        untied(tied, HEAD)


def test_untying_what_has_no_embedding_is_refused(folder: Callable) -> None:
    raw = open_checkpoint(folder("raw", {"w.weight": (4, 4)}))
    with pytest.raises(CompatibilityError, match="no stored embedding"):
        untied(raw, HEAD)


def test_a_bias_that_a_head_shares_is_its_own_with_it(folder: Callable) -> None:
    table, bias = np.ones((32, 8), np.float32), np.arange(32, dtype=np.float32)
    tensors = {"bert.embeddings.word_embeddings.weight": table, "cls.predictions.bias": bias}
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    freed = untied(
        open_checkpoint(folder("bert", tensors, config)), "cls.predictions.decoder.weight"
    )
    assert freed.tensors["cls.predictions.decoder.bias"].shape == (32,)
    assert freed.tying is Tying.UNTIED
