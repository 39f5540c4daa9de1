import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.deltas.changes import LowRankChange
from weightsmith.errors import (
    CompatibilityError,
    NonFiniteError,
    OutputError,
    ResourceError,
    UsageError,
)
from weightsmith.lora.adapter_writing import write_adapter
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter
from weightsmith.publishing import atomic_renames as renaming
from weightsmith.publishing import putting
from weightsmith.tensors.dtypes import DType


def _adapter(value=1.0, dtype=DType.FLOAT32, **more):
    change = LowRankChange(np.full((4, 2), value), np.ones((2, 3)))
    return LowRankAdapter(
        {"m.a.weight": Factors("m.a.weight", change, (4, 3))}, dtype=dtype, **more
    )


def _left(folder):
    return sorted(path.name for path in folder.iterdir())


OUTPUTS = [("peft", "out"), ("kohya", "out.safetensors")]


@pytest.mark.parametrize(("dialect", "name"), OUTPUTS)
def test_what_exists_is_replaced_only_with_force(tmp_path, dialect, name):
    write_adapter(_adapter(), tmp_path / name, dialect)
    with pytest.raises(OutputError, match="exists"):
        write_adapter(_adapter(2.0), tmp_path / name, dialect)
    write_adapter(_adapter(2.0), tmp_path / name, dialect, force=True)
    (update,) = open_adapter(tmp_path / name).updates.values()
    assert update.load().rows(0, 1).tolist() == [[4.0, 4.0, 4.0]]
    assert _left(tmp_path) == [name]


def test_a_folder_with_anything_else_is_never_replaced(tmp_path):
    write_adapter(_adapter(), tmp_path / "out")
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        write_adapter(_adapter(), tmp_path / "out", force=True)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_a_file_that_is_no_adapter_is_never_replaced(tmp_path):
    save_file({"model.embed.weight": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "text.safetensors").write_text("mine")
    for name in ("model", "text"):
        with pytest.raises(OutputError, match="was not written by weightsmith"):
            write_adapter(_adapter(), tmp_path / f"{name}.safetensors", "kohya", force=True)
    assert (tmp_path / "text.safetensors").read_text() == "mine"


def test_a_link_and_a_missing_folder_are_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="symbolic link"):
        write_adapter(_adapter(), tmp_path / "link", force=True)
    with pytest.raises(OutputError, match="does not exist"):
        write_adapter(_adapter(), tmp_path / "none/out")


CALLS = [
    "weightsmith.publishing.seals.pwrite_all",
    "weightsmith.publishing.files.sync_file",
    "weightsmith.publishing.putting.sync_folder",
    "weightsmith.publishing.putting.rename_into_free",
]


@pytest.mark.parametrize(("dialect", "name"), OUTPUTS)
@pytest.mark.parametrize("call", CALLS)
def test_a_write_that_fails_anywhere_leaves_nothing(tmp_path, monkeypatch, dialect, name, call):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    if call.endswith("sync_folder") and dialect == "kohya":
        pytest.skip("a single file has no folder of its own")
    monkeypatch.setattr(call, fail)
    with pytest.raises((OSError, OutputError, ResourceError)):
        write_adapter(_adapter(), tmp_path / name, dialect)
    assert _left(tmp_path) == []


@pytest.mark.parametrize(("dialect", "name"), OUTPUTS)
def test_an_interrupt_keeps_what_was_there_before(tmp_path, monkeypatch, dialect, name):
    write_adapter(_adapter(), tmp_path / name, dialect)
    before = _bytes(tmp_path / name)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("weightsmith.publishing.files.sync_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_adapter(_adapter(3.0), tmp_path / name, dialect, force=True)
    assert _bytes(tmp_path / name) == before
    assert _left(tmp_path) == [name]


def test_a_folder_that_cannot_be_renamed_brings_the_earlier_one_back(tmp_path, monkeypatch):
    write_adapter(_adapter(), tmp_path / "out")
    before, rename = _bytes(tmp_path / "out"), renaming.rename_into_free

    def fails_for_the_new(source, target):
        if source.name == "checkpoint":
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(putting, "exchange", lambda *_: False)
    monkeypatch.setattr(putting, "rename_into_free", fails_for_the_new)
    with pytest.raises(OutputError, match="Permission denied"):
        write_adapter(_adapter(3.0), tmp_path / "out", force=True)
    assert _bytes(tmp_path / "out") == before
    assert _left(tmp_path) == ["out"]


@pytest.mark.parametrize("step", ["rename", "look"])
def test_an_interrupt_between_two_renames_brings_the_earlier_one_back(tmp_path, monkeypatch, step):
    """Where folders cannot be exchanged, at the moment when none is there."""
    write_adapter(_adapter(), tmp_path / "out")
    before, rename, look = _bytes(tmp_path / "out"), os.rename, putting.look

    def interrupted(source, target):
        rename(source, target)
        if step == "rename" and target.name == "replaced":
            raise KeyboardInterrupt

    def looked(place):
        if step == "look" and place.name == "replaced":
            raise KeyboardInterrupt
        return look(place)

    monkeypatch.setattr(putting, "exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", interrupted)
    monkeypatch.setattr(putting, "look", looked)
    with pytest.raises(KeyboardInterrupt):
        write_adapter(_adapter(3.0), tmp_path / "out", force=True)
    assert _bytes(tmp_path / "out") == before
    assert _left(tmp_path) == ["out"]


def test_a_folder_with_the_name_of_a_file_is_left(tmp_path):
    (tmp_path / "out.safetensors").mkdir()
    with pytest.raises(OutputError, match="is a folder; name a file"):
        write_adapter(_adapter(), tmp_path / "out.safetensors", "kohya", force=True)
    assert (tmp_path / "out.safetensors").is_dir()


@pytest.mark.parametrize(("dialect", "name"), OUTPUTS)
def test_a_downloaded_adapter_is_never_replaced(tmp_path, dialect, name):
    """It looks like one that weightsmith writes, but for the seal."""
    place = tmp_path / name
    weights = place if dialect == "kohya" else place / "adapter_model.safetensors"
    write_adapter(_adapter(), place, dialect)
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    before = _bytes(place)
    with pytest.raises(OutputError, match=r"not written by weightsmith, or was changed since"):
        write_adapter(_adapter(2.0), place, dialect, force=True)
    assert _bytes(place) == before


def test_an_adapter_whose_configuration_was_edited_is_never_replaced(tmp_path):
    write_adapter(_adapter(), tmp_path / "out")
    config = tmp_path / "out" / "adapter_config.json"
    config.write_text(config.read_text().replace("null", '"mine"', 1))
    with pytest.raises(OutputError, match=r"holds 'adapter_config.json', which was changed"):
        write_adapter(_adapter(2.0), tmp_path / "out", force=True)
    assert "mine" in config.read_text()


def test_a_trained_adapter_is_never_replaced(tmp_path):
    """One byte of the data is enough."""
    write_adapter(_adapter(), tmp_path / "out.safetensors", "kohya")
    data = bytearray((tmp_path / "out.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "out.safetensors").write_bytes(data)
    with pytest.raises(OutputError, match="changed since"):
        write_adapter(_adapter(2.0), tmp_path / "out.safetensors", "kohya", force=True)
    assert (tmp_path / "out.safetensors").read_bytes() == data


@pytest.mark.parametrize(("dialect", "name"), OUTPUTS)
def test_an_adapter_is_never_put_over_what_it_is_made_from(tmp_path, dialect, name):
    place = tmp_path / name
    write_adapter(_adapter(), place, dialect)
    with pytest.raises(OutputError, match="is also an input"):
        write_adapter(_adapter(2.0), place, dialect, force=True, reads=[place])


def _bytes(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file.read_bytes() for file in files]


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (np.nan, DType.FLOAT32, "not finite"),
        (np.inf, DType.BFLOAT16, "not finite"),
        (1e6, DType.FLOAT16, "too large for float16"),
    ],
)
def test_numbers_that_cannot_be_stored_are_refused(tmp_path, value, dtype, words):
    with pytest.raises(NonFiniteError, match=words):
        write_adapter(_adapter(value, dtype), tmp_path / "out")
    assert _left(tmp_path) == []


def test_dialects_have_the_outputs_that_they_need(tmp_path):
    with pytest.raises(OutputError, match="one file"):
        write_adapter(_adapter(), tmp_path / "out", "kohya")
    with pytest.raises(OutputError, match="a folder"):
        write_adapter(_adapter(), tmp_path / "out.safetensors", "peft")
    with pytest.raises(UsageError, match="civitai"):
        write_adapter(_adapter(), tmp_path / "out", "civitai")


def test_an_adapter_without_factors_is_refused(tmp_path):
    for dialect, name in [*OUTPUTS, ("diffusers", "out")]:
        with pytest.raises(CompatibilityError):
            write_adapter(LowRankAdapter({}), tmp_path / name, dialect)
    assert _left(tmp_path) == []


def test_a_norm_that_changes_needs_the_base(tmp_path):
    adapter = _adapter(added={"norm.weight": np.ones(3, np.float32)})
    with pytest.raises(CompatibilityError, match="--base"):
        write_adapter(adapter, tmp_path / "out")


def test_a_tensor_cannot_be_both_replaced_and_have_factors(tmp_path):
    adapter = _adapter(replaced={"m.a.weight": np.ones((4, 3), np.float32)})
    with pytest.raises(CompatibilityError, match="one of them"):
        write_adapter(adapter, tmp_path / "out")


def test_modules_that_flatten_to_one_name_are_refused_in_kohya(tmp_path):
    change = LowRankChange(np.ones((4, 2)), np.ones((2, 3)))
    names = ("a_b.c.weight", "a.b_c.weight")
    adapter = LowRankAdapter({n: Factors(n, change, (4, 3)) for n in names})
    with pytest.raises(CompatibilityError, match="lora_unet_a_b_c"):
        write_adapter(adapter, tmp_path / "out.safetensors", "kohya")


@pytest.mark.parametrize(
    ("kind", "input_first", "part", "shape"),
    [
        ("embedding", False, None, (4, 3)),
        ("linear", True, None, (4, 3)),
        ("linear", False, 0, (2, 4, 3)),
    ],
)
def test_kohya_and_diffusers_refuse_what_they_have_no_factors_for(
    tmp_path, kind, input_first, part, shape
):
    change = LowRankChange(np.ones((4, 2)), np.ones((2, 3)))
    factors = Factors("unet.a.weight", change, shape, kind, input_first, part)
    for dialect in ("kohya", "diffusers"):
        with pytest.raises(CompatibilityError, match="write PEFT"):
            write_adapter(
                LowRankAdapter({factors.key: factors}), tmp_path / "o.safetensors", dialect
            )
