"""The names of transformers' networks: its own conversion mapping, read as data.

What `from_pretrained` would do with a file is asked of the library for names alone, once for a layout of files, on
tensors without memory; what it would compute (stacks of experts, cut or joined matrices) is kept as a function.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from weightsmith.live.name_map import Origin

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FoundNames:
    """Origins by the library's rules, names of files without a place, and tensors in memory that no file has.

    `absent` are those of them that the library makes itself.
    """

    origins: tuple[Origin, ...]
    unexpected: tuple[str, ...]
    missing: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(slots=True)
class _Target:
    """Stored tensors that come together under one name, and what converts them: (pattern, name of the file)."""

    converter: Any
    collected: list[tuple[str, str]] = field(default_factory=list)


def transformers_names(module: Any, stored: Mapping[str, Shape]) -> FoundNames:
    """How the library would load files of these names and shapes into a network."""
    state = dict(module.state_dict())
    targets, unexpected = _targets(module, state, stored)
    origins = tuple(_origin(module, name, target, stored) for name, target in targets.items())
    missing = set(state).difference(*(origin.memory for origin in origins))
    info = SimpleNamespace(missing_keys=set(missing), unexpected_keys=set(unexpected))
    # Names that may be missing or left over are the library's knowledge of its classes.
    module._adjust_missing_and_unexpected_keys(info)
    return FoundNames(
        origins,
        tuple(sorted(unexpected[name] for name in info.unexpected_keys)),
        tuple(sorted(info.missing_keys)),
        tuple(sorted(missing - info.missing_keys)),
    )


def _targets(
    module: Any, state: dict[str, Any], stored: Mapping[str, Shape]
) -> tuple[dict[str, _Target], dict[str, str]]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules: list[Any] = get_model_conversion_mapping(module)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    targets: dict[str, _Target] = {}
    unexpected: dict[str, str] = {}
    prefix = module.base_model_prefix
    for file in sorted(stored, key=lambda name: dot_natural_key(name)):
        renamed, pattern = rename_source_key(file, renamings, converters, prefix, state)
        if renamed not in state and file in state:
            renamed, pattern = rename_source_key(file, [], [], prefix, state)
        if renamed not in state:
            unexpected[renamed] = file
            continue
        converter = None if pattern is None else by_pattern[pattern]
        targets.setdefault(renamed, _Target(converter)).collected.append((pattern or file, file))
    return targets, unexpected


def _origin(module: Any, name: str, target: _Target, stored: Mapping[str, Shape]) -> Origin:
    import torch

    if target.converter is None:
        return Origin(tuple(file for _, file in target.collected), (name,))
    # The library takes the sources of a converter in the order of its patterns.
    order = {pattern: i for i, pattern in enumerate(target.converter.source_patterns)}
    collected = sorted(target.collected, key=lambda pair: order[pair[0]])
    conversion = _Conversion(
        module, name, target.converter, tuple(pattern for pattern, _ in collected)
    )
    files = tuple(file for _, file in collected)
    shapes = [stored[file] for file in files]
    made = conversion.convert([torch.empty(shape, device="meta") for shape in shapes])
    reverts = conversion.reverts(made, shapes)
    return Origin(files, tuple(made), conversion.convert, conversion.revert if reverts else None)


@dataclass(frozen=True, slots=True)
class _Conversion:
    """A rule of the library for one tensor in memory: `patterns` are those that the stored tensors match."""

    module: Any
    name: str
    converter: Any
    patterns: tuple[str, ...]

    def convert(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        rule = copy.deepcopy(self.converter)
        for pattern, tensor in zip(self.patterns, tensors, strict=True):
            rule.add_tensor(self.name, pattern, pattern, lambda tensor=tensor: tensor)
        return _singles(rule.convert(self.name, model=self.module, config=self.module.config))

    def revert(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        rule = copy.deepcopy(self.converter).reverse_transform()
        first = None
        for name, tensor in tensors.items():
            renamed, pattern = rule.rename_source_key(name)
            first = first or renamed
            rule.add_tensor(renamed, name, pattern, tensor)
        return list(
            _singles(rule.convert(first, model=self.module, config=self.module.config)).values()
        )

    def reverts(self, made: Mapping[str, Tensor], shapes: Sequence[Shape]) -> bool:
        """Whether the library's way back gives tensors of the stored shapes, in the stored order."""
        try:
            found = self.revert(made)
        except Exception:  # noqa: BLE001 - a rule without a way back raises anything
            return False
        return [tuple(tensor.shape) for tensor in found] == list(shapes)


def _singles(found: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: made[0] if isinstance(made, list) else made for name, made in found.items()}
