"""What the headers and the configuration of one checkpoint say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightsmith.adapters import Reference, open_model, parse_reference, place_of
from weightsmith.checkpoints import (
    Checkpoint,
    find_location,
    first_of,
    image_spelling_of,
    is_package,
    layer_count_of,
    spelling_of,
    vocabulary_size_of,
)
from weightsmith.errors import CheckpointError, UsageError
from weightsmith.findings import Finding, Severity
from weightsmith.naming import beside
from weightsmith.tensors import DType, StoredTensor, shown, stored_in
from weightsmith.wording import counted

_FACTS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "dtype",
    "torch_dtype",
)


@dataclass(frozen=True, slots=True)
class RoleRow:
    """All tensors of one role."""

    role: str
    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor as its header has it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    layer: int | None
    file: str
    offset: int | None


@dataclass(frozen=True, slots=True)
class StackRow:
    """A stack of repeated blocks: its name prefix, its block count, and its parameters."""

    prefix: str
    blocks: int
    parameters: int


@dataclass(frozen=True, slots=True)
class SpellingRow:
    """How many tensors a network calls otherwise in memory than their file, and the first of them with both names."""

    tensors: int
    file: str
    memory: str


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """All that `weightsmith inspect` shows; where the headers are damaged only `findings` has content."""

    path: Path
    layout: str
    place: str = ""
    files: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    parameters: int = 0
    nbytes: int = 0
    dtypes: Mapping[str, int] | None = None
    roles: tuple[RoleRow, ...] = ()
    stacks: tuple[StackRow, ...] = ()
    layers: int = 0
    spelling: SpellingRow | None = None
    tying: str = ""
    ties: tuple[tuple[str, ...], ...] = ()
    vocabulary: int | None = None
    tokenizer_files: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None
    tensors: tuple[TensorRow, ...] = ()
    findings: tuple[Finding, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it; what does not apply, such as adapters and tensors that were not asked for, is left out."""
        return {
            "path": str(self.path),
            "layout": self.layout,
            "files": list(self.files),
            **({"adapters": list(self.adapters)} if self.adapters else {}),
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "dtypes": dict(self.dtypes or {}),
            "roles": [
                {
                    "role": row.role,
                    "tensors": row.tensors,
                    "parameters": row.parameters,
                    "bytes": row.nbytes,
                }
                for row in self.roles
            ],
            "stacks": [asdict(stack) for stack in self.stacks],
            "layers": self.layers,
            **({"spelling": asdict(self.spelling)} if self.spelling is not None else {}),
            "output_head": self.tying,
            "ties": [list(group) for group in self.ties],
            "vocabulary": self.vocabulary,
            "tokenizer_files": list(self.tokenizer_files),
            "config": self.config,
            **({"tensors": [asdict(tensor) for tensor in self.tensors]} if self.tensors else {}),
            "findings": [finding.to_mapping() for finding in self.findings],
        }


def summarize_checkpoint(path: str | Path) -> CheckpointSummary:
    """Look at a checkpoint's headers and configuration.

    A damaged or hostile checkpoint gives a summary with error findings, one for each damaged file.
    Raises CheckpointError where there is nothing at `path`.
    """
    reference = _reference(path)
    found = find_location(reference.base).path
    try:
        checkpoint = open_model(path)
    except CheckpointError as error:
        return CheckpointSummary(found, "unreadable", findings=_damage(found, error))
    return CheckpointSummary(
        path=checkpoint.path,
        layout=_layout(checkpoint),
        place=place_of(checkpoint),
        files=tuple(file.name for file in checkpoint.files()),
        adapters=tuple(str(adapter) for adapter in reference.adapters),
        parameters=sum(t.numel for t in checkpoint.tensors.values()),
        nbytes=sum(_bytes(checkpoint, name) for name in checkpoint.tensors),
        dtypes=_dtypes(checkpoint),
        roles=_roles(checkpoint),
        stacks=tuple(StackRow(s.prefix, s.count, s.elements) for s in checkpoint.stacks.values()),
        layers=checkpoint.layer_count,
        spelling=_spelling(checkpoint),
        tying=checkpoint.tying.value,
        ties=tuple(tuple(sorted(group)) for group in checkpoint.ties),
        vocabulary=checkpoint.vocab_size,
        tokenizer_files=tuple(file.as_posix() for file in checkpoint.tokenizer_files),
        config=_facts(checkpoint.config),
        tensors=_tensors(checkpoint),
        findings=tuple(_findings(checkpoint)),
    )


def _damage(path: Path, error: CheckpointError) -> tuple[Finding, ...]:
    """One error for every safetensors file that cannot be read, or the one that stopped the opening."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    problems = [(file, problem) for file in files if (problem := _header_problem(file)) is not None]
    if not problems:
        return (Finding(Severity.ERROR, "unreadable", str(path), str(error)),)
    return tuple(
        Finding(Severity.ERROR, "damaged-file", f.name, problem) for f, problem in problems
    )


def _header_problem(file: Path) -> str | None:
    from weightsmith.tensors import read_header

    try:
        read_header(file)
    except CheckpointError as problem:
        return str(problem)
    return None


def _reference(path: str | Path) -> Reference:
    try:
        return parse_reference(str(path))
    except ValueError as problem:
        raise CheckpointError(str(problem)) from None


def _bytes(checkpoint: Checkpoint, name: str) -> int:
    """Bytes of a tensor in the dtype that it counts as."""
    return checkpoint.tensors[name].numel * checkpoint.dtype_of(name).itemsize


def _layout(checkpoint: Checkpoint) -> str:
    # Those of adapters have rows of their own.
    places = [adapter.path for adapter in checkpoint.attached]
    main = stored_in(t for name, t in checkpoint.tensors.items() if beside(name) is None)
    files = [f for f in main if not any(f.is_relative_to(place) for place in places)]
    form = (
        "safetensors"
        if all(file.suffix == ".safetensors" for file in files)
        else "pickled state dict"
    )
    if not checkpoint.is_folder:
        return f"single file, {form}"
    if is_package(checkpoint.path):
        return f"delta package with its base, {form}"
    count = f"{len(files)} shards" if len(files) > 1 else counted(len(files), "file")
    beside_it = len(checkpoint.side_files)
    more = f", and {counted(beside_it, 'file')} beside" if beside_it else ""
    return f"folder, {form}, {count}{more}"


def _dtypes(checkpoint: Checkpoint) -> dict[str, int]:
    parameters: Counter[str] = Counter()
    for name, tensor in checkpoint.tensors.items():
        parameters[checkpoint.dtype_of(name).value] += tensor.numel
    return dict(parameters.most_common())


def _roles(checkpoint: Checkpoint) -> tuple[RoleRow, ...]:
    names: dict[str, list[str]] = defaultdict(list)
    for name, role in checkpoint.places.items():
        names[role.kind.value].append(name)
    rows = [
        RoleRow(
            kind,
            len(members),
            sum(checkpoint.tensors[n].numel for n in members),
            sum(_bytes(checkpoint, n) for n in members),
        )
        for kind, members in names.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.parameters, row.role)))


def _spelling(checkpoint: Checkpoint) -> SpellingRow | None:
    image = None if checkpoint.side_files else image_spelling_of(checkpoint.tensors)
    spelling = image or spelling_of(checkpoint.config, checkpoint.tensors)
    names = [(name, spelling.canonical(name)) for name in checkpoint.tensors]
    # A component's name stands before those of an image model, in whichever spelling it is.
    other = [(name, known) for name, known in names if name not in (known, known.partition("/")[2])]
    return SpellingRow(len(other), *other[0]) if other else None


def _facts(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if config is None:
        return None
    facts: dict[str, Any] = {}
    if isinstance(config.get("architectures"), list):
        facts["architectures"] = [str(name) for name in config["architectures"]]
    for key in _FACTS:
        value = first_of(dict(config), key)
        if isinstance(value, (str, int, float, bool)):
            facts[key] = value
    return facts


def _tensors(checkpoint: Checkpoint) -> tuple[TensorRow, ...]:
    rows = []
    for name, tensor in checkpoint.tensors.items():
        role = checkpoint.places[name]
        rows.append(
            TensorRow(
                name=name,
                dtype=checkpoint.dtype_of(name).value,
                shape=tensor.shape,
                role=role.kind.value,
                layer=role.layer,
                file=tensor.file.name if isinstance(tensor, StoredTensor) else "",
                offset=tensor.offset if isinstance(tensor, StoredTensor) else None,
            )
        )
    return tuple(rows)


def _findings(checkpoint: Checkpoint) -> list[Finding]:
    findings = checkpoint.findings()
    declared = layer_count_of(checkpoint.config)
    if (
        declared is not None
        and checkpoint.main_stack is not None
        and declared != checkpoint.layer_count
    ):
        findings.append(
            _warning(
                "layer-count",
                checkpoint,
                f"its config declares {declared} layers, but {checkpoint.layer_count} are stored",
            )
        )
    rows = vocabulary_size_of(checkpoint.config) if checkpoint.config is not None else None
    if rows is not None and checkpoint.vocab_size is not None and rows != checkpoint.vocab_size:
        more = (
            "padding, perhaps" if checkpoint.vocab_size > rows else "some tokens have no embedding"
        )
        findings.append(
            _warning(
                "vocabulary",
                checkpoint,
                f"its config declares {rows} tokens, but the embedding has {checkpoint.vocab_size} rows ({more})",
            )
        )
    return [*findings, *_dtype_findings(checkpoint)]


def _dtype_findings(checkpoint: Checkpoint) -> list[Finding]:
    declared = first_of(checkpoint.config, "dtype", "torch_dtype")
    dtypes = map(checkpoint.dtype_of, checkpoint.tensors)
    floats = Counter(dtype for dtype in dtypes if dtype.is_float)
    if not isinstance(declared, str) or not floats:
        return []
    try:
        named = DType.parse(declared)
    except UsageError:
        return [
            _warning(
                "dtype", checkpoint, f"its config declares the unknown dtype {shown(declared)}"
            )
        ]
    most = floats.most_common(1)[0][0]
    if named is most:
        return []
    return [
        _warning(
            "dtype",
            checkpoint,
            f"its config declares {named.value}, but most tensors are {most.value}",
        )
    ]


def _warning(code: str, checkpoint: Checkpoint, message: str) -> Finding:
    return Finding(Severity.WARNING, code, checkpoint.identity, f"{checkpoint.identity}: {message}")
