"""Which backend a run uses, and what it costs to have it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
from dataclasses import dataclass

from weightsmith.errors import ResourceError, UsageError
from weightsmith.findings import Finding, Severity
from weightsmith.graph import Backend
from weightsmith.wording import with_extra

# Measured anonymous memory of a process that has done a merge's imports, before the first tile.
_NATIVE_RESIDENT = 40 * 2**20
_TORCH_RESIDENT = 200 * 2**20
# Parameters of glibc's mallopt; other C libraries lack the function or ignore them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """The backend that will run, by kind ("native" or "torch") and device, and why."""

    kind: str
    device: str
    description: str
    findings: tuple[Finding, ...] = ()

    @property
    def resident_bytes(self) -> int:
        """Anonymous memory of the process apart from tiles."""
        return _NATIVE_RESIDENT if self.kind == "native" else _TORCH_RESIDENT

    @property
    def largest_tile(self) -> int:
        """Elements per tile beyond which nothing is gained: caches on the CPU, launch costs on a GPU."""
        if self.device != "cpu":
            return 1 << 24
        return 1 << 20 if self.kind == "native" else 1 << 18

    def scratch_bytes_per_element(self, sources: int) -> int:
        """Working memory per element of a tile; native registers are per block and do not count."""
        return 0 if self.kind == "native" else 4 * (2 * sources + 6)

    def load(self) -> Backend:
        """Make the backend; torch is imported here and nowhere earlier."""
        keep_freed_memory()
        if self.kind == "native":
            from weightsmith.graph import native

            return native.load()
        from weightsmith.graph import TorchBackend, use_one_thread

        use_one_thread()
        return TorchBackend(self.device)


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tiles.

    It would go back to the system after every operation, to be faulted in again by the next: with torch that
    costs five times as much as the arithmetic.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def choose_backend(device: str = "cpu", wanted: str = "auto") -> BackendChoice:
    """Native on the CPU where it was built, else torch.

    Raises UsageError for an unknown backend or device and ResourceError for one that is not available here.
    """
    if wanted not in ("auto", "native", "torch"):
        raise UsageError(f"There is no backend {wanted!r}; choose auto, native or torch.")
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(f"There is no device {device!r}; choose cpu, cuda, cuda:N or mps.")
    if kind != "cpu":
        if wanted == "native":
            raise UsageError(
                f"The native backend computes on the cpu only; leave it out to use {device}."
            )
        _require_device(device)
        return BackendChoice("torch", device, f"torch on {device}")
    from weightsmith.graph import native

    if wanted != "torch" and native.available():
        return BackendChoice("native", "cpu", native.describe())
    if wanted == "native":
        raise ResourceError(f"The native backend is not available: {native.why_not()}")
    if importlib.util.find_spec("torch") is None:
        raise ResourceError(
            f"Neither backend is available: {native.why_not()}, and torch is not installed; install "
            f"a C++ compiler and reinstall weightsmith, or {with_extra('torch')}."
        )
    note: tuple[Finding, ...] = ()
    if wanted == "auto":
        note = (
            Finding(
                Severity.NOTE,
                "torch-backend",
                "backend",
                f"the native kernels are not available ({native.why_not()}), so torch computes, several times slower",
                "install a C++ compiler and reinstall weightsmith to build them",
            ),
        )
    return BackendChoice("torch", "cpu", "torch on cpu", note)


def _require_device(device: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise ResourceError(
            f"Device {device} needs torch, which is not installed; {with_extra('torch')}."
        )
    import torch

    kind, _, number = device.partition(":")
    if kind == "mps":
        present = torch.backends.mps.is_available()
    else:
        present = torch.cuda.is_available() and (
            not number or int(number) < torch.cuda.device_count()
        )
    if not present:
        raise ResourceError(f"This machine has no device {device}; use --device cpu.")
