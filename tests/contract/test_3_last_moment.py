"""What a step reads at the last moment, and refuses at the last moment."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from tests.contract.support import array, trained, unchanged, values


class Averaged(Parameter):
    """A parameter whose gradient is computed whenever it is read."""

    added = ()

    @property
    def grad(self):
        return sum(self.added[1:], start=self.added[0]) / len(self.added) if self.added else None


@pytest.mark.parametrize("rule", [optim.SGD, optim.Adam])
def test_a_gradient_that_is_computed_lives_until_the_step_has_read_it(device, rule):
    plain, own = Parameter([1.0, 2.0], device=device), Averaged([1.0, 2.0], device=device)
    optimizers = rule([plain], lr=0.5), rule([own], lr=0.5)
    for gradients in ([[1.0, 3.0]], [[-2.0, 4.0], [0.0, 2.0]], [], [[0.5, -9.0]], [[5.0, 7.0]]):
        own.added = [array(gradient, device) for gradient in gradients]
        plain.grad = array(np.mean(gradients, axis=0), device) if gradients else None
        for optimizer in optimizers:
            optimizer.step()
        assert values(own) == values(plain)


TOO_LARGE = [
    (optim.SGD, {"lr": 1e39}),
    (optim.SGD, {"lr": 0.1, "weight_decay": 1e39}),
    (optim.SGD, {"lr": 0.1, "momentum": 1e39}),
    (optim.Adam, {"lr": 1e39}),
    (optim.Adam, {"eps": 1e39}),
]


@pytest.mark.parametrize(("rule", "options"), TOO_LARGE)
def test_a_scalar_that_the_dtype_cannot_hold_is_refused_before_anything(device, rule, options):
    """Row 10 of docs/contract.md."""
    small = trained([1.0], [1.0], device, name="small")
    optimizer = rule([small], **options)
    with unchanged(optimizer), pytest.raises(ValueError, match=r"float32"):
        optimizer.step()
    assert values(small) == [1.0]
    assert not optimizer.state


@pytest.mark.parametrize(("rule", "options"), TOO_LARGE)
def test_what_float64_can_hold_steps(device, rule, options):
    wide = trained([1.0], [1.0], device, name="wide", dtype=np.float64)
    rule([wide], **options).step()


@pytest.mark.parametrize("call", ["to", "offload", "reload"])
def test_a_replaced_state_is_named_wherever_arrays_would_move(call):
    optimizer = optim.Adam([trained([1.0], [1.0], "cpu")])
    optimizer.state = {}
    with pytest.raises(TypeError, match="state was replaced by a dict"):
        getattr(optimizer, call)(*(["cpu"] if call == "to" else []))
