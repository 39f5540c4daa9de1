"""The staging folder of a run that can be continued: a journal beside the output so far.

OUT.partial/
  journal.jsonl   what is finished
  checkpoint/     the output so far; renamed to OUT at the very end
  ...             see `publishing.staging`
"""

from __future__ import annotations

from pathlib import Path

from weightsmith.engine.records import manifest as manifests
from weightsmith.engine.records.journal import Journal
from weightsmith.errors import OutputError, ResourceError
from weightsmith.publishing import LOCK, Problem, StagingFolder, manifest_problem
from weightsmith.tensors import free_bytes

_JOURNAL = "journal.jsonl"


class Staging(StagingFolder):
    """An open staging folder, locked for this process, with the journal of its run.

    Leaving it after an error keeps what is finished for the next run, and removes a folder in which
    nothing is. Raises OutputError as `StagingFolder` does.
    """

    def __init__(self, out: Path, problem: Problem = manifest_problem) -> None:
        self.journal: Journal | None = None
        super().__init__(out, problem, beside=(_JOURNAL,))

    @property
    def checkpoint(self) -> Path:
        """The output so far."""
        return self.whole

    def published_plan(self) -> str | None:
        """The digest of the plan whose result is at `out` already, if all that is left is to tidy up."""
        path = self.folder / _JOURNAL
        if not path.exists() or not self.out.is_dir():
            return None
        try:
            journal = Journal(path)
        except OutputError:
            return None
        journal.close()
        is_there = journal.sealed is not None and journal.sealed == manifests.digest_of(self.out)
        return journal.plan if is_there else None

    def begin(self, plan_digest: str, fresh: bool) -> Journal:
        """Open the journal of a plan, continuing where an interrupted run of it ended.

        Raises OutputError if a run of another plan has finished something here, unless `fresh`.
        """
        if self.published_plan() is not None:
            self.tidy()
        elif fresh:
            self.empty()
        self.checkpoint.mkdir(exist_ok=True)
        self.journal = journal = Journal(self.folder / _JOURNAL)
        if journal.plan == plan_digest:
            return journal
        if journal.finished():
            raise OutputError(
                f"{str(self.folder)!r} holds an unfinished run of another recipe, other inputs, "
                "another backend or version; "
                "give --fresh to discard it and start over, or choose another output."
            )
        journal.restart(plan_digest)
        return journal

    def check_space(self, need: int) -> None:
        """Raise ResourceError if the disk has less than `need` free bytes (what lies in the staging folder counts)."""
        have = sum(f.stat().st_blocks * 512 for f in self.checkpoint.rglob("*"))
        free = free_bytes(self.folder)
        if need > free + have:
            raise ResourceError(
                f"The output needs {need:,} bytes in {str(self.out.parent)!r}, but only {free:,} are free; "
                "free some space or choose another place."
            )

    def is_worthless(self) -> bool:
        """Whether nothing is finished."""
        if self.journal is not None:
            return not self.journal.finished()
        return self._is_new or {entry.name for entry in self.folder.iterdir()} <= {LOCK}

    def close(self) -> None:
        """Close the journal and release the lock; what was finished stays for the next run."""
        if self.journal is not None:
            self.journal.close()
        super().close()
