"""The tables of docs/optimizers.md say what the classes say."""

from __future__ import annotations

import inspect
import re

import pytest

from lucid_gpu import optim
from lucid_gpu.device.arrays import is_array
from lucid_gpu.optim.core.fused import FRAME_DEFAULTS
from tests import array_rules, rules
from tests.contract.support import trained
from tests.documents import ROOT

ROWS = [
    re.findall(r"(?<=\|) (.*?) (?=\|)", line)
    for line in (ROOT / "docs" / "optimizers.md").read_text("utf-8").splitlines()
    if line.startswith(("| `", "| the same"))
]
FRAME = ("params", *FRAME_DEFAULTS)

every_optimizer = pytest.mark.parametrize(
    "rule", rules.optimizers(), ids=lambda rule: rule.__name__
)


def rows(rule, columns):
    """The rows of a class in the table of so many columns, without marks of code."""
    name = f"`{rule.__name__}`"
    own = [row for row in ROWS if len(row) == columns]
    found = [row for row in own if name in re.split(" with| of ", row[0])[0]]
    return [[cell.replace("`", "") for cell in row] for row in found]


@pytest.mark.parametrize(
    "rule", [*rules.optimizers(), *array_rules.optimizers()], ids=lambda rule: rule.__name__
)
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
def test_slots_and_bytes_are_those_of_a_step(rule, emulated, capsys):
    _, slots, *numbers = rows(rule, 5)[0]
    names, told = kept(rule, {}, emulated, capsys)
    assert set(re.findall(r"\w+", slots)) - {"none", "the", "number", "numbers"} == names
    assert numbers == told


MORE = {
    "the same with `amsgrad`": (optim.Adam, [{"amsgrad": True}, {"amsgrad": "raw"}]),
    "`SGD` with `momentum`": (optim.SGD, [{"momentum": 0.9}]),
    "`RMSprop` with `centered` or `momentum`": (
        optim.RMSprop,
        [{"centered": True}, {"momentum": 0.9}],
    ),
    "`LARS` without `momentum`": (optim.LARS, [{"momentum": 0.0}]),
    "`RMSprop` with both": (optim.RMSprop, [{"centered": True, "momentum": 0.9}]),
}


def test_every_row_of_slots_and_bytes_is_held_to_the_classes():
    firsts = {rows(rule, 5)[0][0].split(",")[0] for rule in rules.optimizers()} - {"AdamW"}
    told = [row[0] for row in ROWS if len(row) == 5]
    assert {name.replace("`", "").split(",")[0] for name in told if name not in MORE} == firsts
    assert set(told) >= set(MORE)


@pytest.mark.parametrize("name", MORE)
def test_slots_and_bytes_of_variants_are_those_of_a_step(name, emulated, capsys):
    rule, variants = MORE[name]
    ((_, _, *numbers),) = [row for row in ROWS if len(row) == 5 and row[0] == name]
    for options in variants:
        _, told = kept(rule, options, emulated, capsys)
        assert numbers == told


def kept(rule, options, machine, capsys):
    """The names of all slots but `step`, and bytes kept, bytes moved and launches as told."""
    param = trained([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], "cuda:0")
    optimizer = rule([param], **options)
    optimizer.step()
    machine.record.launches.clear()
    optimizer.step()
    slots = {name: slot for name, slot in optimizer.state[param].items() if name != "step"}
    arrays = [slot.nbytes for slot in slots.values() if is_array(slot)]
    capsys.readouterr()
    optimizer.explain()
    (moved,) = re.findall(r"(\d+) bytes moved per element", capsys.readouterr().out)
    return set(slots), [str(sum(arrays) // 3), moved, str(len(machine.record.launches))]


@pytest.mark.parametrize("rule", array_rules.optimizers(), ids=lambda rule: rule.__name__)
def test_slots_of_array_code_are_those_of_a_step(rule):
    words = r"up to history_size in|\b(and|in|the|numbers)\b"
    texts = [re.sub(words, "", slots) for _, slots, _ in rows(rule, 3)]
    told = {slot for text in texts for slot in re.findall(r"\w+", text)}
    cases = [*array_rules.CASES, *array_rules.CLOSURE_CASES]
    (case, *_) = [case for case in cases if case.rule is rule]
    optimizer, params = case.make("cpu")
    case.train(optimizer, params)
    assert told == {slot for slots in optimizer.state.values() for slot in slots} - {"step"}
