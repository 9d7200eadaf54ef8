"""Rows 4 and 15: subclasses of ``numpy.ndarray`` as data and gradients step, or are refused."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.device import gpu
from tests.contract.support import Foreign, unchanged

THETA, GRADIENT = [[1.0, 2.0], [3.0, 4.0]], [[0.5, 1.0], [1.0, -1.0]]
NAMES = ["ndarray", "memmap", "matrix", "own"]
PARAMETERS = {"own parameter": lambda data: Parameter(data, name="w"), "foreign": Foreign}


class Doubled(np.ndarray):
    """A subclass that computes otherwise."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [x.view(np.ndarray) if isinstance(x, Doubled) else x for x in inputs]
        outs = [x.view(np.ndarray) for x in options.pop("out", ())]
        result = getattr(ufunc, method)(*plain, **options)
        for out in outs:
            out[...] = 2 * result
        return 2 * result


@pytest.fixture
def make(tmp_path):
    """Return a function that makes an array of a kind."""
    files = (tmp_path / str(number) for number in itertools.count())

    def of(kind, values):
        array = np.array(values, np.float32)
        if kind == "matrix":
            with warnings.catch_warnings(action="ignore"):
                return np.asmatrix(array)
        if kind == "memmap":
            mapped = np.memmap(next(files), np.float32, "w+", shape=array.shape)
            mapped[...] = array
            return mapped
        return array.view(Doubled) if kind == "own" else array

    return of


def steps(param, gradients):
    """Step with each gradient in turn; return the optimizer."""
    optimizer = optim.Adam([("w", param)], lr=0.5)
    for gradient in gradients:
        param.grad = gradient
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("wrap", PARAMETERS)
@pytest.mark.parametrize(("data", "grad"), list(itertools.product(NAMES, NAMES)))
def test_any_kind_of_array_steps_as_a_plain_one_in_its_own_memory(make, wrap, data, grad):
    plain = Parameter(np.array(THETA, np.float32))
    gradients = [np.array(GRADIENT, np.float32) * scale for scale in (1, -2, 3)]
    expected = steps(plain, gradients)
    array = make(data, THETA)
    param = PARAMETERS[wrap](array)
    optimizer = steps(param, [make(grad, gradient) for gradient in gradients])
    assert array.view(np.ndarray).tobytes() == plain.data.tobytes()
    optimizer.load_state_dict(optimizer.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        slot, other = optimizer.state[param][name], expected.state[plain][name]
        assert slot.view(np.ndarray).tobytes() == other.tobytes()


def test_data_and_gradient_of_a_subclass_are_plain_views(make):
    param = Parameter(make("own", THETA))
    array = make("matrix", GRADIENT)
    param.grad = array
    assert type(param.data) is type(param.grad) is np.ndarray
    assert np.shares_memory(param.grad, array)


def test_a_memmap_stays_the_object_that_it_is(make):
    array, grad = make("memmap", THETA), make("memmap", GRADIENT)
    param = Parameter(array)
    param.grad = grad
    assert param.data is array
    assert param.grad is grad


@pytest.mark.parametrize("kind", ["memmap", "matrix", "own"])
def test_a_subclass_moves_to_a_device(accelerator, make, kind):
    param = Parameter(make(kind, THETA), device=accelerator)
    assert type(param.data) is gpu.module(accelerator).ndarray
    assert param.numpy().tolist() == THETA


MASKED = np.ma.masked_array(np.array(THETA, np.float32), mask=[[0, 1], [0, 0]])


def test_a_masked_array_is_refused_as_data_with_a_remedy():
    with pytest.raises(
        TypeError, match=r"MaskedArray \(whose mask would be lost: pass its \.filled"
    ):
        Parameter(MASKED)


@pytest.mark.parametrize("what", ["data", "grad"])
def test_a_masked_array_cannot_be_assigned(what):
    param = Parameter(np.array(THETA, np.float32), name="w")
    with pytest.raises(TypeError, match=rf"{what} of parameter 'w' .* MaskedArray \(whose mask"):
        setattr(param, what, MASKED)
    assert param.grad is None
    assert param.data.tolist() == THETA


@pytest.mark.parametrize("what", ["data", "grad"])
def test_a_masked_array_of_a_foreign_parameter_is_refused_at_the_step(what):
    param = Foreign(np.array(THETA, np.float32), np.array(GRADIENT, np.float32))
    setattr(param, what, MASKED.copy())
    optimizer = optim.SGD([("w", param)], momentum=0.9)
    with (
        unchanged(optimizer),
        pytest.raises((TypeError, ValueError), match=r"'w'.* MaskedArray \(whose"),
    ):
        optimizer.step()
    assert not optimizer.state
