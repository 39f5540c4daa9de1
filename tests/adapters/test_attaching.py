"""A base seen with adapters: names, shapes, strengths, ties, and the same bits whatever part is read."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.adapters.attaching import attach
from weightsmith.checkpoints import open_checkpoint, untied
from weightsmith.deltas.changed import ChangedTensor, read_elements
from weightsmith.errors import (
    CheckpointError,
    CompatibilityError,
    NonFiniteError,
    UsageError,
    WeightsmithError,
)

QUERY, HEAD, TABLE = "model.layers.0.self_attn.q_proj", "lm_head", "model.embed_tokens"
SHAPES = {
    f"{TABLE}.weight": (11, 7),
    f"{QUERY}.weight": (9, 7),
    f"{QUERY}.bias": (9,),
    "model.layers.0.self_attn.o_proj.weight": (7, 9),
    "model.layers.0.mlp.up_proj.weight": (13, 7),
    "model.norm.weight": (7,),
    f"{HEAD}.weight": (11, 7),
}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 1,
    "hidden_size": 7,
}


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


class Place:
    """A folder in which bases and adapters are written."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def base(self, tensors=None, name="base", **config):
        tensors = tensors or {n: random(*s, seed=9) for n, s in SHAPES.items()}
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / "model.safetensors")
        config = {**CONFIG, "tie_word_embeddings": False, **config}
        (folder / "config.json").write_text(json.dumps(config))
        return open_checkpoint(folder)

    def adapter(self, tensors, name="adapter", **config) -> Path:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        file = {f"base_model.model.{n}": t for n, t in tensors.items()}
        save_file(file, folder / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 3,
            "target_modules": ["q_proj"],
            **config,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


def factors(module, rows, columns, rank=2, seed=0):
    return {
        f"{module}.lora_A.weight": random(rank, columns, seed=seed),
        f"{module}.lora_B.weight": random(rows, rank, seed=seed + 1),
    }


def change(tensors, module, scale=1.5):
    up, down = tensors[f"{module}.lora_B.weight"], tensors[f"{module}.lora_A.weight"]
    return scale * up.astype(np.float64) @ down.astype(np.float64)


def values(checkpoint, name) -> np.ndarray:
    tensor = checkpoint.tensors[name]
    return read_elements(tensor, 0, tensor.numel).reshape(tensor.shape)


def raw(tensor, start, stop) -> bytes:
    data = bytearray((stop - start) * tensor.dtype.itemsize)
    tensor.read_into(start, stop, memoryview(data))
    return bytes(data)


def test_strength_0_leaves_every_tensor_as_it_is_stored(place):
    base = place.base()
    tensors = {**factors(QUERY, 9, 7), f"{HEAD}.weight": random(11, 7)}
    seen = attach(base, [(open_adapter(place.adapter(tensors)), 0.0)])
    assert seen.tensors == base.tensors
    assert seen.stored_as == {}


def test_one_rounding_from_float64(place):
    base = place.base()
    tensors = factors(QUERY, 9, 7)
    seen = attach(base, [(open_adapter(place.adapter(tensors)), 0.7)])
    exact = values(base, f"{QUERY}.weight") + 0.7 * change(tensors, QUERY)
    assert np.array_equal(values(seen, f"{QUERY}.weight"), exact.astype(np.float32))


def test_several_adapters_are_summed_and_their_order_does_not_matter(place):
    base = place.base()
    one, two = factors(QUERY, 9, 7), factors(QUERY, 9, 7, rank=3, seed=5)
    a = open_adapter(place.adapter(one, "a"))
    b = open_adapter(place.adapter(two, "b", r=3, lora_alpha=6, use_rslora=True))
    seen = attach(base, [(a, 0.5), (b, -2.0)])
    total = 0.5 * change(one, QUERY) - 2.0 * change(two, QUERY, 6 / np.sqrt(3))
    exact = values(base, f"{QUERY}.weight") + total
    np.testing.assert_allclose(values(seen, f"{QUERY}.weight"), exact, rtol=0, atol=1e-6)
    turned = attach(base, [(b, -2.0), (a, 0.5)])
    np.testing.assert_allclose(values(turned, f"{QUERY}.weight"), exact, rtol=0, atol=1e-6)


def test_one_adapter_after_the_other_is_both_at_once(place):
    base = place.base()
    a = open_adapter(place.adapter(factors(QUERY, 9, 7), "a"))
    b = open_adapter(place.adapter(factors(QUERY, 9, 7, seed=4), "b"))
    once = attach(base, [(a, 1.0), (b, 1.0)])
    twice = attach(attach(base, [(a, 1.0)]), [(b, 1.0)])
    np.testing.assert_allclose(
        values(twice, f"{QUERY}.weight"), values(once, f"{QUERY}.weight"), rtol=1e-6, atol=1e-6
    )


def test_taking_an_adapter_out_again_gives_the_base(place):
    base = place.base()
    a = open_adapter(place.adapter(factors(QUERY, 9, 7)))
    back = attach(attach(base, [(a, 1.0)]), [(a, -1.0)])
    np.testing.assert_allclose(
        values(back, f"{QUERY}.weight"), values(base, f"{QUERY}.weight"), atol=1e-6
    )


@pytest.mark.parametrize("dora", [False, True])
def test_strength_moves_between_the_base_and_the_adapted_model(place, dora):
    base = place.base()
    tensors = {**factors(QUERY, 9, 7), "model.norm.weight": random(7)}
    if dora:
        tensors[f"{QUERY}.lora_magnitude_vector"] = np.abs(random(9)) + 1
    adapter = open_adapter(place.adapter(tensors, use_dora=dora))
    full, some = attach(base, [(adapter, 1.0)]), attach(base, [(adapter, 0.25)])
    for name in (f"{QUERY}.weight", "model.norm.weight"):
        expected = values(base, name) + 0.25 * (values(full, name) - values(base, name))
        np.testing.assert_allclose(values(some, name), expected, rtol=0, atol=1e-6)


def test_dora_against_its_formula(place):
    base = place.base()
    magnitude = np.abs(random(9)) + 1
    tensors = {**factors(QUERY, 9, 7), f"{QUERY}.lora_magnitude_vector": magnitude}
    seen = attach(base, [(open_adapter(place.adapter(tensors, use_dora=True)), 1.0)])
    moved = values(base, f"{QUERY}.weight") + change(tensors, QUERY)
    for i in range(9):
        expected = float(magnitude[i]) * moved[i] / np.sqrt(sum(x * x for x in moved[i]))
        assert np.array_equal(values(seen, f"{QUERY}.weight")[i], expected.astype(np.float32))


def test_rows_without_length_stay_zero_in_dora(place):
    tensors = {n: random(*s, seed=9) for n, s in SHAPES.items()}
    tensors[f"{QUERY}.weight"][2] = 0
    pair = factors(QUERY, 9, 7)
    pair[f"{QUERY}.lora_B.weight"][2] = 0
    adapter = place.adapter(
        {**pair, f"{QUERY}.lora_magnitude_vector": np.ones(9, np.float32)}, use_dora=True
    )
    found = values(attach(place.base(tensors), [(open_adapter(adapter), 1.0)]), f"{QUERY}.weight")
    assert np.isfinite(found).all()
    assert not found[2].any()


def test_replaced_tensors_read_as_they_are_stored_and_count_as_the_bases_dtype(place):
    head = random(11, 7).astype(np.float16)
    adapter = open_adapter(place.adapter({f"{HEAD}.weight": head}))
    seen = attach(place.base(), [(adapter, 1.0)])
    assert np.array_equal(values(seen, f"{HEAD}.weight"), head.astype(np.float64))
    assert seen.tensors[f"{HEAD}.weight"].name == f"{HEAD}.weight"
    assert str(seen.dtype_of(f"{HEAD}.weight")) == "float32"


@given(st.data())
def test_the_part_that_is_read_does_not_change_a_bit(tmp_path_factory, data):
    place = Place(tmp_path_factory.mktemp("tiles"))
    rows, columns = 300, 331
    base = place.base({"model.a.weight": random(rows, columns, seed=3)})
    tensors = factors("model.a", rows, columns, rank=5)
    tensors["model.a.lora_magnitude_vector"] = np.abs(random(rows)) + 1
    adapter = open_adapter(place.adapter(tensors, r=5, use_dora=True))
    strength = data.draw(st.sampled_from([1.0, 0.3]))
    tensor = attach(base, [(adapter, strength)]).tensors["model.a.weight"]
    whole = raw(tensor, 0, tensor.numel)
    for _ in range(3):
        start = data.draw(st.integers(0, tensor.numel))
        stop = data.draw(st.integers(start, tensor.numel))
        assert raw(tensor, start, stop) == whole[start * 4 : stop * 4]


def test_factors_that_were_let_go_of_are_read_again(place):
    tensors = {f"model.m{i}.weight": random(5, 6, seed=i) for i in range(40)}
    pairs = {}
    for i in range(40):
        pairs |= factors(f"model.m{i}", 5, 6, seed=i)
    seen = attach(place.base(tensors), [(open_adapter(place.adapter(pairs)), 1.0)])
    first = [raw(tensor, 0, 30) for tensor in seen.tensors.values()]
    assert [raw(tensor, 0, 30) for tensor in seen.tensors.values()] == first
    changed = [t for t in seen.tensors.values() if isinstance(t, ChangedTensor)]
    assert sum(bool(t._loaded) for t in changed) <= 16


NAMES = {
    "the same": ("model.layers.0.q.weight", "model.layers.0.q"),
    "without a wrapper in the file": ("layers.0.q.weight", "model.layers.0.q"),
    "with a wrapper in the file": ("model.layers.0.q.weight", "layers.0.q"),
    "two wrappers": ("language_model.model.layers.0.q.weight", "model.language_model.layers.0.q"),
    "an old prefix": ("transformer.h.0.q.weight", "base_model.model.transformer.h.0.q"),
    "compiled": ("model.layers.0.q.weight", "_orig_mod.model.layers.0.q"),
    "the family's prefix": ("encoder.layer.0.q.weight", "bert.encoder.layer.0.q"),
}


@pytest.mark.parametrize(("stored", "module"), NAMES.values(), ids=NAMES)
def test_names_may_differ_by_what_wraps_the_model(place, stored, module):
    base = place.base(
        {stored: random(5, 6), "vision_tower.encoder.layers.0.k.weight": random(5, 6)}
    )
    seen = attach(base, [(open_adapter(place.adapter(factors(module, 5, 6))), 1.0)])
    assert isinstance(seen.tensors[stored], ChangedTensor)


def test_a_name_that_fits_several_tensors_is_refused(place):
    base = place.base({f"{tower}.layers.0.q.weight": random(5, 6) for tower in ("vision", "audio")})
    adapter = open_adapter(place.adapter(factors("model.layers.0.q", 5, 6)))
    with pytest.raises(
        CompatibilityError, match=r"any of 2 tensors .*'vision\.layers\.0\.q\.weight'|any of 2"
    ):
        attach(base, [(adapter, 1.0)])


def test_the_wrapped_one_of_two_towers_is_meant(place):
    names = ["vision_tower.layers.0.q.weight", "language_model.model.layers.0.q.weight"]
    base = place.base({name: random(5, 6) for name in names})
    adapter = open_adapter(place.adapter(factors("model.language_model.layers.0.q", 5, 6)))
    seen = attach(base, [(adapter, 1.0)])
    assert isinstance(seen.tensors[names[1]], ChangedTensor)
    assert seen.tensors[names[0]] is base.tensors[names[0]]


def test_a_part_that_the_base_lacks_is_not_taken_for_another(place):
    # `vision` wraps nothing: dropping it would put the tower's change into the language model.
    base = place.base({"model.layers.0.q.weight": random(5, 6)})
    adapter = open_adapter(place.adapter(factors("model.vision.layers.0.q", 5, 6)))
    with pytest.raises(
        CompatibilityError, match=r"model\.vision\.layers\.0\.q\.weight.*closest name"
    ):
        attach(base, [(adapter, 1.0)])


def test_two_targets_of_one_tensor_are_refused(place):
    base = place.base({"layers.0.q.weight": random(5, 6)})
    both = {**factors("model.layers.0.q", 5, 6), **factors("layers.0.q", 5, 6)}
    with pytest.raises(CompatibilityError, match="both mean the tensor"):
        attach(base, [(open_adapter(place.adapter(both)), 1.0)])


def test_a_key_without_a_tensor_names_the_closest_one(place):
    adapter = open_adapter(place.adapter(factors("model.layers.0.self_attn.q_prj", 9, 7)))
    with pytest.raises(
        CompatibilityError,
        match=r"q_prj\.weight.*closest name is 'model\.layers\.0\.self_attn\.q_proj",
    ):
        attach(place.base(), [(adapter, 1.0)])


def test_kernels_are_no_matrices_that_could_be_turned(place):
    tensors = {"conv.lora_A.weight": random(2, 6, 3), "conv.lora_B.weight": random(8, 2, 1)}
    base = place.base({"conv.weight": random(8, 3, 6)})
    with pytest.raises(CompatibilityError, match=r"shape \[8, 3, 6\]"):
        attach(base, [(open_adapter(place.adapter(tensors)), 1.0)])


@pytest.mark.parametrize("shape", [(9, 8), (8, 7), (11, 7)])
def test_shapes_of_another_base_are_refused(place, shape):
    adapter = open_adapter(place.adapter(factors(QUERY, *shape)))
    with pytest.raises(CompatibilityError, match=r"shape \[9, 7\]"):
        attach(place.base(), [(adapter, 1.0)])


def test_a_bias_needs_a_place_in_the_base(place):
    tensors = {
        n: t for n, t in ((n, random(*s)) for n, s in SHAPES.items()) if not n.endswith("bias")
    }
    pair = {**factors(QUERY, 9, 7), f"{QUERY}.lora_B.bias": random(9)}
    adapter = open_adapter(place.adapter(pair, lora_bias=True))
    with pytest.raises(CompatibilityError, match="has no bias"):
        attach(place.base(tensors), [(adapter, 1.0)])


def test_quantised_bases_are_refused(place):
    adapter = open_adapter(place.adapter(factors(QUERY, 9, 7)))
    tensors = {n: random(*s) for n, s in SHAPES.items()}
    integers = {**tensors, f"{QUERY}.weight": np.ones((9, 7), np.int8)}
    with pytest.raises(CompatibilityError, match="int8"):
        attach(place.base(integers), [(adapter, 1.0)])
    packed = {n: t for n, t in tensors.items() if n != f"{QUERY}.weight"}
    packed[f"{QUERY}.qweight"] = np.ones((1, 7), np.int32)
    with pytest.raises(CompatibilityError, match="quantised"):
        attach(place.base(packed), [(adapter, 1.0)])


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_strengths_are_finite(place, strength):
    adapter = open_adapter(place.adapter(factors(QUERY, 9, 7)))
    with pytest.raises(UsageError, match="finite"):
        attach(place.base(), [(adapter, strength)])


def tied(place, *, stored):
    tensors = {n: random(*s, seed=9) for n, s in SHAPES.items()}
    tensors[f"{HEAD}.weight"] = tensors[f"{TABLE}.weight"].copy()
    kept = {n: t for n, t in tensors.items() if stored or n != f"{HEAD}.weight"}
    return place.base(kept, tie_word_embeddings=True, vocab_size=11)


TABLE_PAIR = {f"{TABLE}.lora_embedding_A": random(2, 11), f"{TABLE}.lora_embedding_B": random(7, 2)}


@pytest.mark.parametrize("stored", [False, True])
def test_one_of_a_tied_pair_cannot_change_alone(place, stored):
    base = tied(place, stored=stored)
    for tensors in (factors(HEAD, 11, 7), TABLE_PAIR, {f"{TABLE}.weight": random(11, 7)}):
        with pytest.raises(CompatibilityError, match="tied"):
            attach(base, [(open_adapter(place.adapter(tensors)), 1.0)])


@pytest.mark.parametrize("stored", [False, True])
def test_tied_tensors_that_change_alike_are_changed(place, stored):
    base = tied(place, stored=stored)
    head = {
        f"{HEAD}.lora_A.weight": np.ascontiguousarray(TABLE_PAIR[f"{TABLE}.lora_embedding_B"].T),
        f"{HEAD}.lora_B.weight": np.ascontiguousarray(TABLE_PAIR[f"{TABLE}.lora_embedding_A"].T),
    }
    seen = attach(base, [(open_adapter(place.adapter({**TABLE_PAIR, **head})), 1.0)])
    down, up = (t.astype(np.float64) for t in TABLE_PAIR.values())
    expected = values(base, f"{TABLE}.weight") + 1.5 * (up @ down).T
    for name in (f"{TABLE}.weight", f"{HEAD}.weight"):
        if name in seen.tensors:
            np.testing.assert_allclose(values(seen, name), expected, atol=1e-6)
    same = {f"{TABLE}.weight": random(11, 7), f"{HEAD}.weight": random(11, 7)}
    attach(base, [(open_adapter(place.adapter(same)), 1.0)])
    other = {**same, f"{HEAD}.weight": random(11, 7, seed=1)}
    with pytest.raises(CompatibilityError, match="tied"):
        attach(base, [(open_adapter(place.adapter(other)), 1.0)])


def test_pefts_word_that_it_tied_both_counts(place):
    base = tied(place, stored=False)
    attach(base, [(open_adapter(place.adapter(TABLE_PAIR, ensure_weight_tying=True)), 1.0)])


REFUSED = {
    "another type": ({"peft_type": "C3A"}, "type 'C3A'"),
    "reflections": ({"peft_type": "HRA"}, "type 'HRA'"),
    "wavelets": ({"peft_type": "WAVEFT"}, "type 'WAVEFT'"),
    "prompts": ({"peft_type": "PROMPT_TUNING"}, "type 'PROMPT_TUNING'"),
    "adaptive ranks": ({"peft_type": "ADALORA"}, "type 'ADALORA'"),
    "repeated layers": ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
    "pooled inputs": ({"use_qalora": True}, "QALoRA"),
    "invocation tokens": ({"alora_invocation_tokens": [1, 2]}, "invocation tokens"),
    "a changed base": ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    "another changed base": ({"init_lora_weights": "olora"}, "olora"),
    "a changed quantised base": ({"init_lora_weights": "loftq"}, "LoftQ"),
    "settings of the future": ({"use_wonderful_lora": True}, "use_wonderful_lora"),
    "norms with biases": ({"use_dora": True, "lora_bias": True}, "use_dora"),
    "another rank": ({"r": 3}, "rank 2, but the configuration says 3"),
    "a rank of nothing": ({"r": 0}, "no positive number"),
    "an alpha that is no number": ({"lora_alpha": "8"}, "no finite number"),
    "a pattern that is none": ({"rank_pattern": {"(": 3}}, "it is malformed"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "message"), REFUSED.values(), ids=REFUSED)
def test_configurations_that_mean_something_else_are_refused(place, config, message):
    with pytest.raises((CheckpointError, CompatibilityError), match=message) as caught:
        open_adapter(place.adapter(factors(QUERY, 9, 7), **config))
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("pattern", ["([a-z0-9_.]+)+!", "(a|a)*!", "(?:(?:.?){40}){40}!"])
def test_patterns_that_python_would_try_for_ever_are_answered_at_once(place, pattern):
    # 2^n ways for a name of n characters; none matches, so that the rank is the common one.
    patterns = {pattern: 3, "q_proj": 2}
    open_adapter(place.adapter(factors(QUERY, 9, 7), rank_pattern=patterns, alpha_pattern=patterns))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [(r"(q)\1", "refers back"), ("(?:(?:q{1000}){1000}){1000}", "more than 1000000 characters")],
)
def test_patterns_that_cannot_be_matched_in_bounded_time_are_refused(place, pattern, message):
    with pytest.raises(CheckpointError, match=message):
        open_adapter(place.adapter(factors(QUERY, 9, 7), rank_pattern={pattern: 3}))


def test_settings_of_the_future_that_are_off_do_no_harm(place):
    open_adapter(
        place.adapter(factors(QUERY, 9, 7), use_wonderful_lora=False, wonderful_config=None)
    )


KEYS = {
    "no partner": ({f"{QUERY}.lora_A.weight": random(2, 7)}, "no partner 'lora_B'"),
    "a magnitude alone": ({f"{QUERY}.lora_magnitude_vector": random(9)}, "no partner 'lora_A'"),
    "an unknown part": ({**factors(QUERY, 9, 7), f"{QUERY}.lora_C.weight": random(2)}, "lora_C"),
    "another kind": ({f"{QUERY}.ia3_l": random(2)}, "ia3_l"),
    "a bias of A": ({**factors(QUERY, 9, 7), f"{QUERY}.lora_A.bias": random(2)}, r"lora_A\.bias"),
    "ranks that differ": ({**factors(QUERY, 9, 7), f"{QUERY}.lora_B.weight": random(9, 3)}, "cannot be multiplied"),
    "a magnitude that is not to count": (
        {**factors(QUERY, 9, 7), f"{QUERY}.lora_magnitude_vector": random(9)},
        "only counts with 'use_dora'",
    ),
    "a bias that is not to count": (
        {**factors(QUERY, 9, 7), f"{QUERY}.lora_B.bias": random(9)},
        "only counts with 'lora_bias'",
    ),
    "two adapters": (
        {f"{QUERY}.lora_A.x.weight": random(2, 7), f"{QUERY}.lora_B.y.weight": random(9, 2)},
        "adapters 'x', 'y'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "message"), KEYS.values(), ids=KEYS)
def test_keys_that_are_unknown_or_alone_are_refused_by_name(place, tensors, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        open_adapter(place.adapter(tensors))
    assert QUERY in str(caught.value) or "adapters" in message


def test_magnitudes_have_the_length_of_the_outputs_and_belong_to_every_module(place):
    pair = factors(QUERY, 9, 7)
    with pytest.raises(CheckpointError, match="9 outputs"):
        open_adapter(
            place.adapter({**pair, f"{QUERY}.lora_magnitude_vector": random(7)}, use_dora=True)
        )
    with pytest.raises(CheckpointError, match="has no magnitude"):
        open_adapter(place.adapter(pair, use_dora=True))


def test_keys_without_pefts_prefix_are_refused(place):
    folder = place.adapter(factors(QUERY, 9, 7))
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), "stray": random(2)}, file)
    with pytest.raises(CheckpointError, match="stray"):
        open_adapter(folder)


def test_a_broken_factor_is_named_when_it_is_read(place):
    pair = factors(QUERY, 9, 7)
    pair[f"{QUERY}.lora_A.weight"][0, 0] = np.nan
    seen = attach(place.base(), [(open_adapter(place.adapter(pair)), 1.0)])
    with pytest.raises(NonFiniteError, match=r"lora_A\.weight"):
        values(seen, f"{QUERY}.weight")


def test_files_that_are_missing_or_lead_out_of_the_folder_are_refused(place, tmp_path):
    folder = place.adapter(factors(QUERY, 9, 7))
    file = folder / "adapter_model.safetensors"
    elsewhere = tmp_path / "elsewhere.kept"
    file.rename(elsewhere)
    with pytest.raises(CheckpointError, match="neither"):
        open_adapter(folder)
    file.symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="link"):
        open_adapter(folder)
    with pytest.raises(CheckpointError, match=r"'adapter'"):
        open_adapter(tmp_path)


def test_an_initial_adapter_is_taken_out_again(place):
    # Training changed the base to W - s B0 A0; the change of W is s (B A - B0 A0).
    base = place.base()
    first, last = factors(QUERY, 9, 7, seed=2), factors(QUERY, 9, 7, seed=7)
    before = place.adapter(first, "before", init_lora_weights=True)
    after = place.adapter(last, "after", init_lora_weights="pissa")
    adapter = open_adapter(after, initial=before)
    seen = attach(base, [(adapter, 1.0)])
    exact = values(base, f"{QUERY}.weight") + change(last, QUERY) - change(first, QUERY)
    np.testing.assert_allclose(values(seen, f"{QUERY}.weight"), exact, rtol=0, atol=1e-6)
    update = adapter.updates[f"{QUERY}.weight"]
    assert (update.rank, update.alpha, update.scale) == (4, 6.0, 1.5)
    none = attach(base, [(open_adapter(before, initial=before), 1.0)])
    np.testing.assert_allclose(
        values(none, f"{QUERY}.weight"), values(base, f"{QUERY}.weight"), atol=1e-6
    )
    other = place.adapter(factors("model.layers.0.self_attn.o_proj", 7, 9), "other")
    with pytest.raises(CompatibilityError, match="initial adapter"):
        open_adapter(after, initial=other)


def test_an_untied_base_takes_a_change_of_its_head_alone(place):
    base = tied(place, stored=False)
    pair = factors(HEAD, 11, 7)
    seen = attach(untied(base, f"{HEAD}.weight"), [(open_adapter(place.adapter(pair)), 1.0)])
    table = values(base, f"{TABLE}.weight")
    np.testing.assert_allclose(
        values(seen, f"{HEAD}.weight"), table + change(pair, HEAD), atol=1e-6
    )
    assert np.array_equal(values(seen, f"{TABLE}.weight"), table)


def test_a_base_layer_in_an_old_dump_is_what_the_factors_were_trained_on(place):
    pair, other = factors(QUERY, 9, 7), random(9, 7, seed=6)
    dumped = {**pair, f"{QUERY}.base_layer.weight": other, f"{QUERY}.base_layer.bias": random(9)}
    seen = attach(place.base(), [(open_adapter(place.adapter(dumped)), 1.0)])
    exact = other.astype(np.float64) + change(pair, QUERY)
    assert np.array_equal(values(seen, f"{QUERY}.weight"), exact.astype(np.float32))
    assert np.array_equal(values(seen, f"{QUERY}.bias"), random(9).astype(np.float64))


def test_names_are_no_paths(place):
    adapter = open_adapter(place.adapter(factors("../../model.layers.0.self_attn.q_proj", 9, 7)))
    with pytest.raises(CompatibilityError, match=r"'\.\./\.\./model"):
        attach(place.base(), [(adapter, 1.0)])


_PARTS = st.sampled_from(
    "lora_A.weight lora_B.weight lora_A.x.weight lora_B.bias lora_A lora_embedding_A lora_embedding_B weight bias "
    "lora_magnitude_vector hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 lokr_w1 lokr_w2 lokr_w2_a lokr_t2 lokr_w2_b "
    "token_adapter.trainable_tokens_delta base_layer.weight modules_to_save.x.weight original_module.weight "
    "lora_down.weight lora_up.weight lora_mid.weight alpha dora_scale diff diff_b w_norm".split()
)
_STARTS = st.sampled_from(
    [f"base_model.model.{m}" for m in (QUERY, TABLE)]
    + ["lora_unet_model_norm", f"unet.{QUERY}", "lycoris_lm_head"]
)
_ARRAYS = st.builds(
    lambda shape, dtype: np.ones(shape, dtype),
    st.lists(st.sampled_from([0, 1, 2, 7, 9]), max_size=4).map(tuple),
    st.sampled_from([np.float32, np.float16, np.int32]),
)
_SETTINGS = st.dictionaries(
    st.sampled_from(
        "peft_type r lora_alpha alpha rank_pattern use_dora trainable_token_indices target_parameters target_modules "
        "fan_in_fan_out modules_to_save base_model_name_or_path".split()
    ),
    st.sampled_from(
        [
            "LORA",
            "LOHA",
            "LOKR",
            "",
            None,
            2,
            -1,
            1.5,
            True,
            [1],
            [[1]],
            ["q_proj"],
            {"(": 2},
            {"q_proj": [0]},
        ]
    ),
    max_size=5,
)


@given(
    st.dictionaries(st.tuples(_STARTS, _PARTS), _ARRAYS, min_size=1, max_size=6),
    _SETTINGS,
    st.booleans(),
)
def test_whatever_a_file_holds_is_read_or_refused(tmp_path_factory, tensors, settings, folder):
    place = Place(tmp_path_factory.mktemp("fuzz"))
    written = place.adapter({}, **settings)
    file = written / "adapter_model.safetensors"
    save_file({f"{start}.{part}": t for (start, part), t in tensors.items()}, file)
    if not folder:
        file = file.rename(place.root / "single.safetensors")
    # Nothing but the errors that are meant for users may come out of it.
    with contextlib.suppress(WeightsmithError):
        seen = attach(place.base(), [(open_adapter(written if folder else file), 1.0)])
        for tensor in seen.tensors.values():
            raw(tensor, 0, tensor.numel)
