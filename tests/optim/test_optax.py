"""LAMB and LARS against optax, in float64: in units in the last place of values of at least 0.1."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter, optim

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

START = np.random.default_rng(0).uniform(0.5, 1.5, 1037)
GRADIENTS = np.random.default_rng(1).normal(size=(20, 1037))

PAIRS = [
    (
        lambda p: optim.LAMB(p, lr=0.01, weight_decay=0.0, always_adapt=True),
        lambda: optax.lamb(0.01),
        4,
    ),
    (
        lambda p: optim.LAMB(p, lr=0.01, weight_decay=0.1),
        lambda: optax.lamb(0.01, weight_decay=0.1),
        4,
    ),
    (
        lambda p: optim.LARS(p, lr=0.1, momentum=0.0, trust_coefficient=0.1),
        lambda: optax.lars(0.1, trust_coefficient=0.1, momentum=0.0),
        4,
    ),
    # Its learning rate is multiplied ahead of the momentum.
    (
        lambda p: optim.LARS(p, lr=0.1, momentum=0.9, trust_coefficient=0.1),
        lambda: optax.lars(0.1, trust_coefficient=0.1, momentum=0.9),
        32,
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "most"), PAIRS)
def test_it_does_what_optax_does(ours, theirs, most):
    param = Parameter(START.copy())
    optimizer = ours([param])
    with jax.enable_x64(True):
        peer = theirs()
        values = jax.numpy.array(START)
        state = peer.init(values)
        for gradient in GRADIENTS:
            param.grad = gradient
            optimizer.step()
            change, state = peer.update(jax.numpy.array(gradient), state, values)
            values = optax.apply_updates(values, change)
            wanted = np.asarray(values)
            big = np.abs(wanted) >= 0.1
            far = np.abs(param.numpy() - wanted)[big] / np.spacing(np.abs(wanted[big]))
            assert far.max() <= most
