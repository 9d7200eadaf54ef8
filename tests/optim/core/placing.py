"""Optimizers whose state moves, and twins on the CPU to compare them with."""

from __future__ import annotations

import numpy as np

from lucid_gpu.optim import Adam
from tests.execution.test_cuda import make
from tests.stepping import host


def arrays(optimizer):
    return [
        value
        for slots in optimizer.state.values()
        for value in slots.values()
        if not isinstance(value, int)
    ]


def trained(device, sizes=(5, 4099), **options):
    optimizer = Adam(make(device, sizes), **options)
    optimizer.step()
    return optimizer


def assert_same_state(optimizer, twin):
    for ours, theirs in zip(optimizer._params(), twin._params(), strict=True):
        slots = dict(twin.state.get(theirs, {}))
        assert set(optimizer.state.get(ours, {})) == set(slots)
        for name, value in slots.items():
            np.testing.assert_array_equal(host(optimizer.state[ours][name]), host(value))


def assert_same(optimizer, twin):
    for ours, theirs in zip(optimizer._params(), twin._params(), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert_same_state(optimizer, twin)
