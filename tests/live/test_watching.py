"""Hooks by the names of the files."""

from __future__ import annotations

import torch

from weightsmith.live import load_model

from .architectures import ARCHITECTURES


def test_modules_are_watched_by_the_tensors_that_they_hold(saved):
    live = load_model(saved("family vision"))
    name = "encoder.layer.1.attention.attention.query.weight"
    (path,) = live.users(name)
    seen = []
    batch = ARCHITECTURES["family vision"].batch()
    with torch.no_grad(), live.watching([name], seen.append) as watched:
        assert watched.unseen == (name,)
        live.features(batch)
        assert watched.unseen == ()
    (passage,) = seen
    module = live.module.get_submodule(path)
    assert passage.tensors == (name,)
    with torch.no_grad():
        assert torch.equal(passage.output, module(*passage.inputs))
    with torch.no_grad():
        live.features(batch)
    assert len(seen) == 1


def test_a_tied_tensor_has_all_its_users_and_experts_have_the_module_that_holds_them(saved):
    tied = load_model(saved("llama tied"))
    assert set(tied.users("model.embed_tokens.weight")) == {"model.embed_tokens", "lm_head"}
    experts = load_model(saved("mixtral"))
    names = [f"model.layers.0.block_sparse_moe.experts.{i}.w2.weight" for i in range(4)]
    seen = []
    with torch.no_grad(), experts.watching(names, seen.append):
        experts.logits(ARCHITECTURES["mixtral"].batch())
    (passage,) = seen
    assert passage.module == "model.layers.0.mlp.experts"
    assert passage.tensors == tuple(names)


def test_hooks_are_gone_after_an_error(saved):
    live = load_model(saved("llama"))

    def broken(_):
        raise KeyboardInterrupt

    try:
        with live.watching(list(live.source.tensors), broken):
            live.logits(ARCHITECTURES["llama"].batch())
    except KeyboardInterrupt:
        pass
    assert not [m for m in live.module.modules() if m._forward_hooks]
