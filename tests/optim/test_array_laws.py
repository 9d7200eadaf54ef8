"""What every optimizer in array code obeys, on every device."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.checkpoint import load, save
from tests import array_rules
from tests.array_rules import CASES, CLOSURE_CASES, arrays, dense, everything
from tests.contract.support import unchanged
from tests.stepping import bits, host, place

every_case = pytest.mark.parametrize("case", [*CASES, *CLOSURE_CASES], ids=lambda case: case.label)
every_own_step = pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
every_dense_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case.draw is dense], ids=lambda case: case.label
)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def assert_same(one, other):
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def assert_close(one, other, atol=CLOSE["atol"]):
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=CLOSE["rtol"], atol=atol)


def test_every_optimizer_in_array_code_is_held_to_these_laws():
    assert {case.rule for case in [*CASES, *CLOSURE_CASES]} == set(array_rules.optimizers())


@every_own_step
def test_the_order_of_parameters_does_not_matter(case, device):
    results = []
    for order in (slice(None), slice(None, None, -1)):
        _, params = case.make(device)
        optimizer = case.rule(case.group(params[order]), **case.options)
        case.train(optimizer, params)
        results.append([bits(param.data) for param in params])
    assert_same(*results)


@every_case
def test_resuming_equals_no_interruption_to_the_bit(case, device):
    optimizer, params = case.make(device)
    case.train(optimizer, params)
    twins = [Parameter(place(host(param.data), device).view) for param in params]
    resumed = case.rule(case.group(twins))
    resumed.load_state_dict(optimizer.state_dict(device="cpu"))
    for one, own in ((optimizer, params), (resumed, twins)):
        case.train(one, own, seed=3)
    assert_same(everything(resumed, twins), everything(optimizer, params))


@every_case
def test_a_checkpoint_brings_a_run_back_to_the_bit(case, device, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    optimizer, params = case.make(device)
    case.train(optimizer, params)
    save(tmp_path / "there", {"params": params, "optimizer": optimizer})
    twin, others = case.make(device, seed=9)
    load(tmp_path / "there", into={"params": others, "optimizer": twin})
    for one, own in ((optimizer, params), (twin, others)):
        case.train(one, own, seed=3)
    assert_same(everything(twin, others), everything(optimizer, params))


@every_own_step
def test_a_parameter_without_a_gradient_is_left_out(case, device):
    optimizer, params = case.make(device)
    before = bits(params[0].data)
    case.train(optimizer, params[1:])
    assert params[0] not in optimizer.state
    assert_same([bits(params[0].data)], [before])
    case.train(optimizer, params, steps=1)
    assert [optimizer.state[param]["step"] for param in params] == [1] + [4] * (len(params) - 1)


@every_own_step
def test_gradients_are_not_modified(case, device):
    optimizer, params = case.make(device)
    case.train(optimizer, params, steps=0)
    rng = np.random.default_rng(5)
    for param in params:
        param.grad = case.draw(rng, param.shape, device, case.dtype)
    given = [param.grad for param in params]
    before = [array for grad in given for array in array_rules.parts(grad)]
    optimizer.step()
    assert all(param.grad is grad for param, grad in zip(params, given, strict=True))
    assert_same([array for grad in given for array in array_rules.parts(grad)], before)


@every_dense_case
def test_a_gradient_may_be_the_parameter_itself(case, device):
    results = []
    for is_shared in (True, False):
        optimizer, params = case.make(device)
        for _ in range(3):
            for param in params:
                param.grad = param.data if is_shared else param.data.copy()
            optimizer.step()
        results.append(everything(optimizer, params))
    assert_same(*results)


@every_dense_case
@pytest.mark.parametrize("layout", ["F", "strided", "reversed"])
def test_the_layout_of_arrays_matters_by_rounding_alone(case, layout, device):
    results = []
    for own in (layout, "C"):
        rng = np.random.default_rng(1)
        values = [np.asarray(rng.normal(size=shape), case.dtype) for shape in case.shapes]
        params = [Parameter(place(value, device, own).view) for value in values]
        optimizer = case.rule(case.group(params), **case.options)
        for _ in range(3):
            for param in params:
                grad = np.asarray(rng.normal(size=param.shape), case.dtype)
                param.grad = place(grad, device, own).view
            optimizer.step()
        results.append(arrays(optimizer, params))
    assert_close(*results)


@every_own_step
def test_a_parameter_of_no_elements_steps(case, device):
    params = [
        Parameter(place(np.empty(shape, case.dtype), device).view) for shape in ((0, 3), (2, 0))
    ]
    optimizer = case.rule(case.group(params), **case.options)
    for param in params:
        param.grad = case.draw(np.random.default_rng(0), param.shape, device, case.dtype)
    optimizer.step()
    assert [optimizer.state[param]["step"] for param in params] == [1, 1]


@every_case
def test_the_device_matters_by_rounding_alone_while_state_moves(case, accelerator):
    results = []
    for home, away in (("cpu", "cpu"), ("cpu", accelerator), (accelerator, "cpu")):
        optimizer, params = case.make(home, dtype="float64")
        for number, place_now in enumerate((home, away, home)):
            optimizer.to(place_now)
            case.train(optimizer, params, seed=number)
        results.append(arrays(optimizer, params))
    # A GPU rounds each product of matrices of bfloat16, whose places are 2⁻⁸ of a number.
    atol = 2**-8 * 0.1 if case.options.get("ns_dtype") == "bfloat16" else CLOSE["atol"]
    assert_close(results[0], results[1], atol)
    assert_close(results[0], results[2], atol)


@every_own_step
def test_gradients_move_with_the_optimizer(case, accelerator):
    optimizer, params = case.make("cpu")
    case.train(optimizer, params)
    optimizer.to(accelerator)
    optimizer.step()
    assert {param.device for param in params} == {accelerator}
    assert optimizer.state[params[0]]["step"] == 4


@every_case
def test_state_that_was_moved_to_the_host_must_come_back_before_a_step(case, emulated):
    results = []
    for is_moved in (True, False):
        optimizer, params = case.make("cuda:0")
        case.train(optimizer, params)
        if is_moved:
            optimizer.offload(block=True)
            with pytest.raises(RuntimeError, match=r"call reload\(\) before step"):
                optimizer.step()
            optimizer.reload(block=True)
        case.train(optimizer, params, seed=4)
        results.append(everything(optimizer, params))
    assert_same(*results)


@every_case
def test_a_step_cannot_be_recorded_in_a_graph(case, emulated):
    import cupy

    optimizer, params = case.make("cuda:0")
    case.train(optimizer, params)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match=r"step\(\) cannot be recorded in a CUDA graph"):
                optimizer.step()
        finally:
            stream.end_capture()


@every_own_step
def test_numbers_that_overflow_cause_no_warning(case):
    """As on a GPU; the tests take a warning for an error."""
    optimizer, params = case.make("cpu")
    huge = array_rules.scaled(case.draw, 1e30)
    case._replace(draw=huge).train(optimizer, params)


@every_case
def test_hooks_run_around_a_step(case):
    optimizer, params = case.make("cpu")
    seen = []
    optimizer.register_step_pre_hook(lambda own, args, kwargs: seen.append("before"))
    optimizer.register_step_count_hook(lambda own: seen.append("counted"))
    optimizer.register_step_post_hook(lambda own, args, kwargs: seen.append("after"))
    case.train(optimizer, params, steps=1)
    assert seen == ["before", "counted", "after"]


@every_case
def test_a_copy_and_a_pickle_go_on_to_the_bit(case):
    optimizer, params = case.make("cpu")
    case.train(optimizer, params)
    pairs = [copy.deepcopy((optimizer, params)), pickle.loads(pickle.dumps((optimizer, params)))]
    for one, own in [*pairs, (optimizer, params)]:
        case.train(one, own, seed=4)
    for one, own in pairs:
        assert_same(everything(one, own), everything(optimizer, params))


@every_own_step
def test_strict_loading_checks_every_slot(case):
    """Each slot that is missing, of another shape or dtype, and one that is unknown.

    A master that is missing, as in states of PyTorch, is made of its parameter.
    """
    optimizer, params = case.make("cpu")
    case.train(optimizer, params)
    for number in optimizer.state_dict()["state"]:
        names = list(optimizer.state_dict()["state"][number])
        spoilt = [("extra", 1, "slot 'extra' is unknown")]
        for name in names:
            if name != "master":
                spoilt.append((name, None, "is missing"))
            if name != "step":
                spoilt.append((name, np.zeros((1, 2, 9), np.float32), "has shape"))
                spoilt.append((name, 0.5, "is a float, not a NumPy or CuPy array"))
        for name, value, text in spoilt:
            state_dict = optimizer.state_dict()
            slots = state_dict["state"][number]
            slots.pop(name, None)
            if value is not None:
                slots[name] = value
            with unchanged(optimizer), pytest.raises(ValueError, match=text):
                optimizer.load_state_dict(state_dict)


@every_own_step
def test_a_slot_that_does_not_fit_is_refused_ahead_of_the_step(case):
    optimizer, params = case.make("cpu")
    case.train(optimizer, params)
    slots = optimizer.state[params[-1]]
    name = next(name for name in slots if name != "step")
    slots[name] = np.zeros((1, 2, 9), np.float32)
    with unchanged(optimizer), pytest.raises(ValueError, match=f"slot '{name}' of parameter"):
        optimizer.step()


@every_case
def test_explain_says_how_it_steps(case, capsys):
    optimizer, params = case.make("cpu")
    case.train(optimizer, params)
    params[0].grad = None
    optimizer.explain()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"{case.rule.__name__}: one step of {len(params) - 1} parameters, in array code"
    )
    assert lines[-1] == "no gradient, so no step: '0.0'"
