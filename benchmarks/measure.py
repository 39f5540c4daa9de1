"""Run one process and say what it cost: CPU seconds, wall seconds, anonymous and file-backed memory."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

_INTERVAL_S = 0.004
_MIB = 1 << 20
# Whether the scheduler is told to prefer the timed process to everything else on the machine; needs root.
prefer_timed_processes = False


class BenchmarkFailed(Exception):
    """A measured process did not end well; the message holds the end of its output."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of a process cost.

    `anonymous_mib` and `file_mib` are separate peaks of resident memory (sampled); `peak_mib` is the
    kernel's own high-water mark of both together.
    """

    wall_s: float
    user_s: float
    system_s: float
    anonymous_mib: float
    file_mib: float
    peak_mib: float

    @property
    def cpu_s(self) -> float:
        """User and system seconds."""
        return self.user_s + self.system_s

    def as_json(self) -> dict[str, float]:
        """All figures, rounded for reading."""
        return {
            key: round(number, 3) for key, number in {**asdict(self), "cpu_s": self.cpu_s}.items()
        }


def middle(costs: Sequence[Cost]) -> Cost:
    """The median of each figure; of the memory peaks the largest."""
    return Cost(
        wall_s=median(c.wall_s for c in costs),
        user_s=median(c.user_s for c in costs),
        system_s=median(c.system_s for c in costs),
        anonymous_mib=max(c.anonymous_mib for c in costs),
        file_mib=max(c.file_mib for c in costs),
        peak_mib=max(c.peak_mib for c in costs),
    )


def run(
    command: Sequence[str | Path], log: Path, environment: dict[str, str] | None = None
) -> Cost:
    """Run a command to its end, with its output in `log`.

    Raises BenchmarkFailed if it does not exit with 0.
    """
    settled()
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        if prefer_timed_processes:
            Path(f"/proc/{process.pid}/autogroup").write_text("-19")
        sampler = _Sampler(process.pid)
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    sampler.stop()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise BenchmarkFailed(
            f"{' '.join(map(str, command))} exited with {process.returncode}:\n{tail}"
        )
    return Cost(
        wall,
        usage.ru_utime,
        usage.ru_stime,
        sampler.anonymous / _MIB,
        sampler.file / _MIB,
        sampler.peak / _MIB,
    )


def settled() -> None:
    """Wait until earlier output is on disk, so that its writing back is not charged to the next run."""
    os.sync()


def warm(folders: Sequence[Path]) -> None:
    """Read all weights of the folders, so that they are in the page cache."""
    buffer = bytearray(4 * _MIB)
    for file in weight_files(folders):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def forget(folders: Sequence[Path]) -> None:
    """Drop all weights of the folders from the page cache."""
    settled()
    for file in weight_files(folders):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def weight_files(folders: Sequence[Path]) -> list[Path]:
    """The safetensors files of the folders, in order."""
    return [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]


class _Sampler(threading.Thread):
    """Follows /proc/PID/status; its peak lines outlive short spikes, the split into kinds is sampled."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._file = f"/proc/{pid}/status"
        self._ended = threading.Event()
        self.anonymous = self.file = self.peak = 0

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                with open(self._file, "rb") as status:
                    self._take(status.read())
            except OSError:
                return
            time.sleep(_INTERVAL_S)

    def _take(self, status: bytes) -> None:
        found = {}
        for line in status.splitlines():
            key, _, rest = line.partition(b":")
            if rest.endswith(b"kB"):
                found[key] = int(rest.split()[0]) * 1024
        self.anonymous = max(self.anonymous, found.get(b"RssAnon", 0))
        self.file = max(self.file, found.get(b"RssFile", 0) + found.get(b"RssShmem", 0))
        self.peak = max(self.peak, found.get(b"VmHWM", 0))
