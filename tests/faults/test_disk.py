"""Full disks, file size limits and odd places: a sentence, nothing half-done, and the same command ends it later."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weightsmith.engine.running.run import run
from weightsmith.errors import OutputError, ResourceError

from .conftest import Bench, bytes_of, ended
from .merge_once import plan_of

PAGE = 4096


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of the given size; a second call resizes it."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(size: int) -> Path:
        nonlocal mounted
        how = (
            ["-o", f"remount,size={size}"]
            if mounted
            else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        )
        found = subprocess.run(
            ["mount", *how, str(place)], capture_output=True, text=True, check=False
        )
        assert not (mounted and found.returncode), found.stderr
        if found.returncode:
            pytest.skip(f"file systems cannot be mounted here: {found.stderr.strip()}")
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def fill_and_finish(bench: Bench, disk: Callable[[int], Path], steps: int) -> tuple[int, int]:
    """Merge onto disks of every size up to what is needed; how many were refused, and how many of them at once."""
    need = sum(len(data) for data in bench.expected.values())
    refused = early = 0
    for step in range(steps):
        size = max(PAGE, need * step // (steps - 1) // PAGE * PAGE)
        out = disk(size) / "out"
        try:
            run(plan_of(bench.recipe), out)
        except ResourceError:
            refused += 1
            assert not out.exists()
            early += not list(out.parent.rglob("*.safetensors"))
        disk(3 * need)
        bench.check_after_a_fault(out)
        shutil.rmtree(out)
    return refused, early


def test_a_disk_that_is_too_small_is_refused_and_a_larger_one_continues(
    bench: Bench, small_disk: Callable[[int], Path]
) -> None:
    """The quick form of the test below."""
    refused, early = fill_and_finish(bench, small_disk, 4)
    assert refused >= 3
    assert early >= 3


@pytest.mark.faults
def test_disks_of_every_size(bench: Bench, small_disk: Callable[[int], Path]) -> None:
    """From one page to what is needed; nearly all are refused before a byte of the output is written."""
    refused, early = fill_and_finish(bench, small_disk, 32)
    assert refused >= 31
    assert early >= 0.95 * refused


@pytest.mark.faults
def test_a_disk_that_fills_up_meanwhile(bench: Bench, small_disk: Callable[[int], Path]) -> None:
    """The weights fit, the files beside them do not: everything that is finished is kept."""
    need = sum(
        -(-len(d) // PAGE) * PAGE for n, d in bench.expected.items() if n.endswith(".safetensors")
    )
    for pages in range(14):
        out = small_disk(need + (pages + 1) * PAGE) / "out"
        try:
            run(plan_of(bench.recipe), out)
        except ResourceError:
            assert not out.exists()
        small_disk(3 * need)
        bench.check_after_a_fault(out)
        shutil.rmtree(out)


@pytest.mark.parametrize("limit", [0, 1000, 100_000, 2_000_000])
def test_a_limit_on_file_sizes(bench: Bench, limit: int) -> None:
    """RLIMIT_FSIZE, as `ulimit -f` sets it: exit code 5 and a sentence."""
    code, message = ended(bench.start(limits={"RLIMIT_FSIZE": limit}))
    assert code == 5, message
    assert "File too large" in message
    assert not bench.out.exists()
    bench.finish()


def test_few_descriptors_are_enough(bench: Bench) -> None:
    """However many shards there are."""
    bench.recipe["shard_size"] = 1000
    code, message = ended(bench.start(limits={"RLIMIT_NOFILE": 40}))
    assert code == 0, message


@pytest.mark.parametrize(
    ("umask", "file_mode", "folder_mode"),
    [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o000, 0o666, 0o777)],
)
def test_the_umask_decides_the_permissions(
    bench: Bench, umask: int, file_mode: int, folder_mode: int
) -> None:
    """Of the folder and of every file in it, weights as well as small files."""
    before = os.umask(umask)
    try:
        bench.finish()
    finally:
        os.umask(before)
    assert bench.out.stat().st_mode & 0o777 == folder_mode
    assert {p.stat().st_mode & 0o777 for p in bench.out.rglob("*") if p.is_file()} == {file_mode}


@pytest.mark.parametrize(
    "name",
    [
        "größe 模型 🙂",
        "new\nline",
        "-o",
        "%s",
        "a'b\"c",
        "x" * 247,
        ".hidden",
        "tab\t",
        "[red]bold",
    ],
)
def test_unusual_names(bench: Bench, name: str) -> None:
    """Whatever a file system takes, up to the longest name that leaves room for the staging folder's suffix."""
    out = bench.root / name
    run(plan_of(bench.recipe), out)
    assert weights(out) == weights_of(bench.expected)
    assert not out.with_name(out.name + ".partial").exists()


def test_a_name_that_is_not_utf_8(bench: Bench) -> None:
    """Bytes that no encoding explains are carried through."""
    out = Path(os.fsdecode(os.fsencode(bench.root) + b"/\xff\xfe"))
    run(plan_of(bench.recipe), out)
    assert weights(out) == weights_of(bench.expected)


def test_a_name_that_is_too_long_is_a_sentence(bench: Bench) -> None:
    """Of the output, or of its staging folder."""
    for length in (248, 255, 300):
        with pytest.raises(OutputError, match="too long"):
            run(plan_of(bench.recipe), bench.root / ("x" * length))


def test_a_very_long_path(bench: Bench) -> None:
    """Close to the longest that the system takes."""
    folder = bench.root
    while len(str(folder)) < 3800:
        folder = folder / ("d" * 200)
    folder.mkdir(parents=True)
    run(plan_of(bench.recipe), folder / "out")
    assert weights(folder / "out") == weights_of(bench.expected)


def test_relative_outputs_and_trailing_slashes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`out`, `./out/` and `other/../out` are one place."""
    monkeypatch.chdir(bench.root)
    (bench.root / "other").mkdir()
    for spelling in ("out", "./out/", "other/../out", "out/."):
        run(plan_of(bench.recipe), Path(spelling))
        bench.check(bench.out)
        shutil.rmtree(bench.out)


def test_another_file_system_than_the_working_directory(
    bench: Bench, small_disk: Callable[[int], Path]
) -> None:
    """The staging folder lies beside the output, so the last step is always a rename."""
    out = small_disk(100_000_000) / "out"
    run(plan_of(bench.recipe), out)
    bench.check(out)
    run(plan_of(bench.recipe), out, force=True)
    bench.check(out)


def weights(folder: Path) -> dict[str, bytes]:
    """The weight files of a folder."""
    return weights_of(bytes_of(folder))


def weights_of(files: dict[str, bytes]) -> dict[str, bytes]:
    """The weight files among files; card and manifest name the place of the output."""
    return {name: data for name, data in files.items() if name.endswith(".safetensors")}
