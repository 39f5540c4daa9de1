"""The manifest: what was in fact read, computed and written; `verify` and `replay` work from it alone.

Its last line is a seal, the SHA-256 of everything before it, so that damage to the record is found.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.checkpoints import Attached, Checkpoint, absence
from weightsmith.errors import CheckpointError, Malformed, VerificationError
from weightsmith.publishing import (
    MANIFEST,
    MANIFEST_KEY,
    Recorded,
    file_digest,
    file_names,
    sealed,
    unsealed,
)
from weightsmith.tensors import (
    LazyTensor,
    behind,
    checkpoint_digest,
    digest_tensor,
    optional_text_in,
    parse_file,
    read_small,
    shown,
    text_in,
    texts_in,
)
from weightsmith.wording import fault

if TYPE_CHECKING:
    pass

FILE_NAME = MANIFEST
# The first form knows nothing of what is behind inputs.
SCHEMAS = (1, 2)
_WEIGHTS = ".safetensors"
_LARGEST_BYTES = 500_000_000


@dataclass(frozen=True, slots=True)
class AdapterInput:
    """An adapter of an input: its reference without the strength, and where it lay seen from the output.

    The digest is over everything that the adapter stores; its configuration shows in the digests of the tensors that it
    changes.
    """

    reference: str
    path: str
    strength: float
    hub_id: str | None
    revision: str | None
    digest: str
    component: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The facts as the manifest has them."""
        facts = asdict(self)
        if self.component is None:
            del facts["component"]
        return facts

    @classmethod
    def from_json(cls, facts: Any) -> AdapterInput:
        """What a manifest has on record; raises Malformed."""
        strength = facts.get("strength") if isinstance(facts, dict) else None
        if isinstance(strength, bool) or not isinstance(strength, (int, float)):
            raise Malformed("the strength of an adapter is no number")
        return cls(
            text_in(facts, "reference"),
            text_in(facts, "path"),
            float(strength),
            optional_text_in(facts, "hub_id"),
            optional_text_in(facts, "revision"),
            text_in(facts, "digest"),
            optional_text_in(facts, "component") if "component" in facts else None,
        )


@dataclass(frozen=True, slots=True)
class BehindInput:
    """A checkpoint that an input is decoded with, such as the base of a delta package.

    `reference` is what the package calls it, `path` where it lay seen from the output, `tensors` the digests of those
    that were read.
    """

    reference: str
    path: str
    hub_id: str | None
    revision: str | None
    digest: str
    tensors: Mapping[str, str]

    @classmethod
    def from_json(cls, facts: Any) -> BehindInput:
        """What a manifest has on record; raises Malformed."""
        return cls(
            text_in(facts, "reference"),
            text_in(facts, "path"),
            optional_text_in(facts, "hub_id"),
            optional_text_in(facts, "revision"),
            text_in(facts, "digest"),
            texts_in(facts, "tensors"),
        )


@dataclass(frozen=True, slots=True)
class Input:
    """One input checkpoint: its reference in the recipe, where it lay seen from the output, and digests by tensor.

    A table that was brought into another vocabulary's order has the digest of its rows in that order, which covers all
    that they were made from. `tokenizer` has the SHA-256 of the tokenizer files that decided it, empty without one.
    With `adapters`, `model` is the reference of the base, where `path` leads, and a tensor that they change has the
    digest of its changed values. `behind` are the checkpoints that it is decoded with and those behind them, the
    nearest first.
    """

    reference: str
    path: str
    hub_id: str | None
    revision: str | None
    digest: str
    tensors: Mapping[str, str]
    tokenizer: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    adapters: tuple[AdapterInput, ...] = ()
    behind: tuple[BehindInput, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The facts as the manifest has them."""
        facts: dict[str, Any] = {
            "reference": self.reference,
            "path": self.path,
            "hub_id": self.hub_id,
            "revision": self.revision,
            "digest": self.digest,
            "tensors": dict(sorted(self.tensors.items())),
        }
        if self.tokenizer:
            facts["tokenizer"] = dict(sorted(self.tokenizer.items()))
        if self.adapters:
            facts["model"] = self.model
            facts["adapters"] = [adapter.to_json() for adapter in self.adapters]
        if self.behind:
            facts["behind"] = [asdict(one) for one in self.behind]
        return facts

    @classmethod
    def from_json(cls, facts: Any) -> Input:
        """The reverse of `to_json`; raises Malformed for anything else."""
        return cls(
            text_in(facts, "reference"),
            text_in(facts, "path"),
            optional_text_in(facts, "hub_id"),
            optional_text_in(facts, "revision"),
            text_in(facts, "digest"),
            texts_in(facts, "tensors"),
            texts_in(facts, "tokenizer"),
            text_in(facts, "model") if "model" in facts else "",
            tuple(map(AdapterInput.from_json, facts.get("adapters", ()))),
            tuple(map(BehindInput.from_json, facts.get("behind", ()))),
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that is on record about one output folder.

    `outputs` has the digest of each tensor, `shards` the SHA-256 of each weight file's header, and
    `files` that of every other file. `lost` has, for an adapter, the share of the norm that was cut from each change.
    """

    version: str
    backend: str
    recipe: str
    recipe_digest: str
    seed: int
    config_source: str
    inputs: Mapping[str, Input]
    outputs: Mapping[str, str]
    shards: Mapping[str, str]
    files: Mapping[str, str]
    digest: str
    lost: Mapping[str, float] = field(default_factory=dict)

    @property
    def recorded(self) -> Recorded:
        """What is on record about the files of the folder."""
        return Recorded(FILE_NAME, self.files, self.shards, self.outputs)

    @property
    def schema(self) -> int:
        """The first form that has room for these facts, so that older versions read what they can."""
        return 2 if any(given.behind for given in self.inputs.values()) else 1

    def to_json(self) -> bytes:
        """Canonical text with its seal: the same facts give the same bytes."""
        content = {
            "schema": self.schema,
            "weightsmith": self.version,
            "backend": self.backend,
            "digest": self.digest,
            "seed": self.seed,
            "donor": self.config_source,
            "recipe_digest": self.recipe_digest,
            "recipe": self.recipe,
            "inputs": {label: given.to_json() for label, given in sorted(self.inputs.items())},
            "outputs": dict(sorted(self.outputs.items())),
            "shards": dict(sorted(self.shards.items())),
            "files": dict(sorted(self.files.items())),
            **({"lost": dict(self.lost)} if self.lost else {}),
        }
        return sealed(content)


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge has read and written: inputs by label, the digest of every stored tensor, and `Manifest.lost`.

    It is known before the files beside the weights are written, some of which are made from it.
    """

    inputs: Mapping[str, Input]
    outputs: Mapping[str, str]
    lost: Mapping[str, float] = field(default_factory=dict)


def place_on_record(checkpoint: Checkpoint, out: Path) -> str:
    """Where a checkpoint lies, seen from the output; with its task, if it is one of a bundle."""
    path = seen_from(out, checkpoint.path)
    return path if checkpoint.member is None else f"{path}#{checkpoint.member}"


def seen_from(out: Path, path: Path) -> str:
    """A path relative to an output."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(out))


def adapter_input(adapter: Attached, out: Path) -> AdapterInput:
    """What is on record of an adapter; reads its factors."""
    digests = {tensor.name: digest_tensor(tensor) for tensor in adapter.tensors}
    return AdapterInput(
        reference=adapter.source,
        path=seen_from(out, adapter.path),
        strength=adapter.strength,
        hub_id=adapter.hub_id,
        revision=adapter.revision,
        digest=checkpoint_digest(digests),
        component=adapter.component,
    )


def behind_inputs(
    checkpoint: Checkpoint, read: Iterable[LazyTensor], out: Path
) -> tuple[BehindInput, ...]:
    """What is on record of the checkpoints that one is decoded with, `read` being the tensors that were read of it.

    Their digests are those that it names them by, which each tensor had when it was read.
    """
    used = {id(tensor) for tensor in behind(read)}
    found = []
    for one in checkpoint.all_behind:
        base = one.checkpoint
        digests = {n: digest for n, digest in one.digests.items() if id(base.tensors[n]) in used}
        if digests:
            found.append(
                BehindInput(
                    reference=one.reference,
                    path=place_on_record(base, out),
                    hub_id=base.hub_id,
                    revision=base.revision,
                    digest=checkpoint_digest(digests),
                    tensors=dict(sorted(digests.items())),
                )
            )
    return tuple(found)


def small_file_digests(folder: Path, shards: Collection[str]) -> dict[str, str]:
    """SHA-256 of every file that is neither of the main set of weights nor the manifest, by name from the folder on."""
    return {
        name: file_digest(folder / name)
        for name in file_names(folder)
        if name not in shards and name != FILE_NAME
    }


def digest_of(folder: Path) -> str | None:
    """SHA-256 of a folder's manifest as it lies there, or None if there is none."""
    path = folder / FILE_NAME
    return file_digest(path) if path.is_file() else None


def read(folder: Path) -> Manifest:
    """The manifest of an output, a folder or one file of weights; VerificationError if it is missing or damaged."""
    is_file = folder.is_file() and folder.suffix == _WEIGHTS
    path = folder if is_file else folder / FILE_NAME
    try:
        content = unsealed(_in_metadata(path) if is_file else read_small(path, _LARGEST_BYTES))
        if content["schema"] not in SCHEMAS:
            raise VerificationError(
                f"{str(path)!r} has schema {shown(content['schema'])}, but this version reads up to {SCHEMAS[-1]}; "
                "use a newer weightsmith."
            )
        return _from_json(content)
    except (FileNotFoundError, NotADirectoryError):
        if not folder.is_dir():
            raise VerificationError(
                absence(folder, FILE_NAME, "an output of `weightsmith merge`")
            ) from None
        raise VerificationError(
            f"{shown(folder)} has no {FILE_NAME}, so it was not written by `weightsmith merge`."
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise VerificationError(f"{str(path)!r} cannot be read ({reason}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise VerificationError(
            f"{str(path)!r} is damaged ({fault(error)}); the folder cannot be verified."
        ) from error


def _in_metadata(file: Path) -> bytes:
    """The manifest that a file of weights has in its metadata."""
    try:
        found = parse_file(file).metadata.get(MANIFEST_KEY)
    except CheckpointError as error:
        raise VerificationError(str(error)) from error
    if found is None:
        raise VerificationError(
            f"{shown(file)} has no manifest in its metadata, so it was not written from a recipe."
        )
    return found.encode()


def _from_json(content: dict[str, Any]) -> Manifest:
    return Manifest(
        version=text_in(content, "weightsmith"),
        backend=text_in(content, "backend"),
        recipe=text_in(content, "recipe"),
        recipe_digest=text_in(content, "recipe_digest"),
        seed=int(content["seed"]),
        config_source=text_in(content, "donor"),
        inputs={label: Input.from_json(facts) for label, facts in content["inputs"].items()},
        outputs=texts_in(content, "outputs"),
        shards=texts_in(content, "shards"),
        files=texts_in(content, "files"),
        digest=text_in(content, "digest"),
        lost={name: float(share) for name, share in content.get("lost", {}).items()},
    )
