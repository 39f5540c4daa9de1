"""Block by block: what the whole network gives, to the bit, with one block's weights in memory at a time."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from weightsmith.errors import ResourceError, UsageError
from weightsmith.live import (
    BlockGradients,
    BlockRun,
    NetworkKind,
    load_model,
    register,
    residual_perceptron,
)
from weightsmith.live.plain_models import _BUILDERS

from .architectures import ARCHITECTURES

PERCEPTRON = {
    "model_type": "digits-mlp",
    "num_inputs": 8,
    "hidden_size": 12,
    "num_hidden_layers": 4,
    "num_labels": 3,
}


def plain_checkpoint(folder, build=residual_perceptron, **config):
    torch.manual_seed(0)
    content = {**PERCEPTRON, **config}
    save_file(build(content).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def two_batches(name):
    batch = ARCHITECTURES[name].batch()
    return [batch, {key: tensor.flip(0)[:1] for key, tensor in batch.items()}]


def objective(live):
    """A loss that the network can have."""
    if not live.kind.has_logits:
        return lambda batch: live.features(batch).square().mean()
    if live.kind is NetworkKind.CLASSIFIER:
        return lambda batch: live.loss(batch, torch.arange(len(next(iter(batch.values())))))
    return lambda batch: live.loss(batch, batch.get("decoder_input_ids", batch["input_ids"]))


def whole_gradients(live, ask, batches):
    live.module.requires_grad_(True)
    found = []
    for batch in batches:
        live.module.zero_grad()
        ask(batch).backward()
        own = {live.names.owners[n]: p.grad for n, p in live.module.named_parameters()}
        found.append({n: grad.clone() for n, grad in own.items() if grad is not None})
    return found


def block_gradients(run):
    run.run()
    found = [{} for _ in run.batches]
    for part in BlockGradients(run).parts():
        for batch, gradients in part.batches():
            assert not found[batch].keys() & gradients.keys()
            found[batch].update(gradients)
    return found


@pytest.mark.parametrize("what", ["logits", "features"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_gives_block_by_block_what_it_gives_whole(saved, name, what):
    whole, live = load_model(saved(name)), load_model(saved(name), filled=False)
    if what == "logits" and not whole.kind.has_logits:
        pytest.skip("an encoder has no logits")
    batches = two_batches(name)
    with torch.no_grad():
        expected = [getattr(whole, what)(batch) for batch in batches]
    with BlockRun(live, getattr(live, what), batches, memory_bytes=1000) as run:
        around = set(run.loose())
        paths = []
        for block in run.blocks():
            inside = {n for n in live.residency.names if n.startswith(f"{block.path}.")}
            assert set(live.residency.placed) - around == inside
            paths.append(block.path)
        found = list(run.outputs())
        assert run.store.spilled_bytes > 0
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert not live.residency.placed
    assert len(paths) == len(set(paths)) or name == "albert masked"
    assert sum(path.rpartition(".")[2].isdigit() for path in paths) >= 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_those_of_the_whole_network(saved, name):
    whole, live = load_model(saved(name)), load_model(saved(name), filled=False)
    batches = two_batches(name)
    expected = whole_gradients(whole, objective(whole), batches)
    ask = objective(live)
    with BlockRun(live, ask, batches, memory_bytes=1000, with_gradients=True) as run:
        found = block_gradients(run)
        losses = list(run.outputs())
    assert [loss.item() for loss in losses] == [objective(whole)(b).item() for b in batches]
    for own, other in zip(expected, found, strict=True):
        assert own.keys() == other.keys()
        assert not [key for key in own if not torch.equal(own[key], other[key])]
    assert not live.residency.placed


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "mixtral", "vit", "bert masked"])
def test_half_precision_is_the_same_block_by_block(saved, name):
    whole = load_model(saved(name), dtype="bfloat16")
    live = load_model(saved(name), dtype="bfloat16", filled=False)
    ask = "logits" if whole.kind.has_logits else "features"
    batches = two_batches(name)
    with torch.no_grad():
        expected = [getattr(whole, ask)(batch) for batch in batches]
    with BlockRun(live, getattr(live, ask), batches, memory_bytes=1000) as run:
        run.run()
        found = list(run.outputs())
    assert found[0].dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_gradients_come_by_the_names_of_the_files(saved):
    live = load_model(saved("mixtral"), filled=False)
    batches = two_batches("mixtral")
    with BlockRun(live, objective(live), batches, with_gradients=True) as run:
        run.run()
        names = set()
        for part in BlockGradients(run).parts():
            for _, gradients in part.batches():
                stored = live.names.to_files(gradients)
                assert {n: t.shape for n, t in stored.items()} == {
                    n: live.source.tensors[n].shape for n in stored
                }
                names.update(stored)
    assert names == set(live.source.tensors)


def test_a_collector_sees_in_each_block_what_it_would_see_in_the_whole_network(saved):
    whole, live = load_model(saved("llama tied")), load_model(saved("llama tied"), filled=False)
    batches = two_batches("llama tied")
    names = list(whole.source.tensors)

    def watch(found):
        def told(passage):
            assert type(passage.inputs[0]) is torch.Tensor
            found.setdefault(passage.module, []).append((passage.tensors, passage.inputs[0]))

        return told

    expected, found = {}, {}
    with torch.no_grad(), whole.watching(names, watch(expected)):
        for batch in batches:
            whole.logits(batch)
    with BlockRun(live, live.logits, batches) as run:
        for block in run.blocks():
            with block.watching(watch(found)) as watched:
                done = list(block.batches())
            assert done == [0, 1]
            assert not watched.unseen
    assert found.keys() == expected.keys()
    assert {"lm_head", "model.embed_tokens", "model.norm"} <= found.keys()
    for module, passages in expected.items():
        for (tensors, inputs), (own, other) in zip(passages, found[module], strict=True):
            assert set(own) <= set(tensors)
            assert torch.equal(inputs, other)


def test_what_a_later_block_reads_of_an_earlier_one_is_computed_again_where_it_was_dropped(
    tmp_path,
):
    plain_checkpoint(tmp_path)
    whole, live = load_model(tmp_path), load_model(tmp_path, filled=False)
    batches = [{"inputs": torch.randn(5, 8)} for _ in range(3)]
    with torch.no_grad():
        expected = [whole.logits(batch) for batch in batches]
    calls = []
    with BlockRun(live, live.logits, batches) as run:
        for block in run.blocks():
            with block.watching(lambda passage: calls.append(passage.module)):
                block.run()
        found = list(run.outputs())
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    layers = [f"model.layers.{i}" for i in range(4)]
    assert calls == [path for path in ("model.embed", *layers, "classifier") for _ in batches]

    def ask(batch):
        return live.loss(batch, torch.arange(5) % 3)

    with BlockRun(live, ask, batches, with_gradients=True) as run:
        gradients = block_gradients(run)
    wanted = whole_gradients(whole, lambda b: whole.loss(b, torch.arange(5) % 3), batches)
    for own, other in zip(wanted, gradients, strict=True):
        assert not [key for key in own if not torch.equal(own[key], other[key])]


def test_weights_that_are_in_memory_stay_there(saved):
    live = load_model(saved("llama"))
    places = {name: p.data_ptr() for name, p in live.module.named_parameters()}
    batches = two_batches("llama")
    with torch.no_grad():
        expected = [live.logits(batch) for batch in batches]
    with BlockRun(live, live.logits, batches) as run:
        run.run()
        found = list(run.outputs())
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert {name: p.data_ptr() for name, p in live.module.named_parameters()} == places
    assert torch.equal(live.logits(batches[0]), expected[0])


def test_a_run_that_breaks_off_leaves_nothing_behind(saved, tmp_path):
    live = load_model(saved("llama"), filled=False)
    batches = two_batches("llama")

    def broken_off():
        with BlockRun(live, live.logits, batches, memory_bytes=0, folder=tmp_path) as run:
            for block in run.blocks():
                block.run()
                if block.path == "model.layers.1":
                    assert list(tmp_path.iterdir())
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert not list(tmp_path.iterdir())
    assert not live.residency.placed
    assert not [m for m in live.module.modules() if "forward" in m.__dict__]
    with BlockRun(live, live.logits, batches) as run:
        run.run()


def test_a_swap_between_runs_is_a_run_of_the_other_weights(saved):
    live, other = load_model(saved("llama"), filled=False), load_model(saved("llama", 1))
    batches = two_batches("llama")
    live.swap(saved("llama", 1))
    assert not live.residency.placed
    with BlockRun(live, live.logits, batches) as run:
        run.run()
        (first, _) = run.outputs()
    with torch.no_grad():
        assert torch.equal(first, other.logits(batches[0]))


def test_a_model_without_its_weights_in_memory_does_not_run_whole(saved):
    live = load_model(saved("llama"), filled=False)
    with pytest.raises(UsageError, match="fill it, or run it block by block"):
        live.logits(ARCHITECTURES["llama"].batch())
    live.fill()
    live.logits(ARCHITECTURES["llama"].batch())


class WithoutBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(8, 3)

    def forward(self, x):
        return self.only(x)


class Listed(nn.Module):
    """Two layers in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])


class PastTheBlocks(Listed):
    def forward(self, x):
        return self.layers[1](self.layers[0](x)) @ self.layers[0].weight


class InAnotherOrder(Listed):
    def forward(self, x):
        order = (0, 1) if x.sum() > 0 else (1, 0)
        return self.layers[order[1]](self.layers[order[0]](x))


class Writing(nn.Linear):
    def forward(self, x):
        x += 1
        return super().forward(x)


class WritingIntoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), Writing(8, 8)])

    def forward(self, x):
        return self.layers[1](self.layers[0](x))


class WritingBetween(Listed):
    """What is computed between blocks writes into what a block gave."""

    def forward(self, x):
        hidden = self.layers[0](x)
        hidden += 1
        return self.layers[1](hidden.mul_(2))


@pytest.fixture
def network(tmp_path, monkeypatch):
    """The checkpoint of a plain network of a class."""

    def made(model):
        monkeypatch.setattr("weightsmith.live.plain_models._BUILDERS", dict(_BUILDERS))
        kind = model.__name__
        import weightsmith.live.plain_models as plain_models

        plain_models.register(kind, lambda _: model())
        return plain_checkpoint(tmp_path, lambda _: model(), model_type=kind, num_hidden_layers=1)

    return made


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (WithoutBlocks, "without a list of blocks"),
        (PastTheBlocks, "reads weights past the blocks that hold them"),
        (InAnotherOrder, "come in another order on other batches"),
        (WritingIntoInputs, r"layers\.1 writes into what it is given"),
    ],
)
def test_a_network_that_cannot_be_run_so_is_told_in_a_sentence_and_runs_whole(
    network, model, reason
):
    folder = network(model)
    live = load_model(folder, filled=False)
    batches = [{"inputs": torch.ones(1, 8)}, {"inputs": -torch.ones(1, 8)}]

    def by_blocks():
        with BlockRun(live, live.logits, batches) as run:
            run.run()
            list(run.outputs())

    with pytest.raises(UsageError, match=f"{reason}.*; run it whole") as caught:
        by_blocks()
    assert "\n" not in str(caught.value)
    load_model(folder).logits(batches[0])


def test_code_between_blocks_may_write_into_what_a_block_gave(network):
    folder = network(WritingBetween)
    whole, live = load_model(folder), load_model(folder, filled=False)
    batches = [{"inputs": torch.randn(2, 8)}, {"inputs": torch.randn(2, 8)}]
    with torch.no_grad():
        expected = [whole.logits(batch) for batch in batches]
    with BlockRun(live, live.logits, batches) as run:
        run.run()
        found = list(run.outputs())
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


class WithTables(Listed):
    """A table that no file has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(8.0), persistent=False)

    def forward(self, x):
        return self.layers[1](self.layers[0](x) + self.table)


def test_a_plain_network_has_its_tables_whole_and_block_by_block(network):
    folder = network(WithTables)
    whole, live = load_model(folder), load_model(folder, filled=False)
    inputs = torch.randn(2, 8)
    own = WithTables()
    own.load_state_dict(whole.module.state_dict())
    with torch.no_grad():
        expected = own(inputs)
        assert torch.equal(whole.logits({"inputs": inputs}), expected)
    with BlockRun(live, live.logits, [{"inputs": inputs}]) as run:
        run.run()
        (found,) = run.outputs()
    assert torch.equal(found, expected)


def test_the_way_back_needs_the_way_there(saved):
    live = load_model(saved("llama"), filled=False)
    with (
        BlockRun(live, objective(live), two_batches("llama"), with_gradients=True) as run,
        pytest.raises(UsageError, match="run all blocks first"),
    ):
        BlockGradients(run)


def test_activations_that_cannot_be_written_are_told(saved, tmp_path):
    live = load_model(saved("llama"), filled=False)
    place = tmp_path / "missing"

    def by_blocks():
        with BlockRun(live, live.logits, two_batches("llama"), memory_bytes=0, folder=place) as run:
            run.run()

    with pytest.raises(ResourceError, match=r"Activations cannot be kept in .*missing"):
        by_blocks()


def test_no_batches_give_no_outputs(saved):
    live = load_model(saved("llama"), filled=False)
    with BlockRun(live, live.logits, []) as run:
        run.run()
        assert list(run.outputs()) == []


def test_a_registered_network_is_known_by_its_type():
    with pytest.raises(UsageError, match="registered already"):
        register("digits-mlp", residual_perceptron)
