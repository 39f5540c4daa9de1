"""The model card: metadata that the Hub reads, and nothing that leaks or breaks it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.checkpoints.card import MethodUse, Parent, model_card
from weightsmith.checkpoints.licence import Licence, licence_of

PARENTS = [
    Parent("org/base-7b", "base", "a1", is_hub=True, revision="0123abc"),
    Parent("math-expert", "expert", "b2"),
    Parent("math-expert", "donor", "b2"),
]
TIES = MethodUse("ties", {"density": 0.2, "weight": [0.5, 0.5]}, "Yadav et al. 2023")


def _card(
    parents: list[Parent] = PARENTS,
    methods: list[MethodUse] = [TIES],  # noqa: B006  (never changed)
    recipe: str = "merge_method: ties\n",
    config: dict[str, Any] | None = None,
) -> str:
    return model_card(
        "Two experts", parents, methods, recipe=recipe, config=config, version="0.1.0"
    )


def _front_matter(card: str) -> dict[str, Any]:
    opening, document, _ = card.split("---\n", 2)
    assert opening == ""
    loaded = yaml.safe_load(document)
    assert isinstance(loaded, dict)
    return loaded


def test_the_front_matter_says_what_the_hub_asks_of_a_merge() -> None:
    config = {"model_type": "llama", "transformers_version": "4.56.0"}
    assert _front_matter(_card(config=config)) == {
        # A local folder is no model of the Hub, which takes each of these names for one.
        "base_model": ["org/base-7b"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "weightsmith", "ties"],
    }


def test_a_merged_adapter_names_the_base_that_it_is_loaded_onto() -> None:
    adapters = [Parent("org/lora-a", "expert", "c", is_hub=True), *PARENTS]
    card = model_card(
        "x", adapters, [TIES], recipe="", config=None, version="1", relation="adapter"
    )
    matter = _front_matter(card)
    assert (matter["base_model"], matter["base_model_relation"]) == (["org/base-7b"], "adapter")


def test_a_licence_that_all_parents_have_is_the_results() -> None:
    gemma = Licence("gemma")
    same = [replace(parent, licence=gemma) for parent in PARENTS]
    assert _front_matter(_card(same))["license"] == "gemma"
    other = [*same, Parent("y", "expert", "d", licence=Licence("mit"))]
    unknown = [*same, Parent("y", "expert", "d")]
    for parents in (other, unknown):
        assert "license" not in _front_matter(_card(parents))
    assert "| y | expert |  | mit | d |" in _card(other)
    measured = [*same, Parent("gram", "statistics", "e")]
    assert _front_matter(_card(measured))["license"] == "gemma"


def test_a_licence_is_read_from_the_front_matter_of_a_parents_card(tmp_path) -> None:
    assert licence_of(tmp_path) is None
    card = tmp_path / "README.md"
    card.write_text(
        "---\nlicense: other\nlicense_name: acme\nlicense_link: LICENSE\n---\n# Model\n"
    )
    assert licence_of(tmp_path) == Licence("other", "acme")
    card.write_text("---\nlicense:\n- apache-2.0\nlicense_link: https://x.org/l\n---\n")
    found = licence_of(tmp_path)
    assert found == Licence("apache-2.0", None, "https://x.org/l")
    assert found.to_mapping() == {"license": "apache-2.0", "license_link": "https://x.org/l"}


@pytest.mark.parametrize(
    "text", ["", "# no matter", "---\n[\n---\n", "---\n- a\n---\n", "---\nlicense: 3\n---\n"]
)
def test_a_card_without_a_licence_stops_nothing(tmp_path, text) -> None:
    (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path) is None


def test_no_library_is_named_for_weights_that_transformers_cannot_load() -> None:
    assert "library_name" not in _front_matter(_card(config=None))
    assert "library_name" not in _front_matter(_card(config={"depth": 3}))
    # A model type that transformers wrote no version beside may be of any library.
    assert "library_name" not in _front_matter(_card(config={"model_type": "digits-mlp"}))


def test_the_body_tells_parents_method_recipe_and_how_to_check() -> None:
    card = _card()
    assert "| org/base-7b | base | 0123abc | a1 |" in card
    assert "- **ties** with density = 0.2, weight = \\[0.5, 0.5\\] (Yadav et al. 2023)" in card
    assert "```yaml\nmerge_method: ties\n```" in card
    assert "weightsmith verify DIR" in card
    assert card.endswith("\n")


def test_local_folders_do_not_leak() -> None:
    recipe = (
        "models:\n"
        "  - model: /home/alice/secret/math-expert\n"
        "  - model: '~/models/code'\n"
        '  - {model: "C:\\\\Users\\\\alice\\\\poet", parameters: {t: 0.5}}\n'
        "  - model: /home/alice/my models/painter # from /mnt/secret/disk\n"
        "  - model: file:///home/alice/singer/\n"
        '  - model: "/home/alice/my secret models/dancer"\n'
        "  - model: org/base-7b@main\n"
        "expression: a + 0.5 * (b - base) / 2\n"
        "filter: self_attn/q\n"
    )
    card = _card(parents=[Parent("/home/alice/secret/math-expert", "base", "d")], recipe=recipe)
    assert "alice" not in card
    assert "secret" not in card
    assert "- model: math-expert\n" in card
    assert "- model: 'code'\n" in card
    assert "- model: painter # from disk\n" in card
    assert "- model: singer/\n" in card
    assert '- model: "dancer"\n' in card
    assert "org/base-7b@main" in card
    assert "(b - base) / 2" in card
    assert "self_attn/q" in card
    assert "base_model" not in _front_matter(card)
    assert "| math-expert | base |" in card


@given(st.text(min_size=1, max_size=30))
def test_no_name_can_break_out_of_the_front_matter_or_the_table(name: str) -> None:
    card = _card(
        parents=[Parent(name, name, name, is_hub=True, revision=name)],
        methods=[MethodUse(name, {name: name}, name)],
    )
    loaded = _front_matter(card)
    assert loaded["base_model_relation"] == "merge"
    assert len(loaded["base_model"]) == 1
    body = card.split("---\n", 2)[2]
    table = [line for line in body.split("\n") if line.startswith("| ")]
    assert len(table) == 3
    assert table[2].replace("\\|", "").count("|") == 5
    assert "<" not in body.split("## Recipe")[0].replace("\\<", "")


def test_a_recipe_with_backticks_gets_a_longer_fence() -> None:
    card = _card(recipe="# ```\n# <script>\n")
    assert "````yaml\n# ```\n# <script>\n````" in card


def test_a_parent_with_adapters_or_of_a_bundle_is_called_by_both() -> None:
    card = _card(
        parents=[
            Parent("org/base", "base", "d", is_hub=True, form="+math-lora:0.5"),
            Parent("/home/alice/tasks", "expert", "e", form="#code"),
        ],
    )
    assert r"| org/base\+math-lora:0.5 | base |" in card
    assert r"| tasks\#code | expert |" in card
    assert "base_model:\n- org/base\n" in card
