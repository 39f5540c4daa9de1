"""Bases with adapters of peft's other tuners, beside what peft's own merge makes of them."""

import copy
import json

import numpy as np
import pytest

from weightsmith.adapters.adapted_models import open_model
from weightsmith.errors import WeightsmithError
from weightsmith.tensors import read_array

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    # Peft's notes on what it adjusts, saves beside and cannot build are none of ours.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

LINEAR = ["q_proj", "k_proj", "down_proj"]

# What is one operation on each number comes out in the same bits, all else to the rounding of float32.
SAME_BITS = {
    "ia3": (peft.IA3Config, {"target_modules": LINEAR, "feedforward_modules": ["down_proj"]}),
    "ia3 by pattern": (
        peft.IA3Config,
        {"target_modules": LINEAR, "feedforward_modules": r".*\.mlp\.down_proj"},
    ),
    "shira": (peft.ShiraConfig, {"target_modules": LINEAR, "r": 2}),
    "miss": (peft.MissConfig, {"target_modules": LINEAR, "r": 4}),
    "miss with a rest": (peft.MissConfig, {"target_modules": LINEAR, "r": 5}),
    "miss mini": (
        peft.MissConfig,
        {"target_modules": LINEAR, "r": 4, "mini_r": 8, "init_weights": "mini"},
    ),
}
ROUNDED = {
    "miss bat": (peft.MissConfig, {"target_modules": LINEAR, "r": 8, "init_weights": "bat"}),
    "oft": (peft.OFTConfig, {"target_modules": LINEAR, "oft_block_size": 8}),
    "oft by blocks": (peft.OFTConfig, {"target_modules": LINEAR, "r": 4, "oft_block_size": 0}),
    "oft adjusted": (peft.OFTConfig, {"target_modules": LINEAR, "oft_block_size": 7}),
    "oft shared": (
        peft.OFTConfig,
        {"target_modules": LINEAR, "oft_block_size": 8, "block_share": True},
    ),
    "oft exact": (
        peft.OFTConfig,
        {"target_modules": LINEAR, "oft_block_size": 8, "use_cayley_neumann": False},
    ),
    "oft three terms": (
        peft.OFTConfig,
        {"target_modules": LINEAR, "oft_block_size": 8, "num_cayley_neumann_terms": 3},
    ),
    "oft two terms": (
        peft.OFTConfig,
        {"target_modules": LINEAR, "oft_block_size": 8, "num_cayley_neumann_terms": 2},
    ),
    "oft seven terms": (
        peft.OFTConfig,
        {"target_modules": LINEAR, "oft_block_size": 8, "num_cayley_neumann_terms": 7},
    ),
    "oft constrained": (
        peft.OFTConfig,
        {"target_modules": LINEAR, "oft_block_size": 8, "coft": True, "eps": 0.9},
    ),
    "oft embedding": (
        peft.OFTConfig,
        {"target_modules": ["embed_tokens", "q_proj"], "oft_block_size": 8},
    ),
    "boft": (peft.BOFTConfig, {"target_modules": LINEAR, "boft_block_size": 4}),
    "boft by blocks": (
        peft.BOFTConfig,
        {"target_modules": LINEAR, "boft_block_size": 0, "boft_block_num": 4, "bias": "boft_only"},
    ),
    "vera": (peft.VeraConfig, {"target_modules": LINEAR, "r": 6}),
    "randlora": (peft.RandLoraConfig, {"target_modules": LINEAR, "r": 5}),
    "randlora sparse": (peft.RandLoraConfig, {"target_modules": LINEAR, "r": 4, "sparse": True}),
    "fourierft": (peft.FourierFTConfig, {"target_modules": LINEAR, "n_frequency": 40}),
    "fourierft patterns": (
        peft.FourierFTConfig,
        {
            "target_modules": LINEAR,
            "n_frequency": 40,
            "n_frequency_pattern": {"k_proj": 7},
            "random_loc_seed": 5,
            "scaling": 20.0,
        },
    ),
    "hira": (peft.HiraConfig, {"target_modules": LINEAR, "r": 4, "rank_pattern": {"q_proj": 2}}),
    "hira embedding": (peft.HiraConfig, {"target_modules": ["embed_tokens", "q_proj"], "r": 4}),
    "delora": (
        peft.DeloraConfig,
        {
            "target_modules": LINEAR,
            "r": 3,
            "rank_pattern": {"k_proj": 2},
            "lambda_pattern": {"q_proj": 4},
            "modules_to_save": ["lm_head"],
        },
    ),
}
CONV1D = {
    "ia3": (
        peft.IA3Config,
        {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]},
    ),
    "vera": (peft.VeraConfig, {"target_modules": ["c_attn", "c_proj"], "r": 3}),
    "randlora": (peft.RandLoraConfig, {"target_modules": ["c_attn", "c_proj"], "r": 3}),
    "fourierft": (peft.FourierFTConfig, {"target_modules": ["c_attn", "c_proj"], "n_frequency": 9}),
    "hira": (peft.HiraConfig, {"target_modules": ["c_attn", "c_proj"], "r": 3}),
}
CONVOLUTIONS = {
    "ia3": (
        peft.IA3Config,
        {"target_modules": ["first", "grouped", "last"], "feedforward_modules": ["grouped"]},
    ),
    "ia3 inputs": (
        peft.IA3Config,
        {"target_modules": ["first", "last"], "feedforward_modules": ["first"]},
    ),
    "oft": (peft.OFTConfig, {"target_modules": ["first", "last"], "oft_block_size": 4}),
    "boft": (peft.BOFTConfig, {"target_modules": ["first", "last"], "boft_block_size": 4}),
    "hira": (peft.HiraConfig, {"target_modules": ["first", "point", "last"], "r": 3}),
}


class Images(torch.nn.Module):
    """Convolutions of several kinds in front of a matrix."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(4, 8, 3)
        self.grouped = torch.nn.Conv2d(8, 8, 3, groups=2)
        self.point = torch.nn.Conv2d(8, 8, 1)
        self.last = torch.nn.Linear(8, 8)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A llama with biases, a GPT-2 and convolutions in both precisions, with the folders that they lie in."""
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_bias=True,
            tie_word_embeddings=False,
        )
    )
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=24, n_embd=16, n_layer=1, n_head=2, n_positions=12, tie_word_embeddings=False
        )
    )
    found = {}
    for precision in ("float32", "float64"):
        folder = tmp_path_factory.mktemp(precision)
        for name, model in {"llama": llama, "gpt2": gpt2, "images": Images()}.items():
            own = copy.deepcopy(model).to(getattr(torch, precision))
            with torch.no_grad():
                for key, parameter in own.named_parameters():
                    if key.endswith("bias"):
                        parameter.normal_()
            place = folder / name
            if name == "images":
                place.mkdir()
                save_file(own.state_dict(), place / "model.safetensors")
            else:
                own.save_pretrained(place)
            found[name, precision] = (own, place)
    return found


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    """The type of the base, in which peft then computes (of what it makes itself as well)."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, request.param))
    yield request.param
    torch.set_default_dtype(before)


def trained(model, folder, kind, settings):
    """An adapter with random numbers in all that it trains, saved by peft, and what peft merges of it."""
    torch.manual_seed(3)
    adapted = peft.get_peft_model(copy.deepcopy(model), kind(**settings)).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(folder)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    return again.merge_and_unload().state_dict()


def read(base, adapter):
    """All tensors of a base with an adapter."""
    opened = open_model(f"{base}+{adapter}")
    return {name: read_array(tensor) for name, tensor in opened.tensors.items()}


def check(theirs, ours, before, tolerance):
    """Every tensor alike, and some of them changed."""
    assert ours
    changed = 0
    for name, found in ours.items():
        expected = theirs[name].numpy()
        changed += not np.array_equal(expected, before[name].numpy())
        if tolerance == 0.0:
            np.testing.assert_array_equal(found, expected, err_msg=name)
        else:
            size = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * size, err_msg=name)
    assert changed


def compare(bases, base, precision, folder, chosen, tolerance):
    model, place = bases[base, precision]
    if chosen[0] is peft.FourierFTConfig:
        # Peft transforms in float32 whatever the base has, and fails where the default is another.
        torch.set_default_dtype(torch.float32)
        tolerance = tolerance_of("float32")
    theirs = trained(model, folder / "adapter", *chosen)
    check(theirs, read(place, folder / "adapter"), model.state_dict(), tolerance)


def tolerance_of(precision):
    """A few roundings of the type that peft computes in."""
    return 1e-6 if precision == "float32" else 1e-13


@pytest.mark.parametrize("chosen", SAME_BITS.values(), ids=SAME_BITS)
def test_what_is_one_operation_has_the_bits_of_pefts_merge(bases, tmp_path, precision, chosen):
    compare(bases, "llama", precision, tmp_path, chosen, 0.0)


@pytest.mark.parametrize("chosen", ROUNDED.values(), ids=ROUNDED)
def test_matrices_and_tables_are_those_of_pefts_merge(bases, tmp_path, precision, chosen):
    compare(bases, "llama", precision, tmp_path, chosen, tolerance_of(precision))


@pytest.mark.parametrize("chosen", CONV1D.values(), ids=CONV1D)
def test_matrices_with_inputs_first_are_those_of_pefts_merge(bases, tmp_path, precision, chosen):
    compare(bases, "gpt2", precision, tmp_path, chosen, tolerance_of(precision))


@pytest.mark.parametrize("chosen", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions_are_those_of_pefts_merge(bases, tmp_path, precision, chosen):
    compare(bases, "images", precision, tmp_path, chosen, tolerance_of(precision))


class _Butterflies:
    """What peft's CUDA extension computes, which it needs for more than one factor: blocks on diagonals."""

    @staticmethod
    def forward(blocks):
        return [torch.stack([torch.block_diag(*level.unbind()) for level in blocks])]


@pytest.mark.parametrize("sizes", [(4, 3), (2, 2), (8, 2)])
def test_butterflies_of_several_factors_are_those_of_pefts_merge(
    bases, tmp_path, precision, monkeypatch, sizes
):
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: _Butterflies)
    size, factors = sizes
    settings = {
        "target_modules": ["q_proj", "k_proj"],
        "boft_block_size": size,
        "boft_n_butterfly_factor": factors,
    }
    chosen = (peft.BOFTConfig, settings)
    compare(bases, "llama", precision, tmp_path, chosen, tolerance_of(precision))


def test_projections_of_vera_that_are_not_saved_are_drawn_as_peft_draws_them(bases, tmp_path):
    settings = {"target_modules": LINEAR, "r": 4, "save_projection": False}
    compare(bases, "llama", "float32", tmp_path, (peft.VeraConfig, settings), 1e-6)


def test_bases_of_randlora_that_are_not_saved_are_asked_for(bases, tmp_path):
    model, place = bases["llama", "float32"]
    settings = {"target_modules": LINEAR, "r": 4, "save_projection": False}
    trained(model, tmp_path / "adapter", peft.RandLoraConfig, settings)
    with pytest.raises(WeightsmithError, match="save_projection"):
        read(place, tmp_path / "adapter")


@pytest.mark.parametrize("chosen", [SAME_BITS["ia3"], ROUNDED["oft"], ROUNDED["vera"]])
def test_a_strength_of_one_half_takes_half_of_the_change(bases, tmp_path, chosen):
    model, place = bases["llama", "float32"]
    theirs = trained(model, tmp_path / "adapter", *chosen)
    before = model.state_dict()
    half = {name: (before[name] + theirs[name]) / 2 for name in before}
    check(half, read(place, f"{tmp_path / 'adapter'}:0.5"), before, 1e-6)


@pytest.mark.parametrize("chosen", [SAME_BITS["ia3"], SAME_BITS["miss"], ROUNDED["oft"]])
def test_an_adapter_of_another_base_is_refused(bases, tmp_path, chosen):
    model, _ = bases["llama", "float32"]
    trained(model, tmp_path / "adapter", *chosen)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=40,
        intermediate_size=56,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    with pytest.raises(WeightsmithError, match="the base that the adapter was trained on"):
        read(tmp_path / "other", tmp_path / "adapter")


@pytest.mark.parametrize(
    ("chosen", "lost"),
    [
        (ROUNDED["boft"], "boft_s"),
        (ROUNDED["delora"], "delora_w_norm"),
        (ROUNDED["vera"], "lambda"),
    ],
)
def test_a_missing_part_is_named(bases, tmp_path, chosen, lost):
    model, place = bases["llama", "float32"]
    trained(model, tmp_path / "adapter", *chosen)
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if lost in name)
    del tensors[gone]
    save_file(tensors, file)
    with pytest.raises(WeightsmithError, match=lost):
        read(place, tmp_path / "adapter")


def test_not_a_number_in_an_adapter_is_refused(bases, tmp_path):
    model, place = bases["llama", "float32"]
    trained(model, tmp_path / "adapter", *SAME_BITS["ia3"])
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, file)
    with pytest.raises(WeightsmithError, match="NaN"):
        read(place, tmp_path / "adapter")


def test_an_unknown_setting_of_a_tuner_is_refused(bases, tmp_path):
    model, place = bases["llama", "float32"]
    trained(model, tmp_path / "adapter", *ROUNDED["oft"])
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "spin": 3}))
    with pytest.raises(WeightsmithError, match="'spin'"):
        read(place, tmp_path / "adapter")


def test_an_endless_series_is_refused(bases, tmp_path):
    model, place = bases["llama", "float32"]
    trained(model, tmp_path / "adapter", *ROUNDED["oft"])
    file = tmp_path / "adapter/adapter_config.json"
    endless = {**json.loads(file.read_text()), "num_cayley_neumann_terms": 10**9}
    file.write_text(json.dumps(endless))
    with pytest.raises(WeightsmithError, match="from 1 to 1000"):
        read(place, tmp_path / "adapter")


def test_a_negative_place_of_a_single_element_is_refused(bases, tmp_path):
    model, place = bases["llama", "float32"]
    trained(model, tmp_path / "adapter", *SAME_BITS["shira"])
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(file)
    places = next(tensor for name, tensor in tensors.items() if "indices" in name)
    # No row is 0, so that only the columns tell.
    places[0].clamp_(min=1)
    places[1, 5] = -1
    save_file(tensors, file)
    with pytest.raises(WeightsmithError, match="the base that the adapter was trained on"):
        read(place, tmp_path / "adapter")


def test_a_spectrum_of_a_matrix_that_torch_draws_otherwise_for_is_refused(
    bases, tmp_path, monkeypatch
):
    model, place = bases["llama", "float32"]
    trained(model, tmp_path / "adapter", *ROUNDED["fourierft"])
    monkeypatch.setattr("weightsmith.adapters.tuners.additions.LONGEST_PERMUTATION", 1500)
    with pytest.raises(WeightsmithError, match=r"1,536 elements.*merge the adapter with PEFT"):
        open_model(f"{place}+{tmp_path / 'adapter'}")
