"""PEFT's tuners beyond LoRA, LoHa and LoKr: how each is called, and what its files and its configuration hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TunerFacts:
    """One tuner.

    `title` is what its paper calls it. `parts` are the names of tensors behind the path of a module, `shared` those
    behind `base_model`, which are of all modules, `settings` the keys of its configuration that LoRA's does not have.
    """

    title: str
    parts: frozenset[str]
    settings: frozenset[str]
    shared: frozenset[str] = frozenset()


def _facts(title: str, parts: str, settings: str, shared: str = "") -> TunerFacts:
    found = (frozenset(names.split()) for names in (parts, settings, shared))
    return TunerFacts(title, *found)


# By `peft_type`; parts and settings are those that PEFT 0.21 writes.
TUNERS = {
    "IA3": _facts("(IA)^3", "ia3_l", "feedforward_modules init_ia3_weights"),
    "OFT": _facts(
        "OFT",
        "oft_R oft_embedding_R",
        "oft_block_size coft eps block_share use_cayley_neumann num_cayley_neumann_terms",
    ),
    "BOFT": _facts(
        "BOFT",
        "boft_R boft_s",
        "boft_block_size boft_block_num boft_n_butterfly_factor boft_dropout",
    ),
    "VERA": _facts(
        "VeRA",
        "vera_lambda_b vera_lambda_d",
        "vera_dropout d_initial projection_prng_key save_projection",
        "vera_A vera_B",
    ),
    "HIRA": _facts("HiRA", "hira_A hira_B hira_embedding_A hira_embedding_B", "hira_dropout"),
    "MISS": _facts("MiSS", "miss_block", "miss_dropout mini_r"),
    # It writes the shared bases once more for every module.
    "RANDLORA": _facts(
        "RandLoRA",
        "randlora_lambda randlora_gamma randlora_A randlora_B",
        "randlora_dropout randlora_alpha sparse very_sparse projection_prng_key save_projection",
        "randlora_A randlora_B",
    ),
    "FOURIERFT": _facts(
        "FourierFT", "fourierft_spectrum", "n_frequency n_frequency_pattern scaling random_loc_seed"
    ),
    "SHIRA": _facts("SHiRA", "shira_weight shira_indices", "mask_type random_seed"),
    "DELORA": _facts(
        "DeLoRA", "delora_A delora_B delora_lambda delora_w_norm", "delora_lambda lambda_pattern"
    ),
}
