"""Collecting statistics of a model: the model and the data opened, one run, and a file for each kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weightsmith.adapters import open_model
from weightsmith.checkpoints import STATISTICS_KIND, StatisticsHeader
from weightsmith.errors import CompatibilityError, OutputError, UsageError
from weightsmith.live import LiveModel, load_model
from weightsmith.progress import Progress, Silence
from weightsmith.publishing import check_file
from weightsmith.statistics.collected import (
    WAITING,
    Collected,
    CollectionMeans,
    CollectionTarget,
    ComparedModel,
    request_digest,
    takes_blocks,
)
from weightsmith.statistics.data_files import DataChoice, ReadData, files_of_data, read_data
from weightsmith.statistics.data_run import DataRun, forward_sums
from weightsmith.statistics.factor_gradients import adapter_gradients
from weightsmith.statistics.kept_parts import KeptParts
from weightsmith.statistics.repair_collection import parents_shares, repaired
from weightsmith.statistics.samples import Samples, counted_labels
from weightsmith.statistics.trainers.adam_moments import take_moments
from weightsmith.statistics.trainers.trainer_files import files_of_trainer
from weightsmith.statistics.wanted import Wanted, parse_wanted
from weightsmith.tensors import expanded, shown
from weightsmith.version import __version__

MEMORY_BYTES = 1 << 30
_ENDING = ".safetensors"
# Up to so many classes, and one prediction for an item, every class has its turn.
_MOST_EXACT = 128


def collect(
    what: str | Sequence[str],
    model: str | Path,
    *,
    data: str | Path | Samples,
    out: str | Path,
    task: str | None = None,
    estimator: str | None = None,
    per: str = "sequence",
    limit: int = 256,
    context: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    memory_bytes: int = MEMORY_BYTES,
    other: str | Path | None = None,
    factors: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    parents: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Collected:
    """Collect statistics of a model over the first items of some data, and write a file for each kind.

    `what` names kinds: gram, channels, routing, cross (moments of what this model and `other` read and give on the same
    data), fisher, gradients (`gradients:8` with those of 8 items by themselves), adam, whose data are a trainer's
    checkpoint (its optimizer.pt, or a folder of DeepSpeed), or repair, for the method of that name: its model was
    merged, and `parents` are the weights of the models that it was merged from, by name, where it has no batch norm.
    Else `data` is a text file, JSON lines, an arrow file or a folder of them, a suite with the `task` of it, or
    Samples. `limit` bounds the items, `context` the tokens of each. With `factors` gradients are of what the adapter of
    BASE+ADAPTER stores, by the names in its file. `estimator` and `per` say whose gradients a Fisher is of: exact, mc:S
    or empirical; of a sequence or of a token. A network that takes more than `memory_bytes` runs block by block; the
    same call goes on behind what is finished of it, even after a kill. Weights of any dtype are computed with in
    float32, or in bfloat16 where `dtype` says so; sums are float32 and float64 either way. With several kinds
    FILE.safetensors becomes FILE.KIND.safetensors.

    Raises UsageError for data that are none of the model's, OutputError for an output that must not be replaced,
    NonFiniteError where a loss is NaN, and what opening the model raises.
    """
    wanted = parse_wanted(what, estimator, per, seed, factors=factors)
    _require_other(wanted, other)
    shares = parents_shares(wanted, parents or {})
    source = data if isinstance(data, Samples) else Path(data)
    choice = DataChoice(source, task, limit, context, seed)
    checkpoint = open_model(model)
    compared = None if other is None else open_model(other)
    opened = {name: open_model(name) for name in shares}
    beside = [*opened.values(), *(() if compared is None else (compared,))]
    inputs = (path for own in (checkpoint, *beside) for path in own.inputs)
    reads = (*inputs, *_read_beside(wanted, choice))
    places = _places(Path(out), wanted, reads)
    live = load_model(model, device=device, dtype=dtype, filled=False)
    target = CollectionTarget(checkpoint, live, places, reads, expanded(out).absolute(), dtype)
    if other is not None and compared is not None:
        network = load_model(other, device=device, dtype=dtype, filled=False)
        target = replace(target, other=ComparedModel(compared, network))
    if factors:
        target = replace(target, adapter=adapter_gradients(checkpoint))
    if "adam" in wanted.kinds:
        return _adam(target, wanted, source)
    means = CollectionMeans(batch_size, memory_bytes, progress or Silence())
    if "repair" in wanted.kinds:
        return repaired(target, choice, means, [(opened[n], n, shares[n]) for n in shares])
    return _measured(target, wanted, choice, means)


def _measured(
    target: CollectionTarget, wanted: Wanted, choice: DataChoice, means: CollectionMeans
) -> Collected:
    model = target.model
    data = read_data(model, choice)
    other = None if target.other is None else target.other.model
    wanted = _settled(wanted, data, model, other)
    blocks = takes_blocks(model, wanted, means.memory_bytes, other)
    waiting = means.memory_bytes // WAITING
    said = [repr(wanted), target.digest, blocks, means.batch_size, model.device, target.dtype]
    said.append("" if target.other is None else target.other.digest)
    digests = [data.forward.digest, data.backward.digest]
    with KeptParts(target.out, request_digest([__version__, *said, *digests])) as parts:
        for samples, own in _runs(data, wanted):
            beside = other if "cross" in own.kinds else None
            run = DataRun(
                model,
                samples,
                own,
                parts,
                means.batch_size,
                waiting,
                means.progress,
                beside,
                target.adapter,
            )
            if blocks:
                run.by_blocks()
            elif not all(parts.has(kind, 0) for kind in own.kinds):
                for network in (model, beside):
                    if network is not None:
                        network.fill()
                run.whole()
        headers = (_header(target, kind, data, wanted) for kind in wanted.kinds)
        files = tuple(target.write(header, parts) for header in headers)
        parts.discard()
    estimator = wanted.estimator_text if "fisher" in wanted.kinds else ""
    per = wanted.per if estimator else ""
    return Collected(model.name, data.forward.name, estimator, per, blocks, files)


def _runs(data: ReadData, wanted: Wanted) -> Iterator[tuple[Samples, Wanted]]:
    """The runs that it takes: one, or one for what passes and one for gradients."""
    if data.is_one or not (wanted.forward and wanted.backward):
        yield (data.backward if wanted.backward else data.forward), wanted
        return
    yield data.forward, replace(wanted, kinds=wanted.forward)
    yield data.backward, replace(wanted, kinds=wanted.backward)


def _header(
    target: CollectionTarget, kind: str, data: ReadData, wanted: Wanted
) -> StatisticsHeader:
    is_backward = kind in wanted.backward
    samples = data.backward if is_backward else data.forward
    count = len(samples.items)
    name = samples.described
    if kind == "fisher" and wanted.per == "token":
        count = sum(counted_labels(sample.labels) for sample in samples.items)
    header = target.header(kind, name, count)
    if kind == "fisher":
        header = replace(header, estimator=wanted.estimator_text, per=wanted.per)
    return replace(header, objective=samples.objective if is_backward else "")


def _adam(target: CollectionTarget, wanted: Wanted, source: Path | Samples) -> Collected:
    if len(wanted.kinds) > 1 or isinstance(source, Samples):
        raise UsageError(
            "adam is read from a trainer's checkpoint, and everything else measured over data; ask for it alone."
        )
    with KeptParts(target.out, request_digest(["adam"])) as parts:
        parts.begin_anew()
        taken = take_moments(target.model, source, parts)
        data = f"the trainer's {shown(taken.name)}, second moments after {taken.steps} steps"
        file = target.write(target.header("adam", data, max(taken.steps, 1)), parts)
        parts.discard()
    return Collected(target.model.name, data, "", "", False, (file,))


def _read_beside(wanted: Wanted, choice: DataChoice) -> tuple[Path, ...]:
    if "adam" in wanted.kinds and not isinstance(choice.source, Samples):
        return files_of_trainer(choice.source)
    return files_of_data(choice)


def _places(out: Path, wanted: Wanted, reads: Sequence[Path]) -> dict[str, Path]:
    """Where the file of each kind will be; raises OutputError where something is in the way."""
    if out.suffix != _ENDING:
        raise OutputError(
            f"Statistics are safetensors files; give {shown(out)} the ending {_ENDING}."
        )
    kinds = wanted.kinds
    several = len(kinds) > 1
    found = {k: out.with_name(f"{out.stem}.{k}{_ENDING}") if several else out for k in kinds}
    for place in found.values():
        check_file(place, STATISTICS_KIND, reads)
    return found


def _require_other(wanted: Wanted, other: str | Path | None) -> None:
    """Raise UsageError where a model is compared with none, or with one that nothing is asked of."""
    if "cross" in wanted.kinds and other is None:
        raise UsageError(
            "cross are moments of two models on the same data; give the other one with --with MODEL."
        )
    if "cross" not in wanted.kinds and other is not None:
        raise UsageError(
            f"Only cross is of two models, and {', '.join(wanted.kinds)} of one; ask for cross, or leave out "
            f"{shown(other)}."
        )


def _settled(wanted: Wanted, data: ReadData, model: LiveModel, other: LiveModel | None) -> Wanted:
    """With the estimator that suits the data, if none was asked for.

    Raises CompatibilityError where the network has nothing of a kind, UsageError where there are no losses.
    """
    for kind in wanted.forward:
        if forward_sums(kind, model, other).is_empty:
            beside = "" if kind != "cross" or other is None else f" beside {other.name!r}"
            raise CompatibilityError(
                f"{model.name!r} is a {type(model.module).__name__}, which has nothing that {kind} statistics are of"
                f"{beside}; ask for others."
            )
    samples = data.backward
    if wanted.backward and (
        samples.predictions is None or not all(counted_labels(s.labels) for s in samples.items)
    ):
        raise UsageError(
            f"{' and '.join(wanted.backward)} need losses, but {model.name!r} is {model.kind.value}, and "
            f"{samples.name} gives it nothing to predict; give texts with labels, or queries with documents."
        )
    if "fisher" not in wanted.kinds or wanted.estimator:
        return wanted
    first = samples.items[0]
    is_small = counted_labels(first.labels) == 1 and first.classes <= _MOST_EXACT
    return (
        replace(wanted, estimator="exact") if is_small else replace(wanted, estimator="mc", draws=1)
    )
