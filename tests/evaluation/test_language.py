"""Language models: likelihoods, choices and greedy answers against the network itself, one text at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers

from weightsmith import evaluate
from weightsmith.errors import UsageError
from weightsmith.evaluation.likelihood import windows
from weightsmith.live import quiet_library

TEXTS = ("one two three", "äöü, and a longer line of text for the network to read", "x")


@pytest.fixture(scope="module")
def network(models):
    with quiet_library():
        return transformers.LlamaForCausalLM.from_pretrained(models / "llama").eval()


def log_probabilities(network, tokens):
    """Of every token but the first, given those before it."""
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([tokens])).logits[0, :-1].double()
    found = logits.log_softmax(1)[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
    return found.numpy()


def task(data, **changes):
    return {"name": "de", "kind": "language_modeling", "data": data, **changes}


@pytest.fixture
def texts(jsonl):
    return jsonl("texts.jsonl", *({"text": text, "origin": text[0]} for text in TEXTS))


@pytest.mark.parametrize("name", ["llama", "llama-tokenizer"])
def test_bits_per_byte_are_those_of_every_text_after_its_beginning(
    models, network, suite, texts, name
):
    found = evaluate(models / name, suite(task(texts, slice="origin")), batch_size=2)
    bits = [
        -log_probabilities(network, [256, *text.encode()]).sum() / math.log(2) for text in TEXTS
    ]
    sizes = [len(text.encode()) for text in TEXTS]
    items = found.items["de"]
    assert items.values == pytest.approx(bits, rel=1e-5)
    assert items.weights.tolist() == sizes
    assert items.slices == tuple(text[0] for text in TEXTS)
    score = found.score("de")
    assert score.value == pytest.approx(sum(bits) / sum(sizes), rel=1e-5)
    assert not score.higher_is_better
    assert score.low <= score.value <= score.high


def test_perplexity_is_that_of_all_tokens_together(models, network, suite, texts):
    found = evaluate(models / "llama", suite(task(texts, metric="perplexity")))
    every = np.concatenate([log_probabilities(network, [256, *t.encode()]) for t in TEXTS])
    assert found.score("de").value == pytest.approx(math.exp(-every.mean()), rel=1e-5)
    assert found.items["de"].weights.sum() == len(every)


def test_a_long_text_is_read_in_windows_that_step_by_the_stride(models, network, suite, texts):
    found = evaluate(models / "llama", suite(task(texts, context=10, stride=4)))
    stream = [256, *TEXTS[1].encode()]
    nats = 0.0
    for position in range(1, len(stream)):
        # The first window scores ten tokens; after that every window's first scored token has at
        # least seven tokens before it, the last one has ten.
        if position <= 10:
            start = 0
        else:
            step = (position - 11) // 4
            end = min(11 + 4 * (step + 1), len(stream))
            start = end - 11
        nats -= log_probabilities(network, stream[start : position + 1])[-1]
    assert found.items["de"].values[1] == pytest.approx(nats / math.log(2), rel=1e-5)


@pytest.mark.parametrize("context", [1, 5, 64])
@pytest.mark.parametrize("stride", [1, 3, 5, 64])
@pytest.mark.parametrize("prefix", [(), (9,)])
def test_windows_predict_every_token_once_and_stay_within_the_context(context, stride, prefix):
    tokens = list(range(100, 123))
    made = windows(prefix, tokens, context, min(stride, context))
    scored = [
        token for window in made for token in window.tokens[len(window.tokens) - window.scored :]
    ]
    assert scored == (tokens if prefix else tokens[1:])
    assert max(len(window.tokens) - 1 for window in made) <= context


def test_without_a_beginning_the_first_byte_is_not_counted(make_llama, suite, jsonl):
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    folder, model = make_llama(4, vocab_size=256, **ends)
    data = jsonl("t.jsonl", {"text": "abcdef"})
    found = evaluate(folder, suite(task(data)))
    expected = -log_probabilities(model, list(b"abcdef")).sum() / math.log(2)
    assert found.items["de"].weights.tolist() == [5]
    assert found.items["de"].values == pytest.approx([expected], rel=1e-5)


def test_a_text_with_nothing_to_predict_is_told(models, suite, jsonl):
    with pytest.raises(UsageError, match="item 1 the text '', of which no token can be predicted"):
        evaluate(models / "llama", suite(task(jsonl("t.jsonl", {"text": "a"}, {"text": ""}))))


def test_a_context_beyond_the_positions_of_the_model_is_told(models, suite, texts):
    with pytest.raises(UsageError, match="context of 200 tokens is longer than the 128 positions"):
        evaluate(models / "llama", suite(task(texts, context=200)))


def test_a_vision_model_cannot_read_texts(models, suite, texts):
    with pytest.raises(UsageError, match=r"needs a causal language model, but .* is a ViTModel"):
        evaluate(models / "vit", suite(task(texts)))


def test_a_wrong_line_is_told_with_its_number(models, tmp_path, suite):
    for line, sentence in (
        ('{"txt": "a"}', r"line 2, has no field 'text'; it has 'txt'"),
        ('{"text": 3}', r"line 2, has 3 in field 'text'"),
        ("{", "line 2, is not JSON at its character"),
        ("[]", "line 2, is no JSON object"),
    ):
        (tmp_path / "t.jsonl").write_text('{"text": "a"}\n' + line + "\n")
        with pytest.raises(UsageError, match=sentence):
            evaluate(models / "llama", suite(task("t.jsonl")))
    (tmp_path / "t.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="has no items"):
        evaluate(models / "llama", suite(task("t.jsonl")))


CHOICES = (
    {"prompt": "a b =", "choices": ["one", "seventeen", "no"], "answer": 1},
    {"prompt": "larger 3 9 ", "choices": ["3", "9"], "answer": "9"},
    {"prompt": "left or right: ", "choices": ["left", "right!", "up"], "answer": 2},
    {"prompt": "", "choices": ["empty", "prompts"], "answer": 0},
)


@pytest.mark.parametrize("metric", ["accuracy", "accuracy_normalized"])
def test_the_choice_is_the_likeliest_continuation(models, network, suite, jsonl, metric):
    data = jsonl("c.jsonl", *CHOICES)
    found = evaluate(
        models / "llama", suite({"name": "c", "kind": "choice", "data": data, "metric": metric})
    )
    for i, line in enumerate(CHOICES):
        likelihoods = []
        for choice in line["choices"]:
            tokens = [256, *(line["prompt"] + choice).encode()]
            # A space at the end of the prompt is predicted with the choice.
            spaces = len(line["prompt"]) - len(line["prompt"].rstrip(" "))
            own = log_probabilities(network, tokens)[-len(choice) - spaces :].sum()
            likelihoods.append(own / len(choice) if metric == "accuracy_normalized" else own)
        best = line["choices"][int(np.argmax(likelihoods))]
        assert found.items["c"].answers[i] == best
        right = (
            line["answer"] if isinstance(line["answer"], str) else line["choices"][line["answer"]]
        )
        assert found.items["c"].values[i] == float(best == right)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"choices": ["a", "b"], "answer": 2}, "answer 2 of 2 choices"),
        ({"choices": ["a", "b"], "answer": "c"}, "answer 'c', which is none of the choices"),
        ({"choices": ["a"], "answer": 0}, "give two texts or more"),
        ({"choices": ["a", "a"], "answer": 0}, "a choice twice"),
        ({"choices": ["a" * 200, "b"], "answer": 0}, "does not fit the context of 128"),
    ],
)
def test_wrong_choices_are_told(models, suite, jsonl, line, sentence):
    data = jsonl("c.jsonl", {"prompt": "p", **line})
    with pytest.raises(UsageError, match=sentence):
        evaluate(models / "llama", suite({"name": "c", "kind": "choice", "data": data}))


def greedy(network, prompt, most):
    """The bytes that follow, one forward pass over the whole text for each."""
    tokens = [256, *prompt.encode()]
    made = []
    for _ in range(most):
        with torch.no_grad():
            best = int(network(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        if best == 257:
            break
        tokens.append(best)
        made.append(best)
    return bytes(t for t in made if t < 256).decode(errors="replace")


@pytest.mark.parametrize("name", ["llama", "llama-tokenizer"])
def test_generation_is_greedy_and_compared_exactly(models, network, suite, jsonl, name):
    prompts = ["ab", "abc", "zz", "copy this", "q"]
    answers = [greedy(network, prompt, 5) for prompt in prompts]
    lines = [{"prompt": p, "answer": a} for p, a in zip(prompts, answers, strict=True)]
    lines[2]["answer"] = "wrong"
    data = jsonl("g.jsonl", *lines)
    found = evaluate(
        models / name,
        suite({"name": "g", "kind": "generation", "data": data, "max_new_tokens": 5}),
        batch_size=2,
    )
    assert found.items["g"].answers == tuple(answer.strip() for answer in answers)
    assert found.items["g"].values.tolist() == [1, 1, 0, 1, 1]


def test_generation_ends_before_the_texts_of_until(models, network, suite, jsonl):
    whole = greedy(network, "ab", 6)
    stop = whole[2]
    data = jsonl("g.jsonl", {"prompt": "ab", "answer": whole.partition(stop)[0]})
    task = {"name": "g", "kind": "generation", "data": data, "max_new_tokens": 6, "until": stop}
    assert evaluate(models / "llama", suite(task)).score("g").value == 1.0


def test_a_prompt_that_does_not_fit_is_told(models, suite, jsonl):
    data = jsonl("g.jsonl", {"prompt": "a" * 120, "answer": "b"})
    with pytest.raises(UsageError, match="prompt of 121 tokens, which with 32 new ones"):
        evaluate(models / "llama", suite({"name": "g", "kind": "generation", "data": data}))
