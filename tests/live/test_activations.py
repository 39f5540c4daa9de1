"""Activations in memory and in files, and tensors that are fetched when something computes with them."""

from __future__ import annotations

import pytest
import torch

from weightsmith.live.blocks.activations import ActivationStore
from weightsmith.live.blocks.kept_tensors import KeptTensor, real

FORMS = {
    "plain": torch.randn(3, 4),
    "transposed": torch.randn(4, 3).T,
    "half": torch.randn(5, dtype=torch.bfloat16),
    "whole numbers": torch.arange(6).reshape(2, 3),
    "masks": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
    "a number": torch.tensor(1.5),
    "part of a larger one": torch.randn(4, 10)[:, 2:5],
    "repeated": torch.randn(1, 3).expand(4, 3),
}


@pytest.mark.parametrize("memory_bytes", [0, 10**6])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_kept_comes_back_as_it_was(tmp_path, form, memory_bytes):
    store = ActivationStore(memory_bytes, tmp_path)
    tensor = FORMS[form]
    store.put("a", tensor)
    found = store.get("a")
    assert torch.equal(found, tensor)
    assert found.dtype == tensor.dtype
    if form != "part of a larger one":
        assert found.stride() == tensor.clone(memory_format=torch.preserve_format).stride()
    store.close()
    assert not list(tmp_path.iterdir())


def test_memory_is_used_up_to_the_budget_and_given_back(tmp_path):
    store = ActivationStore(100, tmp_path)
    store.put("a", torch.zeros(20))
    store.put("b", torch.zeros(20))
    assert store.spilled_bytes == 80
    store.drop("a")
    store.put("c", torch.zeros(25))
    assert store.spilled_bytes == 80
    store.put("c", torch.zeros(24))
    assert store.spilled_bytes == 80
    assert store.pop("b") is not None
    assert "b" not in store
    assert not [f for folder in tmp_path.iterdir() for f in folder.iterdir()]
    assert store.pop("b") is None
    store.close()


def kept(tensor):
    fetched = []

    def fetch():
        fetched.append(1)
        return tensor

    return KeptTensor.of(tensor, fetch), fetched


def test_the_shape_of_a_kept_tensor_is_known_without_it():
    tensor, fetched = kept(torch.randn(2, 3, dtype=torch.float64))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.shape == (2, 3)
    assert (tensor.size(1), tensor.dim(), len(tensor), tensor.numel()) == (3, 2, 2, 6)
    assert (tensor.dtype, tensor.device.type) == (torch.float64, "cpu")
    assert tensor.is_floating_point()
    assert not fetched


def test_whatever_computes_with_a_kept_tensor_has_its_elements_once():
    plain = torch.randn(2, 3)
    tensor, fetched = kept(plain)
    assert torch.equal(tensor + 1, plain + 1)
    assert torch.equal(torch.cat([plain, tensor]), torch.cat([plain, plain]))
    assert torch.equal(tensor[0], plain[0])
    assert type(tensor * 2) is torch.Tensor
    assert real({"a": (tensor, 1)})["a"][0] is plain
    assert fetched == [1]


def test_writing_to_a_kept_tensor_does_not_change_what_is_kept():
    plain = torch.ones(3)
    for write in (
        lambda t: t.add_(1),
        lambda t: t.__iadd__(1),
        lambda t: t.__setitem__(0, 2.0),
        lambda t: torch.add(t, 1, out=t),
    ):
        tensor, _ = kept(plain)
        write(tensor)
        assert torch.equal(plain, torch.ones(3))
        assert not torch.equal(real(tensor), plain)
