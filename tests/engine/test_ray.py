"""On a Ray cluster the bytes are those of a local run, and a dead worker costs only what it had not finished."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import weightsmith
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.engine.running.ray_cluster import Cluster, batches, run_on_ray
from weightsmith.engine.running.run import run
from weightsmith.errors import NonFiniteError, ResourceError
from weightsmith.recipes import Recipe

from .conftest import Family
from .interrupted import Recorder, Stop, bytes_of


def test_batches_keep_the_order_and_share_the_bytes(family: Family) -> None:
    """Each tensor once; no batch is much larger than its share, but for a single large tensor."""
    plan = make_plan(Recipe.load(family.recipe("linear")))
    names = [p.name for shard in plan.layout.shards for p in shard.placements]
    for wanted in (1, 3, 100):
        split = batches(plan, names, wanted)
        assert [name for batch in split for name in batch] == names
        assert len(split) <= wanted + 1 or wanted == 100
    assert batches(plan, [], 4) == []


def test_a_missing_ray_is_a_sentence(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which says what to install."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "ray" else find(name, *a)
    )
    plan = make_plan(Recipe.load(family.recipe("linear")))
    with pytest.raises(ResourceError, match=r"not installed; .* extra `ray`"):
        run_on_ray(plan, family.root / "out")


def on_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs a cluster; Ray warns about much that is its own."""
    marks = [pytest.mark.ray, pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("ray")]
    for mark in marks:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of two workers on this machine."""
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray
    ray.shutdown()


def expected_of(recipe: dict[str, Any], out: Path) -> dict[str, bytes]:
    """What a local run writes, which is removed again."""
    weightsmith.merge(recipe, out)
    found = bytes_of(out)
    shutil.rmtree(out)
    return found


@on_ray
@pytest.mark.parametrize("method", ["linear", "ties", "della", "dare_ties", "model_stock"])
def test_the_bytes_are_those_of_a_local_run(family: Family, ray: Any, method: str) -> None:
    """One pass, statistics of the whole model, drawn masks, sums; every file of the folder."""
    recipe = family.recipe(method, shard_size=500_000)
    out = family.root / "out"
    expected = expected_of(recipe, out)
    progress = Recorder()
    run_on_ray(make_plan(Recipe.load(recipe)), out, address="local", progress=progress)
    assert bytes_of(out) == expected
    assert progress.written == progress.total
    assert ray.is_initialized(), "a session that somebody else opened stays open"


@on_ray
def test_a_killed_worker_costs_only_its_unfinished_tensors(family: Family, ray: Any) -> None:
    """Killed while a second tensor is under way, once; the rest of its batch goes to another worker."""
    recipe = family.recipe("ties", shard_size=500_000)
    out = family.root / "out"
    expected = expected_of(recipe, out)
    plan = make_plan(Recipe.load(recipe))
    marker, log = str(family.root / "died"), str(family.root / "log")

    def batch(shared: Any, names: Sequence[str]) -> Iterator[Any]:
        import contextlib
        import os
        import signal
        import time

        from weightsmith.engine.running.ray_cluster import compute_batch

        for position, record in enumerate(compute_batch(shared, names)):
            with open(log, "a") as file:
                file.write(record.name + "\n")
            yield record
            if position == 0 and len(names) > 1:
                with contextlib.suppress(FileExistsError), open(marker, "x"):
                    time.sleep(1)  # let the first record be taken
                    os.kill(os.getpid(), signal.SIGKILL)

    few = pytest.MonkeyPatch()
    few.setattr("weightsmith.engine.running.ray_cluster._BATCHES_PER_CPU", 1)
    progress = Recorder()
    run(plan, out, progress=progress, compute=Cluster(ray, batch).compute)
    few.undo()
    assert os.path.exists(marker)
    assert bytes_of(out) == expected
    computed = Path(log).read_text().split()
    assert set(computed) == set(family.tensors("base"))
    assert len(computed) <= len(set(computed)) + 1
    assert progress.written == progress.total


@on_ray
def test_workers_that_always_die_end_the_run_with_a_sentence(family: Family, ray: Any) -> None:
    """And nothing is published."""

    def batch(shared: Any, names: Sequence[str]) -> Iterator[Any]:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        yield shared, names

    plan = make_plan(Recipe.load(family.recipe("linear")))
    with pytest.raises(ResourceError, match="Workers died 4 times while computing tensor"):
        run(plan, family.root / "out", compute=Cluster(ray, batch).compute)
    assert not (family.root / "out").exists()


@on_ray
def test_an_error_on_a_worker_is_the_error_of_the_run(family: Family) -> None:
    """With its own class and sentence."""
    from safetensors.torch import save_file

    tensors = family.tensors("e2")
    tensors["lm_head.weight"][3, 3] = float("nan")
    save_file(tensors, family.root / "e2" / "model.safetensors", metadata={"format": "pt"})
    plan = make_plan(Recipe.load(family.recipe("linear")))
    with pytest.raises(NonFiniteError, match=r"lm_head.*1 NaN or infinite"):
        run_on_ray(plan, family.root / "out", address="local")
    assert not (family.root / "out").exists()


@on_ray
def test_a_local_run_continues_one_that_began_on_ray(family: Family) -> None:
    """And the other way round: where a tensor was computed does not matter."""
    recipe = family.recipe("ties", shard_size=500_000)
    out = family.root / "out"
    expected = expected_of(recipe, out)
    with pytest.raises(Stop):
        run_on_ray(make_plan(Recipe.load(recipe)), out, address="local", progress=Recorder(4))
    progress = Recorder()
    weightsmith.merge(recipe, out, progress=progress)
    assert progress.resumed > 0
    assert bytes_of(out) == expected
