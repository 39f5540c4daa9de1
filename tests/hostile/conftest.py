"""The world that hostile inputs are tried in, and the counts of what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from .running import Runner, World, environment
from .world import build

COUNTS: Counter[tuple[str, str]] = Counter()
WORST: dict[str, tuple[float, int]] = {}
_COLUMNS = ("refused", "accepted", "failed", "killed", "wrong")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Valid things of every kind, and a warm process to run command lines beside them."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "world").mkdir()
    runner = Runner(environment(folder / "cache"))
    build(folder / "world", runner)
    yield World(folder / "world", runner)
    runner.stop()


@pytest.hookimpl
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many inputs of each group were refused, accepted and failed."""
    if not COUNTS:
        return
    terminalreporter.section("hostile inputs")
    groups = list(dict.fromkeys(group for group, _ in COUNTS))
    terminalreporter.write_line(
        f"{'group':16}{'inputs':>8}"
        + "".join(f"{c:>10}" for c in _COLUMNS)
        + f"{'CPU s':>8}{'MiB':>7}"
    )
    for group in [*groups, "all"]:
        own = [COUNTS[g, c] for c in _COLUMNS for g in groups if group in (g, "all")]
        figures = [sum(COUNTS[g, c] for g in groups if group in (g, "all")) for c in _COLUMNS]
        worst = [WORST[g] for g in groups if group in (g, "all")]
        seconds, peak = max(s for s, _ in worst), max(p for _, p in worst)
        total = sum(own) - figures[-1]
        cells = "".join(f"{figure:>10}" for figure in figures)
        terminalreporter.write_line(f"{group:16}{total:>8}{cells}{seconds:>8.1f}{peak >> 20:>7}")
    terminalreporter.write_line(
        "CPU s and MiB are the most that one input took; `wrong` broke a rule of the answers."
    )
