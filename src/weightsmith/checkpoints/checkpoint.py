"""A checkpoint: its tensors (not read yet), configuration, roles and ties."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weightsmith.checkpoints.anatomy import anatomy_of
from weightsmith.checkpoints.config import input_findings
from weightsmith.checkpoints.copied_files import left_out, tokenizer_files
from weightsmith.checkpoints.head_names import head_name, scales_tied_heads
from weightsmith.checkpoints.nested_config import first_of, layer_count_of
from weightsmith.checkpoints.side_places import main_set, side_places
from weightsmith.checkpoints.stacks import Stack
from weightsmith.checkpoints.tied_tensors import (
    Tying,
    declared_tied,
    find_ties,
    tying_of,
    vocabulary_embedding,
    vocabulary_head,
)
from weightsmith.deltas import renamed
from weightsmith.errors import CheckpointError, CompatibilityError
from weightsmith.findings import Finding, Severity
from weightsmith.naming import beside
from weightsmith.tensors import DType, Kind, LazyTensor, Place, shown, stored_in

_MOST_NAMES = 4
_SHARED, _TABLE = "shared.weight", ".embed_tokens.weight"


@dataclass(frozen=True, slots=True, eq=False)
class Attached:
    """An adapter that a checkpoint is seen with: where it lies, how strongly it is applied, what is stored of it.

    `source` is what the user wrote for it, without the strength; `configuration` a digest of what is not in `tensors`;
    `unsaved` are modules that it says were trained whole, and of which it stores nothing; `component` is the one part
    of a pipeline that it is used for, None for all; `unties`: it changes an embedding and the head that is tied to it
    in different ways.
    """

    path: Path
    source: str
    strength: float = 1.0
    tensors: tuple[LazyTensor, ...] = ()
    configuration: str = ""
    hub_id: str | None = None
    revision: str | None = None
    unsaved: tuple[str, ...] = ()
    component: str | None = None
    unties: bool = False

    @property
    def name(self) -> str:
        """A name without the user's folders: the Hub id, or the folder's or file's own name."""
        return self.hub_id or Path(self.source).name or self.path.name


def not_saved(adapter: str, modules: Sequence[str], place: str, then: str) -> Finding:
    """The note on modules that an adapter says were trained whole and of which it stores nothing."""
    return Finding(
        Severity.NOTE,
        "module-not-saved",
        place,
        f"The adapter {adapter!r} names {', '.join(map(shown, modules))} among `modules_to_save` and has no tensors of "
        f"it, {then}",
    )


@dataclass(frozen=True, slots=True, eq=False)
class Behind:
    """A checkpoint that another is decoded with: the base of a delta package, or of a bundle that does not store it.

    `reference` is what the other calls it, `digests` are those that its tensors must have, by name; each is compared
    before the tensor is used.
    """

    reference: str
    checkpoint: Checkpoint
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What the headers of a checkpoint say; no tensor data is held.

    `path` is the folder or file; `source` what the user wrote for it; `tensors` are in the order of
    the files; `ties` are groups of stored names that are one tensor; `tying` says how the output
    head is kept; `stacks` are the lists of repeated blocks by their prefix. `member` is the task of
    a bundle. `stored_as` has the dtype that a tensor counts as where it is computed in a wider one while it is read:
    a bfloat16 tensor with an adapter reads as float32. `attached` are the adapters, in the order they are applied,
    and `base_source` what the user wrote for the checkpoint that they are applied to, empty where there are none.
    `behind` are the checkpoints that it is decoded with, which may have others behind them.
    `metadata` is that of a single safetensors file. `own_names` has what the files call a tensor that is seen under
    another name here, all pieces of it, or the whole that it is a piece of (`respelling`). `about_files` is what is to
    be said of files and adapters beside the weights, and `tokenizer_place` the folder of the tokenizer where that is
    not its own.
    """

    path: Path
    source: str
    tensors: dict[str, LazyTensor]
    config: dict[str, Any] | None
    places: dict[str, Place]
    ties: tuple[frozenset[str], ...]
    tying: Tying
    stacks: dict[str, Stack]
    hub_id: str | None = None
    revision: str | None = None
    member: str | None = None
    stored_as: Mapping[str, DType] = field(default_factory=dict)
    attached: tuple[Attached, ...] = ()
    base_source: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    behind: tuple[Behind, ...] = ()
    own_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    about_files: tuple[Finding, ...] = ()
    tokenizer_place: Path | None = None

    @property
    def tokenizer_folder(self) -> Path:
        """Where its tokenizer lies: its own folder, or that of an adapter with a vocabulary of its own."""
        return self.tokenizer_place or self.path

    @property
    def is_folder(self) -> bool:
        """True for a folder in the layout of Hugging Face, False for a single file."""
        return self.path.is_dir()

    @property
    def name(self) -> str:
        """A name without the user's folders: the Hub id, or the folder's or file's own name."""
        name = self.hub_id or self.path.name
        name = name if self.member is None else f"{name}#{self.member}"
        return "+".join([name, *(adapter.name for adapter in self.attached)])

    @property
    def all_behind(self) -> tuple[Behind, ...]:
        """The checkpoints behind it and behind these, the nearest first."""
        return tuple(one for near in self.behind for one in (near, *near.checkpoint.all_behind))

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every folder and file that it is read from.

        Its own, those of its adapters, those of all checkpoints behind it, and the real places of weight files that lie
        in none of these: of links into a cache, of streams that packages share.
        """
        known = [self.path, *(adapter.path for adapter in self.attached)]
        known += [one.checkpoint.path for one in self.all_behind]
        known += [a.path for one in self.all_behind for a in one.checkpoint.attached]
        real = {Path(os.path.realpath(place)) for place in known}
        files = (Path(os.path.realpath(file)) for file in self.files())
        elsewhere = [f for f in files if real.isdisjoint((f, *f.parents))]
        return tuple(dict.fromkeys((*known, *elsewhere)))

    def dtype_of(self, name: str) -> DType:
        """The dtype that a tensor counts as."""
        return self.stored_as.get(name, self.tensors[name].dtype)

    @property
    def identity(self) -> str:
        """The checkpoint in messages: what the user wrote, quoted."""
        return shown(self.source)

    @property
    def main_stack(self) -> Stack | None:
        """The stack with the declared number of layers that has the most elements, or None.

        Where none has that number the one with the most elements counts.
        """
        declared = layer_count_of(self.config)
        extra = _further_layers(self.config)
        return max(
            self.stacks.values(),
            key=lambda s: (s.count in (declared, (declared or 0) + extra), s.elements),
            default=None,
        )

    @property
    def layer_count(self) -> int:
        """Number of blocks of the main stack, less those that only predict further tokens."""
        main = self.main_stack
        if main is None:
            return 0
        declared = layer_count_of(self.config)
        extra = _further_layers(self.config)
        is_extended = declared is not None and main.count == declared + extra
        return declared if is_extended and declared is not None else main.count

    @property
    def further_layers(self) -> int:
        """Number of blocks behind those of `layer_count` in the main stack, which only predict further tokens."""
        main = self.main_stack
        return 0 if main is None else main.count - self.layer_count

    @property
    def vocab_size(self) -> int | None:
        """Rows of the input embedding, or None where there is none."""
        embedding = vocabulary_embedding(self.tensors, self.places)
        return None if embedding is None else self.tensors[embedding].shape[0]

    def files(self) -> tuple[Path, ...]:
        """The weight files, in the order of their first tensors."""
        return stored_in(self.tensors.values())

    @property
    def side_files(self) -> tuple[str, ...]:
        """The files of tensors that lie beside the main set, by name from the folder on (see `naming.beside`)."""
        found = (beside(name) for name in self.tensors if "/" in name)
        return tuple(dict.fromkeys(one[0] for one in found if one is not None))

    def findings(self) -> list[Finding]:
        """What should be known before the checkpoint is merged: its configuration, and files that are left out."""
        found = input_findings(self.config, self.tensors, self.identity)
        linked = self._linked()
        found += [] if linked is None else [linked]
        found += [*self.about_files, *_own_head_findings(self)]
        return found + [
            not_saved(adapter.name, adapter.unsaved, self.identity, "so the base's are kept")
            for adapter in self.attached
            if adapter.unsaved
        ]

    def require_own_files(self) -> None:
        """Raise CheckpointError where files would be left out, for whoever has no findings to tell it by."""
        linked = self._linked()
        if linked is not None:
            raise CheckpointError(f"{linked.sentence}.")

    def _linked(self) -> Finding | None:
        names = left_out(self.path) if self.is_folder else ()
        if not names:
            return None
        return Finding(
            Severity.WARNING,
            "linked-file",
            self.identity,
            f"{self.identity} has {', '.join(map(shown, names[:_MOST_NAMES]))}"
            f"{f' and {len(names) - _MOST_NAMES} more' if len(names) > _MOST_NAMES else ''} as links out of its folder "
            "or as no regular files, which are neither read nor copied",
            "put the files themselves there, or name the folder that they lead into in the environment variable "
            "WEIGHTSMITH_LINKS",
        )

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The files of the tokenizer and chat template; empty for a single file."""
        place = self.tokenizer_folder
        return tokenizer_files(place) if place.is_dir() else ()


def _further_layers(config: dict[str, Any] | None) -> int:
    """The blocks that only predict further tokens, as far as a configuration counts them."""
    count = first_of(config, "num_nextn_predict_layers")
    return count if isinstance(count, int) else 0


def assemble(
    tensors: Mapping[str, LazyTensor],
    config: dict[str, Any] | None,
    *,
    path: Path,
    source: str,
    hub_id: str | None = None,
    revision: str | None = None,
) -> Checkpoint:
    """A checkpoint around tensors that are already known: infers stacks, roles and ties.

    Stacks and tying are those of the main set, whatever lies in files beside it (`naming.beside`).
    """
    ordered = dict(tensors)
    main = main_set(ordered)
    anatomy = anatomy_of(main, config)
    stacks, places = anatomy.stacks, anatomy.places
    ties = find_ties(ordered, places, config)
    tying = tying_of(main, places, ties, config)
    if len(main) < len(ordered):
        places = {**places, **side_places(ordered)}
    return Checkpoint(path, source, ordered, config, places, ties, tying, stacks, hub_id, revision)


def own_head_name(checkpoint: Checkpoint) -> str | None:
    """What a tied checkpoint's head is called once it is untied: as it is stored, else as libraries call it.

    None without an embedding, and where nobody here knows the name.
    """
    head = vocabulary_head(checkpoint.tensors, checkpoint.places)
    embedding = vocabulary_embedding(checkpoint.tensors, checkpoint.places)
    if head is not None or embedding is None:
        return head
    return head_name(embedding, checkpoint.config)


def untied(checkpoint: Checkpoint, head: str) -> Checkpoint:
    """The same checkpoint with a head of its own named `head`, read from the embedding's bytes.

    A checkpoint whose head is untied already is returned as it is. Raises CompatibilityError where
    there is no embedding to read it from, and for networks that score with a tied head in another way than with an
    equal one of its own.
    """
    if checkpoint.tying is Tying.UNTIED:
        return checkpoint
    if scales_tied_heads(checkpoint.config):
        raise CompatibilityError(
            f"{checkpoint.identity} is a network that scales what a tied head scores and not what one of its own does, "
            "so an equal head would compute something else: keep it tied."
        )
    name = vocabulary_embedding(checkpoint.tensors, checkpoint.places)
    embedding = None if name is None else checkpoint.tensors[name]
    if name is None or embedding is None:
        raise CompatibilityError(
            f"{checkpoint.identity} has no stored embedding that could serve as {head!r}: leave it "
            "out or add a head to it."
        )
    own = {head: name}
    bias = _bias_beside(head, checkpoint)
    if bias is not None:
        own[f"{head.removesuffix('.weight')}.bias"] = bias
    if name.endswith(_SHARED):
        # Encoder and decoder look up a table of their own once the network is untied.
        before = name.removesuffix(_SHARED)
        own |= {f"{before}{side}.embed_tokens.weight": name for side in ("encoder", "decoder")}
    copies = {new: renamed(checkpoint.tensors[old], new) for new, old in own.items()}
    return replace(
        checkpoint,
        tensors={**checkpoint.tensors, **copies},
        places={
            **checkpoint.places,
            **{n: Place(n, Kind.EMBEDDING if n.endswith(_TABLE) else Kind.HEAD) for n in own},
        },
        ties=tuple(group for group in checkpoint.ties if own.keys().isdisjoint(group)),
        tying=Tying.UNTIED,
        stored_as={
            **checkpoint.stored_as,
            **{new: checkpoint.dtype_of(old) for new, old in own.items()},
        },
    )


def _bias_beside(head: str, checkpoint: Checkpoint) -> str | None:
    """The bias that a tied head shares with the layers before it (BERT and its relatives), or None."""
    before, is_decoder, _ = head.rpartition(".decoder.weight")
    bias = f"{before}.bias"
    return bias if is_decoder and bias in checkpoint.tensors else None


def _own_head_findings(checkpoint: Checkpoint) -> list[Finding]:
    """A note where the configuration ties a head that is stored with bytes of its own, or that adapters untie."""
    untying = next((adapter for adapter in checkpoint.attached if adapter.unties), None)
    if untying is not None:
        return [
            Finding(
                Severity.NOTE,
                "untied-by-adapter",
                checkpoint.identity,
                f"{checkpoint.identity} ties its output head to its embedding, and its adapters change the two in "
                "different ways, so it is taken with a head of its own, as it computes with the adapters beside it",
            )
        ]
    head = vocabulary_head(checkpoint.tensors, checkpoint.places)
    if head is None or checkpoint.tying is Tying.TIED or not declared_tied(checkpoint.config):
        return []
    return [
        Finding(
            Severity.NOTE,
            "head-of-its-own",
            checkpoint.identity,
            f"{checkpoint.identity} says that its output head is tied to its embedding, but stores {head!r} with other "
            "numbers, so it is taken as a head of its own",
            "remove that tensor if it is left over from before the embedding was trained",
        )
    ]
