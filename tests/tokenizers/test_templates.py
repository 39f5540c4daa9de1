"""Chat templates: which one a result gets, what is wrong with it, and where it is written."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.errors import RecipeError, TokenizerError
from weightsmith.findings import Finding, Severity
from weightsmith.tokenizers.built_in_templates import BUILT_IN
from weightsmith.tokenizers.template_lint import lint
from weightsmith.tokenizers.templates import check_form, resolve_chat_template, with_template

from .words import words

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
PLAIN = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


def codes(findings: list[Finding]) -> list[str]:
    """The codes of findings, in their order."""
    return [finding.code for finding in findings]


def of(findings: list[Finding], code: str) -> Finding:
    """The one finding with a code."""
    (found,) = [finding for finding in findings if finding.code == code]
    return found


@pytest.fixture(scope="module")
def render() -> Callable[..., str]:
    """Render a conversation as transformers does, with the tokenizer class that users have."""
    from transformers import PreTrainedTokenizerFast

    from tokenizers import Tokenizer, models

    inner = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")

    def rendered(name: str, turns: list[dict[str, str]], *, prompt: bool = True) -> str:
        text = tokenizer.apply_chat_template(
            turns, chat_template=BUILT_IN[name], tokenize=False, add_generation_prompt=prompt
        )
        assert isinstance(text, str)
        return text

    return rendered


FORMATS = {
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be kind.\n\nHi [/INST] Hello</s> [INST] Bye [/INST]",
    "exaone": "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
    "alpaca": "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
}


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_built_in_template_prints_the_published_format(
    name: str, render: Callable[..., str]
) -> None:
    """A conversation of all roles comes out letter for letter as the format is documented."""
    assert render(name, TURNS) == FORMATS[name]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_without_a_prompt_only_the_turns_are_printed(name: str, render: Callable[..., str]) -> None:
    """The text with a generation prompt is the one without it, and the prompt."""
    without = render(name, TURNS, prompt=False)
    assert FORMATS[name].startswith(without)
    assert without.rstrip().endswith(("Bye", "Bye<|im_end|>", "Bye<|eot_id|>", "Bye [/INST]"))


def test_exaone_opens_with_an_empty_system_turn(render: Callable[..., str]) -> None:
    """The format always begins with the system's turn."""
    assert render("exaone", TURNS[1:2]) == "[|system|][|endofturn|]\n[|user|]Hi\n[|assistant|]"


def test_mistral_refuses_turns_that_do_not_alternate(render: Callable[..., str]) -> None:
    """The format cannot say who speaks twice."""
    from jinja2 import TemplateError

    with pytest.raises(TemplateError, match="alternate"):
        render("mistral", [TURNS[1], TURNS[1]])


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_templates_have_no_findings(name: str) -> None:
    """What is offered by name passes its own check."""
    assert lint(BUILT_IN[name], "x") == []


@pytest.mark.parametrize("form", ["chatlm", "short {", "a text without any braces whatsoever", ""])
def test_a_form_that_means_nothing_is_refused(form: str) -> None:
    """Neither a name nor long enough, or without a tag."""
    with pytest.raises(RecipeError, match=r"chat_template: .* is neither a built-in template"):
        check_form(form)


def test_a_misspelt_name_gets_a_hint() -> None:
    """The nearest name is offered."""
    with pytest.raises(RecipeError, match=r"did you mean 'chatml'\?$"):
        check_form("chatlm")


def test_a_text_that_does_not_parse_is_refused_with_its_line() -> None:
    """At plan time, not when the merged model is first used."""
    with pytest.raises(RecipeError, match="does not parse: line 2"):
        resolve_chat_template("{% for m in messages %}\n{{ m[ }}{% endfor %}", [], words(["x"]))


def test_a_hostile_text_in_a_recipe_is_refused() -> None:
    """A recipe can come from a stranger too."""
    with pytest.raises(RecipeError, match="reaches for the attribute '__mro__'"):
        check_form("{{ messages.__class__.__mro__ }}{{ 'padding' }}")


def test_without_the_key_the_donor_keeps_its_own() -> None:
    """None says that no file changes."""
    text, findings = resolve_chat_template(
        None, [words(["x"], templates=PLAIN)], words(["x"], templates=PLAIN)
    )
    assert text is None
    assert findings == []


def test_auto_takes_the_most_common_template() -> None:
    """Compared without surrounding whitespace; the donor's own is replaced."""
    parents = [
        words(["x"], templates=PLAIN, name="donor"),
        words(["x"], templates=BUILT_IN["chatml"], name="b"),
        words(["x"], templates=f"\n{BUILT_IN['chatml']} ", name="c"),
        words(["x"], name="d"),
    ]
    text, findings = resolve_chat_template("auto", parents, parents[0])
    assert text == BUILT_IN["chatml"]
    assert "'donor' has another and 'd' has none" in of(findings, "template-differs").message


def test_auto_breaks_ties_by_the_order_of_the_recipe() -> None:
    """The first of equally common ones, whatever the donor has."""
    parents = [words(["x"], templates=BUILT_IN[n], name=n) for n in ("llama3", "chatml")]
    text, _ = resolve_chat_template("auto", parents, words(["x"]))
    assert text == BUILT_IN["llama3"]
    text, _ = resolve_chat_template("auto", parents[::-1], words(["x"]))
    assert text == BUILT_IN["chatml"]


def test_auto_keeps_the_bytes_of_a_donor_that_has_the_common_one() -> None:
    """Another's trailing newline is no reason to rewrite the donor's file."""
    parents = [words(["x"], templates=PLAIN + "\n"), words(["x"], templates=PLAIN)]
    assert resolve_chat_template("auto", parents, parents[1])[0] is None


def test_auto_without_any_template_is_a_warning() -> None:
    """There is nothing to choose from."""
    text, findings = resolve_chat_template("auto", [words(["x"])], words(["x"]))
    assert text is None
    assert of(findings, "template-missing").severity is Severity.WARNING


def test_control_tokens_that_the_vocabulary_lacks_are_named() -> None:
    """A template whose tokens would be cut into pieces is a warning; those it has are not named."""
    target = words(["<|im_start|>", "x"])
    text, findings = resolve_chat_template("chatml", [], target)
    assert text == BUILT_IN["chatml"]
    message = of(findings, "template-tokens").message
    assert "'<|im_end|>'" in message
    assert "im_start" not in message


def test_special_tokens_that_a_parent_has_are_looked_for() -> None:
    """`[INST]` is plain text in some families and a token in others."""
    parent = words(["[INST]", "x"], None, BUILT_IN["mistral"], additional=["[INST]"])
    target = words(["<s>", "</s>"], {"bos_token": "<s>", "eos_token": "</s>"})
    _, findings = resolve_chat_template("mistral", [parent], target)
    assert "'[INST]'" in of(findings, "template-tokens").message


def test_a_token_variable_that_the_tokenizer_does_not_define_is_a_warning() -> None:
    """`bos_token` would print as nothing."""
    target = words(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    _, findings = resolve_chat_template("llama3", [], target)
    assert "bos_token" in of(findings, "template-tokens").message


def test_named_templates_beside_a_new_default_are_a_warning() -> None:
    """transformers would take the old `tool_use` template where tools are given."""
    donor = words(["x"], templates={"default": PLAIN, "tool_use": PLAIN + "!"})
    _, findings = resolve_chat_template("chatml", [], donor)
    assert "'tool_use'" in of(findings, "template-named").message


HOSTILE = [
    "{{ ''.__class__ }}",
    "{{ messages['__class__'] }}",
    "{{ messages['__cl' ~ 'ass__'] }}",
    "{{ messages['_' + '_class_' + '_'] }}",
    "{{ messages | attr('__class__') }}",
    "{{ messages | attr(messages[0].content) }}",
    "{{ messages | map(attribute='content.__class__') | list }}",
    "{{ messages | selectattr('__init__') | list }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ '{0[__class__]}'.format(messages) }}",
    "{{ '%s' | format(x) }}{{ '{0.__init__}'.format(x) }}",
    "{{ messages.mro() }}",
    "{{ messages.append.func_globals }}",
    "{{ messages.subclasses() }}",
    "{{ self }}",
    "{{ self._TemplateReference__context }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% from 'x' import y %}",
    "{% extends 'x' %}",
    "{{ lipsum.__globals__ }}",
    "{% set x = namespace() %}{% set x.__class__ = 1 %}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_ways_into_the_interpreter_are_errors(text: str) -> None:
    """Whatever the sandbox would do with it, a conversation has no business there."""
    assert any(
        f.code == "template-hostile" and f.severity is Severity.ERROR for f in lint(text, "x")
    )


UNKNOWN = [
    ("{{ messages | shout }}", "filter 'shout'"),
    ("{% if messages is loud %}{% endif %}", "test 'loud'"),
    ("{{ open('x') }}", "function 'open'"),
    ("{{ messages.explode() }}", "method 'explode'"),
    ("{{ messages.append(1) }}", "sandbox of transformers refuses"),
    ("{{ lipsum() }}", "'lipsum'"),
]


@pytest.mark.parametrize(("text", "named"), UNKNOWN)
def test_what_transformers_does_not_offer_is_a_warning(text: str, named: str) -> None:
    """It would fail, or change from call to call, when a conversation is rendered."""
    (finding,) = lint(text, "x")
    assert finding.code == "template-unknown"
    assert finding.severity is Severity.WARNING
    assert named in finding.message


FINE = [
    "{% set ns = namespace(found=false) %}{% for m in messages %}{% set ns.found = true %}{% endfor %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% break %}{% endfor %}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "{{ strftime_now('%d') }}{{ raise_exception('no') }}",
    "{{ tools | tojson(indent=4) }}{{ messages | selectattr('role', 'equalto', 'user') | list }}",
    "{% macro show(x, y='__') %}{{ x.get('a', y).strip() }}{% endmacro %}{{ show(messages[0]) }}",
    "{{ messages[0]['content'].split('</think>')[-1].lstrip('\\n') }}",
    "{% if messages[0].content is string and tools is not none %}{{ '__init__ is a word' }}{% endif %}",
    "{% for k, v in tools.items() %}{{ k }}{% endfor %}{{ '%s' | format('x') }}",
    "{%- set first = messages[0]['content'] -%}{{ first[1:] }}{{ enable_thinking is defined }}",
]


@pytest.mark.parametrize("text", FINE)
def test_what_real_templates_do_is_fine(text: str) -> None:
    """Constructs of the templates of current families."""
    assert lint(text, "x") == []


def test_nesting_without_end_is_a_finding_not_a_crash() -> None:
    """A parser of nested brackets must not take the plan down."""
    (finding,) = lint("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "x")
    assert finding.code == "template-syntax"


@given(st.text("{}%#|()[]'\"._ a1\n-~+set foriinmacrocall", max_size=60))
def test_no_text_breaks_the_check(text: str) -> None:
    """Any text gives findings or none, never another error."""
    assert all(isinstance(finding, Finding) for finding in lint(text, "x"))


def test_a_template_is_replaced_in_every_file_that_has_one() -> None:
    """A jinja file, the tokenizer's and the processor's configuration never disagree; other keys stay."""
    files = {
        "chat_template.jinja": b"old",
        "tokenizer_config.json": json.dumps({"chat_template": "old", "é": 1}).encode(),
        "chat_template.json": b'{"chat_template": "old"}',
        "processor_config.json": b'{"image_size": 3}',
        "tokenizer.json": b"{}",
    }
    changed = with_template(files, "new")
    assert set(changed) == {"chat_template.jinja", "tokenizer_config.json", "chat_template.json"}
    assert changed["chat_template.jinja"] == b"new"
    assert json.loads(changed["tokenizer_config.json"]) == {"chat_template": "new", "é": 1}
    assert json.loads(changed["chat_template.json"]) == {"chat_template": "new"}


def test_of_named_templates_only_the_default_changes() -> None:
    """The list form of tokenizer_config.json keeps its others."""
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "old"}]
    files = {"tokenizer_config.json": json.dumps({"chat_template": named}).encode()}
    made = json.loads(with_template(files, "new")["tokenizer_config.json"])["chat_template"]
    assert {one["name"]: one["template"] for one in made} == {"default": "new", "tool_use": "t"}


def test_a_first_template_goes_where_every_version_reads_it() -> None:
    """Into the tokenizer's configuration, or a file of its own where there is none."""
    (name,) = with_template({"tokenizer_config.json": b"{}"}, "new")
    assert name == "tokenizer_config.json"
    assert with_template({}, "new") == {"chat_template.jinja": b"new"}


def test_files_that_already_say_so_are_left_alone() -> None:
    """The same template again changes no byte."""
    assert with_template({"chat_template.jinja": b"new"}, "new") == {}


def test_a_damaged_configuration_is_an_error() -> None:
    """Only where it must be rewritten."""
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is not JSON"):
        with_template({"tokenizer_config.json": b"{"}, "new")
