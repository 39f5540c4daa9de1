"""Adapters of PEFT's other tuners: every merged tensor is the one that the library merges.

Where a tuner adds or multiplies once, the bits are those of PEFT's merge in float32. Where it multiplies matrices, PEFT
rounds on the way and weightsmith once, so the bits are those of PEFT's merge in float64, rounded to float32.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.adapters.tuned import convnext, gpt2, llama, merged, read, resnet, written

from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.adapters.attaching import attach
from weightsmith.adapters.torch_numbers import TorchGenerator
from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas.changed import read_elements
from weightsmith.errors import CompatibilityError
from weightsmith.lora.adapter_facts import inspect_adapter
from weightsmith.lora.converting import convert

peft = pytest.importorskip("peft")

LINEAR = ["q_proj", "up_proj", "down_proj"]
CONV1D = ["c_attn", "c_proj", "c_fc"]


def differing(base, folder, expected, compare) -> int:
    """Compare all tensors; returns how many the adapter changes."""
    plain = open_checkpoint(base)
    changed = attach(plain, [(open_adapter(folder), 1.0)])
    names = [name for name, tensor in plain.tensors.items() if tensor.dtype.is_float]
    for name in names:
        compare(read(changed, name), expected[name].astype(np.float32), err_msg=name)
    return sum(not np.array_equal(read(plain, name), expected[name]) for name in names)


def near(found, expected, err_msg):
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6, err_msg=err_msg)


# What adds or multiplies once: name, model, configuration, and how many tensors it changes.
ONCE = {
    "ia3 and the biases of its outputs": (
        llama,
        partial(peft.IA3Config, target_modules=LINEAR, feedforward_modules=["down_proj"]),
        4,
    ),
    "ia3 of inputs first": (
        gpt2,
        partial(
            peft.IA3Config,
            target_modules=["c_attn", "mlp.c_proj"],
            feedforward_modules=["mlp.c_proj"],
        ),
        3,
    ),
    "ia3 of square matrices": (
        gpt2,
        partial(
            peft.IA3Config, target_modules=["attn.c_proj"], feedforward_modules=["attn.c_proj"]
        ),
        1,
    ),
    "ia3 of convolutions": (
        resnet,
        partial(
            peft.IA3Config,
            target_modules=["convolution"],
            feedforward_modules=r".*layer\.1\.convolution",
        ),
        4,
    ),
    "ia3 of convolutions in groups": (
        convnext,
        partial(
            peft.IA3Config,
            target_modules=["dwconv", "patch_embeddings"],
            feedforward_modules=["dwconv"],
        ),
        3,
    ),
    "shira": (llama, partial(peft.ShiraConfig, target_modules=LINEAR, r=2), 3),
    "miss": (llama, partial(peft.MissConfig, target_modules=LINEAR, r=4), 3),
    "miss with a rest": (llama, partial(peft.MissConfig, target_modules=LINEAR, r=5), 3),
    "miss with mini": (
        llama,
        partial(peft.MissConfig, target_modules=LINEAR, r=4, mini_r=8, init_weights="mini"),
        3,
    ),
}


@pytest.mark.parametrize("case", ONCE)
def test_tuners_that_change_elements_once_have_the_bits_of_pefts_merge(case, tmp_path):
    model, config, count = ONCE[case]
    base, folder, wrapped = written(tmp_path, model, config)
    assert differing(base, folder, merged(wrapped), np.testing.assert_array_equal) == count


ROUNDED = {
    "oft, embeddings and biases": (
        llama,
        partial(
            peft.OFTConfig,
            target_modules=[*LINEAR, "embed_tokens"],
            oft_block_size=4,
            bias="oft_only",
        ),
        5,
    ),
    "oft by inverses": (
        llama,
        partial(
            peft.OFTConfig, target_modules=LINEAR, r=2, oft_block_size=0, use_cayley_neumann=False
        ),
        3,
    ),
    "oft of one block, three terms": (
        llama,
        partial(
            peft.OFTConfig,
            target_modules=LINEAR,
            oft_block_size=4,
            block_share=True,
            num_cayley_neumann_terms=3,
        ),
        3,
    ),
    "oft of convolutions": (
        resnet,
        partial(peft.OFTConfig, target_modules=["convolution"], oft_block_size=4),
        4,
    ),
    "boft": (
        llama,
        partial(peft.BOFTConfig, target_modules=LINEAR, boft_block_size=4, bias="all"),
        7,
    ),
    "boft of convolutions": (
        resnet,
        partial(peft.BOFTConfig, target_modules=["convolution"], boft_block_size=4),
        4,
    ),
    "vera": (llama, partial(peft.VeraConfig, target_modules=LINEAR, r=4), 3),
    "vera of inputs first": (gpt2, partial(peft.VeraConfig, target_modules=CONV1D, r=4), 4),
    "vera without its projections": (
        llama,
        partial(
            peft.VeraConfig,
            target_modules=LINEAR,
            r=4,
            save_projection=False,
            projection_prng_key=7,
        ),
        3,
    ),
    "vera of inputs first without its projections": (
        gpt2,
        partial(
            peft.VeraConfig,
            target_modules=CONV1D,
            r=4,
            save_projection=False,
            projection_prng_key=-3,
        ),
        4,
    ),
    "hira and embeddings": (
        llama,
        partial(peft.HiraConfig, target_modules=[*LINEAR, "embed_tokens"], r=4),
        4,
    ),
    "hira of inputs first": (gpt2, partial(peft.HiraConfig, target_modules=CONV1D, r=4), 4),
    "hira of convolutions": (
        resnet,
        partial(peft.HiraConfig, target_modules=["convolution"], r=2),
        4,
    ),
    "miss with bat": (
        llama,
        partial(peft.MissConfig, target_modules=LINEAR, r=4, init_weights="bat"),
        3,
    ),
    "randlora": (
        llama,
        partial(peft.RandLoraConfig, target_modules=LINEAR, r=5, randlora_alpha=20),
        3,
    ),
    "randlora of inputs first": (
        gpt2,
        partial(peft.RandLoraConfig, target_modules=CONV1D, r=5, randlora_alpha=20),
        4,
    ),
    "randlora with sparse bases": (
        llama,
        partial(peft.RandLoraConfig, target_modules=LINEAR, r=4, very_sparse=True),
        3,
    ),
    "delora": (
        llama,
        partial(
            peft.DeloraConfig,
            target_modules=LINEAR,
            r=4,
            rank_pattern={"up_proj": 3},
            lambda_pattern={"q_proj": 3},
        ),
        3,
    ),
}


@pytest.mark.parametrize("case", ROUNDED)
def test_tuners_that_multiply_matrices_have_the_bits_of_pefts_merge_in_float64_rounded_once(
    case, tmp_path
):
    model, config, count = ROUNDED[case]
    base, folder, wrapped = written(tmp_path, model, config)
    assert differing(base, folder, merged(wrapped.double()), np.testing.assert_array_equal) == count


# What PEFT computes in float32 whatever the model's type.
IN_FLOAT32 = {
    "oft within a bound": (
        llama,
        partial(peft.OFTConfig, target_modules=LINEAR, oft_block_size=4, coft=True, eps=0.3),
        3,
    ),
    "fourierft": (
        llama,
        partial(
            peft.FourierFTConfig,
            target_modules=LINEAR,
            n_frequency=20,
            n_frequency_pattern={"up_proj": 31},
        ),
        3,
    ),
    "fourierft of inputs first": (
        gpt2,
        partial(peft.FourierFTConfig, target_modules=CONV1D, n_frequency=20),
        4,
    ),
}


@pytest.mark.parametrize("case", IN_FLOAT32)
def test_tuners_that_peft_computes_in_float32_agree_to_its_rounding(case, tmp_path):
    model, config, count = IN_FLOAT32[case]
    base, folder, wrapped = written(tmp_path, model, config)
    assert differing(base, folder, merged(wrapped), near) == count


def test_a_butterfly_of_several_factors_is_the_one_that_pefts_kernel_makes(tmp_path, monkeypatch):
    """PEFT has them with its CUDA kernel alone; a block diagonal of plain torch takes the kernel's place here."""
    layer = pytest.importorskip("peft.tuners.boft.layer")

    def diagonals(blocks):
        return torch.stack([torch.block_diag(*factor) for factor in blocks])

    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(layer.FastBlockDiag, "apply", diagonals)
    config = partial(
        peft.BOFTConfig, target_modules=["q_proj"], boft_block_size=2, boft_n_butterfly_factor=3
    )
    base, folder, wrapped = written(tmp_path, llama, config)
    assert differing(base, folder, merged(wrapped.double()), np.testing.assert_array_equal) == 1


def test_a_strength_takes_a_share_of_what_a_rotation_changes(tmp_path):
    config = partial(peft.OFTConfig, target_modules=["q_proj"], oft_block_size=4)
    base, folder, wrapped = written(tmp_path, llama, config)
    plain, whole = open_checkpoint(base), merged(wrapped.double())
    half = attach(plain, [(open_adapter(folder), 0.5)])
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = 0.5 * (read(plain, name) + whole[name])
    np.testing.assert_allclose(read(half, name), expected, rtol=1e-6, atol=1e-8)


def test_parts_of_a_rewritten_tensor_are_read_as_the_whole(tmp_path):
    base, folder, _ = written(tmp_path, llama, ROUNDED["boft"][1])
    changed = attach(open_checkpoint(base), [(open_adapter(folder), 1.0)])
    tensor = changed.tensors["model.layers.0.mlp.up_proj.weight"]
    whole = read_elements(tensor, 0, tensor.numel)
    pieces = [
        read_elements(tensor, n, min(n + 37, tensor.numel)) for n in range(0, tensor.numel, 37)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("case", ["vera", "hira of inputs first", "oft, embeddings and biases"])
def test_tuners_become_lora_of_the_rank_that_their_change_has(case, tmp_path):
    model, config, _ = ROUNDED[case]
    base, folder, _ = written(tmp_path, model, config)
    plain = open_checkpoint(base)
    with pytest.raises(CompatibilityError, match="name the base of the adapters"):
        convert(folder, tmp_path / "none", "peft")
    report = convert(folder, tmp_path / "lora", "peft", base=plain)
    expected, found = (
        attach(plain, [(open_adapter(place), 1.0)]) for place in (folder, tmp_path / "lora")
    )
    for name in plain.tensors:
        np.testing.assert_allclose(read(found, name), read(expected, name), rtol=1e-5, atol=1e-6)
    if case == "vera":
        assert {tensor.rank for tensor in report.tensors} == {4}


def test_facts_name_the_tuner_and_count_shared_tensors_once(tmp_path):
    base, folder, _ = written(tmp_path, llama, ROUNDED["vera"][1])
    alone = inspect_adapter(str(folder))
    assert alone.forms == {"vera": 3}
    stored = load_file(folder / "adapter_model.safetensors").values()
    assert alone.parameters == sum(tensor.numel() for tensor in stored)
    assert {tensor.norm for tensor in alone.tensors} == {None}
    beside = inspect_adapter(str(folder), open_checkpoint(base))
    assert all(tensor.norm > 0.0 and tensor.directions <= 4 for tensor in beside.tensors)


@pytest.mark.parametrize("seed", [0, 777, -3, 2**40 + 1])
def test_numbers_for_a_seed_are_those_of_torch(seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty(13, 17).uniform_(-0.31, 0.31, generator=generator).numpy()
    again = torch.empty(5).uniform_(-2.0, 2.0, generator=generator).numpy()
    ours = TorchGenerator(seed)
    np.testing.assert_array_equal(ours.uniform((13, 17), 0.31), drawn)
    np.testing.assert_array_equal(ours.uniform((5,), 2.0), again)
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(seed))[:900].numpy()
    np.testing.assert_array_equal(TorchGenerator(seed).first_of_permutation(5000, 900), order)
