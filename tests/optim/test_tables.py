"""The tables of docs/optimizers.md say what the classes say."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.optim.core.fused import FRAME_DEFAULTS
from tests import rules
from tests.documents import ROOT

ROWS = [
    re.findall(r"(?<=\|) (.*?) (?=\|)", line)
    for line in (ROOT / "docs" / "optimizers.md").read_text("utf-8").splitlines()
    if line.startswith("| `")
]
FRAME = ("params", *FRAME_DEFAULTS)

every_optimizer = pytest.mark.parametrize(
    "rule", rules.optimizers(), ids=lambda rule: rule.__name__
)


def rows(rule, columns):
    """The rows of a class in the table of so many columns, without marks of code."""
    name = f"`{rule.__name__}`"
    found = [row for row in ROWS if len(row) == columns and name in row[0].split(" with")[0]]
    return [[cell.replace("`", "") for cell in row] for row in found]


@every_optimizer
def test_the_arguments_and_their_defaults_are_those_of_the_class(rule):
    ((_, told),) = rows(rule, 2)
    if told.startswith("as "):
        return
    scope = {}
    exec(f"def told({told}): pass", scope)
    defaults = {name: p.default for name, p in inspect.signature(scope["told"]).parameters.items()}
    own = inspect.signature(rule).parameters.values()
    assert defaults == {p.name: p.default for p in own if p.name not in FRAME}


@every_optimizer
def test_slots_and_bytes_are_those_of_a_step(rule, capsys):
    _, slots, kept, moved, launches = rows(rule, 5)[0]
    param = Parameter(np.ones(3, np.float32))
    param.grad = np.ones(3, np.float32)
    optimizer = rule([param])
    optimizer.step()
    arrays = {name: a for name, a in optimizer.state[param].items() if hasattr(a, "nbytes")}
    numbers = set(optimizer.state[param]) - set(arrays) - {"step"}
    assert set(re.findall(r"\w+", slots)) - {"none", "the", "number", "numbers"} == (
        set(arrays) | numbers
    )
    assert int(kept) == sum(array.nbytes for array in arrays.values()) // 3
    optimizer.explain()
    assert f"\n  {moved} bytes moved per element" in capsys.readouterr().out
    assert launches == "1"
