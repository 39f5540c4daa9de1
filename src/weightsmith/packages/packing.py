"""Making a delta package of a fine-tune.

Tensors are read in blocks and coded one after the other, several at a time as far as they are together no larger than
the largest one; so memory stays at about two tensors of that size in float32, decoded blocks (128 MiB at most), and
what lies coded on its way to the file. On one machine the bytes of a package depend on fine-tune, base and what is
asked for alone, not on threads or time; they decode to the same bits everywhere.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightsmith.adapters import open_model
from weightsmith.checkpoints import (
    PACKAGE_HEADER,
    STREAMS,
    Checkpoint,
    PackageHeader,
    PackedPiece,
    PackedTensor,
    as_base,
    is_package,
    open_checkpoint,
    read_package_header,
    stream_name,
)
from weightsmith.deltas import (
    CodecChoice,
    Delta,
    Encoded,
    JoinedRows,
    encode,
    encode_exactly,
    in_memory,
    measured_error,
    part_in_memory,
)
from weightsmith.engine import Progress, Silence, Staging, described
from weightsmith.errors import CheckpointError, WeightsmithError
from weightsmith.packages.carried import carry_files
from weightsmith.packages.choosing import (
    SAME,
    choose_within_budget,
    choose_within_error,
    measure,
)
from weightsmith.packages.goal import Goal, check_codecs, goal_of
from weightsmith.packages.package_entries import packed_tensor, piece, stored_bytes
from weightsmith.packages.package_streams import StreamFile
from weightsmith.packages.tensor_pairs import Pair, pairs_of
from weightsmith.publishing import Recorded, check_free, check_place, unrecorded_problem, write_file
from weightsmith.tensors import (
    OPEN_FILES,
    LazyTensor,
    checkpoint_digest,
    digest_tensor,
    in_order,
    one_blas_thread,
    sync_folder,
    thread_count,
)

# What the journal of a package in the making says instead of a plan's digest.
PLAN = "delta-package"
# Bytes that the two files may have beyond what is counted.
_SLACK = 256


@one_blas_thread()
def pack(
    finetune: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    budget: str | int | None = None,
    error: float | None = None,
    codecs: Sequence[str] | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> PackageHeader:
    """Write the delta package `out` of a fine-tune, which may be BASE+ADAPTER, against its base; returns its header.

    Without `budget` and `error` it is lossless. `budget` bounds the bytes of streams and header together: a share of
    the fine-tune's bytes such as `1/16`, or a size such as `300MB`; codecs are chosen so that the error of all tensors
    together is the least. `error` bounds ||decoded - exact|| / ||exact - base|| of every tensor, with the fewest
    bytes. `codecs` names the lossy codecs to try (default: all). `force` replaces an earlier package at `out`. Nothing
    is left of a run that fails. Raises UsageError, CompatibilityError where base and fine-tune
    have no tensor in common, CheckpointError, OutputError or ResourceError.
    """
    tuned, origin = _as_stored(open_model(finetune)), open_checkpoint(base)
    goal = goal_of(budget, error, sum(tensor.nbytes for tensor in tuned.tensors.values()))
    check_codecs(goal, codecs)
    place = check_place(Path(out), (*tuned.inputs, *origin.inputs))
    packer = _Packer(
        tuned, origin, place, goal, codecs, thread_count(threads), progress or Silence()
    )
    try:
        with Staging(place, package_problem) as staging:
            earlier = check_free(place, package_problem, force=force)
            _begin(staging)
            staging.check_space(packer.needed_bytes())
            header = packer.write(staging.checkpoint)
            staging.publish(earlier)
            return header
    except OSError as failure:
        raise described(failure, place) from failure
    finally:
        OPEN_FILES.close()


def _as_stored(opened: Checkpoint) -> Checkpoint:
    """The checkpoint in the dtypes that its tensors count as, not those that adapters are computed in."""
    tensors = {n: as_base(t, opened.dtype_of(n), None) for n, t in opened.tensors.items()}
    return replace(opened, tensors=tensors, stored_as={})


def package_problem(folder: Path, thorough: bool) -> str:
    """What stands against replacing a package: what is in it that `pack` did not write; see `earlier.Problem`."""
    try:
        header = read_package_header(folder)
    except WeightsmithError:
        is_there = folder.is_dir() and is_package(folder)
        return (
            f"holds a {PACKAGE_HEADER} that was changed since weightsmith wrote it"
            if is_there
            else unrecorded_problem(folder)
        )
    recorded = Recorded(PACKAGE_HEADER, header.files, {STREAMS: None}, header.streams)
    return recorded.problem(folder, thorough)


def _begin(staging: Staging) -> None:
    """An empty folder to write into: what a killed run has left of a package is made anew."""
    staging.begin(PLAN, fresh=False)
    for entry in staging.checkpoint.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@dataclass(frozen=True, slots=True)
class _Coded:
    """One tensor on its way to the file."""

    pair: Pair
    coded: Encoded | None
    added: Encoded | None
    error: float
    squares: float
    digest: str


@dataclass(frozen=True, slots=True)
class _Packer:
    """One package in the making."""

    finetune: Checkpoint
    base: Checkpoint
    out: Path
    goal: Goal
    codecs: Sequence[str] | None
    threads: int
    progress: Progress

    @property
    def largest(self) -> int:
        return max(tensor.nbytes for tensor in self.finetune.tensors.values())

    def needed_bytes(self) -> int:
        """Room for the streams twice, since they are put behind their header at the end."""
        if self.goal.kind == "budget" and self.goal.limit is not None:
            return 2 * int(self.goal.limit)
        return sum(tensor.nbytes for tensor in self.finetune.tensors.values())

    def write(self, folder: Path) -> PackageHeader:
        """Write everything into `folder`."""
        self.progress.stage("reading")
        pairs = pairs_of(self.finetune, self.base, self.threads)
        files = carry_files(self.finetune, folder)
        choices = self._choices(pairs, self._fixed_bytes(pairs, files))
        self.progress.start(sum(pair.target.nbytes for pair in pairs), 0)
        with StreamFile(folder / STREAMS) as streams:
            work = in_order(
                lambda item: self._coded(*item),
                list(zip(pairs, choices, strict=True)),
                self.threads,
                size=lambda item: item[0].target.nbytes,
                limit=self.largest,
            )
            header = self._written(work, streams, files)
            streams.finish()
        write_file(folder / PACKAGE_HEADER, header.to_json())
        sync_folder(folder)
        return header

    def _fixed_bytes(self, pairs: Sequence[Pair], files: dict[str, str]) -> int:
        """Bytes of both files that do not depend on codecs."""
        empty = len(self._header({}, files, {}, {}, 0.0).to_json())
        twice = sum(stored_bytes(pair, None) for pair in pairs if pair.same_as is not None)
        return empty + twice + _SLACK

    def _choices(self, pairs: Sequence[Pair], fixed: int) -> list[CodecChoice | None]:
        """The lossy way of each tensor, None being exact."""
        if self.goal.limit is None:
            return [None] * len(pairs)
        alone = [pair for pair in pairs if pair.same_as is None]
        work = in_order(
            lambda pair: measure(pair, self.codecs),
            alone,
            self.threads,
            size=lambda pair: pair.target.nbytes,
            limit=self.largest,
        )
        measured = []
        for number, found_ways in enumerate(work):
            if 10 * number // len(alone) > 10 * (number - 1) // len(alone):
                self.progress.stage(f"measuring, {number} of {len(alone)} tensors done")
            measured.append(found_ways)
        if self.goal.kind == "budget":
            found = choose_within_budget(measured, int(self.goal.limit), fixed)
        else:
            found = choose_within_error(measured, self.goal.limit)
        chosen = dict(zip((pair.name for pair in alone), found, strict=True))
        return [chosen.get(pair.name) for pair in pairs]

    def _coded(self, pair: Pair, choice: CodecChoice | None) -> _Coded:
        """Code one tensor, decode it again, and compare where nothing may be lost."""
        if pair.same_as is not None:
            return _Coded(pair, None, None, 0.0, 0.0, pair.digest)
        if choice is None:
            threads = self.threads if 2 * pair.target.nbytes > self.largest else 1
            exact = encode_exactly(pair.known, pair.target, threads)
            digest = digest_tensor(_decoded(exact, pair.known, pair.target))
            if digest != pair.digest:
                raise CheckpointError(
                    f"{pair.target.location} changed while it was packed: let it be written first, then pack again."
                )
            squares = 0.0 if self.goal.limit is None else _squared_change(pair)
            return _Coded(pair, exact, None, 0.0, squares, digest)
        target, beyond = pair.target_rows()
        known = pair.known
        assert known is not None
        delta = Delta(known, target)
        coded = Encoded(SAME) if choice.codec == SAME else encode(delta, choice)
        error = 1.0 if choice.codec == SAME else measured_error(coded, known, target)
        decoded = _decoded(coded, known, target)
        added = None
        if beyond is not None:
            added = encode_exactly(None, beyond)
            decoded = JoinedRows(pair.name, (decoded, _decoded(added, None, beyond)))
        return _Coded(pair, coded, added, error, delta.squares, digest_tensor(decoded))

    def _written(
        self, work: Iterable[_Coded], streams: StreamFile, files: dict[str, str]
    ) -> PackageHeader:
        tensors: dict[str, PackedTensor] = {}
        exact: dict[str, str] = {}
        lost = changed = 0.0
        for made in work:
            name = made.pair.name
            exact[name] = made.pair.digest
            coded = _piece(name, made.coded, streams, error=made.error, added=False)
            added = _piece(name, made.added, streams, error=0.0, added=True)
            twice = made.pair.same_as
            digest = made.digest if twice is None else tensors[twice].digest
            tensors[name] = packed_tensor(made.pair, coded, added, digest)
            lost += made.error**2 * made.squares
            changed += made.squares
            self.progress.advance(made.pair.target.nbytes, name)
        used = {
            str(tensor.base): str(tensor.base_digest)
            for tensor in tensors.values()
            if tensor.base is not None
        }
        error = (lost / changed) ** 0.5 if changed else 0.0
        return self._header(tensors, files, exact, used, error)

    def _header(
        self,
        tensors: dict[str, PackedTensor],
        files: dict[str, str],
        exact: dict[str, str],
        used: dict[str, str],
        error: float,
    ) -> PackageHeader:
        """The header, from the digests of the fine-tune's own tensors and of the base's that are used."""
        from weightsmith.version import __version__

        return PackageHeader(
            version=__version__,
            goal=self.goal.kind,
            limit=self.goal.limit,
            digest=checkpoint_digest({name: tensor.digest for name, tensor in tensors.items()}),
            reference=self.finetune.source,
            finetune_digest=checkpoint_digest(exact),
            base_reference=self.base.source,
            base_digest=checkpoint_digest(used),
            base_places=self._places(),
            error=error,
            tensors=tensors,
            files=files,
        )

    def _places(self) -> tuple[str, ...]:
        path = os.path.relpath(os.path.realpath(self.base.path), os.path.realpath(self.out))
        member = "" if self.base.member is None else f"#{self.base.member}"
        return tuple(place for place in (path + member, self.base.hub_id) if place)


def _squared_change(pair: Pair) -> float:
    """The sum of the squared changes of a tensor that is stored exactly; 0 where they are no finite numbers."""
    known, target = pair.known, pair.target_rows()[0]
    if known is None or not (known.dtype.is_float and target.dtype.is_float):
        return 0.0
    squares = Delta(known, target).squares
    return squares if math.isfinite(squares) else 0.0


def _decoded(encoded: Encoded, base: LazyTensor | None, target: LazyTensor) -> LazyTensor:
    return in_memory(encoded, base, target.name, target.dtype, target.shape)


def _piece(
    name: str,
    encoded: Encoded | None,
    streams: StreamFile,
    *,
    error: float,
    added: bool,
) -> PackedPiece | None:
    """Write the streams of some rows; returns what the header says of them."""
    if encoded is None:
        return None
    digests = {}
    for part, array in encoded.parts.items():
        stream = stream_name(name, encoded.codec, part, added=added)
        digests[part] = streams.add(part_in_memory(stream, array), stream)
    return piece(encoded, digests, error)
