"""The network that a configuration describes, without weights: transformers' class, or a registered plain one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

from weightsmith.errors import UsageError
from weightsmith.live.config_checks import check_counts, check_size
from weightsmith.live.devices import check_libraries
from weightsmith.live.libraries import asking_library, quiet_library
from weightsmith.live.model_source import Source
from weightsmith.live.plain_models import Build, find_builder
from weightsmith.live.slots import tied_names

if TYPE_CHECKING:
    from torch import dtype as TorchDtype  # noqa: N812 - torch's name is that of a parameter
    from torch.nn import Module

# What a configuration says of files and libraries, and not of the network.
_NOT_OF_THE_NETWORK = frozenset({"_name_or_path", "dtype", "torch_dtype", "transformers_version"})


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A module in evaluation mode, most of it on the meta device; `plain` if it is none of transformers'.

    Equal `key`s have equal networks: weights of the one can be put into the other. `ties` are groups of places that
    hold one tensor, the one that others are tied to first.
    """

    key: str
    module: Any
    plain: bool
    ties: tuple[tuple[str, ...], ...]


def network_key(source: Source) -> str:
    """What two sources have in common if they have the same network."""
    told = {k: v for k, v in source.config.items() if k not in _NOT_OF_THE_NETWORK}
    return json.dumps([told, _has_pooler(source)], sort_keys=True, default=str)


def describe_network(source: Source, dtype: TorchDtype) -> Network:
    """The network of a source, with parameters of a dtype on the meta device.

    A plain network with tensors that its state dict leaves out has memory, since nothing but its own making fills them.
    Raises ResourceError if a library is missing, UsageError for a network that neither transformers nor the registry of
    `plain_models` has, CompatibilityError for one that cannot be that of the checkpoint.
    """
    check_counts(source)
    build = find_builder(source.config)
    check_libraries(["torch"] if build else ["torch", "transformers"])
    if build:
        module = _plain(source, build, dtype)
    else:
        with quiet_library():
            module = _pretrained(source, dtype)
    module.eval().requires_grad_(False)
    return Network(network_key(source), module, build is not None, tied_names(module))


def _plain(source: Source, build: Build, dtype: TorchDtype) -> Module:
    import torch

    said = f"The config.json of {source.name!r} does not describe its network"
    with asking_library(said, "correct it", UsageError):
        # Without memory first, since any number may be in a configuration.
        with torch.device("meta"):
            planned = build(source.config)
        check_size(source, planned)
        left_out = dict(planned.named_buffers()).keys() - planned.state_dict().keys()
        return (build(source.config) if left_out else planned).to(dtype)


def _pretrained(source: Source, dtype: TorchDtype) -> Any:
    said = f"transformers does not understand the config.json of {source.name!r}"
    with asking_library(said, "correct it", UsageError):
        model_class = _model_class(source)
    options: dict[str, Any] = {}
    if "add_pooling_layer" in signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = _has_pooler(source)
    with asking_library(said, "correct it", UsageError, lambda: _wrong_entry(source, model_class)):
        module = _described(source.config, model_class, options, dtype)
    check_size(source, module)
    return module


def _has_pooler(source: Source) -> bool:
    return any("pooler." in name for name in source.tensors)


def _described(
    content: Mapping[str, Any],
    model_class: Any,
    options: Mapping[str, Any],
    dtype: TorchDtype | None = None,
) -> Any:
    """The network of a configuration as transformers has it, without memory."""
    import torch
    from transformers import CONFIG_MAPPING

    config: Any = CONFIG_MAPPING[content["model_type"]].from_dict(dict(content))
    if dtype is not None:
        for part in (config, *(getattr(config, key, None) for key in config.sub_configs)):
            if part is not None:
                part.dtype = dtype
    with torch.device("meta"), _default_dtype(dtype or torch.float32):
        module = model_class(config, **options)
    _keep_precise(module, dtype or torch.float32)
    return module


@contextmanager
def _default_dtype(dtype: TorchDtype) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _keep_precise(module: Any, dtype: TorchDtype) -> None:
    """Give float32 to the tensors that an architecture keeps in it, whatever the others have."""
    kept = [name for name, own in module._get_dtype_plan(dtype).items() if own != dtype]
    pattern = re.compile("|".join(name.replace("*", ".*") for name in kept)) if kept else None
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if pattern is not None and pattern.search(name):
            tensor.data = tensor.data.float()


def _wrong_entry(source: Source, model_class: Any) -> str | None:
    """The first entry of a configuration without which transformers understands it, if there is one."""
    for key in source.config:
        rest = {name: value for name, value in source.config.items() if name != key}
        with suppress(Exception):
            _described(rest, model_class, {})
            return key
    return None


def _model_class(source: Source) -> Any:
    import transformers

    named = source.config.get("architectures") or []
    if not isinstance(named, list) or not named:
        raise UsageError(
            f"The config.json of {source.name!r} names no architecture; add `architectures` with the class of "
            "transformers that it is."
        )
    found = getattr(transformers, str(named[0]), None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise UsageError(
            f"The architecture {named[0]!r} of {source.name!r} is none of transformers {transformers.__version__}'s; "
            "code of a checkpoint's own is not run."
        )
    return found
