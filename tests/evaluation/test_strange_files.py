"""Networks, data and caches of strangers: one sentence with the reason, before memory or time is spent."""

from __future__ import annotations

import io
import json
import os
import zipfile

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from weightsmith.errors import CheckpointError, CompatibilityError, ResourceError, UsageError
from weightsmith.evaluation.arrays import read_arrays
from weightsmith.evaluation.items import read_lines
from weightsmith.evaluation.scoring import evaluate
from weightsmith.evaluation.suite import Task
from weightsmith.live import load_model, reason_of


def changed(folder, tmp_path, **config):
    """A copy of a checkpoint with other entries in its configuration."""
    made = tmp_path / "changed"
    made.mkdir(exist_ok=True)
    save_file(load_file(folder / "model.safetensors"), made / "model.safetensors")
    own = json.loads((folder / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**own, **config}))
    return made


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        ({"num_attention_heads": 0}, UsageError, "a number in it is 0 that must not be"),
        ({"rope_parameters": "x"}, UsageError, "'rope_parameters'|a text"),
        ({"dtype": "float99"}, UsageError, "'dtype'|float99"),
        ({"num_attention_heads": 5}, UsageError, "5"),
        ({"num_hidden_layers": "8"}, CompatibilityError | UsageError, "num_hidden_layers|a text"),
        ({"hidden_size": {"a": 1}}, UsageError, "expected a whole number, got an object"),
        (
            {"num_hidden_layers": 10**9},
            CompatibilityError,
            "num_hidden_layers: 1000000000, but there are",
        ),
        ({"num_labels": 10**9}, CompatibilityError, "num_labels: 1000000000"),
        (
            {"vocab_size": 10**12},
            CompatibilityError,
            "a network of .* numbers, but the checkpoint has",
        ),
        ({"vocab_size": 300}, CompatibilityError, r"has the shape \[259, 32\].*it has \[300, 32\]"),
        ({"architectures": ["os"]}, UsageError, "none of transformers"),
        ({"architectures": [5]}, UsageError, "none of transformers"),
        ({"model_type": ["llama"]}, UsageError, "another form"),
    ],
)
def test_a_configuration_that_describes_no_such_network_is_told_with_the_reason(
    models, tmp_path, config, error, reason
):
    with pytest.raises((CompatibilityError, UsageError), match=reason) as caught:
        load_model(changed(models / "llama", tmp_path, **config))
    assert isinstance(caught.value, error)
    message = str(caught.value)
    assert "\n" not in message
    assert not any(word in message for word in ("Error:", "dict", "NoneType", "validator"))


def test_the_reason_of_a_library_is_its_innermost_one_in_words():
    outer = RuntimeError("Class validation error for validator 'x':")
    outer.__cause__ = ValueError("The hidden size (16) is not a multiple of 5.\nmore")
    assert reason_of(outer) == "The hidden size (16) is not a multiple of 5"
    assert reason_of(RuntimeError("A heading:\n   TypeError: expected int, got str")) == (
        "expected a whole number, got a text"
    )
    assert reason_of(KeyError("rope")) == "there is no 'rope'"
    assert reason_of(AttributeError("'str' object has no attribute 'get'")) == (
        "an entry of it has another form than it should"
    )
    assert len(reason_of(ValueError("x" * 5000))) < 400


def npz(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return made.getvalue()


def npy(array) -> bytes:
    made = io.BytesIO()
    np.save(made, array, allow_pickle=True)
    return made.getvalue()


def header(shape: str, data: bytes = b"") -> bytes:
    line = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117)
    return b"\x93NUMPY\x01\x00" + len(line + b"\n").to_bytes(2, "little") + line + b"\n" + data


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (
            header("(1000000000, 8)", bytes(64)),
            r"says that its shape is \[1000000000, 8\], but it has 64",
        ),
        (header("(-1, 8)", bytes(32)), "damaged|says that its shape"),
        (header("__import__('os')"), "the header of the array 'inputs' is damaged"),
        (b"", "the header of the array 'inputs' is damaged"),
        (npy(np.array([{}], object)), "holds Python objects, which are never unpickled"),
        (npy(np.zeros(2, [("a", "f4")])), "holds records"),
        (npy(np.zeros((2, 8), np.float32))[:-8], "says that its shape"),
    ],
)
def test_arrays_that_lie_about_themselves_are_refused_by_name(tmp_path, inputs, reason):
    (tmp_path / "d.npz").write_bytes(npz(inputs=inputs, labels=npy(np.zeros(2, int))))
    with pytest.raises(UsageError, match=reason):
        read_arrays(tmp_path / "d.npz", "The data", ["inputs", "labels"], [], None)


def test_an_archive_that_unpacks_to_far_more_is_refused_from_its_headers(tmp_path, monkeypatch):
    monkeypatch.setattr("weightsmith.evaluation.arrays._SMALL_BYTES", 2**16)
    zeros = header("(2097152, 1)", bytes(2**23))
    (tmp_path / "d.npz").write_bytes(npz(inputs=zeros))
    with pytest.raises(UsageError, match=r"takes 8.39 MB, but 8.\d+ kB in the file"):
        read_arrays(tmp_path / "d.npz", "The data", ["inputs"], [], None)
    # A few items of it are as good as those of any other file.
    few = read_arrays(tmp_path / "d.npz", "The data", ["inputs"], [], 5)["inputs"]
    assert few.shape == (5, 1)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_reads_them_up_to_the_limit(tmp_path, order):
    inputs = np.asarray(np.random.default_rng(0).normal(size=(9, 3, 2)), ">f4", order=order)
    np.savez_compressed(tmp_path / "d.npz", inputs=inputs, classes=np.array(["x", "y"]))
    found = read_arrays(tmp_path / "d.npz", "The data", ["inputs"], ["classes", "none"], 4)
    np.testing.assert_array_equal(found["inputs"][:4], inputs[:4])
    assert list(found["classes"]) == ["x", "y"]
    assert len(found["inputs"]) == (4 if order == "C" else 9)
    found["inputs"][0] = 1  # torch takes no arrays that cannot be written to


def test_nan_in_the_data_is_blamed_on_the_data(models, tmp_path, suite):
    inputs = np.zeros((4, 1, 12, 12), np.float32)
    inputs[2, 0, 3, 3] = np.nan
    np.savez(tmp_path / "d.npz", inputs=inputs, labels=np.zeros(4, int))
    task = {"name": "t", "kind": "classification", "data": "d.npz"}
    with pytest.raises(UsageError, match="has a NaN or an infinity in item 2"):
        evaluate(models / "resnet", suite(task))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\\ud800"}', "has half a character in field 'text'"),
        (b'{"text": ' + b"[" * 100_000, "is nested too deeply"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "has a number of thousands of digits"),
        (b'{"text": "' + b"a" * 200_000 + b'"}', "has more than 150000 bytes"),
    ],
)
def test_lines_that_no_text_is_in_are_told_by_number(tmp_path, monkeypatch, line, reason):
    monkeypatch.setattr("weightsmith.evaluation.items._LONGEST_LINE", 150_000)
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "a"}\n' + line + b"\n")
    task = Task("t", "language_modeling", data=tmp_path / "d.jsonl")
    with pytest.raises(UsageError, match=f"line 2, .*{reason}"):
        read_lines(task, {"text": str})


@pytest.mark.parametrize("data", ["/dev/zero", "."])
def test_data_that_is_no_regular_file_is_refused_where_the_suite_names_it(models, suite, data):
    with pytest.raises(Exception, match="is no regular file"):
        evaluate(models / "llama", suite({"name": "t", "kind": "language_modeling", "data": data}))


@pytest.mark.parametrize(("key", "most"), [("max_new_tokens", 100_000), ("limit", 10**9)])
def test_numbers_of_a_suite_are_bounded(models, tmp_path, suite, key, most):
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    task = {"name": "t", "kind": "generation", "data": "d.jsonl", key: 10**12}
    with pytest.raises(Exception, match=f"{key} is at most {most}, not 1000000000000"):
        evaluate(models / "llama", suite(task))


def test_scores_that_cannot_be_kept_stop_before_they_are_computed(models, tmp_path, suite):
    if os.geteuid() == 0:
        # Root may write anywhere; what is no folder can hold no scores for anybody.
        (tmp_path / "cache").write_text("")
    else:
        (tmp_path / "cache").mkdir(mode=0o500)
    (tmp_path / "d.jsonl").write_text('{"text": "abc"}\n')
    task = {"name": "t", "kind": "language_modeling", "data": "d.jsonl"}
    with pytest.raises(ResourceError, match="WEIGHTSMITH_CACHE, or give --no-cache"):
        evaluate(models / "llama", suite(task), cache=tmp_path / "cache")


def test_a_tokenizer_that_is_a_link_out_of_the_folder_stops_an_evaluation(models, tmp_path, suite):
    made = changed(models / "llama", tmp_path)
    (tmp_path / "elsewhere.json").write_text("{}")
    (made / "tokenizer_config.json").symlink_to(tmp_path / "elsewhere.json")
    (tmp_path / "d.jsonl").write_text('{"text": "abc"}\n')
    task = {"name": "t", "kind": "language_modeling", "data": "d.jsonl"}
    with pytest.raises(
        CheckpointError, match=r"'tokenizer_config.json' as links out of its folder"
    ):
        evaluate(made, suite(task))
