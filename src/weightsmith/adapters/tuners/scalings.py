"""(IA)^3 and HiRA, which multiply a weight by element.

(IA)^3 (Liu et al. 2022, arXiv:2205.05638): a vector l scales the outputs of a module, W' = diag(l) W and b' = l o b, or
the inputs of a feed-forward module, W' = W diag(l). HiRA (Huang et al. 2025, ICLR): W' = W + W o (B A).
"""

from __future__ import annotations

import numpy as np

from weightsmith.adapters.adapter import Update
from weightsmith.adapters.effects import Effect, TargetTensor
from weightsmith.adapters.tuners.module_tensors import ModuleTensors, vector
from weightsmith.adapters.updates import finite, ranked, wrong
from weightsmith.deltas import LowRankChange, Modulated, Scaled, transposed
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import LazyTensor, kernel_shape


def scaled(tensors: ModuleTensors) -> list[Update]:
    """(IA)^3: l is 1 x inputs or outputs x 1 for a matrix, and 1 x either for a convolution.

    Of a convolution `feedforward_modules` says which, as PEFT has it. The bias changes with the outputs.
    """
    (factors,) = tensors.needed("ia3_l")
    if factors.numel not in factors.shape:
        raise wrong(
            f"{factors.location} has the shape {list(factors.shape)}, but (IA)^3 scales with vectors",
            "the adapter was saved in pieces or is damaged, fetch it again",
        )
    is_matrix = len(factors.shape) == 2 and factors.numel > 1
    by_input = factors.shape[0] == 1 if is_matrix else _is_feedforward(tensors)
    update = tensors.update((factors,), lambda target: _scaling(target, factors, by_input, tensors))
    if by_input:
        return [update]
    bias = Update(
        f"{tensors.path}.bias",
        tensors.form,
        (factors,),
        effect=lambda target: _bias_scaling(target, factors),
        optional=True,
    )
    return [update, bias]


def _is_feedforward(tensors: ModuleTensors) -> bool:
    return tensors.config.ends_in("feedforward_modules", tensors.path)


def _scaling(
    target: TargetTensor, factors: LazyTensor, by_input: bool, tensors: ModuleTensors
) -> Effect:
    if by_input and len(target.shape) > 2:
        return _kernel_scaling(target, factors)
    numbers = (None, factors.numel) if by_input else (factors.numel, None)
    found = target.matrix(factors, *numbers, turned=tensors.config.fan_in_fan_out)
    # Rows are outputs, or the inputs of a matrix that is turned.
    is_by_row = found.turned == by_input

    def rewrite() -> Scaled:
        values = vector(factors)
        if is_by_row:
            return Scaled(found.shape, by_row=values)
        return Scaled(found.shape, by_column=values[None, :])

    return Effect(rewrite=rewrite, turned=found.turned)


def _kernel_scaling(target: TargetTensor, factors: LazyTensor) -> Effect:
    """Inputs of a convolution, each group of outputs seeing those of its own."""
    rows, columns = kernel_shape(target.shape)
    groups, rest = divmod(factors.numel, target.shape[1])
    if rest or not groups or rows % groups:
        raise CompatibilityError(
            f"{target.tensor.location} has the shape {list(target.shape)}, but {factors.location} scales "
            f"{factors.numel} inputs: give the base that the adapter was trained on."
        )
    kernel = columns // target.shape[1]

    def rewrite() -> Scaled:
        by_group = vector(factors).reshape(groups, -1)
        return Scaled((rows, columns), by_column=np.repeat(by_group, kernel, axis=1))

    return Effect(rewrite=rewrite)


def _bias_scaling(target: TargetTensor, factors: LazyTensor) -> Effect:
    if target.shape != (factors.numel,):
        raise CompatibilityError(
            f"{target.tensor.location} has the shape {list(target.shape)}, but {factors.location} scales "
            f"{factors.numel} outputs: give the base that the adapter was trained on."
        )
    return Effect(rewrite=lambda: Scaled((factors.numel, 1), by_row=vector(factors)))


def modulated(tensors: ModuleTensors) -> list[Update]:
    """HiRA: A is rank x inputs (and the axes of a kernel), B outputs x rank; of an embedding B A is size x rows."""
    is_embedding = any(name.startswith("hira_embedding_") for name in tensors.parts)
    names = ("hira_embedding_A", "hira_embedding_B") if is_embedding else ("hira_A", "hira_B")
    down, up = tensors.needed(*names)
    rank, shape = ranked(down, up)
    outputs, inputs = kernel_shape(shape)

    def effect(target: TargetTensor) -> Effect:
        if is_embedding:
            target.matrix(down, inputs, outputs, turned=None)
            return Effect(rewrite=lambda: modulation(turned=True))
        may_turn = tensors.config.fan_in_fan_out if len(shape) == 2 else None
        found = target.matrix(down, outputs, inputs, turned=may_turn)
        return Effect(rewrite=lambda: modulation(turned=found.turned), turned=found.turned)

    def modulation(*, turned: bool) -> Modulated:
        change = LowRankChange(
            finite(up).reshape(outputs, rank), finite(down).reshape(rank, inputs)
        )
        return Modulated(transposed(change) if turned else change)

    return [tensors.update((down, up), effect, rank=rank)]
