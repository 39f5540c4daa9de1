"""The manifest: what was in fact read, computed and written; `verify` and `replay` work from it alone.

Its last line is a seal, the SHA-256 of everything before it, so that damage to the record is found.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsmith.checkpoints import Checkpoint
from weightsmith.engine.journal import TensorRecord
from weightsmith.engine.plan import Plan
from weightsmith.engine.trace import distinct_leaves
from weightsmith.errors import VerificationError
from weightsmith.tensors.digests import checkpoint_digest

FILE_NAME = "weightsmith-manifest.json"
SCHEMA = 1
_WEIGHTS = ".safetensors"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Input:
    """One input checkpoint: its reference in the recipe, where it lay seen from the output, and digests by tensor.

    A table that was brought into another vocabulary's order has the digest of its rows in that order, which covers all
    that they were made from. `tokenizer` has the SHA-256 of the tokenizer files that decided it, empty without one.
    """

    reference: str
    path: str
    hub_id: str | None
    revision: str | None
    digest: str
    tensors: Mapping[str, str]
    tokenizer: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that is on record about one output folder.

    `outputs` has the digest of each tensor, `shards` the SHA-256 of each weight file's header, and
    `files` that of every other file.
    """

    version: str
    backend: str
    recipe: str
    recipe_digest: str
    seed: int
    donor: str
    inputs: Mapping[str, Input]
    outputs: Mapping[str, str]
    shards: Mapping[str, str]
    files: Mapping[str, str]
    digest: str

    def to_json(self) -> bytes:
        """Canonical text with its seal: the same facts give the same bytes."""
        content = {
            "schema": SCHEMA,
            "weightsmith": self.version,
            "backend": self.backend,
            "digest": self.digest,
            "seed": self.seed,
            "donor": self.donor,
            "recipe_digest": self.recipe_digest,
            "recipe": self.recipe,
            "inputs": {
                label: {
                    "reference": i.reference,
                    "path": i.path,
                    "hub_id": i.hub_id,
                    "revision": i.revision,
                    "digest": i.digest,
                    "tensors": dict(sorted(i.tensors.items())),
                    **({"tokenizer": dict(sorted(i.tokenizer.items()))} if i.tokenizer else {}),
                }
                for label, i in sorted(self.inputs.items())
            },
            "outputs": dict(sorted(self.outputs.items())),
            "shards": dict(sorted(self.shards.items())),
            "files": dict(sorted(self.files.items())),
        }
        return _sealed(json.dumps(content, indent=1, ensure_ascii=True).encode())


def build(plan: Plan, records: Mapping[str, TensorRecord], folder: Path, out: Path) -> Manifest:
    """The manifest of a finished run whose small files lie in `folder` and that will appear at `out`."""
    from weightsmith import __version__

    read: dict[str, dict[str, str]] = {label: {} for label in plan.resolved.checkpoints}
    for tensor in plan.tensors:
        digests = records[tensor.output.name].source_digests
        for leaf, digest in zip(distinct_leaves(tensor.output.formula), digests, strict=True):
            read[leaf.checkpoint][leaf.tensor] = digest
    outputs = {name: record.digest for name, record in records.items()}
    vocabulary = plan.resolved.vocabulary
    tokenizers = {} if vocabulary is None else vocabulary.inputs
    inputs = {
        label: Input(
            reference=checkpoint.source,
            path=_place(checkpoint, out),
            hub_id=checkpoint.hub_id,
            revision=checkpoint.revision,
            digest=checkpoint_digest(read[label]),
            tensors=read[label],
            tokenizer=tokenizers.get(label, {}),
        )
        for label, checkpoint in plan.resolved.checkpoints.items()
    }
    return Manifest(
        version=__version__,
        backend=plan.backend.kind,
        recipe=plan.recipe.dump(),
        recipe_digest=plan.recipe.digest(),
        seed=plan.resolved.seed,
        donor=plan.resolved.donor,
        inputs=inputs,
        outputs=outputs,
        shards={s.file_name: hashlib.sha256(s.header).hexdigest() for s in plan.layout.shards},
        files=small_file_digests(folder),
        digest=checkpoint_digest(outputs),
    )


def _place(checkpoint: Checkpoint, out: Path) -> str:
    """Where a checkpoint lies, seen from the output; with its task, if it is one of a bundle."""
    path = os.path.relpath(os.path.realpath(checkpoint.path), os.path.realpath(out))
    return path if checkpoint.member is None else f"{path}#{checkpoint.member}"


def small_file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that is neither a weight shard nor the manifest, by name relative to the folder."""
    return {
        name: _file_digest(folder / name)
        for name in _file_names(folder)
        if not name.endswith(_WEIGHTS) and name != FILE_NAME
    }


def foreign_files(folder: Path, manifest: Manifest) -> list[str]:
    """The files of a folder that are not on record, by name relative to it."""
    known = {FILE_NAME, *manifest.shards, *manifest.files}
    return [name for name in _file_names(folder) if name not in known]


def digest_of(folder: Path) -> str | None:
    """SHA-256 of a folder's manifest as it lies there, or None if there is none."""
    path = folder / FILE_NAME
    return _file_digest(path) if path.is_file() else None


def _file_names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def _file_digest(path: Path) -> str:
    """SHA-256 of a regular file; what else lies there has the digest of nothing."""
    state = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                state.update(chunk)
    return state.hexdigest()


def _sealed(content: bytes) -> bytes:
    """JSON text with one more entry, the digest of the text so far."""
    body = content.removesuffix(b"\n}") + b",\n"
    return body + b' "seal": "sha256:' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def _unsealed(text: bytes) -> dict[str, Any]:
    """The content of a sealed text; raises ValueError if a byte of it was changed."""
    body, mark, _ = text.rpartition(b' "seal": "sha256:')
    if not mark or _sealed(body.removesuffix(b",\n") + b"\n}") != text:
        raise ValueError("its seal does not fit its content")
    content: dict[str, Any] = json.loads(text)
    return content


def read(folder: Path) -> Manifest:
    """The manifest of an output folder; raises VerificationError if it is missing or damaged."""
    path = folder / FILE_NAME
    try:
        content = _unsealed(path.read_bytes())
        if content["schema"] != SCHEMA:
            raise VerificationError(
                f"{str(path)!r} has schema {content['schema']!r}, but this version reads {SCHEMA}; "
                "use a newer weightsmith."
            )
        return _from_json(content)
    except FileNotFoundError:
        raise VerificationError(
            f"{str(folder)!r} has no {FILE_NAME}, so it was not written by `weightsmith merge`."
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise VerificationError(f"{str(path)!r} cannot be read ({reason}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(
            f"{str(path)!r} is damaged ({error}); the folder cannot be verified."
        ) from error


def _from_json(content: dict[str, Any]) -> Manifest:
    return Manifest(
        version=str(content["weightsmith"]),
        backend=str(content["backend"]),
        recipe=str(content["recipe"]),
        recipe_digest=str(content["recipe_digest"]),
        seed=int(content["seed"]),
        donor=str(content["donor"]),
        inputs={label: Input(**facts) for label, facts in content["inputs"].items()},
        outputs=dict(content["outputs"]),
        shards=dict(content["shards"]),
        files=dict(content["files"]),
        digest=str(content["digest"]),
    )
