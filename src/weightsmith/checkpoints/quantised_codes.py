"""Weights that are stored as codes, which a scale beside them turns into numbers.

Files keep no word of it where a quantiser wrote no configuration, or somebody removed it; so the tensors are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from weightsmith.findings import Finding, Severity
from weightsmith.tensors import DType, LazyTensor
from weightsmith.wording import shown

# The last fields of codes, and of what stands beside them: compressed-tensors and DeepSeek, ComfyUI, bitsandbytes;
# GPTQ and AWQ; compressed-tensors' packed integers; Quanto.
_SCALES: Mapping[str, tuple[str, ...]] = {
    "weight": (
        "weight_scale",
        "weight_scale_inv",
        "weight_scale_2",
        "scale_weight",
        "weight.absmax",
        "SCB",
    ),
    "qweight": ("scales", "qzeros"),
    "weight_packed": ("weight_scale",),
    "_data": ("_scale",),
}
# Microscaled floats: blocks of codes, and the scale of each.
_BLOCKS, _BLOCK_SCALES = "_blocks", "_scales"


def code_findings(tensors: Mapping[str, LazyTensor], identity: str) -> list[Finding]:
    """An error where a checkpoint has codes with scales: either is meaningless without the other."""
    pairs = list(_codes(tensors))
    if not pairs:
        return []
    (name, scale), others = pairs[0], len(pairs) - 1
    more = f", as are those of {others} more" if others else ""
    return [
        Finding(
            Severity.ERROR,
            "quantised",
            identity,
            f"{identity} is quantised: the numbers of {shown(name)} ({tensors[name].dtype.value}) are codes, which "
            f"{shown(scale)} scales{more}, and codes cannot be combined",
            "dequantise it to bfloat16 first, or use the original weights",
        )
    ]


def _codes(tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, str]]:
    """Names of codes, each with that of a scale."""
    for name, tensor in tensors.items():
        if not _may_be_codes(tensor.dtype):
            continue
        stem, dot, leaf = name.rpartition(".")
        beside = _SCALES.get(leaf, ())
        if leaf.endswith(_BLOCKS):
            beside = (leaf.removesuffix(_BLOCKS) + _BLOCK_SCALES,)
        scale = next((s for other in beside if (s := f"{stem}{dot}{other}") in tensors), None)
        if scale is not None:
            yield name, scale


def _may_be_codes(dtype: DType) -> bool:
    return not dtype.is_float or dtype.itemsize == 1
