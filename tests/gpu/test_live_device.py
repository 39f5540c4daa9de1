"""On a GPU a network gives the same bits every time, whole and block by block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from weightsmith.live import BlockGradients, BlockRun, load_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


@pytest.fixture(params=["llama", "t5", "mixtral", "vit classes"])
def case(request, tmp_path: Path):
    from ..live.architectures import ARCHITECTURES, save  # noqa: TID252 - two rooms share it

    batch = {k: t.cuda() for k, t in ARCHITECTURES[request.param].batch().items()}
    return save(request.param, tmp_path), [batch, batch]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_and_block_by_block_agree_to_the_bit(case, dtype: str) -> None:
    folder, batches = case
    whole = load_model(folder, device="cuda", dtype=dtype)
    live = load_model(folder, device="cuda", dtype=dtype, filled=False)
    with torch.no_grad():
        expected = [whole.logits(batch) for batch in batches]
        assert torch.equal(whole.logits(batches[0]), expected[0])
    with BlockRun(live, live.logits, batches, memory_bytes=1000) as run:
        run.run()
        found = list(run.outputs())
    assert found[0].is_cuda
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_swapped_weights_are_those_of_a_load(case) -> None:
    folder, batches = case
    live = load_model(folder, device="cuda")
    with torch.no_grad():
        before = live.logits(batches[0])
        live.swap({n: t * 2 for n, t in stored(live).items()})
        assert not torch.equal(live.logits(batches[0]), before)
        live.swap(folder)
        assert torch.equal(live.logits(batches[0]), before)


def stored(live) -> dict[str, torch.Tensor]:
    state = live.module.state_dict()
    return live.names.to_files({live.names.owners[name]: state[name] for name in state})


def test_gradients_block_by_block_are_those_of_the_whole(case) -> None:
    folder, batches = case
    whole, live = load_model(folder, device="cuda"), load_model(folder, device="cuda", filled=False)
    whole.module.requires_grad_(True)
    whole.logits(batches[0]).square().mean().backward()
    with BlockRun(
        live, lambda batch: live.logits(batch).square().mean(), batches[:1], with_gradients=True
    ) as run:
        run.run()
        found = {}
        for part in BlockGradients(run).parts():
            for _, gradients in part.batches():
                found.update({name: tensor.cpu() for name, tensor in gradients.items()})
    for name, parameter in whole.module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[whole.names.owners[name]], parameter.grad.cpu())
