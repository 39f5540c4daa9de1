"""`weightsmith methods NAME`: what a method is, on a terminal and as Markdown."""

from __future__ import annotations

import re

from weightsmith.cli.main import execute
from weightsmith.methods import registry


def printed(capsys, *arguments):
    assert execute(["methods", *arguments]) == 0
    return capsys.readouterr().out


def test_what_each_preset_stands_for_is_printed(capsys):
    shown, written = printed(capsys, "ties"), printed(capsys, "ties", "--markdown")
    for preset, about in registry.get("ties").about_presets.items():
        assert re.search(rf"^  {preset} +{re.escape(about)}$", shown, re.MULTILINE)
        assert f"\n  - {preset}: {about}\n" in written


def test_markdown_has_the_defaults_of_the_presets_that_there_are(capsys):
    assert "| allowed | paper | mergekit | mergelm | meaning |" in printed(
        capsys, "dare_ties", "--markdown"
    )
    assert "| allowed | paper | meaning |" in printed(capsys, "task_karcher", "--markdown")
