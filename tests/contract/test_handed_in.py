"""Objects of other frameworks: each works, or is refused by name before anything changed."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from tests.contract.support import unchanged

needs_jax = pytest.mark.skipif(
    find_spec("jax") is None, reason="needs optax: pip install -e '.[oracle]'"
)


def numbers(*values):
    """An array of JAX."""
    import jax

    return jax.numpy.array(values, dtype=jax.numpy.float32)


JAX_AS_PARAMETER = {
    "alone": lambda: optim.SGD(numbers(1.0, 2.0)),
    "in a list": lambda: optim.SGD([numbers(1.0, 2.0)]),
    "in a group": lambda: optim.SGD([{"params": [("w", numbers(1.0, 2.0))]}]),
    "as data of an object": lambda: optim.SGD([SimpleNamespace(data=numbers(1.0), grad=None)]),
    "as data of a Parameter": lambda: Parameter(numbers(1.0)),
    "as other data of a Parameter": lambda: setattr(Parameter([1.0]), "data", numbers(1.0)),
}


@needs_jax
@pytest.mark.parametrize("way", JAX_AS_PARAMETER)
def test_an_array_of_jax_is_refused_as_a_parameter_with_the_remedy(way):
    """Row 4a of docs/contract.md."""
    with pytest.raises(TypeError, match=r"an array of JAX, which is immutable: .*numpy.array\(x\)"):
        JAX_AS_PARAMETER[way]()


@needs_jax
@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_an_array_of_jax_is_welcome_as_a_gradient(kind):
    plain, own = Parameter([1.0, 2.0]), Parameter([1.0, 2.0])
    plain.grad, own.grad = np.float32([0.5, -1.0]), numbers(0.5, -1.0)
    for param in (plain, own):
        kind([param], lr=0.5).step()
    assert own.numpy().tolist() == plain.numpy().tolist()


@needs_jax
def test_the_gradient_of_a_function_of_jax_trains():
    import jax

    gradient = jax.jit(jax.grad(lambda w: ((w - 3) ** 2).sum()))
    w = Parameter([0.0, 1.0])
    optimizer = optim.SGD([w], lr=0.25)
    for _ in range(20):
        w.grad = gradient(w.data)
        optimizer.step()
    np.testing.assert_allclose(w.numpy(), 3, rtol=1e-5)


class Value:
    """A scalar with its gradient, as in micrograd."""

    def __init__(self, data):
        self.data, self.grad = data, 0.0


class Lazy:
    """A tensor whose ``data`` is a method that returns a buffer, as in tinygrad."""

    def __init__(self, array):
        self._array, self.grad = array, array

    def data(self):
        return memoryview(self._array)


class Net:
    """Something that has parameters and is none."""

    def parameters(self):
        return [Parameter([1.0])]


HANDED_IN = [
    (lambda: optim.SGD([Value(1.0)]).step(), TypeError, "parameter '0.0' holds a float"),
    (lambda: optim.SGD([Lazy(np.ones(2))]).step(), TypeError, "parameter '0.0' holds a method"),
    (lambda: optim.SGD(Net()), TypeError, r"params is a Net: pass its parameters\(\)"),
    (lambda: optim.SGD([Net()]), TypeError, r"element 0 .* is a Net, .*: pass its parameters\(\)"),
    (
        lambda: optim.pytorch.export(optim.SGD([Parameter([1.0])])),
        TypeError,
        r"state_dict must be a dict, not a SGD: pass optimizer.state_dict\(\)",
    ),
    (
        lambda: optim.SGD([Parameter([1.0])]).load_state_dict(optim.SGD([Parameter([1.0])])),
        TypeError,
        "state_dict must be a dict, not SGD",
    ),
]


@pytest.mark.parametrize(("hand_in", "error", "message"), HANDED_IN)
def test_what_cannot_be_used_is_refused_with_the_remedy(hand_in, error, message):
    """Row 4a of docs/contract.md."""
    with pytest.raises(error, match=message):
        hand_in()


def test_a_refused_object_leaves_the_others_as_they_were():
    w = Parameter([1.0])
    w.grad = np.ones(1, np.float32)
    optimizer = optim.SGD([w, Value(2.0)])
    with unchanged(optimizer), pytest.raises(TypeError, match="holds a float"):
        optimizer.step()


class Holder:
    """A parameter in the style of autograd, whose gradient is an array, or a number."""

    def __init__(self, data, grad):
        self.data, self.grad = data, grad


def test_an_object_with_arrays_steps():
    own = Holder(np.float32([1.0, 2.0]), np.float32([0.5, 0.5]))
    optim.SGD([own], lr=1.0).step()
    assert own.data.tolist() == [0.5, 1.5]


def test_a_number_as_the_gradient_of_an_array_is_refused():
    own = Holder(np.float32([1.0]), 0.5)
    optimizer = optim.SGD([own])
    with pytest.raises(ValueError, match=r"gradient of parameter '0\.0' is a float"):
        optimizer.step()
    assert own.data.tolist() == [1.0]
