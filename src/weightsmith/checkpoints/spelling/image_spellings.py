"""Image models in single files of their authors and in folders of diffusers: what both call a tensor.

    canonical    COMPONENT/NAME: the component of diffusers' pipeline, and the name of its tensor there

A folder has FILE/NAME for each component, a single file a prefix, and a file of one component neither; names within
give that away.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from weightsmith.checkpoints.spelling.image_spelling_facts import (
    BESIDE_WEIGHTS,
    DENOISER,
    FLUX,
    FOLDERS,
    JOINED,
    PREFIXES,
    TRANSFORMER,
    UNET,
    VAE,
    WAN,
)
from weightsmith.checkpoints.spelling.part_views import Parts, Rearrange
from weightsmith.checkpoints.spelling.spelling_facts import Renamings
from weightsmith.checkpoints.spelling.stable_diffusion_names import (
    from_openclip,
    to_diffusers,
    vae_levels,
    vae_to_diffusers,
)
from weightsmith.deltas import JoinedRows, Stretch, renamed, reshaped, turned
from weightsmith.naming import beside
from weightsmith.tensors import LazyTensor

Rename = Callable[[str], str]

_TEXT_ENCODER = re.compile(r"text_encoder(?:_\d)?")
_FOLDER = re.compile(FOLDERS)
_BESIDE_WEIGHTS = re.compile(BESIDE_WEIGHTS)


@dataclass(frozen=True, slots=True)
class ImageSpelling:
    """How one checkpoint names the components of an image model: `regions` are prefixes of names, the longest first."""

    regions: tuple[tuple[str, str, Rename], ...]
    _known: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def canonical(self, name: str) -> str:
        """The component and the name there of a tensor that the file calls `name`; itself for one in no component."""
        found = self._known.get(name)
        if found is None:
            found = name
            for prefix, component, rename in self.regions:
                if name.startswith(prefix):
                    found = f"{component}/{rename(name.removeprefix(prefix))}"
                    break
            self._known[name] = found
        return found

    def parts(self, canonical: str, shape: tuple[int, ...]) -> tuple[Parts, ...]:
        """What files keep apart of a tensor, by canonical names; none for most."""
        end = ".".join(canonical.split(".")[-3:])
        if end not in JOINED or not shape:
            return ()
        start = canonical[: -len(end)]
        return (Parts(tuple(start + part for part in JOINED[end])),)

    def counterpart(self, canonical: str) -> tuple[str, Rearrange] | None:
        """The tensor with the same numbers in another order, by its canonical name, and how that is read as this one.

        The authors of Flux have the shift above the scale, and OpenCLIP its projection as inputs x outputs.
        """
        for one, other, rearrange in _COUNTERPARTS:
            for mine, theirs in ((one, other), (other, one)):
                if canonical.endswith(mine):
                    return canonical.removesuffix(mine) + theirs, rearrange
        return None

    def as_shaped(
        self, canonical: str, tensor: LazyTensor, name: str, shape: tuple[int, ...]
    ) -> LazyTensor:
        """The tensor under a name, in the other's shape where a convolution of one point is a matrix there."""
        if tensor.shape != shape and _bare(tensor.shape) == _bare(shape):
            return reshaped(tensor, name, shape)
        return renamed(tensor, name)

    def is_beside_weights(self, name: str) -> bool:
        """Whether a tensor is none of a network's weights, so that only single files have it."""
        return _BESIDE_WEIGHTS.match(name) is not None


def image_spelling_of(names: Iterable[str]) -> ImageSpelling | None:
    """The spelling of an image model with these names; None where they are not those of one that is known."""
    listed = list(names)
    regions: dict[str, tuple[str, Rename]] = {}
    files = {found[0] for found in map(beside, listed) if found is not None}
    for file in files:
        component, _, rest = file.partition("/")
        if rest and _FOLDER.fullmatch(component):
            regions[f"{file}/"] = (component, _of_diffusers(component))
    for prefix, component in PREFIXES.items():
        inner = _below(prefix, listed)
        if inner:
            regions[prefix] = (component, _of_single_file(component, prefix, inner))
    denoiser = _recognised(_below(DENOISER, listed))
    if denoiser is not None:
        regions[DENOISER] = denoiser
    if not regions:
        alone = _recognised(listed)
        if alone is None:
            return None
        regions[""] = alone
    ordered = sorted(regions.items(), key=lambda item: -len(item[0]))
    return ImageSpelling(tuple((prefix, *found) for prefix, found in ordered))


def _below(prefix: str, names: Iterable[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _of_diffusers(component: str) -> Rename:
    if component == VAE:
        return functools.partial(vae_to_diffusers, levels=0)
    return _without_body if _TEXT_ENCODER.fullmatch(component) else _same


def _of_single_file(component: str, prefix: str, inner: Iterable[str]) -> Rename:
    if component == VAE:
        return functools.partial(vae_to_diffusers, levels=vae_levels(inner))
    return _of_openclip if prefix.endswith(".model.") else _without_body


def _recognised(names: Iterable[str]) -> tuple[str, Rename] | None:
    """The component of these names and how diffusers calls them, by a mark that no other has."""
    listed = list(names)
    joined = "\n".join(listed)
    for mark, component, rename in _MARKS:
        if re.search(mark, joined, re.MULTILINE):
            if component == VAE:
                rename = functools.partial(vae_to_diffusers, levels=vae_levels(listed))
            return component, rename
    return None


def _same(name: str) -> str:
    return name


def _without_body(name: str) -> str:
    """A text encoder's name without what transformers wrote before all of them until version 5."""
    return name.removeprefix("text_model.")


def _of_openclip(name: str) -> str:
    if name == "text_projection":
        return "text_projection.input_first"
    return _without_body(from_openclip(name))


def _renaming(renamings: Renamings) -> Rename:
    rules = [(re.compile(pattern), other) for pattern, other in renamings]

    def rename(name: str) -> str:
        for pattern, other in rules:
            name = pattern.sub(other, name, count=1)
        return name

    return rename


def _halves_exchanged(tensor: LazyTensor, name: str) -> LazyTensor:
    """The lower half of the rows above the upper one."""
    rows = tensor.shape[0] // 2
    half, shape = tensor.numel // 2, (rows, *tensor.shape[1:])
    halves = (Stretch(name, tensor, first, shape) for first in (half, 0))
    return JoinedRows(name, tuple(halves))


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the axes of length 1 at its end."""
    end = len(shape)
    while end > 2 and shape[end - 1] == 1:
        end -= 1
    return shape[:end]


_COUNTERPARTS: tuple[tuple[str, str, Rearrange], ...] = (
    ("norm_out.linear_shift_first.weight", "norm_out.linear.weight", _halves_exchanged),
    ("norm_out.linear_shift_first.bias", "norm_out.linear.bias", _halves_exchanged),
    ("text_projection.input_first", "text_projection.weight", turned),
)
_MARKS: tuple[tuple[str, str, Rename], ...] = (
    (r"^input_blocks\.\d+\.", UNET, to_diffusers),
    (r"^down_blocks\.\d+\.resnets\.\d+\.time_emb_proj\.", UNET, _same),
    (r"^double_blocks\.\d+\.img_attn\.", TRANSFORMER, _renaming(FLUX)),
    (r"^single_transformer_blocks\.\d+\.", TRANSFORMER, _same),
    (r"^blocks\.\d+\.self_attn\.[qkvo]\.", TRANSFORMER, _renaming(WAN)),
    (r"^blocks\.\d+\.attn1\.to_q\.", TRANSFORMER, _same),
    (r"^decoder\.up\.\d+\.block\.", VAE, _same),
    (r"^decoder\.up_blocks\.\d+\.resnets\.", VAE, _same),
)
