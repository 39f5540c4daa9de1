"""Whatever kills a run that replaces something, or comes in its way: the old or the new output is there, and whole."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.engine.running.run import run

from .conftest import Bench, bytes_of, ended
from .merge_once import plan_of
from .publish_once import report, write_adapter
from .tampering import counted_calls, logged, needs_strace, tampered

PUBLISH_ONCE = Path(__file__).with_name("publish_once.py")
LAST_STEPS = "fsync rename renameat2 link unlink unlinkat mkdir rmdir".split()
NO_EXCHANGE = "renameat2:error=ENOSYS"


def earlier_recipe(bench: Bench) -> dict[str, object]:
    return {k: v for k, v in bench.recipe.items() if k != "base_model"} | {"merge_method": "linear"}


@pytest.fixture
def earlier(bench: Bench) -> dict[str, bytes]:
    """The files of an earlier output of another recipe, which lies in the place."""
    run(plan_of(earlier_recipe(bench)), bench.out)
    return bytes_of(bench.out)


def check_replaced(bench: Bench, earlier: dict[str, bytes]) -> None:
    """The old or the new output, whole, or for a moment none where folders cannot be exchanged; and the same call ends
    it."""
    if bench.out.exists():
        found = bytes_of(bench.out)
        assert found in (earlier, bench.expected)
    else:
        assert bytes_of(bench.staging / "replaced") == earlier
    run(plan_of(bench.recipe), bench.out, force=True)
    bench.check(bench.out)


def kill_everywhere(
    start: Callable[[tuple[str, ...]], subprocess.Popen[str]],
    log: Path,
    also: tuple[str, ...],
    after: Callable[[], None],
) -> int:
    """Kill a process at each of its last system calls in turn, and check what is there; how often that was."""
    process = start((*logged(log, LAST_STEPS),))
    assert ended(process)[0] == 0
    after()
    points = 0
    for name, count in counted_calls(log, LAST_STEPS).items():
        for k in range(1, count + 3):
            process = start(tampered(f"{name}:signal=KILL:when={k}", *also))
            code, message = ended(process)
            assert code in (0, -signal.SIGKILL), message
            after()
            points += code != 0
            if code == 0:
                break
    return points


@pytest.mark.faults
@needs_strace
@pytest.mark.parametrize("also", [(), (NO_EXCHANGE,)], ids=["exchange", "no exchange"])
def test_a_replacement_killed_at_every_step_of_it(bench: Bench, also: tuple[str, ...]) -> None:
    """With folders exchanged in one step, and with two renames as on NFS."""
    run(plan_of(earlier_recipe(bench)), bench.out)
    earlier = bytes_of(bench.out)

    def start(prefix: tuple[str, ...]) -> subprocess.Popen[str]:
        if bench.out.exists():
            shutil.rmtree(bench.out)
        run(plan_of(earlier_recipe(bench)), bench.out)
        return bench.start(prefix=prefix, threads=1, force=True)

    points = kill_everywhere(
        start, bench.root / "log", also, lambda: check_replaced(bench, earlier)
    )
    assert points >= 30
    print(f"{points} kills")


@needs_strace
@pytest.mark.parametrize("when", ["before", "after", "between the two renames"])
def test_a_replacement_killed_at_its_last_step(
    bench: Bench, earlier: dict[str, bytes], when: str
) -> None:
    """The quick form of the test above."""
    also = (NO_EXCHANGE,) if when == "between the two renames" else ()
    what = {
        "before": "renameat2:signal=KILL:when=1",
        "after": "rmdir:signal=KILL:when=1",
        "between the two renames": "rename:signal=KILL:when=2",
    }[when]
    names = ["rename"]
    if also:
        log = bench.root / "log"
        process = bench.start(bench.root / "counted", prefix=logged(log, names), threads=1)
        assert ended(process)[0] == 0
        shutil.rmtree(bench.root / "counted")
        # Small files are renamed into their places first, then the earlier output to its side, then the new one.
        what = f"rename:signal=KILL:when={counted_calls(log, names)['rename'] + 2}"
    process = bench.start(prefix=tampered(what, *also), threads=1, force=True)
    code, message = ended(process)
    assert code == -signal.SIGKILL, message
    check_replaced(bench, earlier)


def test_what_appears_while_a_run_in_another_process_goes_on_is_left(bench: Bench) -> None:
    process = bench.start()
    while not bench.staging.exists():
        assert process.poll() is None, ended(process)
        time.sleep(0.001)
    bench.out.mkdir()
    (bench.out / "mine").write_text("precious")
    code, message = ended(process)
    assert code == 4
    assert "Something has appeared at" in message or "exists; choose another name" in message
    assert bytes_of(bench.out) == {"mine": b"precious"}
    shutil.rmtree(bench.out)
    bench.finish()


@needs_strace
def test_what_appears_is_left_on_a_file_system_without_exclusive_renames(bench: Bench) -> None:
    process = bench.start(prefix=tampered(NO_EXCHANGE))
    while not bench.staging.exists():
        assert process.poll() is None, ended(process)
        time.sleep(0.001)
    bench.out.mkdir()
    (bench.out / "mine").write_text("precious")
    assert ended(process)[0] == 4
    assert bytes_of(bench.out) == {"mine": b"precious"}


def publish(
    kind: str, place: Path, word: str, prefix: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*prefix, sys.executable, str(PUBLISH_ONCE), kind, str(place), word],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.faults
@needs_strace
@pytest.mark.parametrize("also", [(), (NO_EXCHANGE,)], ids=["exchange", "no exchange"])
def test_a_report_killed_at_every_step_is_the_old_or_the_new_one(
    tmp_path: Path, also: tuple[str, ...]
) -> None:
    place = tmp_path / "report.html"

    def start(prefix: tuple[str, ...]) -> subprocess.Popen[str]:
        place.write_bytes(report("old"))
        return publish("report", place, "new", prefix)

    def after() -> None:
        assert place.read_bytes() in (report("old"), report("new"))
        assert ended(publish("report", place, "again"))[0] == 0
        assert place.read_bytes() == report("again")

    assert kill_everywhere(start, tmp_path / "log", also, after) >= 3


@pytest.mark.faults
@needs_strace
@pytest.mark.parametrize("also", [(), (NO_EXCHANGE,)], ids=["exchange", "no exchange"])
def test_an_adapter_killed_at_every_step_is_the_old_or_the_new_one(
    tmp_path: Path, also: tuple[str, ...]
) -> None:
    """Nothing is left of the killed run once the same call has ended."""
    place = tmp_path / "adapter"

    def number() -> float:
        (update,) = open_adapter(place).updates.values()
        return float(update.load().rows(0, 1)[0, 0]) / 2

    def start(prefix: tuple[str, ...]) -> subprocess.Popen[str]:
        if place.exists():
            shutil.rmtree(place)
        write_adapter(place, 1)
        return publish("adapter", place, "four", prefix)

    def after() -> None:
        assert number() in (1.0, 4.0) if place.exists() else bool(also)
        assert ended(publish("adapter", place, "sixsix"))[0] == 0
        assert number() == 6.0
        assert [p.name for p in tmp_path.iterdir() if p.name != "log"] == ["adapter"]

    assert kill_everywhere(start, tmp_path / "log", also, after) >= 8


@pytest.mark.parametrize("number", [3, pytest.param(8, marks=pytest.mark.faults)])
def test_reports_into_one_file_at_once(tmp_path: Path, number: int) -> None:
    """One of them is there, whole; the others get a sentence, or were there before it."""
    place = tmp_path / "report.html"
    words = [f"word-{i}" for i in range(number)]
    processes = [publish("report", place, word) for word in words]
    codes = []
    for process in processes:
        code, message = ended(process)
        codes.append(code)
        assert code == 0 or "while this run went on" in message
    assert 0 in codes
    assert place.read_bytes() in [
        report(word) for word, code in zip(words, codes, strict=True) if code == 0
    ]
    assert list(tmp_path.iterdir()) == [place]
