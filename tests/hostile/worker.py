"""A warm process that runs command lines one after another and says what each gave, took and needed.

It reads a JSON object a line - `argv`, `cwd`, `stdin` - and answers with one: `code`, `out`, `err`, `seconds` of CPU time
and `peak_bytes` of memory above what was held before.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

_LIMIT = 8 * 2**30


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def _run(argv: list[str], out: int, err: int) -> int:
    from weightsmith.cli.main import execute
    from weightsmith.tensors.files.open_files import OPEN_FILES

    with (
        open(out, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as sys.stdout,
        open(err, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as sys.stderr,
    ):
        try:
            return execute(argv)
        except BaseException:  # noqa: BLE001 - a defect is an answer too
            traceback.print_exc(file=sys.stderr)
            return -1
        finally:
            OPEN_FILES.close()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_LIMIT, _LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")
    jobs = os.fdopen(os.dup(0), "r")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for line in jobs:
        job = json.loads(line)
        os.chdir(job["cwd"])
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        held = _status("VmRSS")
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            began = time.process_time()
            code = _run(job["argv"], 1, 2)
            answer = {
                "code": code,
                "seconds": time.process_time() - began,
                "peak_bytes": max(0, _status("VmHWM") - held),
            }
            for name, file in (("out", out), ("err", err)):
                file.seek(0)
                answer[name] = file.read().decode("utf-8", "backslashreplace")
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
