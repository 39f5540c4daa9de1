"""mergekit 0.1.5, loaded only when a test of this folder runs: its import takes seconds and warns."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def peer() -> SimpleNamespace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mergekit", reason="mergekit's environment is another one (make parity)")
        names = "architecture config merge merge_methods options parameter_resolver plan"
        loaded = {name: importlib.import_module(f"mergekit.{name}") for name in names.split()}
        loaded["api"] = importlib.import_module("mergekit.merge_methods.api")
        found = importlib.metadata.version("mergekit")
    if found != "0.1.5":
        pytest.skip(f"the rules pinned here are those of mergekit 0.1.5, not {found}")
    return SimpleNamespace(**loaded)
