"""Statistics of tiny networks, against gradients and rows written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.live.architectures import ARCHITECTURES, reference

import weightsmith
from weightsmith.live import IGNORED, load_model
from weightsmith.statistics import Samples, every_token, next_tokens, one_class, unpadded
from weightsmith.statistics.collected import takes_blocks
from weightsmith.statistics.losses import ItemScalar
from weightsmith.statistics.wanted import Wanted
from weightsmith.tensors.compressed import read_array

from . import reference as by_hand

KINDS = {
    "llama": (next_tokens, by_hand.causal_logs),
    "mixtral": (next_tokens, by_hand.causal_logs),
    "bert masked": (every_token, by_hand.item_logs),
    "bert classes": (one_class, by_hand.item_logs),
    "vit classes": (one_class, by_hand.item_logs),
    "t5": (every_token, by_hand.item_logs),
}


def samples_of(name, rows=None):
    """A few items of an architecture, of different lengths where they are texts, with labels."""
    batch = ARCHITECTURES[name].batch()
    predictions = KINDS[name][0]
    if name == "t5":
        labels = torch.tensor([[5, 6, 7, 8], [9, 8, IGNORED, IGNORED]])
    elif predictions is one_class:
        labels = torch.tensor([[2], [0]])
    elif predictions is every_token:
        labels = torch.full_like(batch["input_ids"], IGNORED)
        labels[:, 1], labels[0, 3] = 7, 9
    else:
        labels = None
    items = unpadded(batch, labels)
    if labels is None:
        items = [replace(i, labels=i.inputs["input_ids"][1:]) for i in items]
    classes = 3 if predictions is one_class else 48
    items = [replace(item, classes=classes) for item in items][:rows]
    return Samples("items", items, "objective", predictions, is_text=name != "vit classes")


def collected(model, data, out, what, **options):
    """The tensors of one kind, by stored names, as methods read them."""
    weightsmith.collect(what, model, data=data, out=out, **options)
    statistics = weightsmith.read_statistics(out)
    tensors = statistics.checkpoint.tensors
    return {n: torch.from_numpy(read_array(t)) for n, t in tensors.items()}, statistics


def assert_near(found, expected, least=1e-5, among=0.0):
    """Equal to rounding, of numbers that are `among` others as large as that."""
    scale = max(float(expected.abs().max()), 1e-3 * among)
    assert scale > 0
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=least * scale)


def assert_all_near(found, expected):
    # A bias of keys has no gradient but rounding's.
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    for key, tensor in expected.items():
        assert_near(found[key], tensor, among=largest)


@pytest.mark.parametrize("name", KINDS)
def test_empirical_fishers_are_mean_squares_of_gradients(saved, tmp_path, name):
    folder, samples = saved(name), samples_of(name)
    model = reference(folder)
    names = load_model(folder).names
    for per in ("sequence", "token"):
        found, statistics = collected(
            folder,
            samples,
            tmp_path / f"{per}.safetensors",
            "fisher",
            estimator="empirical",
            per=per,
        )
        expected = names.to_files(
            by_hand.empirical_fisher(model, samples.items, KINDS[name][1], per_token=per == "token")
        )
        assert found.keys() == expected.keys()
        assert_all_near(found, expected)
        assert (statistics.header.estimator, statistics.header.per) == ("empirical", per)


@pytest.mark.parametrize("name", ["bert classes", "vit classes", "llama"])
def test_exact_fishers_are_expectations_over_the_model_s_own_distribution(saved, tmp_path, name):
    folder, samples = saved(name), samples_of(name, rows=1)
    found, _ = collected(folder, samples, tmp_path / "f.safetensors", "fisher", estimator="exact")
    expected = by_hand.exact_fisher(reference(folder), samples.items, KINDS[name][1])
    assert_all_near(found, load_model(folder).names.to_files(expected))


def test_drawn_labels_come_close_to_the_expectation(saved, tmp_path):
    folder, samples = saved("bert classes"), samples_of("bert classes")
    exact, _ = collected(folder, samples, tmp_path / "e.safetensors", "fisher", estimator="exact")
    key = "classifier.weight"
    errors = []
    for draws in (10, 1000):
        drawn, statistics = collected(
            folder, samples, tmp_path / "m.safetensors", "fisher", estimator=f"mc:{draws}"
        )
        errors.append(float((drawn[key] - exact[key]).norm() / exact[key].norm()))
        assert statistics.header.estimator == f"mc:{draws}"
    assert errors[1] < 0.1 < errors[0] * 3


def test_labels_are_drawn_with_their_probabilities():
    logs = torch.tensor([[0.1, 0.2, 0.7]]).log().expand(20_000, 3)
    drawn = ItemScalar("mc", seed=3)._drawn(logs)
    shares = drawn.bincount(minlength=3) / len(drawn)
    assert shares.tolist() == pytest.approx([0.1, 0.2, 0.7], abs=0.02)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_summed_up_over_items(saved, tmp_path, name):
    folder, samples = saved(name), samples_of(name)
    found, statistics = collected(folder, samples, tmp_path / "g.safetensors", "gradients:1")
    live = load_model(folder)
    model = reference(folder)
    every = [live.names.to_files(g) for g in by_hand.losses(model, samples.items, KINDS[name][1])]
    weights = live.names.to_files({n: p.detach() for n, p in model.named_parameters()})
    expected: dict[str, dict] = {
        "0": {},
        "mean": {},
        "absolute": {},
        "taylor": {},
        "sensitivity": {},
    }
    for key in every[0]:
        own = torch.stack([gradients[key] for gradients in every])
        products = (own * weights[key]).flatten(1).sum(1)
        expected["0"][f"{key}::0"] = own[0]
        expected["mean"][f"{key}::mean"] = own.mean(0)
        expected["absolute"][f"{key}::absolute"] = own.abs().mean(0)
        expected["taylor"][f"{key}::taylor"] = own.mean(0) * weights[key]
        expected["sensitivity"][f"{key}::sensitivity"] = products.abs().mean()[None]
        assert statistics.names(key) == (f"{key}::0",)
    for own in expected.values():
        assert_all_near(found, own)
    assert found.keys() == {key for own in expected.values() for key in own}


@pytest.mark.parametrize("name", ["llama", "bert masked", "bert classes", "vit classes", "t5"])
def test_gram_matrices_and_channels_are_those_of_all_rows(saved, tmp_path, name):
    folder, samples = saved(name), samples_of(name)
    rows = by_hand.passages(reference(folder), samples.items)
    grams, statistics = collected(folder, samples, tmp_path / "g.safetensors", "gram")
    channels, _ = collected(folder, samples, tmp_path / "c.safetensors", "channels")
    names = load_model(folder).names
    measured = 0
    for module, (read, given) in rows.items():
        memory = f"{module}.weight"
        if names.owners[memory] != memory:
            continue
        (key,) = names.files_of(memory)
        measured += 1
        (held,) = statistics.names(key)
        assert_near(grams[held], read.T @ read / len(read))
        assert statistics.header.rows[statistics.header.same.get(key, key)] == len(read)
        assert_near(channels[f"{key}::input_magnitude"], read.abs().mean(0))
        assert_near(channels[f"{key}::input_square"], read.square().mean(0))
        assert_near(channels[f"{key}::output_mean"], given.mean(0))
        assert_near(channels[f"{key}::output_variance"], given.var(0, unbiased=False))
    assert measured >= 8


def test_patches_of_convolutions_are_rows(saved, tmp_path):
    folder, samples = saved("vit classes"), samples_of("vit classes")
    found, _ = collected(folder, samples, tmp_path / "g.safetensors", "gram")
    key = "vit.embeddings.patch_embeddings.projection.weight"
    side = load_file(folder / "model.safetensors")[key].shape[-1]
    images = torch.stack([sample.inputs["pixel_values"] for sample in samples.items])
    patches = images.unfold(2, side, side).unfold(3, side, side)  # [B, C, H, W, side, side]
    rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, side * side).double()
    assert_near(found[key], rows.T @ rows / len(rows))


def test_who_reads_the_same_has_one_matrix(saved, tmp_path):
    found, statistics = collected(
        saved("llama"), samples_of("llama"), tmp_path / "g.safetensors", "gram"
    )
    layer = "model.layers.0"
    assert statistics.header.same[f"{layer}.self_attn.k_proj.weight"] == (
        f"{layer}.self_attn.q_proj.weight"
    )
    assert f"{layer}.mlp.up_proj.weight" not in found
    assert statistics.names(f"{layer}.mlp.up_proj.weight") == (f"{layer}.mlp.gate_proj.weight",)
    # Half of each matrix is stored.
    stored = load_file(tmp_path / "g.safetensors")
    assert stored[f"{layer}.self_attn.q_proj.weight::upper"].shape == (16 * 17 // 2,)


def test_a_head_that_is_tied_to_the_embedding_has_no_matrix(saved, tmp_path):
    folder = saved("llama tied")
    items = unpadded(ARCHITECTURES["llama tied"].batch())
    data = Samples("items", items, predictions=next_tokens)
    _, statistics = collected(folder, data, tmp_path / "g.safetensors", "gram")
    assert not statistics.names("model.embed_tokens.weight")


def test_padding_and_batches_change_nothing(saved, tmp_path):
    folder = saved("llama")
    batch = ARCHITECTURES["llama"].batch()
    assert (batch["attention_mask"] == 0).any()
    items = unpadded(batch) * 3
    for what in ("gram", "channels"):
        one, _ = collected(
            folder,
            Samples("alone", items, predictions=next_tokens),
            tmp_path / "a.safetensors",
            what,
            batch_size=1,
        )
        many, _ = collected(
            folder,
            Samples("many", items, predictions=next_tokens),
            tmp_path / "b.safetensors",
            what,
            batch_size=8,
        )
        rows = by_hand.passages(reference(folder), items)
        for key in one:
            assert_near(one[key], many[key], 1e-6)
        if what == "gram":
            read = rows["lm_head"][0]
            assert_near(one["lm_head.weight"], read.T @ read / len(read))


@pytest.mark.parametrize("what", ["gram", "channels", "fisher", "gradients"])
def test_sums_over_parts_are_those_over_the_whole(saved, tmp_path, what):
    folder, samples = saved("llama"), samples_of("llama")
    parts = [replace(samples, items=[item]) for item in samples.items]
    options = {"estimator": "empirical"} if what == "fisher" else {}
    whole, _ = collected(folder, samples, tmp_path / "w.safetensors", what, **options)
    halves = [
        collected(folder, part, tmp_path / f"{i}.safetensors", what, **options)
        for i, part in enumerate(parts)
    ]
    for key in whole:
        if key.endswith(("variance", "sensitivity", "absolute")):
            continue
        weights = [
            halves[i][1].header.rows.get(key.partition("::")[0], 1) for i in range(len(halves))
        ]
        sums = sum(w * half[0][key] for w, half in zip(weights, halves, strict=True))
        assert_near(whole[key], sums / sum(weights))


@pytest.mark.parametrize("name", [*KINDS, "resnet", "gpt2", "bert", "bart", "gpt-oss"])
def test_block_by_block_is_whole_to_the_bit(saved, tmp_path, name):
    folder = saved(name)
    has_losses = name in KINDS
    what = "gram,channels,fisher,gradients:1" if has_losses else "gram,channels"
    samples = (
        samples_of(name) if has_losses else Samples("items", unpadded(ARCHITECTURES[name].batch()))
    )
    files = []
    for out, memory in (("whole", 1 << 40), ("blocks", 1)):
        made = weightsmith.collect(
            what, folder, data=samples, out=tmp_path / f"{out}.safetensors", memory_bytes=memory
        )
        assert made.blocks == (out == "blocks")
        files.append([file.path.read_bytes() for file in made.files])
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_sums_of_gram_matrices_count_where_a_network_is_to_fit_into_memory(saved, name):
    folder = saved(name)
    network, model = reference(folder), load_model(folder, filled=False)
    weights = 4 * sum(p.numel() for p in network.parameters())
    linear = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    sums = 8 * sum(m.in_features**2 for m in linear)
    for path, module in network.named_modules():
        if path.endswith(".experts"):
            count, hidden, inner = module.down_proj.shape
            sums += 8 * count * (hidden**2 + inner**2)
    gram = Wanted(("gram",))
    assert not takes_blocks(model, Wanted(("channels",)), weights)
    assert takes_blocks(model, gram, weights + sums - 1)
    assert not takes_blocks(model, gram, weights + (sums if name == "llama" else 9 * sums))


def test_weights_in_bfloat16_are_computed_with_in_float32(saved, tmp_path):
    """They are what a copy of the checkpoint in float32 gives, to the bit."""
    samples, files = samples_of("llama"), []
    for dtype in (torch.bfloat16, torch.float32):
        folder = in_dtype(saved("llama"), tmp_path / str(dtype), dtype)
        own = []
        for kind in ("gram", "channels", "fisher", "gradients"):
            found, statistics = collected(folder, samples, tmp_path / "s.safetensors", kind)
            assert statistics.header.dtype == ""
            own.append(found)
        files.append(own)
    for one, other in zip(*files, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


# Of the norm of all of a tensor's numbers. bfloat16 has 8 bits; gradients go through more of it than activations.
@pytest.mark.parametrize(
    ("what", "tolerance"), [("gram", 0.03), ("fisher", 0.05), ("channels", 0.03)]
)
def test_computing_in_bfloat16_comes_close(saved, tmp_path, what, tolerance):
    folder = in_dtype(saved("llama"), tmp_path / "model", torch.bfloat16)
    options = {"estimator": "empirical"} if what == "fisher" else {}
    exact, _ = collected(folder, samples_of("llama"), tmp_path / "e.safetensors", what, **options)
    for memory in (1 << 40, 1):
        near, statistics = collected(
            folder,
            samples_of("llama"),
            tmp_path / f"{memory}.safetensors",
            what,
            dtype="bfloat16",
            memory_bytes=memory,
            **options,
        )
        assert statistics.header.dtype == "bfloat16"
        errors = {k: float((near[k] - own).norm() / own.norm()) for k, own in exact.items()}
        assert 0 < max(errors.values()) < tolerance


def in_dtype(folder, place, dtype):
    """A checkpoint whose numbers bfloat16 has, stored in a dtype."""
    place.mkdir()
    tensors = load_file(folder / "model.safetensors")
    rounded = {name: tensor.bfloat16().to(dtype) for name, tensor in tensors.items()}
    save_file(rounded, place / "model.safetensors", {"format": "pt"})
    (place / "config.json").write_bytes((folder / "config.json").read_bytes())
    return place
