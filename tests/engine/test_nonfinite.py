"""A NaN in an input is named by its file, tensor and element, also where it shows elsewhere first."""

from __future__ import annotations

import pytest
from safetensors.torch import save_file

import weightsmith
from weightsmith.errors import NonFiniteError
from weightsmith.graph.backends import native

from .conftest import Family

UP = "model.layers.1.mlp.up_proj.weight"
NAMED = r"'model\.layers\.1\.mlp\.up_proj\.weight' of '.*e2/model\.safetensors' holds 1 NaN.*element 677"
BACKENDS = ["torch", *(["native"] if native.available() else [])]


@pytest.fixture
def broken(family: Family) -> Family:
    """The family with a NaN in a late tensor of its second expert."""
    tensors = family.tensors("e2")
    tensors[UP][7, 5] = float("nan")
    save_file(tensors, family.root / "e2" / "model.safetensors", metadata={"format": "pt"})
    return family


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["lines", "emr", "pcb", "iso_c", "wudi", "opcm", "widen"])
def test_methods_that_need_the_whole_matrix_or_model_name_the_broken_input(
    broken: Family, method: str, backend: str
) -> None:
    with pytest.raises(NonFiniteError, match=NAMED):
        weightsmith.merge(broken.recipe(method), broken.root / "out", backend=backend)
    assert not (broken.root / "out").exists()


def test_a_matrix_method_behind_statistics_of_the_model_names_the_broken_input(
    broken: Family,
) -> None:
    """The first matrix that is decomposed belongs to another tensor, whose inputs are finite."""
    recipe = broken.recipe("lines", then=[{"truncate": {"rank": 2}}])
    with pytest.raises(NonFiniteError, match=NAMED):
        weightsmith.merge(recipe, broken.root / "out")


def test_advice_is_what_helps(broken: Family) -> None:
    """What has no singular values cannot pass; what only spreads can."""
    with pytest.raises(NonFiniteError, match=f"{NAMED}.*nonfinite: propagate"):
        weightsmith.merge(broken.recipe("lines"), broken.root / "out")
    for policy in ("error", "propagate"):
        with pytest.raises(NonFiniteError, match=f"{NAMED}.*by a method that lets them through"):
            weightsmith.merge(broken.recipe("iso_c", nonfinite=policy), broken.root / policy)


def test_an_overflow_of_finite_inputs_is_still_called_one(family: Family) -> None:
    recipe = family.recipe("lines", parameters={"alpha": 1e8}, dtype="float16")
    with pytest.raises(NonFiniteError, match=r"though its inputs are finite.*overflows float16"):
        weightsmith.merge(recipe, family.root / "out")
