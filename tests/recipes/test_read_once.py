"""What a recipe names is read once: references are parsed, documents validated, places looked up, headers parsed."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.adapters import references
from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.checkpoints import (
    copied_files,
    locate,
    open_checkpoint,
    recognition,
    write_statistics,
)
from weightsmith.recipes import load, resolve
from weightsmith.recipes.language import loading
from weightsmith.tensors.files import safetensors_header

THREE = "weightsmith: 1\nmerge_method: task_arithmetic\nbase_model: a\nmodels: [{model: b}, {model: c}]\n"


@contextmanager
def counted(*functions: Callable[..., Any]) -> Iterator[Counter[str]]:
    """How often each of the functions is called, wherever it was imported to."""
    codes = {function.__code__: function.__name__ for function in functions}
    found: Counter[str] = Counter()

    def seen(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in codes:
            found[codes[frame.f_code]] += 1
        if event == "c_call" and argument is os.stat:
            found["looks"] += 1

    sys.setprofile(seen)
    try:
        yield found
    finally:
        sys.setprofile(None)


@pytest.fixture
def three(make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in "abc":
        make(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(THREE)
    return tmp_path / "recipe.yaml"


def test_three_models_are_three_references_for_good(three):
    with counted(
        references.parse_reference, references.exists_locally, loading._validated
    ) as found:
        recipe = load(three)
        resolve(recipe)
    del found["looks"]
    assert found == {"parse_reference": 3, "exists_locally": 3, "_validated": 1}


def test_every_model_is_looked_up_and_recognised_once(three):
    recipe = load(three)
    resolve(recipe)
    with counted(
        locate.find_location,
        recognition.is_bundle,
        recognition.is_package,
        safetensors_header.parse_file,
    ) as found:
        resolve(recipe)
    looks = found.pop("looks")
    assert set(found.values()) == {3}
    assert len(found) == 4
    # A folder of each model, its weights and configuration; no name of a companion file is tried that is not there.
    assert looks < 3 * 30


def test_what_a_folder_lacks_is_not_looked_for(make):
    folder = make("a")
    (folder / "tokenizer.json").write_text("{}")
    with counted(copied_files.is_inside) as found:
        assert copied_files.tokenizer_files(folder) == (Path("tokenizer.json"),)
    assert found["is_inside"] == 1


@pytest.mark.usefixtures("three")
def test_the_header_of_statistics_is_parsed_once(tmp_path):
    for name in "bc":
        model = open_checkpoint(tmp_path / name)
        measured = {n: np.ones(t.shape, np.float32) for n, t in model.tensors.items()}
        write_statistics(
            tmp_path / f"{name}.safetensors",
            measured,
            kind="fisher",
            of=model,
            data="none",
            samples=1,
        )
    text = "weightsmith: 1\nmerge_method: fisher\nmodels:\n" + "".join(
        f"- {{model: {name}, statistics: {name}.safetensors}}\n" for name in "bc"
    )
    recipe = load(text, base_dir=tmp_path)
    with counted(safetensors_header.parse_file) as found:
        assert len(resolve(recipe).statistics) == 2
    assert found["parse_file"] == 4


def test_the_header_of_an_adapter_is_parsed_once(tmp_path):
    factors = {"x.lora_A.weight": (2, 4), "x.lora_B.weight": (4, 2)}
    save_file(
        {f"transformer.{name}": np.ones(shape, np.float32) for name, shape in factors.items()},
        tmp_path / "some.safetensors",
    )
    for place in (tmp_path, tmp_path / "some.safetensors"):
        with counted(safetensors_header.parse_file) as found:
            assert len(open_adapter(place).updates) == 1
        assert found["parse_file"] == 1
