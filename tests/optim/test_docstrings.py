"""The docstring of every optimizer: its arguments, errors, an example and where it comes from."""

from __future__ import annotations

import inspect

import pytest

from lucid_gpu.optim.core.fused import FRAME_DEFAULTS
from tests import array_rules, rules

every_optimizer = pytest.mark.parametrize(
    "rule",
    [*rules.optimizers(), *array_rules.optimizers()],
    ids=lambda rule: rule.__name__,
)


@every_optimizer
def test_every_argument_is_documented(rule):
    own = [name for name in inspect.signature(rule).parameters if name not in FRAME_DEFAULTS]
    text = inspect.getdoc(rule)
    assert [name for name in own if f"\n    {name}: " not in text] == []


@every_optimizer
@pytest.mark.parametrize("part", ["Args:\n", "Raises:\n", "Example:\n", "\nSource"])
def test_every_part_is_there(rule, part):
    assert part in inspect.getdoc(rule)


@every_optimizer
def test_its_formulas_are_there(rule):
    """A class may leave them to another one of its file, whose name it then says."""
    text = inspect.getdoc(rule)
    assert "::\n" in text or ":class:`" in text
    assert "←" in text
