"""Parameter: an array that is trained, and its gradient."""

from __future__ import annotations

import copy
import fractions
import gc
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lucid_gpu
from lucid_gpu import Parameter
from lucid_gpu.device import gradient_table, transfer
from lucid_gpu.device.arrays import device_of


def on(device, values):
    return transfer.copy(np.asarray(values, np.float32), device)


def test_an_array_is_taken_without_a_copy(device):
    array = on(device, [1, 2])
    assert Parameter(array).data is array


@pytest.mark.parametrize("value", [1, 2.5, [1, 2], ((1.0, 2.0),), []])
def test_numbers_and_lists_become_float32(value):
    param = Parameter(value)
    assert param.dtype == np.float32
    np.testing.assert_array_equal(param.data, np.array(value, np.float32))


def test_it_tells_what_its_array_is(device):
    param = Parameter(on(device, np.zeros((2, 3))), name="w")
    assert (param.shape, param.dtype, param.size) == ((2, 3), np.float32, 6)
    assert (param.device, param.name, len(param)) == (device, "w", 2)
    assert repr(param) == f"Parameter(shape=(2, 3), dtype=float32, device={device!r}, name='w')"


def test_an_array_that_lives_elsewhere_is_copied_there(accelerator):
    assert Parameter([1.0], device=accelerator).device == accelerator
    assert Parameter(on(accelerator, [1.0]), device="cpu").device == "cpu"


@pytest.mark.parametrize("value", [None, {}, object(), b"bytes", {1.0}])
def test_what_is_no_array_is_refused(value):
    with pytest.raises(TypeError, match="data must be a NumPy or CuPy array"):
        Parameter(value)


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        ([None], "a list of NoneType"),
        ([[1, None]], "a list of NoneType, int"),
        (["1.5"], "a list of str"),
        ((1, "a"), "a tuple of int, str"),
        ([1j], "a list of complex"),
        ([b"1"], "a list of bytes"),
        ([{}], "a list of dict"),
        ([np.datetime64("2026")], "a list of datetime64"),
    ],
)
def test_a_list_of_what_is_no_number_is_refused(value, kinds):
    with pytest.raises(TypeError, match=f"a nested list of numbers or a str, not {kinds}$"):
        Parameter(value)


@pytest.mark.parametrize("value", [[True], [2**70], [np.float16(0.5)], [fractions.Fraction(1, 3)]])
def test_real_numbers_of_any_kind_make_a_list(value):
    np.testing.assert_array_equal(Parameter(value).data, np.array(value, np.float32))


def test_a_ragged_list_is_refused():
    with pytest.raises(ValueError, match="inhomogeneous"):
        Parameter([[1.0], [1.0, 2.0]])


def test_a_name_is_a_string():
    with pytest.raises(TypeError, match="name must be a string or None, not 3"):
        Parameter([1.0], name=3)


def test_an_update_in_place_needs_no_ceremony(device):
    param = Parameter(on(device, [1.0, 2.0]))
    param.grad = on(device, [2.0, 2.0])
    before = param.data
    param.data -= 0.5 * param.grad
    assert param.data is before
    assert param.numpy().tolist() == [0, 1]


MISFITS = [
    (lambda device: on(device, [1.0]), r"shape \(1,\), but the parameter has shape \(2,\)"),
    (lambda device: transfer.copy(np.zeros(2), device), "float64, but the parameter has dtype"),
]


@pytest.mark.parametrize("what", ["data", "grad"])
@pytest.mark.parametrize(("make", "message"), MISFITS)
def test_what_does_not_fit_is_refused_with_both_values(what, make, message, device):
    param = Parameter(on(device, [1.0, 2.0]), name="w")
    before = param.data
    with pytest.raises(ValueError, match=f"{what} of parameter 'w' has .*{message}"):
        setattr(param, what, make(device))
    assert param.data is before
    assert param.grad is None


@pytest.mark.parametrize("what", ["data", "grad"])
def test_what_lives_elsewhere_is_refused_with_both_devices(what, accelerator):
    param = Parameter([1.0, 2.0])
    with pytest.raises(ValueError, match=f"device {accelerator}, but the parameter has device cpu"):
        setattr(param, what, on(accelerator, [1.0, 2.0]))


def test_a_gradient_that_is_no_array_is_refused():
    with pytest.raises(TypeError, match="must be a NumPy or CuPy array, not list"):
        Parameter([1.0]).grad = [1.0]


def test_a_frozen_parameter_takes_no_gradient():
    param = Parameter([1.0], requires_grad=False, name="w")
    with pytest.raises(ValueError, match="'w' has requires_grad=False"):
        param.grad = param.data
    param.requires_grad = True
    param.grad = param.data


def test_freezing_drops_the_gradient():
    param = Parameter([1.0])
    param.grad = param.data.copy()
    param.requires_grad = False
    assert param.grad is None


def test_moving_takes_the_gradient_along(accelerator):
    param = Parameter([1.0, 2.0])
    param.grad = np.array([3, 4], np.float32)
    assert param.to(accelerator) is param
    assert device_of(param.grad) == accelerator
    param.to("cpu")
    assert param.grad.tolist() == [3, 4]


def test_moving_to_where_it_is_moves_nothing(device):
    param = Parameter(on(device, [1.0]))
    data = param.data
    assert param.to(device).data is data


def test_numpy_is_the_array_itself_on_the_host_and_a_copy_from_a_device(accelerator):
    here, there = Parameter([1.0]), Parameter([1.0], device=accelerator)
    assert here.numpy() is here.data
    there.numpy()[...] = 5
    assert there.numpy().tolist() == [1]


def test_numpy_functions_read_it_wherever_it_is(device):
    param = Parameter(on(device, [1.0, 4.0]))
    assert np.asarray(param, np.float64).tolist() == [1, 4]
    assert np.array(param).dtype == np.float32


def test_reading_a_device_without_a_copy_is_refused(accelerator):
    with pytest.raises(ValueError, match="reading it on the host is a copy"):
        np.array(Parameter([1.0], device=accelerator), copy=False)


def test_other_frameworks_read_it_without_a_copy():
    param = Parameter([1.0, 2.0])
    assert np.shares_memory(np.from_dlpack(param), param.data)


def test_dlpack_tells_the_device(accelerator):
    assert Parameter([1.0], device=accelerator).__dlpack_device__()[0] == 2
    assert Parameter([1.0]).__dlpack_device__()[0] == 1


def test_text_is_trained_as_text():
    param = Parameter("be brief", name="prompt")
    param.grad = ["say less"]
    param.data = "be briefer"
    assert param.is_text
    assert repr(param) == "Parameter('be briefer', name='prompt')"
    with pytest.raises(TypeError, match="'prompt' is text"):
        param.data = np.zeros(3)
    with pytest.raises(TypeError, match=r"read \.data"):
        param.numpy()
    assert param.to("cpu") is param


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_are_independent(clone):
    param = Parameter([1.0], name="w")
    param.grad = np.array([2], np.float32)
    twin = clone(param)
    twin.data[...] = 9
    assert (param.numpy().tolist(), twin.name, twin.grad.tolist()) == ([1], "w", [2])
    assert twin.entry != param.entry


def test_a_parameter_that_is_gone_leaves_its_ledger_entry_to_another():
    entry = Parameter([1.0]).entry
    gc.collect()
    assert entry in {Parameter([1.0]).entry, *gradient_table._free}


def test_a_parameter_may_outlive_the_modules_at_exit():
    code = """
import sys
from lucid_gpu import Parameter
param = Parameter([1.0])
sys.kept = sys.modules["__main__"]  # which is emptied after what it imported
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(lucid_gpu.__file__).parents[1])},
    )
    assert done.stderr == ""
