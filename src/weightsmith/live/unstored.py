"""What a network has and no file holds: tables of positions and frequencies, and what its library makes itself."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from weightsmith.live.networks import Network
from weightsmith.live.slots import slots_of


def make_unstored(network: Network, device: str, absent: Collection[str]) -> None:
    """Give memory and content to what no file holds, always the same; weights stay without memory.

    transformers fills buffers as it initialises weights, and leaves alone what is marked.
    """
    import torch

    module = network.module
    if network.plain:
        module._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))
        return
    for slot in slots_of(module):
        if slot.name in absent:
            slot.put(_made_like(slot.tensor, torch.empty_like(slot.tensor, device="cpu")))
        else:
            slot.tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    unstored = [name for name, _ in module.named_non_persistent_buffers()]
    for name in unstored:
        owner, key = _place_of(module, name)
        owner._buffers[key] = torch.empty_like(owner._buffers[key], device="cpu")
    # Where numbers are drawn, as for an expert's bias that no file has, they are the same in every process.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module.initialize_weights()
    for name in (*unstored, *absent):
        owner, key = _place_of(module, name)
        held = owner._buffers if key in owner._buffers else owner._parameters
        held[key] = _made_like(held[key], held[key].detach().to(device))


def _place_of(module: Any, name: str) -> tuple[Any, str]:
    path, _, key = name.rpartition(".")
    return module.get_submodule(path), key


def _made_like(tensor: Any, made: Any) -> Any:
    """A tensor that was made, as a parameter if it takes the place of one."""
    import torch

    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(made, requires_grad=False) if is_parameter else made
