"""An interrupted run is continued by the same call, and computes again only what was not finished."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import weightsmith
from weightsmith.engine.records import merge_staging as staging
from weightsmith.engine.records.journal import Journal
from weightsmith.engine.records.merge_staging import Staging
from weightsmith.errors import AssertionFailed, NonFiniteError, OutputError, ResourceError
from weightsmith.graph.backends import native
from weightsmith.publishing import atomic_renames as renaming
from weightsmith.publishing import putting
from weightsmith.tensors.files import writer

from .conftest import Family
from .interrupted import Recorder, Stop, bytes_of, merge_in_process


@pytest.fixture
def recipe(family: Family) -> dict[str, Any]:
    """A recipe with several passes, several shards, and files beside the weights."""
    (family.root / "base" / "tokenizer.json").write_text('{"version": "1.0"}')
    return family.recipe("ties", shard_size=300_000)


@pytest.fixture
def expected(family: Family, recipe: dict[str, Any]) -> dict[str, bytes]:
    """What an uninterrupted run writes; it is removed again, since the place is part of the record."""
    out = family.root / "out"
    weightsmith.merge(recipe, out)
    found = bytes_of(out)
    shutil.rmtree(out)
    return found


def interrupt(family: Family, recipe: dict[str, Any], stop_at: int | str, **options: Any) -> Path:
    """Stop a run and return its staging folder."""
    with pytest.raises(Stop):
        weightsmith.merge(recipe, family.root / "out", progress=Recorder(stop_at), **options)
    assert not (family.root / "out").exists()
    return family.root / "out.partial"


def finish(
    family: Family, recipe: dict[str, Any], expected: dict[str, bytes], **options: Any
) -> Recorder:
    """Run to the end, compare the bytes, and see that nothing else is left."""
    progress = Recorder()
    weightsmith.merge(recipe, family.root / "out", progress=progress, **options)
    assert bytes_of(family.root / "out") == expected
    assert not (family.root / "out.partial").exists()
    return progress


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("stop_at", [2, 5, 9, "writing the manifest"])
def test_an_exception_at_any_moment_costs_only_what_was_unfinished(
    family: Family,
    recipe: dict[str, Any],
    expected: dict[str, bytes],
    stop_at: int | str,
    threads: int,
) -> None:
    """What is resumed and what is written again add up to the whole."""
    interrupt(family, recipe, stop_at, threads=threads)
    progress = finish(family, recipe, expected, threads=threads)
    assert progress.resumed + progress.written == progress.total
    if threads == 1:
        assert progress.resumed > 0
    assert (progress.written == 0) == (stop_at == "writing the manifest")


def test_a_run_that_finished_nothing_leaves_nothing(family: Family, recipe: dict[str, Any]) -> None:
    """Neither an output nor a staging folder that would stand in the way of the mended recipe."""
    assert not interrupt(family, recipe, 1).exists()


@pytest.mark.parametrize("kill_at", [1, 6, "writing the manifest"])
def test_a_killed_process_is_continued(
    family: Family, recipe: dict[str, Any], expected: dict[str, bytes], kill_at: int | str
) -> None:
    """SIGKILL leaves no time to tidy up."""
    assert merge_in_process(recipe, family.root / "out", kill_at).returncode == -9
    assert not (family.root / "out").exists()
    progress = finish(family, recipe, expected)
    assert progress.resumed + progress.written == progress.total
    assert (progress.written == 0) == (kill_at == "writing the manifest")


def test_a_torn_last_line_is_dropped(
    family: Family, recipe: dict[str, Any], expected: dict[str, bytes]
) -> None:
    """At whatever byte the line ends; its tensor is computed again."""
    folder = interrupt(family, recipe, "writing the manifest")
    whole = (folder / "journal.jsonl").read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    copy = family.root / "copy"
    shutil.copytree(folder, copy)
    for length in range(last, len(whole), 37):
        shutil.rmtree(family.root / "out", ignore_errors=True)
        shutil.copytree(copy, folder, dirs_exist_ok=True)
        (folder / "journal.jsonl").write_bytes(whole[:length])
        assert len(finish(family, recipe, expected).tensors) == 1


@pytest.mark.parametrize("damage", ["cut", "bit", "not a mapping", "binary"])
def test_a_damaged_line_in_the_middle_is_refused_until_fresh(
    family: Family, recipe: dict[str, Any], expected: dict[str, bytes], damage: str
) -> None:
    """No crash can have done that, so nothing in the journal is trusted; the refusal itself changes nothing."""
    journal = interrupt(family, recipe, "writing the manifest") / "journal.jsonl"
    lines = journal.read_bytes().splitlines()
    middle = lines[3]
    digit = middle.index(b"xxh3-tensor-1:") + 20
    flipped = middle[:digit] + bytes([middle[digit] ^ 1]) + middle[digit + 1 :]
    lines[3] = {
        "cut": middle[:-9],
        "bit": flipped,
        "not a mapping": b"[]",
        "binary": b"\0\xff\x80",
    }[damage]
    journal.write_bytes(b"\n".join(lines) + b"\n")
    before = journal.read_bytes()
    for _ in range(2):
        with pytest.raises(OutputError, match=r"Line 4 of .* is damaged; run again with --fresh"):
            weightsmith.merge(recipe, family.root / "out")
    assert journal.read_bytes() == before
    assert finish(family, recipe, expected, fresh=True).resumed == 0


def test_a_finished_tensor_whose_bytes_were_damaged_is_computed_again(
    family: Family, recipe: dict[str, Any], expected: dict[str, bytes]
) -> None:
    """The journal says finished, the digest says not."""
    folder = interrupt(family, recipe, "writing the manifest")
    shard = min((folder / "checkpoint").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert len(finish(family, recipe, expected).tensors) == 1


@pytest.mark.parametrize("harm", ["missing", "truncated", "header"])
def test_a_staged_shard_that_is_gone_or_not_as_planned_is_written_again(
    family: Family, recipe: dict[str, Any], expected: dict[str, bytes], harm: str
) -> None:
    """All of its tensors, and no others."""
    folder = interrupt(family, recipe, "writing the manifest")
    shard = sorted((folder / "checkpoint").glob("*.safetensors"))[1]
    data = shard.read_bytes()
    if harm == "missing":
        shard.unlink()
    else:
        shard.write_bytes(data[:-1] if harm == "truncated" else data[:20] + b"?" + data[21:])
    progress = finish(family, recipe, expected)
    assert 0 < progress.written < progress.total


def test_another_recipe_is_refused_until_fresh(family: Family, recipe: dict[str, Any]) -> None:
    """Work that is finished is never thrown away unasked."""
    folder = interrupt(family, recipe, "writing the manifest")
    other = family.recipe("linear")
    with pytest.raises(OutputError, match=r"unfinished run of another recipe.*--fresh"):
        weightsmith.merge(other, family.root / "out")
    assert (folder / "journal.jsonl").stat().st_size > 500
    weightsmith.merge(other, family.root / "out", fresh=True)
    assert [p.name for p in (family.root / "out").glob("*.safetensors")] == ["model.safetensors"]


def test_a_changed_input_is_refused_until_fresh(family: Family, recipe: dict[str, Any]) -> None:
    """Tensors of the old and the new input are never mixed."""
    interrupt(family, recipe, "writing the manifest")
    os.utime(family.root / "e1" / "model.safetensors", ns=(1, 1))
    with pytest.raises(OutputError, match="--fresh"):
        weightsmith.merge(recipe, family.root / "out")
    weightsmith.merge(recipe, family.root / "out", fresh=True)


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
def test_one_output_never_mixes_backends(family: Family, recipe: dict[str, Any]) -> None:
    """The record names one, and sums may differ between them in the last bit."""
    interrupt(family, recipe, 5, backend="native", threads=1)
    with pytest.raises(OutputError, match="--fresh"):
        weightsmith.merge(recipe, family.root / "out", backend="torch")


def test_a_staging_folder_in_which_nothing_is_finished_is_taken_over(
    family: Family, recipe: dict[str, Any], expected: dict[str, bytes]
) -> None:
    """There is nothing to lose, so another recipe need not say `fresh`."""
    assert merge_in_process(family.recipe("linear"), family.root / "out", 1).returncode == -9
    assert (family.root / "out.partial" / "checkpoint" / "model.safetensors").exists()
    finish(family, recipe, expected)


def test_left_overs_of_a_killed_seal_do_not_get_into_the_output(
    family: Family, recipe: dict[str, Any], expected: dict[str, bytes]
) -> None:
    """Temporary files of small files that were never renamed."""
    folder = interrupt(family, recipe, "writing the manifest") / "checkpoint"
    (folder / ".README.md.0123456789ab.partial").write_text("half")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / ".x.partial").write_text("half")
    finish(family, recipe, expected)


def stop_before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Let a step fail as if the process had been killed just before it."""

    def stopped(*_: Any, **__: Any) -> None:
        raise Stop

    monkeypatch.setattr(owner, name, stopped)


@pytest.mark.parametrize("step", ["publish", "discard"])
def test_the_last_steps_can_be_interrupted(
    family: Family,
    recipe: dict[str, Any],
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """Before the output gets its name, and after that while the staging folder is still there."""
    with monkeypatch.context() as patched:
        stop_before(patched, Staging, step)
        with pytest.raises(Stop):
            weightsmith.merge(recipe, family.root / "out")
    assert (family.root / "out.partial").exists()
    assert (family.root / "out").exists() == (step == "discard")
    progress = finish(family, recipe, expected)
    assert progress.written == 0


def test_a_published_left_over_does_not_stop_another_forced_run(
    family: Family,
    recipe: dict[str, Any],
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What lies in the staging folder is already at its place, so nothing would be lost."""
    with monkeypatch.context() as patched:
        stop_before(patched, Staging, "discard")
        with pytest.raises(Stop):
            weightsmith.merge(family.recipe("linear"), family.root / "out")
    with pytest.raises(OutputError, match="exists"):
        weightsmith.merge(recipe, family.root / "out")
    finish(family, recipe, expected, force=True)


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("step", ["first", "second", "after"])
def test_a_replaced_output_is_there_or_the_new_one_whenever_the_run_dies(
    family: Family,
    recipe: dict[str, Any],
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    can_exchange: bool,
) -> None:
    """With a swap in one step as without; the same call always comes to the same end."""
    out = family.root / "out"
    weightsmith.merge(family.recipe("linear"), out)
    old = bytes_of(out)
    if not can_exchange:
        monkeypatch.setattr(putting, "exchange", lambda *_: False)
    with monkeypatch.context() as patched:
        if step == "after":
            stop_before(patched, Staging, "discard")
        elif step == "first":
            stop_before(patched, putting, "exchange")
        else:
            patched.setattr(putting, "exchange", lambda *_: False)
            stop_before(patched, putting, "rename_into_free")
        with pytest.raises(Stop):
            weightsmith.merge(recipe, out, force=True)
    if out.exists():
        assert bytes_of(out) == (expected if step == "after" else old)
    assert finish(family, recipe, expected, force=True).written == 0


def test_an_output_moved_aside_comes_back_if_the_new_one_is_not_wanted_any_more(
    family: Family, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two renames of systems that cannot swap."""
    out = family.root / "out"
    weightsmith.merge(family.recipe("linear"), out)
    old = bytes_of(out)
    monkeypatch.setattr(putting, "exchange", lambda *_: False)
    with monkeypatch.context() as patched:
        stop_before(patched, putting, "rename_into_free")
        with pytest.raises(Stop):
            weightsmith.merge(recipe, out, force=True)
    assert not out.exists()
    with pytest.raises(OutputError, match="exists"):
        weightsmith.merge(recipe, out)
    assert bytes_of(out) == old


def test_folders_are_swapped_in_one_step_here(tmp_path: Path) -> None:
    """The system call is really there on Linux."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert renaming.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists()
    with pytest.raises(FileNotFoundError):
        renaming.exchange(tmp_path / "a", tmp_path / "missing")


def test_force_does_not_remove_files_that_are_not_on_record(
    family: Family, recipe: dict[str, Any]
) -> None:
    """Somebody's notes beside a merged model are not ours to delete."""
    out = family.root / "out"
    weightsmith.merge(recipe, out)
    (out / "notes.txt").write_text("keep")
    with pytest.raises(
        OutputError, match=r"holds 'notes.txt', which was not written by weightsmith"
    ):
        weightsmith.merge(recipe, out, force=True)
    assert (out / "notes.txt").read_text() == "keep"


def test_a_shard_that_could_not_be_made_durable_is_not_trusted_later(
    family: Family,
    recipe: dict[str, Any],
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a failed fsync the cache may show what the disk never got."""
    failed: list[str] = []
    sync = writer.sync_file

    def fail_once(descriptor: int, path: Path) -> None:
        if path.name.startswith("model-00002") and not failed:
            failed.append(path.name)
            raise OutputError("the disk is faulty")
        sync(descriptor, path)

    monkeypatch.setattr(writer, "sync_file", fail_once)
    with pytest.raises(OutputError, match="faulty"):
        weightsmith.merge(recipe, family.root / "out")
    assert not (family.root / "out.partial" / "checkpoint" / failed[0]).exists()
    assert finish(family, recipe, expected).written > 0


def test_a_failed_assertion_keeps_the_work_but_publishes_nothing(family: Family) -> None:
    """A mended clause is another recipe, so it starts over."""
    recipe = family.recipe("linear", **{"assert": [{"equal": {"to": str(family.root / "e1")}}]})
    with pytest.raises(AssertionFailed):
        weightsmith.merge(recipe, family.root / "out")
    assert not (family.root / "out").exists()


def test_too_little_space_is_found_before_any_work(
    family: Family, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing behind."""
    monkeypatch.setattr(staging, "free_bytes", lambda _: 1000)
    with pytest.raises(ResourceError, match="only 1,000 are free"):
        weightsmith.merge(recipe, family.root / "out")
    assert not (family.root / "out.partial").exists()


def test_an_error_of_the_first_tensor_leaves_no_staging_folder(family: Family) -> None:
    """So that the mended input does not need `fresh`."""
    from safetensors.torch import save_file

    tensors = family.tensors("e1")
    tensors["lm_head.weight"][0, 0] = float("nan")
    save_file(tensors, family.root / "e1" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteError):
        weightsmith.merge(family.recipe("linear"), family.root / "out", threads=1)
    assert not (family.root / "out.partial").exists()


@pytest.mark.parametrize("obstacle", ["file", "foreign", "link"])
def test_a_staging_folder_that_is_not_ours_is_left_alone(
    family: Family, recipe: dict[str, Any], obstacle: str
) -> None:
    """Also with `fresh`, which only discards runs."""
    place = family.root / "out.partial"
    if obstacle == "file":
        place.write_text("keep")
    elif obstacle == "link":
        (family.root / "elsewhere").mkdir()
        place.symlink_to(family.root / "elsewhere")
    else:
        place.mkdir()
        (place / "diary.txt").write_text("keep")
    with pytest.raises(OutputError, match=r"out\.partial' (is in the way|holds 'diary.txt')"):
        weightsmith.merge(recipe, family.root / "out", fresh=True)
    assert os.path.lexists(place)
    assert not place.is_dir() or obstacle == "link" or (place / "diary.txt").read_text() == "keep"


def test_two_runs_at_once_are_told_apart(family: Family, recipe: dict[str, Any]) -> None:
    """The second is refused while the first holds the lock, and the first is not disturbed."""
    with Staging(family.root / "out"), pytest.raises(OutputError, match="Another run is writing"):
        weightsmith.merge(recipe, family.root / "out", fresh=True)
    weightsmith.merge(recipe, family.root / "out")


def test_a_run_that_waited_for_the_lock_of_a_finished_one_sees_the_output(
    family: Family, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had looked before the other run published; it must look again once it has the lock."""
    out = family.root / "out"
    locked = Staging._locked

    def late(self: Staging) -> int:
        monkeypatch.undo()
        weightsmith.merge(recipe, out)
        return locked(self)

    monkeypatch.setattr(Staging, "_locked", late)
    with pytest.raises(OutputError, match="exists"):
        weightsmith.merge(recipe, out)
    assert not (family.root / "out.partial").exists()
    assert weightsmith.verify(out).ok


def test_the_lock_is_that_of_the_folder_that_is_there_now(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was removed between opening and locking is made again."""
    out = family.root / "out"
    take = Staging._take

    def swept(self: Staging, lock: int) -> None:
        take(self, lock)
        monkeypatch.undo()
        shutil.rmtree(self.folder)

    monkeypatch.setattr(Staging, "_take", swept)
    with Staging(out) as opened:
        assert (opened.folder / "lock").exists()
        with pytest.raises(OutputError, match="Another run"):
            Staging(out)


def test_nothing_is_kept_open_after_a_run(family: Family, recipe: dict[str, Any]) -> None:
    """Neither after success nor after a failure, however often."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    weightsmith.merge(recipe, family.root / "out")
    before = descriptors()
    for _ in range(3):
        with pytest.raises(Stop):
            weightsmith.merge(
                recipe, family.root / "other", progress=Recorder("writing the manifest")
            )
        weightsmith.merge(recipe, family.root / "out", force=True)
        assert descriptors() == before


@pytest.mark.parametrize("line", [b"[" * 100_000, b"9" * 5000, b"\xff", b"null"])
def test_a_line_that_no_journal_has_is_told_by_its_number(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "journal.jsonl").write_bytes(line + b"\n")
    with pytest.raises(OutputError, match=r"Line 1 of .* is damaged; run again with --fresh"):
        Journal(tmp_path / "journal.jsonl")
