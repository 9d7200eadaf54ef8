"""Gradients that are NaN reach the parameter and what is kept of it, and no neighbour."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter
from tests import rules
from tests.stepping import host, place

UNTOUCHED = {
    ("Rprop", "step_size"),  # a sign that is unknown changes no step size
    ("Adan", "exp_avg_diff"),  # the first step has no gradient to compare with
}
"""Slots that a first gradient of NaN leaves as they would be otherwise."""


every_case = pytest.mark.parametrize(
    "case", rules.elementwise(rules.cases(rules.rules())), ids=lambda case: case.label
)
phased = [case for case in rules.cases(rules.rules()) if case.rule.sums]


@pytest.mark.parametrize("case", phased, ids=lambda case: case.label)
def test_nan_in_a_norm_leaves_its_neighbours_finite(case, device):
    param = Parameter(place(np.array([1.0, 2.0]), device).view)
    optimizer = case.rule([param], **case.options)
    param.grad = place(np.array([np.nan, 0.5]), device).view
    optimizer.step()
    arrays = [param.data, *(optimizer.state[param].get(name) for name in optimizer.slots)]
    for array in arrays:
        if array is not None:
            assert np.isnan(host(array)).tolist() == [True, False]


@every_case
def test_nan_is_neither_hidden_nor_spread(case, device):
    pair = []
    for gradient in ([np.nan, 0.5], [0.5, 0.5]):
        param = Parameter(place(np.array([1.0, 2.0]), device).view)
        optimizer = case.rule([param], **case.options)
        param.grad = place(np.array(gradient), device).view
        optimizer.step()
        slots = optimizer.state[param]
        pair.append(
            {
                "param": param.data,
                **{name: slots[name] for name in optimizer.slots if name in slots},
            }
        )
    for name, array in pair[0].items():
        spoiled, sound = host(array).tolist(), host(pair[1][name]).tolist()
        assert np.isnan(spoiled[0]) != ((case.rule.__name__, name) in UNTOUCHED), name
        assert spoiled[1] == sound[1], name
