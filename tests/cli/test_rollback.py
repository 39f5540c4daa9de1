"""`weightsmith rollback` as a user types it: a model out of the family's merge of two, and of three."""

from __future__ import annotations

import json
import shutil

import numpy as np
from safetensors.numpy import load_file


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_without_one_of_two_the_other_is_left(family, weightsmith):
    assert weightsmith("merge", "ties.yaml", "merged", "--quiet").code == 0
    result = weightsmith("rollback", "merged", "new", "--without", "one")
    assert result.code == 0, result.err
    assert "the bits are those of a merge that never had it" in result.out
    manifest = json.loads((family / "new" / "weightsmith-manifest.json").read_text())
    assert sorted(manifest["inputs"]) == ["base", "two"]
    assert result.out.splitlines()[-1].startswith(f"new  {manifest['digest']}  ")


def test_a_subtraction_says_why_and_how_exact_it_is(family, weightsmith):
    assert weightsmith("merge", "linear.yaml", "merged", "--quiet").code == 0
    shutil.move(family / "two", family / "away")
    result = weightsmith("rollback", "merged", "new", "--without", "one")
    assert result.code == 0, result.err
    assert "'one' was subtracted, because 'two' is gone" in result.out
    assert "of a fresh merge to within 2.4e-07 of its size in MERGED" in result.out
    for name, array in weights(family / "new").items():
        np.testing.assert_allclose(array, weights(family / "away")[name], rtol=0, atol=4e-6)
    shutil.move(family / "away", family / "elsewhere")
    found = weightsmith(
        "rollback", "merged", "exact", "--without", "one", "--input", "two=elsewhere", "--quiet"
    )
    assert len(found.out.splitlines()) == 1
    assert all(
        (a == weights(family / "elsewhere")[n]).all() for n, a in weights(family / "exact").items()
    )


def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(family, weightsmith):
    assert weightsmith("merge", "ties.yaml", "merged", "--quiet").code == 0
    for arguments, sentence in (
        (("--without", "base"), "is the base of the recipe"),
        (("--without", "three"), "no input 'three'; it has"),
        (("--without", "one", "--by", "subtraction"), "cannot be subtracted"),
        (("--without", "one", "--input", "six=x"), "no input 'six'"),
    ):
        result = weightsmith("rollback", "merged", "new", *arguments)
        assert result.code != 0
        assert sentence in result.err
        assert len(result.err.splitlines()) == 1
        assert not (family / "new").exists()
    assert weightsmith("rollback", "base", "new", "--without", "one").code != 0
