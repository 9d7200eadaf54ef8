"""Average: golden numbers, swaps, state, and what is refused before anything was changed."""

from __future__ import annotations

import math
import weakref

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter
from lucid_gpu.averages import Average
from lucid_gpu.checkpoint import Checkpointer
from lucid_gpu.device import gpu
from lucid_gpu.device.arrays import address, device_of
from lucid_gpu.optim import SGD
from tests.contract.support import Foreign, array, values
from tests.stepping import host

MODELS = [1.0, 2.0, 4.0, 8.0, 16.0]


def averaged(models, device="cpu", dtype=np.float32, **options):
    """A parameter that held the models one after the other, its average, and what that was."""
    param = Parameter(array([models[0]], device, dtype), name="w")
    average = Average([param], **options)
    history = []
    for model in models:
        param.data[...] = model
        average.update()
        history.append(host(average.averages["w"]).item())
    return param, average, history


def numbers(average):
    """What the average of "w" is."""
    return host(average.averages["w"]).tolist()


@pytest.mark.parametrize(
    ("decay", "golden", "ulps"),
    [
        (None, [1, 1.5, 2.33333325, 3.75, 6.19999981], 0),
        (0.9, [1, 1.10000002, 1.38999999, 2.05100012, 3.44589996], 1),
        (0, MODELS, 0),
        (1.0, [1] * 5, 0),
    ],
)
def test_averages_are_the_golden_numbers(decay, golden, ulps, device):
    """PyTorch's, whose moving average fuses a multiplication with an addition."""
    _, _, history = averaged(MODELS, device, decay=decay)
    assert history[0] == 1
    np.testing.assert_array_max_ulp(np.float32(history), np.float32(golden), ulps)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_the_first_model_is_copied_whatever_the_average_was(decay, device):
    param = Parameter(array([1e8, np.inf], device), name="w")
    average = Average([param], decay)
    param.data[...] = 1.0
    average.update()
    assert numbers(average) == [1.0, 1.0]


def test_a_function_gives_the_decay_by_the_number_of_models(device):
    asked = []

    def decay(count):
        asked.append(count)
        return min(0.999, (1 + count) / (10 + count))

    _, _, history = averaged(MODELS, device, np.float64, decay=decay)
    assert asked == [1, 2, 3, 4]
    expected = [1.0]
    for count, model in enumerate(MODELS[1:], 1):
        share = (1 + count) / (10 + count)
        expected.append(share * expected[-1] + (1 - share) * model)
    np.testing.assert_allclose(history, expected, rtol=1e-15)


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(0, 5),
)
def test_calls_that_count_are_averaged_and_no_others(models, every, start):
    _, average, history = averaged(models, dtype=np.float64, every=every, start=start)
    counted = models[start::every]
    assert (average.n_averaged, average.updates) == (len(counted), len(models))
    if counted:
        assert history[-1] == pytest.approx(math.fsum(counted) / len(counted), abs=1e-11)


def test_an_update_is_one_launch_per_dtype(emulated):
    params = [
        Parameter(np.ones(n, kind), device="cuda") for n in (3, 5000) for kind in ("f4", "f8")
    ]
    average = Average(params)
    average.update()
    emulated.record.launches.clear()
    average.update()
    assert len(emulated.record.launches) == 2


def test_averages_of_any_shape_and_layout_are_those_of_numpy(device, rng):
    shapes = [(), (0,), (3,), (4, 6), (5000,)]
    starts = [np.asarray(rng.normal(size=shape)) for shape in shapes]
    params = [Parameter(array(start, device, np.float64)) for start in starts]
    params.append(Parameter(array(rng.normal(size=(4, 6)), device, np.float64)[:, ::2]))
    params.append(Foreign(array(rng.normal(size=(3, 2)).T, device, np.float64)))
    average, sums = Average(params), [0.0] * len(params)
    for _ in range(3):
        for number, param in enumerate(params):
            with gpu.on(device):
                param.data[...] = array(rng.normal(size=param.data.shape), device, np.float64)
            sums[number] = sums[number] + host(param.data)
        average.update()
    for total, own in zip(sums, average.averages.values(), strict=True):
        np.testing.assert_allclose(host(own), total / 3, rtol=1e-13, atol=1e-15)
        assert device_of(own) == device


def test_parameters_and_their_gradients_stay_as_they_are(device):
    param = Parameter(array([1.0, -2.0], device))
    param.grad = array([3.0, 4.0], device)
    data, grad = param.data, param.grad
    average = Average(SGD([param]))
    average.update()
    average.update()
    assert (param.data is data, param.grad is grad) == (True, True)
    assert (values(param), host(grad).tolist()) == ([1.0, -2.0], [3.0, 4.0])


def test_an_average_holds_no_array_that_its_parameter_let_go(device):
    param = Foreign(array([1.0], device))
    average = Average([("w", param)])
    average.update()
    let_go = weakref.ref(param.data)
    param.data = array([2.0], device)
    assert let_go() is None
    average.update()
    assert numbers(average) == [1.5]


def test_a_frozen_parameter_is_averaged_too(device):
    param = Parameter(array([1.0], device), requires_grad=False)
    average = Average([param])
    average.update()
    assert host(*average.averages.values()).tolist() == [1.0]


def test_swap_exchanges_values_in_place_and_back(device):
    param, average, _ = averaged(MODELS, device)
    places = [address(own) for own in (param.data, average.averages["w"])]
    with average.swap():
        assert (values(param), numbers(average)) == ([np.float32(6.2)], [16.0])
        assert [address(own) for own in (param.data, average.averages["w"])] == places
    assert (values(param), numbers(average)) == ([16.0], [np.float32(6.2)])


def test_swap_is_undone_by_an_error_too():
    param, average, _ = averaged(MODELS)
    with pytest.raises(ZeroDivisionError), average.swap():
        raise ZeroDivisionError
    assert values(param) == [16.0]
    average.update()
    assert average.n_averaged == 6


def swap(average):
    with average.swap():
        raise AssertionError


ASKED = {
    "update": Average.update,
    "copy_to": Average.copy_to,
    "state_dict": Average.state_dict,
    "load_state_dict": lambda average: average.load_state_dict(SAVED),
    "swap": swap,
}


@pytest.mark.parametrize("method", ASKED)
def test_while_they_are_swapped_averages_do_nothing_else(method):
    param, average, _ = averaged(MODELS)
    with average.swap():
        with pytest.raises(RuntimeError, match=rf"{method}\(\) is not possible while .* swapped"):
            ASKED[method](average)
        assert values(param) == [np.float32(6.2)]
    assert values(param) == [16.0]


def test_parameters_stand_for_their_average_until_the_first_model_is_in():
    param = Parameter([1.0])
    average, other = Average([param], start=5), Parameter([0.0])
    param.data[...] = 2.0
    average.update()
    with average.swap():
        assert values(param) == [2.0]
    average.copy_to([other])
    assert values(other) == [2.0]


def test_averages_are_copied_to_parameters_wherever_they_are(device):
    param, average, _ = averaged(MODELS, device)
    other = Parameter([0.0])
    average.copy_to(SGD([other]))
    assert values(other) == [np.float32(6.2)]
    average.copy_to()
    assert values(param) == [np.float32(6.2)]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([Parameter([0.0]), Parameter([0.0])], "params has 2 parameters, but 1 are averaged"),
        ([Parameter([0.0, 0.0])], r"average of '0\.0' has shape \(1,\)"),
        ([Parameter(np.zeros(1))], r"average of '0\.0' has dtype float32"),
    ],
)
def test_parameters_that_do_not_fit_get_no_averages(others, message):
    _, average, _ = averaged(MODELS)
    with pytest.raises(ValueError, match=message):
        average.copy_to(others)
    assert not any(other.data.any() for other in others)


def test_a_loaded_average_goes_on_as_the_saved_one(device):
    _, average, _ = averaged(MODELS, device, every=2)
    twin = Average([Parameter([0.0], name="w")], every=2)
    twin.load_state_dict(average.state_dict())
    assert (twin.n_averaged, twin.updates) == (3, 5)
    for own in (average, twin):
        own.update()
        own.update()
    # 1, 4 and 16, then what each has now.
    assert numbers(average) == [np.float32(np.float32(7) + np.float32(9 / 4))]
    assert numbers(twin) == [np.float32(np.float32(7) - np.float32(7 / 4))]


def test_a_state_dict_shares_nothing_unless_asked_to():
    param, average, _ = averaged(MODELS)
    copied, own = average.state_dict(), average.state_dict(copy=False)
    param.data[...] = 100.0
    average.update()
    assert values(copied["averages"]["w"]) == [np.float32(6.2)]
    assert own["averages"]["w"] is average.averages["w"]


def test_an_average_is_saved_and_restored_with_a_checkpoint(device, tmp_path):
    param, average, _ = averaged(MODELS, device)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"w": param, "average": average})
        other = Parameter([0.0], name="w")
        twin = Average([other])
        checkpointer.restore(into={"w": other, "average": twin})
    assert (twin.n_averaged, twin.updates) == (5, 5)
    assert numbers(twin) == [np.float32(6.2)]


SAVED = {"n_averaged": 1, "updates": 2, "averages": {"w": np.float32([3.0])}}


@pytest.mark.parametrize(
    ("saved", "error", "message"),
    [
        ([], TypeError, "state_dict must be a dict, not list"),
        ({"n_averaged": 1}, KeyError, "state_dict has no 'updates'; it has .*n_averaged"),
        ({**SAVED, "averages": [1]}, TypeError, "'averages' must be a dict, not list"),
        ({**SAVED, "averages": {}}, ValueError, "the average of 'w' is missing"),
        (
            {**SAVED, "averages": {**SAVED["averages"], "b": np.float32([3.0])}},
            ValueError,
            "an average of 'b' is unknown",
        ),
        ({**SAVED, "averages": {"w": np.zeros(1)}}, ValueError, "average of 'w' has dtype float64"),
        ({**SAVED, "averages": {"w": np.float32(0)}}, ValueError, r"'w' has shape \(\)"),
        ({**SAVED, "averages": {"w": "x"}}, ValueError, "average of 'w' is a"),
        ({**SAVED, "updates": -1}, ValueError, "updates must be .*>= 0"),
        ({**SAVED, "updates": 1.5}, TypeError, "updates must be ints"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(saved, error, message):
    _, average, _ = averaged(MODELS)
    with pytest.raises(error, match=message):
        average.load_state_dict(saved)
    assert (average.n_averaged, average.updates) == (5, 5)
    assert numbers(average) == [np.float32(6.2)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"decay": 1.5}, ValueError, r"decay must be >= 0 and <= 1, not 1\.5"),
        ({"decay": -0.1}, ValueError, r"decay must be >= 0 and <= 1, not -0\.1"),
        ({"decay": math.nan}, ValueError, "decay must be"),
        ({"decay": "0.9"}, TypeError, "decay must be a number"),
        ({"every": 0}, ValueError, "every must be >= 1, not 0"),
        ({"every": 1.5}, TypeError, r"every must be an int, not 1\.5"),
        ({"start": -1}, ValueError, "start must be >= 0, not -1"),
        ({"start": "1"}, TypeError, "start must be"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Average([Parameter([1.0])], **options)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "params is empty"),
        ([Parameter("text")], TypeError, r"parameter '0\.0' holds a"),
        ([Parameter(np.arange(3))], TypeError, "has dtype int64: use float32, float64, b"),
        ([("w", Parameter([1.0])), ("w", Parameter([1.0]))], ValueError, "the names 'w' stand for"),
    ],
)
def test_parameters_that_cannot_be_averaged_are_refused(params, error, message):
    with pytest.raises(error, match=message):
        Average(params)


@pytest.mark.parametrize(
    ("given", "error"), [(1.5, ValueError), (math.nan, ValueError), ("x", TypeError)]
)
def test_a_decay_out_of_bounds_at_some_step_changes_nothing(given, error):
    param = Parameter([1.0], name="w")
    average = Average([param], decay=lambda count: 0.5 if count < 2 else given)
    average.update()
    average.update()
    param.data[...] = 3.0
    with pytest.raises(error, match=r"decay\(2\) must be"):
        average.update()
    assert (average.n_averaged, average.updates) == (2, 2)
    assert numbers(average) == [1.0]


def test_a_parameter_that_was_replaced_by_another_dtype_is_refused():
    param = Foreign(np.float32([1.0]))
    average = Average([("w", param)])
    average.update()
    param.data = np.zeros(1)
    with pytest.raises(ValueError, match="parameter 'w' has dtype float64"):
        average.update()
    assert average.updates == 1


def test_averages_move_to_where_their_parameters_went(accelerator):
    param, average, _ = averaged(MODELS[:2])
    optimizer = SGD([param]).to(accelerator)
    with pytest.raises(ValueError, match=r"has device cuda:0.* move the averages with to\(\)"):
        average.update()
    average.to(accelerator).update()
    assert device_of(average.averages["w"]) == accelerator
    assert optimizer.param_groups[0]["params"][0].device == accelerator
    np.testing.assert_allclose(host(average.averages["w"]), [5 / 3], rtol=1e-7)


def test_a_graph_records_no_update(accelerator):
    import cupy

    _, average, _ = averaged(MODELS, accelerator)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match=r"update\(\) cannot be recorded"):
                average.update()
        finally:
            stream.end_capture()
    assert average.updates == 5


def test_its_repr_says_what_it_averages():
    _, average, _ = averaged(MODELS, decay=0.9)
    assert repr(average) == "Average(1 parameters, decay=0.9, every=1, start=0, n_averaged=5)"


HALVES = [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)]
every_half = pytest.mark.parametrize("dtype", HALVES, ids=str)


@every_half
@pytest.mark.parametrize("decay", [None, 0.9])
def test_averages_of_parameters_of_16_bits_are_those_of_their_values_in_float32(
    decay, dtype, device
):
    models = [1.0, 1.25, 1.0, 3.0]
    _, average, history = averaged(models, device, dtype, decay=decay)
    assert average.averages["w"].dtype == np.float32
    _, _, exact = averaged(models, device, np.float32, decay=decay)
    assert history == exact


@every_half
def test_parameters_of_16_bits_hold_their_averages_rounded_and_themselves_again(dtype, device):
    param, average, history = averaged([1.0, 1.01, 1.7], device, dtype)
    before = host(param.data).tobytes()
    for _ in range(2):
        with average.swap():
            assert host(param.data).tolist() == np.array([history[-1]], dtype).tolist()
        assert host(param.data).tobytes() == before
        assert numbers(average) == [history[-1]]


@every_half
def test_averages_are_copied_to_parameters_of_16_bits_or_of_float32(dtype, device):
    _, average, history = averaged([1.0, 1.01, 1.7], device, dtype)
    brief, wide = Parameter(array([0.0], device, dtype)), Parameter(array([0.0], device))
    average.copy_to([brief])
    average.copy_to([wide])
    assert host(wide.data).tolist() == [history[-1]]
    assert host(brief.data).tobytes() == np.array([history[-1]], dtype).tobytes()


@every_half
def test_an_average_of_parameters_of_16_bits_goes_on_as_the_saved_one(dtype):
    param, average, _ = averaged([1.0, 1.01], dtype=dtype)
    twin = Average([param])
    twin.load_state_dict(average.state_dict())
    for each in (average, twin):
        each.update()
    assert numbers(twin) == numbers(average)


def test_an_exact_value_outlives_a_swap():
    """The optimizer must not take its master for stale after it."""
    param = Parameter(np.ones(1, HALVES[0]), name="w")
    optimizer = SGD([param], lr=2.0**-12)
    average = Average(optimizer)
    for _ in range(4):
        param.grad = np.ones(1, HALVES[0])
        optimizer.step()
        average.update()
        with average.swap():
            pass
    assert optimizer.state[param]["master"].tolist() == [1 - 4 * 2.0**-12]
