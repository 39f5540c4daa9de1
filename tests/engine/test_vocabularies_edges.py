"""Vocabularies at the edges: resume, replay, inner recipes, several modules, and everything that must be refused."""

from __future__ import annotations

import json
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import weightsmith
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.engine.records import manifest as manifests
from weightsmith.engine.records.verify import replay_output, verify_output
from weightsmith.engine.running.run import run
from weightsmith.errors import RecipeError, TokenizerError, WeightsmithError
from weightsmith.findings import Severity
from weightsmith.inspection.explanation import explain_tensor
from weightsmith.inspection.vocabulary_summary import summarize_vocabulary
from weightsmith.recipes import Recipe
from weightsmith.vocabularies.aligned_rows import AlignedRows
from weightsmith.vocabularies.outcome import Outcome

from . import vision_language
from .interrupted import Recorder, merge_in_process
from .test_vocabularies import merge, passthrough, planned, recipe
from .vocabulary_models import borrowed_tables, load, make_model, tokenizer_at, weights

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two small Llamas with overlapping vocabularies."""
    root = tmp_path_factory.mktemp("pair")
    return [
        make_model(root / "a", corpus="english", extra=("<|mine|>",), seed=0),
        make_model(root / "b", corpus="code", extra=("<think>",), seed=1),
    ]


def findings(plan, severity):
    return {f.code: f for f in plan.findings if f.severity is severity}


def test_an_aligned_merge_is_on_record_and_replayed(pair, tmp_path):
    section = {"source": "union", "missing": {"rule": "omp", "k": 4}, "pad_to_multiple_of": 16}
    out = merge(tmp_path / "out", pair, section)
    record = manifests.read(out)
    assert set(record.inputs["a"].tokenizer) >= {"tokenizer.json", "tokenizer_config.json"}
    assert verify_output(out, recompute=30).ok
    again = replay_output(out, tmp_path / "again")
    assert again.outputs == record.outputs
    assert {n: d for n, d in again.files.items() if n != "README.md"} == {
        n: d for n, d in record.files.items() if n != "README.md"
    }


def test_a_changed_tokenizer_is_another_plan(pair):
    section = {"source": "base", "missing": "mean"}
    before = planned(pair, section)
    assert planned(pair, section).digest == before.digest
    other = planned(pair, {**section, "missing": "zero"})
    assert other.digest != before.digest
    file = pair[1] / "tokenizer.json"
    kept = file.read_bytes()
    document = json.loads(kept)
    vocab = document["model"]["vocab"]
    first, second = "X", "Y"
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(document))
    try:
        assert planned(pair, section).digest != before.digest
    finally:
        file.write_bytes(kept)


def test_every_thread_count_and_tile_gives_the_same_bytes(pair, tmp_path):
    section = {"source": "union", "missing": "least_squares", "pad_to_multiple_of": 7}
    found = set()
    for threads, memory in ((1, 2**26), (3, 2**28)):
        out = tmp_path / f"out{threads}"
        plan = make_plan(recipe(pair, section), threads=threads, memory_bytes=memory)
        found.add(run(plan, out).digest)
    assert len(found) == 1


def test_tables_of_an_inner_recipe_are_aligned(pair, tmp_path):
    a, b = pair
    inner = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [
            {"model": str(a), "parameters": {"weight": 1}},
            {"model": str(b), "parameters": {"weight": 3}},
        ],
    }
    given = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [
            {"model": inner, "parameters": {"weight": 1}},
            {"model": str(b), "parameters": {"weight": 1}},
        ],
        "tokenizer": {"source": "union"},
    }
    out = tmp_path / "out"
    run(make_plan(Recipe.load(given), threads=1), out)
    own = [tokenizer_at(m).get_vocab() for m in pair]
    x, y = borrowed_tables(
        [weights(m)[EMBEDDING] for m in pair], own, tokenizer_at(out).get_vocab()
    )
    torch.testing.assert_close(weights(out)[EMBEDDING], ((x + 3 * y) / 4 + y) / 2)
    load(out)


def test_a_task_vector_is_taken_between_aligned_tables(pair, tmp_path):
    a, b = pair
    given = {
        "weightsmith": 1,
        "merge_method": "task_arithmetic",
        "base_model": str(a),
        "models": [{"model": str(b), "parameters": {"weight": 0.5}}],
        "tokenizer": {"source": "base"},
    }
    out = tmp_path / "out"
    run(make_plan(Recipe.load(given), threads=1), out)
    own = [tokenizer_at(m).get_vocab() for m in pair]
    x, y = borrowed_tables([weights(m)[EMBEDDING] for m in pair], own, own[0], base=0)
    torch.testing.assert_close(weights(out)[EMBEDDING], x + 0.5 * (y - x))


def test_the_language_part_of_a_vision_language_model_is_aligned_by_role(tmp_path):
    """LLaVA's text tables are called otherwise than the plain model's, which has a vocabulary of its own."""
    vl = make_model(tmp_path / "words", corpus="english", extra=("<|image|>",), seed=0)
    target = tokenizer_at(vl).get_vocab()
    folder = vision_language.llava(tmp_path / "vl", vocabulary=len(target))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((vl / file).read_bytes())
    plain = vision_language.llama(tmp_path / "plain", vocab_size=400)
    other = make_model(tmp_path / "others", corpus="code", seed=1)
    theirs = tokenizer_at(other).get_vocab()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (plain / file).write_bytes((other / file).read_bytes())
    assert len(theirs) <= 400
    given = {
        "weightsmith": 1,
        "merge_method": "linear",
        "base_model": str(folder),
        "modules": {
            "text_decoder": {
                "models": [
                    {"model": str(folder), "parameters": {"weight": 1}},
                    {"model": str(plain), "parameters": {"weight": 1}},
                ]
            }
        },
        "tokenizer": {"source": "base"},
    }
    out = tmp_path / "out"
    run(make_plan(Recipe.load(given), threads=1), out)
    before, after, llm = weights(folder), weights(out), weights(plain)
    name = next(n for n in before if n.endswith("embed_tokens.weight"))
    x, y = borrowed_tables([before[name], llm[EMBEDDING]], [target, theirs], target, base=0)
    torch.testing.assert_close(after[name], (x + y) / 2)
    for tensor in before:
        if "vision" in tensor or "projector" in tensor:
            assert torch.equal(before[tensor], after[tensor])
    assert set(before) == set(after)


def test_a_model_without_a_tokenizer_has_the_bases(pair, tmp_path):
    a, b = pair
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("config.json", "model.safetensors"):
        (bare / file).write_bytes((a / file).read_bytes())
    plan = planned([a, b, bare], {"source": "union"}, base_model=str(a))
    assert "'bare'" in findings(plan, Severity.NOTE)["tokenizer-assumed"].message
    x, y, z = (plan.resolved.checkpoints[label].tensors[EMBEDDING] for label in ("a", "b", "bare"))
    assert x.shape == y.shape == z.shape


def test_a_model_without_a_tokenizer_and_with_other_rows_is_warned_of(pair, tmp_path):
    bare = make_model(tmp_path / "bare", corpus="scripts", seed=2)
    for file in bare.glob("*tok*"):
        file.unlink()
    plan = planned([pair[0], bare], {"source": "base"})
    found = findings(plan, Severity.WARNING)["tokenizer-assumed"]
    assert "another number of rows" in found.message


def test_a_tokenizer_behind_a_broken_link_is_not_taken_for_none(pair, tmp_path):
    linked = make_model(tmp_path / "linked", corpus="scripts", seed=2)
    (linked / "tokenizer.json").unlink()
    (linked / "tokenizer.json").symlink_to(tmp_path / "nowhere.json")
    with pytest.raises(TokenizerError, match="broken link"):
        planned([pair[0], linked], {"source": "union"})


def test_a_special_token_that_another_model_has_stays_special(pair, tmp_path):
    section = {"source": "base", "tokens": {"<|mine|>": {"source": str(pair[0])}}}
    out = merge(tmp_path / "out", pair[::-1], section)
    added = {
        a["content"]: a for a in json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    }
    theirs = json.loads((pair[0] / "tokenizer.json").read_text())["added_tokens"]
    (flags,) = [a for a in theirs if a["content"] == "<|mine|>"]
    assert flags["special"]
    assert added["<|mine|>"] == {**flags, "id": added["<|mine|>"]["id"]}
    assert tokenizer_at(out).decode([added["<|mine|>"]["id"]], skip_special_tokens=True) == ""


def test_an_explanation_says_where_the_rows_of_a_table_come_from(pair):
    plan = planned(pair, {"source": "union", "missing": "mean", "pad_to_multiple_of": 64})
    (table,) = [
        t for t in plan.resolved.vocabulary.tables if (t.checkpoint, t.tensor) == ("b", EMBEDDING)
    ]
    found = explain_tensor(plan, EMBEDDING)
    expert = found.formula["experts"][1]["of"]
    assert expert["aligned"] == {
        "vocabulary": "union",
        "in place": table.in_place,
        "moved": table.moved,
        "by mean": table.rows - table.in_place - table.moved - table.padding,
        "of no token": table.padding,
    }
    assert Path(expert["file"]) == pair[1] / "model.safetensors"
    (line,) = [line for line in found.lines if "expert 2" in line]
    assert f"aligned to union: {table.in_place} in place" in line
    assert not any("aligned" in line for line in explain_tensor(plan, "model.norm.weight").lines)


def test_the_predicted_memory_counts_the_tokenizers_and_the_fits(pair):
    without = planned(pair, {"source": "union", "missing": "mean"})
    read = without.resolved.vocabulary.read_tokens
    assert read == sum(len(tokenizer_at(m).get_vocab()) for m in pair)
    fitted = planned(pair, {"source": "union", "missing": "procrustes"})
    bare, with_fits = (_with_tokens_read(plan, 0) for plan in (without, fitted))
    # One fit at a time; from then on a matrix of 16 x 16 for each of two tables of two models.
    assert with_fits.threads == 1
    made = 48 * (16 + 16) * 16 + 4 * 8 * 16 * 16
    assert with_fits.peak_bytes - bare.peak_bytes == made
    assert _with_tokens_read(without, 10**6).peak_bytes > 800e6


def _with_tokens_read(plan, count):
    return replace(plan, resolved=replace(plan.resolved, vocabulary=Outcome(read_tokens=count)))


@pytest.mark.parametrize("rule", ["borrow", {"rule": "omp", "k": 4}, "least_squares", "subtokens"])
def test_aligned_tables_cross_to_another_process(pair, rule):
    plan = planned(pair, {"source": "union", "missing": rule, "pad_to_multiple_of": 64})
    for checkpoint in plan.resolved.checkpoints.values():
        table = checkpoint.tensors[EMBEDDING]
        assert isinstance(table, AlignedRows)
        other = pickle.loads(pickle.dumps(table))
        assert other.identity == table.identity
        buffers = [bytearray(table.nbytes) for _ in range(2)]
        for one, buffer in zip((table, other), buffers, strict=True):
            one.read_into(0, one.numel, memoryview(buffer))
        assert buffers[0] == buffers[1]


@pytest.mark.parametrize("rule", ["borrow", {"rule": "omp", "k": 4}])
def test_a_killed_merge_of_aligned_tables_goes_on(pair, tmp_path, rule):
    given = recipe(pair, {"source": "union", "missing": rule}).to_mapping()
    weightsmith.merge(given, tmp_path / "whole", threads=1)
    options = {"threads": 1}
    killed = merge_in_process(given, tmp_path / "out", 8, **options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    progress = Recorder()
    weightsmith.merge(given, tmp_path / "out", progress=progress, **options)
    assert progress.resumed > 0
    assert progress.resumed + progress.written == progress.total
    names = [
        p.name for p in (tmp_path / "whole").iterdir() if p.suffix in (".safetensors", ".json")
    ]
    for name in set(names) - {"weightsmith-manifest.json"}:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_other_tokens_in_the_same_places_are_warned_of(pair, tmp_path):
    a, _ = pair
    twin = tmp_path / "twin"
    twin.mkdir()
    for file in a.iterdir():
        (twin / file.name).write_bytes(file.read_bytes())
    document = json.loads((twin / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    vocab["X"], vocab["Y"] = vocab["Y"], vocab["X"]
    (twin / "tokenizer.json").write_text(json.dumps(document))
    plan = planned([a, twin], None)
    found = findings(plan, Severity.WARNING)["tokenizers-differ"]
    assert "'X' and 'Y'" in found.message or "'Y' and 'X'" in found.message
    assert "source: union" in found.fix
    kept = planned(
        [a, twin], None, rules=[{"match": {"role": ["embedding", "head"]}, "keep": str(a)}]
    )
    assert "tokenizers-differ" not in findings(kept, Severity.WARNING)


def test_tables_that_do_not_fit_name_the_section(pair):
    found = findings(planned(pair, None), Severity.ERROR)["vocabulary-mismatch"]
    assert "tokenizer: {source: union}" in found.fix


def test_a_token_that_no_model_has_a_row_for_needs_a_rule(tmp_path):
    short = make_model(tmp_path / "short", corpus="english", extra=("<|far|>",), more_rows=-1)
    section = {"source": str(short)}
    plan = planned([short], section)
    assert "<|far|>" in findings(plan, Severity.ERROR)["token-nowhere"].message
    with pytest.raises(RecipeError, match=r"<\|far\|>"):
        run(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for rule in ("subtokens", "mean", "omp"):
        out = merge(tmp_path / rule, [short], {**section, "missing": rule})
        model, tokenizer = load(out)
        row = tokenizer.get_vocab()["<|far|>"]
        assert model.get_input_embeddings().weight[row].abs().sum() > 0
    loose = recipe([short], section).to_mapping() | {"semantics": "mergekit"}
    warned = make_plan(Recipe.load(loose))
    assert not warned.errors
    assert "token-nowhere" in findings(warned, Severity.WARNING)
    stripped = planned([short], {"source": "base"}, base_model=str(short))
    assert not stripped.errors
    unlisted = planned([short], None)
    assert "token-without-row" in findings(unlisted, Severity.WARNING)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            {"q": {"source": {"kind": "model_token", "model": "b", "token": "no such"}}},
            "no token 'no such'",
        ),
        (
            {"q": {"source": {"kind": "model_token", "model": "b", "token_id": 10**6}}},
            "row 1000000 is asked for",
        ),
        ({"<|mine|>": {"source": "b", "force": True}}, "no token '<|mine|>'"),
    ],
)
def test_a_row_that_is_not_there_cannot_be_taken(pair, tokens, message, tmp_path):
    a, b = pair
    for row in tokens.values():
        row["force"] = True
        if row["source"] == "b":
            row["source"] = str(b)
        else:
            row["source"]["model"] = str(b)
    with pytest.raises(RecipeError, match=message.replace("|", r"\|")):
        merge(tmp_path / "out", [a, b], {"source": "union", "tokens": tokens})
    assert not (tmp_path / "out").exists()


def copy_of(model: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", "{"),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": 3}',
        ),
        ("tokenizer_config.json", '{"added_tokens_decoder": 3}'),
    ],
)
def test_a_tokenizer_that_cannot_be_read_stops_a_section_and_not_a_copy(pair, file, text, tmp_path):
    broken = copy_of(pair[1], tmp_path / "broken")
    (broken / file).write_text(text)
    with pytest.raises(TokenizerError, match="broken"):
        merge(tmp_path / "out", [pair[0], broken], {"source": "union"})
    assert not (tmp_path / "out").exists()
    assert "tokenizer-unread" in findings(planned([pair[0], broken], None), Severity.NOTE)


def test_a_template_that_does_not_parse_is_refused(pair, tmp_path):
    bad = "{% for message in messages %}{{ message['content'] }"
    with pytest.raises(RecipeError, match="chat_template"):
        merge(tmp_path / "out", pair, {"source": "union"}, chat_template=bad)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("section", [None, {"source": "base"}])
def test_a_named_template_is_written_where_transformers_reads_it(pair, section, tmp_path):
    models = pair if section else pair[:1]
    more = {"chat_template": "chatml", "base_model": str(pair[0])}
    out = merge(tmp_path / "out", models, section, **more)
    chat = [{"role": "user", "content": "hi"}]
    text = tokenizer_at(out).apply_chat_template(chat, tokenize=False)
    assert text.startswith("<|im_start|>user\nhi<|im_end|>")


def test_a_bundle_cannot_be_aligned(pair):
    a, b = pair
    given = {
        "weightsmith": 1,
        "merge_method": "tall_masks",
        "base_model": str(a),
        "models": [{"model": str(a)}, {"model": str(b)}],
        "bundle": {},
        "tokenizer": {"source": "base"},
    }
    with pytest.raises(WeightsmithError, match="bundle"):
        make_plan(Recipe.load(given))


def test_the_plan_says_what_becomes_of_every_row(pair):
    a, b = pair
    section = {"source": "union", "missing": {"rule": "omp", "k": 4}, "pad_to_multiple_of": 64}
    plan = planned([a, b], section)
    summary = summarize_vocabulary(plan)
    assert summary is not None
    own, theirs = (tokenizer_at(m).get_vocab() for m in (a, b))
    assert summary.tokens == len(own.keys() | theirs.keys())
    assert summary.rows % 64 == 0
    for report in summary.tables:
        mine = own if report.checkpoint == "a" else theirs
        assert report.in_place + report.moved == len(mine)
        assert report.rules == {"omp": summary.tokens - len(mine)}
        assert report.padding == summary.rows - summary.tokens
        assert report.zero == report.borrowed == report.dropped == 0
    eos = next(s for s in summary.special if s.role == "eos_token")
    assert eos.rows == {"a": own[eos.text], "b": theirs[eos.text]}
    assert {one.rule for one in summary.measured} == {"omp"}
    for one in summary.measured:
        assert one.held_out is not None
        assert set(one.held_out.references) == {"zero", "mean"}
        assert one.held_out.references["zero"].mean == pytest.approx(1.0)


def test_transplanted_rows_of_another_width_come_by_coefficients(pair, tmp_path):
    """A donor with wider rows still says which of its tokens a new one resembles."""
    wide = make_model(tmp_path / "wide", corpus="code", seed=5, hidden_size=32, head_dim=16)
    a, _ = pair
    section = {"source": str(wide), "missing": {"rule": "omp", "k": 4}}
    out = tmp_path / "out"
    run(make_plan(Recipe.load(passthrough(a, section)), threads=1), out)
    model, tokenizer = load(out)
    assert model.config.hidden_size == 16
    assert len(tokenizer) == model.config.vocab_size
    plan = planned([a], {"source": str(wide), "missing": "mean"})
    assert not plan.errors


def test_a_row_that_is_not_finite_is_never_spread(pair, tmp_path):
    broken = copy_of(pair[1], tmp_path / "broken")
    tensors = weights(broken)
    tensors[EMBEDDING][3, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    for number, rule in enumerate(("mean", "least_squares", {"rule": "omp", "k": 200})):
        out = tmp_path / f"out{number}"
        section = {"source": "base", "missing": rule}
        with pytest.raises(WeightsmithError, match="NaN"):
            merge(out, [pair[0], broken], section, base_model=str(pair[0]))
        assert not out.exists()
