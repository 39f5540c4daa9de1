"""Classification: accuracies against the library's own models, and data that does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score

from weightsmith import evaluate
from weightsmith.errors import CompatibilityError, NonFiniteError, UsageError
from weightsmith.live import load_model, quiet_library, residual_perceptron


def task(**changes):
    return {"name": "shapes", "kind": "classification", "data": "images.npz", **changes}


def test_the_model_s_own_head_gives_sklearn_s_accuracy(models, tmp_path, suite, images):
    found = evaluate(models / "resnet", suite(task(slice="half")), batch_size=7)
    data = np.load(tmp_path / images)
    with quiet_library():
        model = transformers.ResNetForImageClassification.from_pretrained(models / "resnet").eval()
    with torch.no_grad():
        guesses = model(pixel_values=torch.from_numpy(data["inputs"])).logits.argmax(1).numpy()
    score = found.score("shapes")
    assert score.value == pytest.approx(accuracy_score(data["labels"], guesses))
    assert score.items == 60
    assert 0 <= score.low <= score.value <= score.high <= 1
    items = found.items["shapes"]
    assert items.answers == tuple(["cat", "dog", "eel"][g] for g in guesses)
    assert items.slices == ("first",) * 30 + ("second",) * 30
    assert items.binary


def test_a_frozen_head_reads_the_mean_of_the_patches(models, tmp_path, suite, images, head):
    found = evaluate(models / "vit", suite(task(head=head)))
    data = np.load(tmp_path / images)
    with quiet_library():
        model = transformers.ViTModel.from_pretrained(
            models / "vit", add_pooling_layer=False
        ).eval()
    from safetensors.torch import load_file

    parts = load_file(tmp_path / head)
    with torch.no_grad():
        states = (
            model(pixel_values=torch.from_numpy(data["inputs"])).last_hidden_state[:, 1:].mean(1)
        )
    centred = states - parts["mean"]
    logits = centred @ parts["directions"].T / centred.norm(dim=1, keepdim=True)
    right = (logits.argmax(1).numpy() == data["labels"]).astype(float)
    assert np.array_equal(found.items["shapes"].values, right)
    assert 0 < right.mean() < 1


def test_a_linear_head_reads_pooled_features(models, tmp_path, suite, images):
    torch.manual_seed(1)
    tensors = {"weight": torch.randn(3, 16), "bias": torch.randn(3)}
    metadata = {"classes": json.dumps(["cat", "dog", "eel"])}
    save_file(tensors, tmp_path / "linear.safetensors", metadata=metadata)
    found = evaluate(models / "resnet", suite(task(head="linear.safetensors")))
    data = np.load(tmp_path / images)
    with quiet_library():
        model = transformers.ResNetModel.from_pretrained(models / "resnet").eval()
    with torch.no_grad():
        pooled = model(pixel_values=torch.from_numpy(data["inputs"])).pooler_output.flatten(1)
    guesses = (pooled @ tensors["weight"].T + tensors["bias"]).argmax(1).numpy()
    assert np.array_equal(found.items["shapes"].values, (guesses == data["labels"]).astype(float))


def test_half_precision_is_loaded_as_float32(models, tmp_path, suite, images, head):  # noqa: ARG001
    with quiet_library():
        model = transformers.ViTModel.from_pretrained(models / "vit", add_pooling_layer=False)
        model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    live = load_model(tmp_path / "half")
    assert {p.dtype for p in live.module.parameters()} == {torch.float32}
    assert live.matched == len(live.module.state_dict())
    for own, half in zip(
        live.module.state_dict().values(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(own, half.float())
    assert evaluate(tmp_path / "half", suite(task(head=head))).score("shapes").items == 60


@pytest.fixture
def digits(tmp_path):
    """A checkpoint of the digits family's form with random weights."""
    config = {
        "model_type": "digits-mlp",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_labels": 10,
    }
    torch.manual_seed(3)
    model = residual_perceptron(config)
    folder = tmp_path / "digits"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    generator = np.random.default_rng(4)
    np.savez(
        tmp_path / "digits.npz",
        inputs=generator.random((40, 64)).astype(np.float16),
        labels=np.arange(40) % 10,
    )
    return folder


def test_a_network_that_is_not_transformers_is_read_through_the_registry(digits, tmp_path, suite):
    from safetensors.numpy import load_file

    found = evaluate(digits, suite(task(data="digits.npz")))
    state = load_file(digits / "model.safetensors")
    data = np.load(tmp_path / "digits.npz")
    hidden = np.maximum(
        data["inputs"] @ state["model.embed.weight"].T + state["model.embed.bias"], 0
    )
    for layer in range(2):
        weight, bias = (state[f"model.layers.{layer}.{part}"] for part in ("weight", "bias"))
        hidden = hidden + np.maximum(hidden @ weight.T + bias, 0)
    logits = hidden @ state["classifier.weight"].T + state["classifier.bias"]
    assert found.score("shapes").value == pytest.approx((logits.argmax(1) == data["labels"]).mean())


def rewrite(folder, tmp_path, change):
    """A copy of a checkpoint with other tensors."""
    from safetensors.torch import load_file

    made = tmp_path / "changed"
    made.mkdir()
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, made / "model.safetensors")
    (made / "config.json").write_text((folder / "config.json").read_text())
    return made


@pytest.mark.parametrize("family", ["vit", "digits"])
def test_a_tensor_without_a_place_or_a_place_without_a_tensor_is_an_error(
    models, digits, tmp_path, family
):
    folder = digits if family == "digits" else models / "vit"

    def rename(state):
        name = min(state)
        state["stray.weight"] = state.pop(name)

    made = rewrite(folder, tmp_path, rename)
    with pytest.raises(
        CompatibilityError, match=r"lacks 1 tensor of .* and has 1 tensor .*stray.weight"
    ):
        load_model(made)


@pytest.mark.parametrize("family", ["vit", "digits"])
def test_a_tensor_of_another_shape_is_an_error(models, digits, tmp_path, family):
    folder = digits if family == "digits" else models / "vit"

    def cut(state):
        name = max(state)
        state[name] = state[name][:-1].clone()

    with pytest.raises(CompatibilityError):
        load_model(rewrite(folder, tmp_path, cut))


def test_weights_that_give_nan_are_told(models, tmp_path, suite, images, head):  # noqa: ARG001
    def spoil(state):
        state["layernorm.weight"] = state["layernorm.weight"] * float("nan")

    with pytest.raises(NonFiniteError, match="NaN or infinite logits on task 'shapes'"):
        evaluate(rewrite(models / "vit", tmp_path, spoil), suite(task(head=head)))


def arrays(tmp_path, **changes):
    data = {
        "inputs": np.zeros((6, 1, 12, 12), np.float32),
        "labels": np.array([0, 1, 2, 0, 1, 2]),
    }
    data |= changes
    np.savez(tmp_path / "bad.npz", **{n: a for n, a in data.items() if a is not None})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": np.array([0, 1, 2, 3, 1, 2])}, "label 3, but there are 3 classes"),
        ({"labels": np.array([0, 1, -1, 0, 1, 2])}, "label -1, but there are 3 classes"),
        (
            {"labels": np.array(["cat", "dig"] * 3)},
            r"label 'dig', which the head has not; did you mean 'dog'\?",
        ),
        ({"classes": np.array(["a", "b", "c"])}, "label 'a', which the head has not"),
        ({"inputs": np.zeros((0, 1, 12, 12)), "labels": np.zeros(0, int)}, "has no items"),
        ({"labels": np.array([0, 1])}, "one label"),
        ({"labels": None}, "has no array 'labels'; it has inputs"),
        ({"inputs": np.zeros((6, 3, 12, 12))}, r"takes images \[N, 1, height, width\]"),
        ({"inputs": np.zeros((6, 1, 12, 12), np.uint8)}, "inputs of uint8; give floating-point"),
        ({"inputs": np.zeros((6, 1, 30, 30))}, "cannot take the inputs"),
    ],
)
def test_data_that_does_not_fit_the_head_is_told(models, tmp_path, suite, head, changes, sentence):
    arrays(tmp_path, **changes)
    with pytest.raises(UsageError, match=sentence):
        evaluate(models / "vit", suite(task(data="bad.npz", head=head)))


def test_labels_may_be_names_of_classes(models, tmp_path, suite, head):
    names = np.array(["eel", "cat", "dog", "eel", "cat", "dog"])
    arrays(tmp_path, labels=names)
    found = evaluate(models / "vit", suite(task(data="bad.npz", head=head)))
    assert found.items["shapes"].expected == tuple(names)


def test_classes_of_the_data_may_be_in_another_order_than_the_head_s(models, tmp_path, suite, head):
    arrays(tmp_path, classes=np.array(["eel", "cat", "dog"]))
    found = evaluate(models / "vit", suite(task(data="bad.npz", head=head)))
    assert found.items["shapes"].expected == ("eel", "cat", "dog") * 2


def test_a_file_that_is_no_npz_is_told(models, tmp_path, suite, head):
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(UsageError, match="no npz file of plain arrays"):
        evaluate(models / "vit", suite(task(data="bad.npz", head=head)))


def test_a_pickle_in_the_data_is_never_read(models, tmp_path, suite, head):
    np.savez(tmp_path / "bad.npz", inputs=np.array([{}], dtype=object), labels=np.zeros(1, int))
    with pytest.raises(
        UsageError, match="the array 'inputs' holds Python objects, which are never unpickled"
    ):
        evaluate(models / "vit", suite(task(data="bad.npz", head=head)))


def test_a_file_that_is_no_head_is_told(models, tmp_path, suite, images):  # noqa: ARG001
    save_file({"weight": torch.zeros(3, 16)}, tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match="is no head"):
        evaluate(models / "vit", suite(task(head="none.safetensors")))


def test_a_head_for_other_features_is_told(models, tmp_path, suite, images):  # noqa: ARG001
    metadata = {"classes": json.dumps(["cat", "dog", "eel"]), "pooling": "mean_patch_tokens"}
    save_file({"weight": torch.zeros(3, 17)}, tmp_path / "wide.safetensors", metadata=metadata)
    with pytest.raises(UsageError, match=r"reads 17 features, but .* gives 16"):
        evaluate(models / "vit", suite(task(head="wide.safetensors")))


def test_a_model_without_a_classifier_needs_a_head(models, suite, images):  # noqa: ARG001
    with pytest.raises(UsageError, match="give the task a `head`"):
        evaluate(models / "vit", suite(task()))
