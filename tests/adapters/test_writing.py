import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from tests.adapters.small_llama import small_llama

from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas.changes import LowRankChange
from weightsmith.lora.adapter_writing import write_adapter
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter
from weightsmith.tensors.dtypes import DType

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    # PEFT's own use of a name that transformers is about to drop.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def _change(rng, shape, rank, *, input_first=False, kind="linear", scale=1.0, target=""):
    rows, columns = shape[0], int(np.prod(shape[1:]))
    left = rng.standard_normal((rows, rank)).astype(np.float32).astype(np.float64)
    right = rng.standard_normal((rank, columns)).astype(np.float32).astype(np.float64)
    return Factors(target, LowRankChange(left, right, scale), shape, kind, input_first)


def _adapter(factors, **more):
    return LowRankAdapter({f.key: f for f in factors}, **more)


def _dense(model, adapter):
    """The same model with the changes made to its weights, in float64."""
    changed = copy.deepcopy(model).double()
    state = changed.state_dict()
    for factors in adapter.factors.values():
        change = factors.change
        whole = change.scale * (change.left @ change.right)
        state[factors.target] += torch.from_numpy(whole.reshape(factors.shape))
    for target, values in adapter.replaced.items():
        state[target].copy_(torch.from_numpy(values))
    for target, values in adapter.added.items():
        state[target] += torch.from_numpy(values)
    return changed


def _logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits.double().numpy()


TOKENS = torch.tensor([[1, 5, 9, 2, 17]])


def _loaded(model, folder):
    found = peft.PeftModel.from_pretrained(
        copy.deepcopy(model).double(), folder, autocast_adapter_dtype=False
    )
    return found.eval()


def _agrees(model, adapter, folder, inputs=TOKENS, *, merges=True):
    found = _loaded(model, folder)
    expected = _logits(_dense(model, adapter), inputs)
    np.testing.assert_allclose(_logits(found, inputs), expected, rtol=1e-5, atol=1e-6)
    assert abs(expected - _logits(copy.deepcopy(model).double(), inputs)).max() > 1e-2
    if not merges:
        return
    merged = found.merge_and_unload()
    np.testing.assert_allclose(_logits(merged, inputs), expected, rtol=1e-5, atol=1e-6)


def test_peft_gives_the_logits_of_the_dense_change_with_ranks_and_scales_that_differ(tmp_path):
    model = small_llama(tmp_path / "base")
    rng = np.random.default_rng(0)
    factors = [
        _change(rng, (16, 16), 3, target="model.layers.0.self_attn.q_proj.weight", scale=2.0),
        _change(rng, (16, 16), 3, target="model.layers.1.self_attn.q_proj.weight", scale=2.0),
        _change(rng, (8, 16), 5, target="model.layers.0.self_attn.v_proj.weight", scale=0.3),
        _change(rng, (16, 20), 3, target="model.layers.1.mlp.down_proj.weight", scale=-1.5),
        _change(rng, (24, 16), 1, target="lm_head.weight"),
    ]
    adapter = _adapter(factors)
    write_adapter(adapter, tmp_path / "out", "peft", base=open_checkpoint(tmp_path / "base"))
    _agrees(model, adapter, tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["r"] == 3
    assert config["target_modules"] == sorted(f.target[:-7] for f in factors)


def test_what_peft_saves_of_it_again_is_read_as_the_same_ranks_and_alphas(tmp_path):
    model = small_llama(tmp_path / "base")
    rng = np.random.default_rng(0)
    layers = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    adapter = _adapter(
        [
            _change(rng, (20, 16), 2, target=layers[0]),
            _change(rng, (20, 16), 6, target=layers[1], scale=3.0),
        ]
    )
    write_adapter(adapter, tmp_path / "out")
    _loaded(model, tmp_path / "out").save_pretrained(tmp_path / "again")
    _agrees(model, adapter, tmp_path / "again")


@pytest.mark.parametrize("is_tied", [False, True])
def test_peft_keeps_head_and_embedding_as_they_are_tied(tmp_path, is_tied):
    model = small_llama(tmp_path / "base", tie_word_embeddings=is_tied)
    rng = np.random.default_rng(0)
    name = "model.embed_tokens.weight"
    adapter = _adapter(
        [
            _change(rng, (24, 16), 2, target=name, kind="embedding", scale=0.5),
            _change(rng, (8, 16), 2, target="model.layers.0.self_attn.k_proj.weight"),
        ]
    )
    write_adapter(adapter, tmp_path / "out", base=open_checkpoint(tmp_path / "base"))
    # PEFT adds both changes to the one tensor when it merges, and warns of it.
    _agrees(model, adapter, tmp_path / "out", merges=not is_tied)


def test_peft_reads_changes_of_matrices_that_store_inputs_first(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=24, n_embd=16, n_layer=2, n_head=2, n_positions=12, tie_word_embeddings=False
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "base")
    rng = np.random.default_rng(0)
    adapter = _adapter(
        [
            _change(
                rng, (16, 48), 3, target="transformer.h.0.attn.c_attn.weight", input_first=True
            ),
            _change(
                rng, (16, 16), 2, target="transformer.h.1.attn.c_proj.weight", input_first=True
            ),
            _change(rng, (12, 16), 2, target="transformer.wpe.weight", kind="embedding"),
        ]
    )
    write_adapter(adapter, tmp_path / "out", base=open_checkpoint(tmp_path / "base"))
    _agrees(model, adapter, tmp_path / "out")


class _Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.point = torch.nn.Conv2d(6, 4, 1)
        self.norm = torch.nn.LayerNorm(4)
        self.prenorm = torch.nn.LayerNorm(4)
        self.line = torch.nn.Conv1d(4, 5, 3)
        self.outer = torch.nn.ModuleDict({"conv": torch.nn.Conv1d(5, 5, 1)})
        self.head = torch.nn.Linear(5, 2)

    def forward(self, x):
        x = self.point(torch.tanh(self.conv(x)))
        x = self.norm(self.prenorm(x.flatten(2).transpose(1, 2))).transpose(1, 2)
        logits = self.head(self.outer["conv"](self.line(x)).mean(-1))
        return type("Out", (), {"logits": logits})


def _net(folder):
    from safetensors.torch import save_file

    torch.manual_seed(3)
    model = _Net().eval()
    save_file(model.state_dict(), folder / "net.safetensors")
    return model, open_checkpoint(folder / "net.safetensors")


IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.float64).reshape(2, 3, 8, 8).sin()


def test_peft_reads_changes_of_convolutions_and_adapts_no_module_that_ends_alike(tmp_path):
    model, base = _net(tmp_path)
    rng = np.random.default_rng(0)
    adapter = _adapter(
        [
            _change(rng, (6, 3, 3, 3), 4, target="conv.weight", kind="conv", scale=0.25),
            _change(rng, (4, 6, 1, 1), 2, target="point.weight", kind="conv"),
            _change(rng, (5, 4, 3), 2, target="line.weight", kind="conv"),
        ]
    )
    write_adapter(adapter, tmp_path / "out", base=base)
    _agrees(model, adapter, tmp_path / "out", IMAGES)
    found = _loaded(model, tmp_path / "out")
    assert not hasattr(found.base_model.model.outer["conv"], "lora_A")


def test_biases_norms_and_replaced_modules_reach_peft(tmp_path):
    model, base = _net(tmp_path)
    rng = np.random.default_rng(0)
    numbers = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    adapter = _adapter(
        [
            _change(rng, (6, 3, 3, 3), 4, target="conv.weight", kind="conv", scale=0.25),
            _change(rng, (2, 5), 1, target="head.weight", scale=3.0),
        ],
        added={"conv.bias": numbers(6), "norm.weight": numbers(4)},
        replaced={"line.weight": numbers(5, 4, 3)},
    )
    write_adapter(adapter, tmp_path / "out", base=base)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["lora_bias"] is True
    assert config["modules_to_save"] == ["line", "norm"]
    _agrees(model, adapter, tmp_path / "out", IMAGES)


def test_biases_are_written_whole_where_not_every_module_has_one(tmp_path):
    model = small_llama(tmp_path / "base", attention_bias=True)
    rng = np.random.default_rng(0)
    target = "model.layers.0.self_attn.q_proj"
    adapter = _adapter(
        [
            _change(rng, (16, 16), 2, target=f"{target}.weight"),
            _change(rng, (20, 16), 2, target="model.layers.0.mlp.up_proj.weight"),
        ],
        added={f"{target}.bias": rng.standard_normal(16).astype(np.float32)},
    )
    write_adapter(adapter, tmp_path / "out", base=open_checkpoint(tmp_path / "base"))
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["bias"] == "lora_only"
    _agrees(model, adapter, tmp_path / "out")


class _Experts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = torch.nn.Parameter(torch.randn(3, 10, 4))
        self.down_proj = torch.nn.Parameter(torch.randn(3, 4, 10))

    def forward(self, x):
        inner = torch.tanh(torch.einsum("bi,eoi->beo", x, self.gate_up_proj))
        return torch.einsum("beo,eio->bi", inner, self.down_proj)


class _Mixture(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = _Experts()

    def forward(self, x):
        return type("Out", (), {"logits": self.experts(x)})


@pytest.mark.parametrize("names", [["down_proj"], ["gate_up_proj", "down_proj"]])
def test_peft_reads_factors_of_fused_experts(tmp_path, names):
    torch.manual_seed(0)
    model = _Mixture().eval()
    rng = np.random.default_rng(0)
    factors, changed = [], copy.deepcopy(model).double()
    for name in names:
        shape = tuple(getattr(model.experts, name).shape)
        for part, rank in ((0, 2), (2, 1)):
            change = LowRankChange(
                rng.standard_normal((shape[1], rank)),
                rng.standard_normal((rank, shape[2])),
                0.5 + part,
            )
            factors.append(Factors(f"experts.{name}", change, shape, part=part))
            whole = torch.from_numpy(change.scale * change.left @ change.right)
            getattr(changed.experts, name).data[part] += whole
    write_adapter(_adapter(factors), tmp_path / "out")
    x = torch.randn(5, 4, dtype=torch.float64)
    found = _loaded(model, tmp_path / "out")
    np.testing.assert_allclose(_logits(found, x), _logits(changed, x), rtol=1e-4, atol=1e-5)


# One setting for all modules: PEFT corrects it for the head, and says so.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but the target:UserWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target:UserWarning")
def test_a_body_that_is_stored_without_its_name_gets_it(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=24, n_embd=16, n_layer=1, n_head=2, n_positions=12)
    model = transformers.GPT2LMHeadModel(config).eval()
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path / "base")
    body = {k: v.contiguous() for k, v in model.transformer.state_dict().items()}
    save_file(body, tmp_path / "base/model.safetensors")
    rng = np.random.default_rng(0)
    name, embedding = "h.0.mlp.c_fc.weight", "wte.weight"
    stored = [
        _change(rng, (16, 64), 2, target=name, input_first=True),
        _change(rng, (24, 16), 2, target=embedding, kind="embedding"),
    ]
    write_adapter(_adapter(stored), tmp_path / "out", base=open_checkpoint(tmp_path / "base"))
    in_memory = [replace(f, target=f"transformer.{f.target}") for f in stored]
    _agrees(model, _adapter(in_memory), tmp_path / "out", merges=False)


def test_peft_reads_magnitudes(tmp_path):
    model, base = _net(tmp_path)
    rng = np.random.default_rng(0)
    shapes = {"conv.weight": (6, 3, 3, 3), "head.weight": (2, 5)}
    factors = [
        _change(rng, shape, 2, target=name, kind="conv" if len(shape) > 2 else "linear", scale=0.5)
        for name, shape in shapes.items()
    ]
    magnitudes = {name: 1 + rng.random(shape[0]) for name, shape in shapes.items()}
    adapter = _adapter(factors)
    write_adapter(adapter, tmp_path / "out", base=base, magnitudes=magnitudes)
    changed = _dense(model, adapter)
    for name, shape in shapes.items():
        weight = changed.state_dict()[name]
        norms = weight.flatten(1).norm(dim=1)
        gain = torch.from_numpy(magnitudes[name]) / norms
        weight *= gain.reshape(-1, *(1 for _ in shape[1:]))
    found = _loaded(model, tmp_path / "out")
    np.testing.assert_allclose(_logits(found, IMAGES), _logits(changed, IMAGES), rtol=1e-5)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16])
def test_factors_are_rounded_once_to_the_dtype(tmp_path, dtype):
    from safetensors.torch import load_file

    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((6, 2)) * 1e-3, rng.standard_normal((2, 5))
    factors = Factors("a.weight", LowRankChange(left, right), (6, 5))
    write_adapter(_adapter([factors], dtype=dtype), tmp_path / "out")
    found = load_file(tmp_path / "out/adapter_model.safetensors")
    wanted = getattr(torch, dtype.value)
    assert {t.dtype for t in found.values()} == {wanted}
    stored = found["base_model.model.a.lora_B.weight"].double().numpy()
    step = {DType.FLOAT32: 2.0**-24, DType.BFLOAT16: 2.0**-8, DType.FLOAT16: 2.0**-11}[dtype]
    assert (abs(stored - left) <= abs(left) * step * 1.0001 + 2.0**-25).all()


def test_the_same_adapter_gives_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    factors = [_change(rng, (6, 5), r, target=f"m.{r}.weight") for r in (1, 2, 3)]
    for name, order in (("one", factors), ("two", factors[::-1])):
        write_adapter(_adapter(order), tmp_path / name)
    for file in sorted(p.name for p in (tmp_path / "one").iterdir()):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
