"""What 0.1.0 has written is read, verified, replayed and gone on with by this version.

`written_by_0_1_0` holds small inputs and, made from them by 0.1.0 on the native backend: a folder, a bundle, two
adapters, a delta package, and the staging folder of a merge that was stopped after its first tensor.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.engine.records import manifest as manifests
from weightsmith.engine.records.journal import Journal
from weightsmith.errors import OutputError
from weightsmith.packages.unpacking import unpack
from weightsmith.recipes import Recipe
from weightsmith.tensors.digests import digest_tensor

WRITTEN = Path(__file__).with_name("written_by_0_1_0")
OUTPUTS = ["dense", "bundle", "adapter-sum", "adapter-cut"]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, from whose folder its recipes name their models."""
    root = Path(shutil.copytree(WRITTEN, tmp_path / "written"))
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_is_as_its_manifest_says(written: Path, name: str) -> None:
    manifest = manifests.read(written / name)
    assert manifest.version == "0.1.0"
    found = weightsmith.verify(written / name)
    assert found.problems == ()
    assert found.tensors == len(manifest.outputs)


@pytest.mark.parametrize("name", ["dense", "bundle", "adapter-sum"])
def test_an_output_is_computed_again_with_the_same_digests(written: Path, name: str) -> None:
    found = weightsmith.verify(written / name, recompute=100)
    assert found.problems == ()
    assert set(found.recomputed) == manifests.read(written / name).outputs.keys()


@pytest.mark.parametrize("name", ["dense", "bundle", "adapter-sum"])
def test_an_output_is_replayed_bit_for_bit(written: Path, name: str) -> None:
    old = manifests.read(written / name)
    new = weightsmith.replay(written / name, written / "again")
    assert new.outputs == old.outputs
    assert new.inputs == old.inputs
    assert new.digest == old.digest


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_recipe_is_read_as_what_it_was(written: Path, name: str) -> None:
    manifest = manifests.read(written / name)
    text = (written / name / "weightsmith-recipe.yaml").read_text()
    assert text == manifest.recipe
    assert Recipe.load(text).digest() == manifest.recipe_digest


def test_members_of_a_bundle_are_rebuilt(written: Path) -> None:
    """emr: base + scale * mask * shared; the sum of magnitudes of a task vector is kept (Huang et al. 2024)."""
    base = load_file(written / "base" / "model.safetensors")
    for task in "ab":
        expert = load_file(written / task / "model.safetensors")
        member = open_checkpoint(f"{written / 'bundle'}#{task}")
        kept = wanted = 0.0
        for name, tensor in member.tensors.items():
            data = bytearray(tensor.nbytes)
            tensor.read_into(0, tensor.numel, memoryview(data))
            found = np.frombuffer(data, np.float32).reshape(tensor.shape)
            kept += float(np.abs(found - base[name]).sum())
            wanted += float(np.abs(expert[name] - base[name]).sum())
        assert kept == pytest.approx(wanted, rel=1e-5)


def test_a_package_is_unpacked_to_the_fine_tune(written: Path) -> None:
    unpack(written / "package", written / "unpacked")
    fine_tune = load_file(written / "a" / "model.safetensors")
    unpacked = load_file(written / "unpacked" / "model.safetensors")
    assert fine_tune.keys() == unpacked.keys()
    for name, array in fine_tune.items():
        np.testing.assert_array_equal(unpacked[name], array)


def test_a_journal_is_read(written: Path) -> None:
    journal = Journal(written / "interrupted.partial" / "journal.jsonl")
    journal.close()
    (record,) = journal.finished().values()
    inputs = [open_checkpoint(written / name).tensors[record.name] for name in ("base", "a", "b")]
    assert record.source_digests == tuple(map(digest_tensor, inputs))
    assert record.digest == manifests.read(written / "dense").outputs[record.name]


def test_an_interrupted_run_of_another_version_is_named_and_can_be_started_over(
    written: Path,
) -> None:
    recipe = Recipe.load(manifests.read(written / "dense").recipe)
    with pytest.raises(OutputError, match=r"unfinished run of another .* version; give --fresh"):
        weightsmith.merge(recipe, written / "interrupted")
    made = weightsmith.merge(recipe, written / "interrupted", fresh=True)
    assert made.outputs == manifests.read(written / "dense").outputs
