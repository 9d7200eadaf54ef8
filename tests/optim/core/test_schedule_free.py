"""ScheduleFree: averages in the parameters while judging, and no step at them."""

from __future__ import annotations

import copy

import ml_dtypes
import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.device.arrays import device_of
from lucid_gpu.optim import AdamWScheduleFree, SGDScheduleFree
from tests.contract.support import unchanged
from tests.stepping import host, place

each_rule = pytest.mark.parametrize("rule", [AdamWScheduleFree, SGDScheduleFree])
START = [1.0, -2.0, 0.5]


def made(rule, device="cpu", dtype=np.float64, **options):
    params = [Parameter(place(np.array(START, dtype), device).view) for _ in range(2)]
    return rule(params, **{"lr": 0.1, **options}), params[0]


def train(optimizer, param, count):
    for number in range(count):
        values = np.cos(np.arange(3) + number).astype(param.dtype)
        param.grad = place(values, device_of(param.data)).view
        optimizer.step()


def z(optimizer, param):
    return host(optimizer.state[param]["z"]).copy()


@each_rule
def test_eval_shows_the_weighted_average_of_the_iterates(rule, device):
    optimizer, param = made(rule, device, warmup_steps=3, r=1.0)
    iterates, weights = [], []
    for t in range(1, 6):
        train(optimizer, param, 1)
        iterates.append(z(optimizer, param))
        weights.append(t * (0.1 * min(1, t / 3)) ** 2)
    optimizer.eval()
    expected = np.average(iterates, axis=0, weights=weights)
    np.testing.assert_allclose(param.numpy(), expected, rtol=1e-12)


@each_rule
def test_train_brings_back_the_points_of_gradients(rule, device):
    optimizer, param = made(rule, device)
    train(optimizer, param, 4)
    before, iterate = param.numpy().copy(), z(optimizer, param)
    optimizer.eval()
    assert not np.allclose(param.numpy(), before)
    optimizer.train()
    np.testing.assert_allclose(param.numpy(), before, rtol=1e-14)
    assert z(optimizer, param).tolist() == iterate.tolist()


@each_rule
def test_a_parameter_of_16_bits_comes_back_as_its_master_has_it(rule):
    param = Parameter(np.linspace(1, 2, 500).astype(ml_dtypes.bfloat16))
    optimizer = rule([param], lr=0.1)
    for number in range(4):
        param.grad = np.cos(np.arange(500) + number).astype(ml_dtypes.bfloat16)
        optimizer.step()
    before, master = param.numpy().copy(), optimizer.state[param]["master"].copy()
    iterate = z(optimizer, param)
    optimizer.eval()
    averages = master + (1 - 1 / 0.9) * (iterate - master)
    np.testing.assert_allclose(param.numpy().astype(float), averages, rtol=2**-8)
    assert (param.numpy() != before).any()
    optimizer.train()
    assert (param.numpy() == before).all()


@each_rule
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_device_does_not_matter(rule, dtype, accelerator):
    results = []
    for options in ({"device": "cpu"}, {"device": accelerator}, {"state_device": "host"}):
        optimizer, param = made(rule, dtype=dtype, **{"device": accelerator, **options})
        train(optimizer, param, 3)
        optimizer.eval()
        results.append(param.numpy().tobytes())
        optimizer.train()
        train(optimizer, param, 1)
        results.append(param.numpy().tobytes())
    assert results[:2] == results[2:4] == results[4:]


@each_rule
def test_asking_twice_is_asking_once(rule):
    optimizer, param = made(rule)
    train(optimizer, param, 3)
    optimizer.train()
    optimizer.eval()
    with unchanged(optimizer):
        optimizer.eval()


@each_rule
def test_a_parameter_that_has_not_stepped_stays(rule, device):
    optimizer, param = made(rule, device)
    train(optimizer, param, 1)
    optimizer.eval()
    assert optimizer.param_groups[0]["params"][1].numpy().tolist() == START


@each_rule
def test_no_step_is_taken_at_averages(rule, device):
    optimizer, param = made(rule, device)
    train(optimizer, param, 2)
    optimizer.eval()
    with unchanged(optimizer), pytest.raises(RuntimeError, match=r"call train\(\) first"):
        optimizer.step(closure=lambda: pytest.fail("called"))
    optimizer.train()
    train(optimizer, param, 1)


@each_rule
def test_no_graph_is_replayed_at_averages(rule, accelerator):
    from lucid_gpu.device import gpu

    optimizer, param = made(rule, accelerator)
    train(optimizer, param, 1)
    stream = gpu.cupy().cuda.Stream()
    with stream:
        stream.begin_capture()
        optimizer.step()
        with pytest.raises(RuntimeError, match=r"eval\(\) cannot be recorded"):
            optimizer.eval()
        stream.end_capture()
        optimizer.eval()
        with pytest.raises(RuntimeError, match=r"call train\(\) first"):
            optimizer.before_replay()
        optimizer.train()
        optimizer.before_replay()


@each_rule
def test_a_state_dict_says_what_the_parameters_hold(rule, device):
    optimizer, param = made(rule, device)
    train(optimizer, param, 2)
    optimizer.eval()
    saved = optimizer.state_dict(device="cpu")
    assert saved["param_groups"][0]["train_mode"] is False
    other, twin = made(rule, device)
    twin.data[...] = param.data
    other.load_state_dict(saved)
    for one, own in ((optimizer, param), (other, twin)):
        with pytest.raises(RuntimeError, match=r"call train\(\) first"):
            one.step()
        one.train()
        train(one, own, 2)
    assert param.numpy().tobytes() == twin.numpy().tobytes()


@each_rule
def test_what_is_carried_stands_in_the_state_as_numbers(rule, device):
    optimizer, param = made(rule, device)
    train(optimizer, param, 2)
    slots = optimizer.state[param]
    assert [type(slots[name]) for name in ("weight_sum", "lr_max")] == [float, float]
    assert slots["lr_max"] == 0.1
    assert slots["weight_sum"] == pytest.approx(0.02)


@each_rule
def test_a_copy_is_in_the_same_mode(rule):
    optimizer, param = made(rule)
    train(optimizer, param, 2)
    optimizer.eval()
    twin = copy.deepcopy(optimizer)
    optimizer.train()
    twin.train()
    own = twin.param_groups[0]["params"][0]
    assert own.numpy().tobytes() == param.numpy().tobytes()


@each_rule
def test_a_group_that_is_edited_out_of_bounds_is_refused_ahead_of_any_exchange(rule):
    optimizer, param = made(rule)
    optimizer.add_param_group({"params": [Parameter(np.array(START))]})
    train(optimizer, param, 2)
    optimizer.param_groups[1]["lr"] = -1.0
    with unchanged(optimizer), pytest.raises(ValueError, match=r"lr must be >= 0, not -1\.0"):
        optimizer.eval()


@each_rule
def test_a_step_without_a_learning_rate_weighs_nothing(rule):
    optimizer, param = made(rule, lr=0.0)
    train(optimizer, param, 2)
    assert param.numpy().tolist() == START


@each_rule
def test_the_mode_is_no_argument(rule):
    with pytest.raises(TypeError, match="train_mode"):
        rule([Parameter([1.0])], train_mode=False)
