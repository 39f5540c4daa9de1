"""Inputs that are damaged, change under the run, or must not be touched."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from weightsmith.engine.records.verify import verify_output
from weightsmith.engine.running.run import run
from weightsmith.errors import CheckpointError, OutputError, WeightsmithError
from weightsmith.progress import Silence

from .conftest import Bench, bytes_of, ended, make_bench
from .merge_once import plan_of


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """With inputs of its own, which the tests here damage."""
    return make_bench(tmp_path, tmp_path)


class During(Silence):
    """A progress that does something when the first tile is written."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._done = False

    def advance(self, nbytes: int, what: str = "") -> None:
        if not self._done:
            self._done = True
            self._action()


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_input_is_refused_before_anything_is_written(bench: Bench, keep: int) -> None:
    """At the length field, in the header, in the data, one byte short."""
    file = bench.root / "e1" / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match="e1"):
        run(plan_of(bench.recipe), bench.out)
    assert not bench.out.exists()
    assert not bench.staging.exists()
    file.write_bytes(data)
    bench.finish()


def test_a_flipped_bit_in_a_header_is_an_error_or_harmless_but_never_a_crash(bench: Bench) -> None:
    """Whatever comes out was either refused in a sentence or is a sound output of the header as it now is."""
    file = bench.root / "e1" / "model.safetensors"
    data = file.read_bytes()
    header = int.from_bytes(data[:8], "little") + 8
    generator = random.Random(5)
    refused = 0
    for number in range(60):
        at, bit = generator.randrange(header), generator.randrange(8)
        file.write_bytes(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
        out = bench.root / f"out-{number}"
        try:
            run(plan_of(bench.recipe), out)
        except WeightsmithError:
            refused += 1
            assert not out.exists()
        else:
            assert verify_output(out).ok
    assert refused >= 50


def _rewrite_a_byte(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-3, os.SEEK_END)
        opened.write(b"\x01")


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 2)


def _grow(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"more")


def _touch(file: Path) -> None:
    os.utime(file, ns=(1, 1))


@pytest.mark.parametrize("change", [_rewrite_a_byte, _truncate, _grow, _touch])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_input_that_changes_during_the_run_stops_it(
    bench: Bench, change: Callable[[Path], None], threads: int
) -> None:
    """A mixture of the old and the new input is never published."""
    file = bench.root / "e2" / "model.safetensors"
    plan = plan_of(bench.recipe, threads=threads)
    with pytest.raises(CheckpointError, match=r"e2.*(changed|truncated)"):
        run(plan, bench.out, progress=During(lambda: change(file)))
    assert not bench.out.exists()


def test_an_input_that_is_replaced_or_removed_during_the_run_is_still_read_as_it_was(
    bench: Bench,
) -> None:
    """An open file lives on; one that is opened anew is told from the old one."""
    file = bench.root / "e2" / "model.safetensors"
    old = file.with_suffix(".old")

    def replace() -> None:
        os.rename(file, old)
        file.write_bytes(b"something else")

    plan = plan_of(bench.recipe)
    with contextlib.suppress(CheckpointError):
        run(plan, bench.out, progress=During(replace))
    os.rename(old, file)
    if not bench.out.exists():
        bench.finish()
    bench.check(bench.out)


def test_inputs_without_write_permission_are_enough(bench: Bench) -> None:
    """And no input is changed, not even its times."""
    folders = [bench.root / name for name in ("base", "e1", "e2")]
    files = [p for folder in folders for p in [folder, *folder.iterdir()]]
    for path in files:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = [(p, p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in files]
    try:
        bench.finish()
    finally:
        after = [(p, p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in files]
        for path in files:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert after == before


@pytest.mark.parametrize(
    "place",
    ["base", "e1", "e1/inside", "e1/a/b", ".", "e1/../e2", "link-to-e1", "link-to-e1/inside"],
)
def test_an_output_that_is_an_input_or_inside_or_around_one_is_refused(
    bench: Bench, place: str
) -> None:
    """However it is spelled, and whatever is forced."""
    (bench.root / "link-to-e1").symlink_to(bench.root / "e1")
    before = {
        name: hashlib.sha256(data).hexdigest() for name, data in bytes_of(bench.root / "e1").items()
    }
    with pytest.raises(OutputError):
        run(plan_of(bench.recipe), bench.root / place, force=True, fresh=True)
    after = {
        name: hashlib.sha256(data).hexdigest() for name, data in bytes_of(bench.root / "e1").items()
    }
    assert after == before


def test_an_input_in_the_staging_folder_of_the_output_is_refused(bench: Bench) -> None:
    """`fresh` would delete it."""
    bench.staging.mkdir()
    os.rename(bench.root / "e1", bench.staging / "checkpoint")
    bench.recipe["models"][0]["model"] = str(bench.staging / "checkpoint")
    with pytest.raises(OutputError, match="contains the input"):
        run(plan_of(bench.recipe), bench.out, fresh=True)
    assert (bench.staging / "checkpoint" / "model.safetensors").exists()


@pytest.mark.parametrize("number", [2, pytest.param(8, marks=pytest.mark.faults)])
def test_runs_into_one_output_at_once(bench: Bench, number: int) -> None:
    """Exactly one publishes, the others get a sentence, and the output is whole."""
    for _ in range(1 if number == 2 else 5):
        processes = [bench.start() for _ in range(number)]
        codes = []
        for process in processes:
            code, message = ended(process)
            codes.append(code)
            if code:
                assert code == 4
                assert (
                    "Another run is writing" in message or "exists; choose another name" in message
                )
        assert codes.count(0) == 1
        bench.check(bench.out)
        for file in sorted(bench.out.rglob("*"), reverse=True):
            file.unlink()
        bench.out.rmdir()


@pytest.mark.faults
def test_runs_from_the_same_inputs_into_different_outputs(bench: Bench) -> None:
    """They do not see each other."""
    places = [bench.root / f"out-{n}" for n in range(8)]
    processes = [bench.start(place) for place in places]
    assert [ended(process)[0] for process in processes] == [0] * 8
    for place in places:
        assert verify_output(place, recompute=1).ok
        weights = {n: d for n, d in bytes_of(place).items() if n.endswith(".safetensors")}
        assert weights == {n: d for n, d in bench.expected.items() if n.endswith(".safetensors")}
