"""Numbers that come out of the update rules: those of PyTorch and of the authors' own code."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from tests import rules
from tests.stepping import place

GRADIENTS = [0.5, -0.25, 0.1, 0.3]
LATER = [0.2, -0.1, 0.4, 0.1]

GOLDEN = [
    ("NAdam", {"lr": 0.1}, [0.894354824277, 0.935465796161, 0.912996119151, 0.851535824318]),
    (
        "NAdam",
        {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
        [0.884354824277, 0.916622247918, 0.884986348429, 0.814676190111],
    ),
    ("RAdam", {"lr": 0.1}, [0.95, 0.939473684211, 0.929141580889, 0.913090403222]),
    (
        "RAdam",
        {"lr": 0.1, "betas": (0.9, 0.99)},
        [
            *(0.95, 0.939473684211, 0.929141580889, 0.913090403222),
            *(0.896074945724, 0.892743878184, 0.886899772059, 0.880068581724),
        ],
    ),
    ("Adamax", {"lr": 0.1}, [0.900000002, 0.878926297137, 0.858220700421, 0.826021845727]),
    (
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.5, "initial_accumulator_value": 0.1},
        [0.915484574541, 0.941434539343, 0.933742231652, 0.916979904556],
    ),
    ("Adadelta", {"eps": 1e-3}, [0.901941932431, 0.966136006308, 0.937552260872, 0.860908103547]),
    ("RMSprop", {"lr": 0.1}, [1.99999960482e-07, 0.449013374422, 0.27137417663, -0.200770543702]),
    (
        "RMSprop",
        {"lr": 0.1, "centered": True, "momentum": 0.9},
        [-0.00503761323905, -0.460122948565, -1.047668742, -2.05101144766],
    ),
    ("Rprop", {"lr": 0.1}, [0.9, 0.9, 0.85, 0.79]),
    (
        "ASGD",
        {"lr": 0.1, "lambd": 0.1, "t0": 1},
        [0.94, 0.955484014453, 0.936217456141, 0.897718304068],
    ),
    ("Lion", {"lr": 0.1, "weight_decay": 0.1}, [0.89, 0.9811, 0.871289, 0.76257611]),
    ("Adan", {"lr": 0.1}, [0.900000002, 0.931590036663, 0.931449810645, 0.910087069825]),
    (
        "AdamWScheduleFree",
        {"lr": 0.1},
        [0.900000002, 0.934790276925, 0.932074104595, 0.901870311005],
    ),
    ("SGDScheduleFree", {"lr": 0.1, "momentum": 0.9}, [0.95, 0.96375, 0.9635, 0.954125]),
]
"""Rule, options, and θ after each step in float64, from θ = 1."""

VECTORS = [
    (
        "LAMB",
        {"lr": 0.1, "weight_decay": 0.01},
        [0.86793244708, -1.86662510648, 0.36858729421],
        [0.749053969304, -1.84691946816, 0.00192744975754],
    ),
    (
        "LAMB",
        {"lr": 0.1, "weight_decay": 0.0},
        [0.9000002, -1.9000004, 0.40000099999],
        [0.841842302962, -1.89516536663, 0.216318820869],
    ),
    (
        "LARS",
        {"lr": 1.0, "trust_coefficient": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        [0.802208961049, -1.89528709703, 0.45927831551],
        [0.657318648945, -1.88506065045, -0.0627942294171],
    ),
]
"""The same of rules that take norms: θ after steps 1 and 3 from θ = (1, −2, ½), whose gradients are
three neighbours of the cycle, each step one further."""

IN_THE_CONTRACT = {"Adam", "AdamW", "SGD"}
"""Whose numbers tests/contract/test_5_rules.py has."""


def test_every_rule_has_its_numbers():
    assert {rule.__name__ for rule in rules.optimizers()} == IN_THE_CONTRACT | {
        name for name, *_ in [*GOLDEN, *VECTORS]
    }


@pytest.mark.parametrize(("name", "options", "expected"), GOLDEN, ids=str)
def test_the_numbers_come_out(name, options, expected, device):
    param = Parameter(place(np.array([1.0]), device).view)
    optimizer = getattr(optim, name)([param], **options)
    seen = []
    for gradient in (GRADIENTS + LATER)[: len(expected)]:
        param.grad = place(np.array([gradient]), device).view
        optimizer.step()
        seen.append(param.numpy()[0])
    assert seen == pytest.approx(expected, rel=2e-12, abs=1e-18)


@pytest.mark.parametrize(("name", "options", "first", "third"), VECTORS, ids=str)
def test_the_numbers_of_rules_with_norms_come_out(name, options, first, third, device):
    param = Parameter(place(np.array([1.0, -2.0, 0.5]), device).view)
    optimizer = getattr(optim, name)([param], **options)
    seen = []
    for t in range(3):
        gradient = [GRADIENTS[(t + i) % len(GRADIENTS)] for i in range(3)]
        param.grad = place(np.array(gradient), device).view
        optimizer.step()
        seen.append(param.numpy().tolist())
    assert seen[0] == pytest.approx(first, rel=1e-10)
    assert seen[2] == pytest.approx(third, rel=1e-10)
