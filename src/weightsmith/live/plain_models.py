"""Networks that transformers does not have, built from a checkpoint's `config.json` by its `model_type`.

Such a network takes inputs [B, ...] and gives logits [B, C]; `features`, if it has one, gives [B, D].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from weightsmith.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Build = Callable[[Mapping[str, Any]], "Module"]


def residual_perceptron(config: Mapping[str, Any]) -> Module:
    """The network of the digits family, with random weights.

    x [B, P] -> embed [B, H] -> L residual blocks h + relu(W h + c) -> classifier [B, C]

    P is `num_inputs` (default 64), H `hidden_size`, L `num_hidden_layers`, C `num_labels`.
    """
    from torch import nn, relu

    inputs, width = int(config.get("num_inputs", 64)), int(config["hidden_size"])

    class ResidualPerceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [nn.Linear(width, width) for _ in range(int(config["num_hidden_layers"]))]
            self.model = nn.ModuleDict(
                {"embed": nn.Linear(inputs, width), "layers": nn.ModuleList(layers)}
            )
            self.classifier = nn.Linear(width, int(config["num_labels"]))

        def features(self, x: Tensor) -> Tensor:
            hidden = relu(self.model["embed"](x))
            layers: Any = self.model["layers"]
            for layer in layers:
                hidden = hidden + relu(layer(hidden))
            return hidden

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.features(x))
            return logits

    return ResidualPerceptron()


_BUILDERS: dict[str, Build] = {"digits-mlp": residual_perceptron}


def register(model_type: str, build: Build) -> None:
    """Make checkpoints of a `model_type` known: `build` gives the network for a config, its weights being of no matter.

    The names of its state dict must be those of the checkpoint. Raises UsageError for a type that is known already.
    """
    if model_type in _BUILDERS:
        raise UsageError(
            f"The model type {model_type!r} is registered already; choose another name."
        )
    _BUILDERS[model_type] = build


def find_builder(config: Mapping[str, Any]) -> Build | None:
    """What builds the network of a config, or None where transformers has to."""
    return _BUILDERS.get(str(config.get("model_type")))
