"""Standard output and error that are closed, full or left by their reader: none of that stops a command.

What a stream cannot take is dropped. How the command ends then depends on what it was for: where its work is done
whatever is shown (a merge, a verification), its exit code stays; where what it shows is the work, that is cut, and the
exit code says so.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from weightsmith.errors import ResourceError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PIPE_LEFT = 1


class _Raw(io.FileIO):
    """A standard stream whose writes never fail; `failure` is the first that should have."""

    failure: OSError | None = None

    def write(self, data: Buffer) -> int:
        """Write some bytes, or take all of them for written."""
        try:
            while (count := super().write(data)) is None:
                # A pipe that somebody has set not to block.
                select.select([], [self], [])
        except OSError as error:
            self.failure = self.failure or error
            return memoryview(data).nbytes
        return count


class Streams:
    """The standard streams of this process, from `guard` on."""

    def __init__(self) -> None:
        self._stdout: _Raw | None = None
        self._is_done = False

    def guard(self) -> None:
        """Put streams that never fail in the place of the standard ones; closed ones lead nowhere."""
        _occupy()
        sys.stdout, self._stdout = _guarded(sys.stdout)
        sys.stderr, _ = _guarded(sys.stderr)

    def done(self) -> None:
        """Note that what the command was asked for is done, whatever becomes of what it shows."""
        self._is_done = True

    def exit_code(self, code: int) -> int:
        """The exit code of a command that ends with `code`, once all is written that could be."""
        sys.stdout.flush()
        failure = None if self._stdout is None else self._stdout.failure
        if failure is not None and not isinstance(failure, BrokenPipeError):
            code = self._write_error(failure, code)
        elif failure is not None and not self._is_done:
            code = _PIPE_LEFT
        sys.stderr.flush()
        return code

    def _write_error(self, failure: OSError, code: int) -> int:
        what = f"stdout could not be written to ({failure.strerror or failure}), so what this command shows is cut"
        if self._is_done:
            print(f"weightsmith: warning: {what}; what it was to do is done.", file=sys.stderr)
            return code
        advice = "free some space or write it elsewhere, then give the same command again"
        print(f"weightsmith: error: {what}; {advice}.", file=sys.stderr)
        return code or ResourceError.exit_code


STREAMS = Streams()


def _occupy() -> None:
    """Have the first three descriptors lead somewhere, so that no file of data gets one of them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _guarded(stream: TextIO | None) -> tuple[TextIO, _Raw | None]:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"), None
    if not isinstance(stream, io.TextIOWrapper):
        return stream, None
    raw = _Raw(stream.fileno(), "wb", closefd=False)
    # A name that the terminal's encoding lacks is shown escaped instead of ending the command.
    made = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    return made, raw
