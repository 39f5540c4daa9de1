"""A collection that is killed goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

import weightsmith
from weightsmith.errors import OutputError, ResourceError
from weightsmith.progress import Silence
from weightsmith.statistics import Sample, Samples, next_tokens
from weightsmith.statistics.data_run import DataRun
from weightsmith.statistics.forward_sums import GramSums

from .killing import killed_after

pytestmark = pytest.mark.usefixtures("one_thread")


def collect(model, corpus, out, **options):
    return weightsmith.collect(
        "gram,fisher", model, data=corpus, out=out, context=16, limit=3, memory_bytes=1, **options
    )


class Counting(Silence):
    """Counts batches that go through blocks."""

    def __init__(self):
        self.count = 0

    def advance(self, amount, what=""):
        self.count += amount


# Embedding, two blocks, norm and head forward, and the same back; tied weights get parts of their gradients apart.
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("family language and lora", 8),
        ("family language and lora", 20),
        ("llama tied", 17),
        ("llama tied", 29),
        ("family moe", 11),
    ],
)
def test_what_was_killed_goes_on_behind_its_finished_blocks(saved, corpus, tmp_path, name, steps):
    model, rows = saved(name), corpus
    if name == "llama tied":
        rows = token_rows()
    counting = Counting()
    made = collect(model, rows, tmp_path / "w.safetensors", progress=counting)
    whole, total = [file.path.read_bytes() for file in made.files], counting.count
    assert total == 10 * 3
    out = tmp_path / "k.safetensors"
    ended = killed_after(steps, lambda progress: collect(model, rows, out, progress=progress))
    assert ended == signal.SIGKILL
    assert list((tmp_path / "k.safetensors.partial" / "parts").iterdir())
    assert not list(tmp_path.glob("k.*safetensors"))
    counting = Counting()
    again = collect(model, rows, out, progress=counting)
    assert [file.path.read_bytes() for file in again.files] == whole
    assert counting.count == total - 3 * ((steps - 1) // 3)
    assert not Path(f"{out}.partial").exists()


def token_rows():
    """Three items of a network without a tokenizer."""
    drawn = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    items = [Sample({"input_ids": row}, row[1:], 48) for row in drawn]
    return Samples("rows", items, "log-likelihood", next_tokens, is_text=True)


def test_activations_that_were_changed_meanwhile_are_told(saved, corpus, tmp_path):
    model, out = saved("family language and lora"), tmp_path / "o.safetensors"
    killed_after(8, lambda progress: collect(model, corpus, out, progress=progress))
    waiting = sorted((Path(f"{out}.partial") / "activations" / "gram-fisher" / "0").iterdir())
    for file in waiting:
        data = bytearray(file.read_bytes())
        data[0] ^= 1
        file.write_bytes(data)
    with pytest.raises(ResourceError, match="are not what they were"):
        collect(model, corpus, out)
    for file in waiting:
        file.unlink(missing_ok=True)
    with pytest.raises(ResourceError, match="are not what they were"):
        collect(model, corpus, out)


def test_parts_of_another_request_are_not_taken(saved, corpus, tmp_path, monkeypatch):
    model, out = saved("family language and lora"), tmp_path / "o.safetensors"

    class Interrupted(Silence):
        def advance(self, amount, what=""):
            if what.endswith("1"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(model, corpus, out, progress=Interrupted())
    assert Path(f"{out}.partial").is_dir()
    seen = []
    monkeypatch.setattr(
        GramSums,
        "take",
        lambda self, prefix, take=GramSums.take: seen.append(prefix) or take(self, prefix),
    )
    collect(model, corpus, out, seed=1)
    assert "model.layers.0" in seen


def test_two_runs_at_one_place_are_refused(saved, corpus, tmp_path, monkeypatch):
    out = tmp_path / "o.safetensors"
    model = saved("family language and lora")
    run = DataRun.by_blocks

    def twice(self):
        with pytest.raises(OutputError, match="Another run is writing"):
            collect(model, corpus, out)
        run(self)

    monkeypatch.setattr(DataRun, "by_blocks", twice)
    collect(model, corpus, out)
