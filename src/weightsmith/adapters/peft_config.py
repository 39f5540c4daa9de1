"""What adapter_config.json says about the maths, and what in it cannot be merged into weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.adapters.tuner_facts import TUNERS
from weightsmith.adapters.updates import FactorScale
from weightsmith.errors import CheckpointError, CompatibilityError
from weightsmith.patterns import Allowance, PatternError, Patterns
from weightsmith.tensors import shown

# The types of adapters that are read; all others change more than weights, or have no reader yet.
READ_TYPES = ("LORA", "LOHA", "LOKR", "TRAINABLE_TOKENS", *TUNERS)

# Types that add inputs, modules or routes to a network, which no weights of its own can show.
_NO_WEIGHTS = frozenset(
    """PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING ADAPTION_PROMPT CPT CARTRIDGE POLY XLORA
    SHADOW""".split()
)

# Initialisations that take something out of the base when training begins.
_BASE_CHANGING = ("pissa", "olora", "corda", "lora_ga")

# Settings that make an adapter more than a change of weights, with the reason.
_UNMERGEABLE = {
    "layer_replication": "repeats layers of the base, so its factors belong to a deeper model: build that with a "
    "passthrough merge first and remove the key",
    "use_qalora": "pools the inputs in groups (QALoRA), which no change of the weights does: load it with PEFT",
    "alora_invocation_tokens": "acts only behind its invocation tokens (aLoRA), but weights act on all tokens: load it "
    "with PEFT",
    "arrow_config": "routes each token to other adapters (Arrow), which no change of the weights does: load it with "
    "PEFT",
    "kasa_config": "changes the base with singular values of its own (KaSA): merge it with PEFT",
    "monteclora_config": "samples its weights (MonteCLoRA): merge it with PEFT",
    "use_bdlora": "stores blocks of factors (BD-LoRA): merge it with PEFT",
}

# Everything else that PEFT writes: it says how the adapter was trained or where it acts, and changes no number here.
_HARMLESS = frozenset(
    """peft_type task_type base_model_name_or_path revision inference_mode auto_mapping peft_version r lora_alpha
    target_modules exclude_modules lora_dropout fan_in_fan_out bias use_rslora modules_to_save init_lora_weights
    layers_to_transform layers_pattern rank_pattern alpha_pattern megatron_config megatron_core
    trainable_token_indices loftq_config eva_config corda_config lora_ga_config use_dora velora_config
    qalora_group_size lora_bias target_parameters ensure_weight_tying target_modules_to_tie modules_to_tie
    runtime_config alpha rank_dropout rank_dropout_scale module_dropout use_effective_conv2d init_weights
    decompose_both decompose_factor token_indices enable_lora merge_weights""".split()
)

# What the patterns of one setting may take for all modules, some five seconds; three thousand modules that have each a
# pattern of their own take a twentieth of it.
_STEPS = 10_000_000


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The configuration of an adapter, checked; `content` is the whole of it, `where` the file for messages."""

    content: Mapping[str, Any]
    where: str
    _patterns: dict[str, Patterns] = field(default_factory=dict, repr=False, compare=False)

    @property
    def peft_type(self) -> str:
        """`LORA`, `LOHA`, ..."""
        return str(self.content["peft_type"])

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the base's matrices are said to be stored as inputs x outputs."""
        return bool(self.content.get("fan_in_fan_out"))

    def number(self, key: str, usual: float) -> float:
        """A setting that is a number, `usual` where it is not there; raises CheckpointError for anything else."""
        found = self.content.get(key, usual)
        if (
            isinstance(found, bool)
            or not isinstance(found, int | float)
            or not math.isfinite(found)
        ):
            raise self.wrong(f"{key!r} is {shown(found)}, no finite number")
        return found

    def flag(self, key: str) -> bool:
        """A setting that is true or false, false where it is not there."""
        return bool(self.content.get(key))

    def names(self, key: str) -> list[str]:
        """A setting that is a list of names, empty where it is not there."""
        found = self.content.get(key) or []
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise self.wrong(f"{key!r} is no list of names")
        return found

    def targets(self, module: str) -> bool:
        """Whether a module is among the target modules, as a list or a regular expression names them."""
        wanted = self.content.get("target_modules")
        if isinstance(wanted, str):
            return self._first_match("target_modules", [wanted], module) is not None
        return any(
            module == name or module.endswith(f".{name}") for name in self.names("target_modules")
        )

    def ends_in(self, key: str, module: str) -> bool:
        """Whether a setting names a module: a list by the ends of paths, a text as a pattern of the whole path."""
        wanted = self.content.get(key)
        if isinstance(wanted, str):
            return self._first_match(key, [wanted], module, before="") is not None
        return any(module.endswith(name) for name in self.names(key))

    def scale(self, module: str) -> FactorScale:
        r"""s, r and alpha of a module: those of the first pattern that matches its path, else the common ones.

        s = alpha / r, or alpha / sqrt(r) with `use_rslora`. A pattern k matches a path as the regular expression
        (.*\.)?(k)$ does. Raises CheckpointError for a rank that is no positive whole number, or a pattern that is no
        regular expression.
        """
        common = "alpha" if self.peft_type != "LORA" else "lora_alpha"
        rank = self._of_pattern("rank_pattern", module, self.content.get("r", 8))
        alpha = self._of_pattern("alpha_pattern", module, self.content.get(common, 8))
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise self.wrong(f"the rank of {shown(module)} is {shown(rank)}, no positive number")
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
            or not math.isfinite(alpha)
        ):
            raise self.wrong(f"the alpha of {shown(module)} is {shown(alpha)}, no finite number")
        divisor = math.sqrt(rank) if self.flag("use_rslora") else rank
        return FactorScale(alpha / divisor, rank, float(alpha))

    def _of_pattern(self, key: str, module: str, common: Any) -> Any:
        patterns = self.content.get(key) or {}
        if not isinstance(patterns, dict):
            raise self.wrong(f"{key!r} is no object of patterns")
        found = self._first_match(key, list(patterns), module) if patterns else None
        return common if found is None else patterns[found]

    def _first_match(
        self, key: str, patterns: Sequence[str], module: str, before: str = r"(.*\.)?"
    ) -> str | None:
        """The first of the patterns of a setting that matches a module's path."""
        try:
            if key not in self._patterns:
                allowance = Allowance(_STEPS, per_character=0)
                self._patterns[key] = Patterns(patterns, allowance, before=before, behind="$")
            found = self._patterns[key].at_beginning(module)
        except PatternError as problem:
            named = shown(patterns[0]) if len(patterns) == 1 else f"{len(patterns)} patterns"
            raise self.wrong(f"{key!r} ({named}) cannot be used, since {problem}") from None
        return None if found is None else patterns[found]

    def wrong(self, what: str) -> CheckpointError:
        """An error about the configuration."""
        return CheckpointError(f"{self.where}: {what}; fetch the adapter again.")


def changed_the_base(config: Mapping[str, Any]) -> str | None:
    """The initialisation that took something out of the base when training began, or None."""
    found = config.get("init_lora_weights")
    if isinstance(found, str) and found.lower().startswith(_BASE_CHANGING):
        return found
    return None


def checked_config(content: Mapping[str, Any], where: str) -> PeftConfig:
    """A configuration that means a change of weights.

    Raises CompatibilityError for types of adapters and settings that mean something else, or that are unknown and set,
    CheckpointError where there is no type at all. That the base was changed at training is not looked at (see
    `changed_the_base`).
    """
    kind = content.get("peft_type")
    if not isinstance(kind, str):
        raise CheckpointError(f"{where} has no 'peft_type': give the configuration of an adapter.")
    if kind in _NO_WEIGHTS:
        raise CompatibilityError(
            f"{where} is of an adapter of type {shown(kind)}, which adds to the network and changes no weights: load "
            "it with PEFT beside the model that you merge."
        )
    if kind not in READ_TYPES:
        raise CompatibilityError(
            f"{where} is of an adapter of type {shown(kind)}, but {', '.join(READ_TYPES)} can be read as changes of "
            "weights: merge it with the PEFT library first."
        )
    for key, reason in _UNMERGEABLE.items():
        if content.get(key):
            raise CompatibilityError(f"{where} sets {key!r}: the adapter {reason}.")
    init = content.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith("loftq"):
        raise CompatibilityError(
            f"{where} was trained on a base that LoftQ quantised and changed: merge it into that base with PEFT first."
        )
    settings = TUNERS[kind].settings if kind in TUNERS else frozenset()
    _refuse_unknown(content, where, _HARMLESS | settings)
    config = PeftConfig(content, where)
    if config.flag("use_dora") and config.flag("lora_bias"):
        raise CompatibilityError(
            f"{where} has both 'use_dora' and 'lora_bias', for which PEFT's norms depend on the bias: merge it with "
            "PEFT first."
        )
    return config


def _refuse_unknown(content: Mapping[str, Any], where: str, harmless: frozenset[str]) -> None:
    known = harmless | _UNMERGEABLE.keys()
    for key, value in content.items():
        if key not in known and value:
            raise CompatibilityError(
                f"{where} sets {shown(key)}, which is unknown here and may change what the factors mean: use a newer "
                "weightsmith, or remove the key if it only concerns training."
            )
