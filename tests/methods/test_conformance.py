"""What every registered method promises, whatever it computes: see `weightsmith.testing`."""

from __future__ import annotations

import pytest

from weightsmith.methods.parts import registry
from weightsmith.testing import promises


def promises_of(name):
    if name == "lines":  # which tells alpha from several experts only
        return [*promises(name, experts=[4]), *promises(name, {"alpha": 0.5}, experts=[1])]
    if name == "repair":  # which is there to change its one model
        return [promise for promise in promises(name) if promise.name != "copies"]
    return promises(name)


@pytest.mark.parametrize(
    "promise", [p for name in registry.names() for p in promises_of(name)], ids=str
)
def test_a_method_keeps_its_promise(promise):
    promise()
