"""What the author of a rule declares, and what each tensor gets of it."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.device import gpu
from tests.contract.support import array
from tests.execution.test_graph import capture
from tests.optim.core.rules.recorder import Recorder, recorded, slot
from tests.optim.core.test_prepared import trained


def test_slots_begin_with_what_the_rule_says(device):
    (param,) = trained(device, 1)
    optimizer = Recorder([param], number=3.0)
    optimizer.step()
    assert [slot(optimizer, param, name) for name in ("number", "copy")] == [3.0, 1.0]
    assert param.numpy().item() == 0.0


def test_a_slot_that_begins_as_its_parameter_is_a_copy_of_it(device):
    (param,) = trained(device, 1)
    optimizer = Recorder([param])
    for _ in range(2):
        optimizer.step()
    assert slot(optimizer, param, "copy") == 1.0
    assert optimizer.state[param]["copy"] is not param.data


def test_slots_begin_with_what_the_options_of_their_group_say(device):
    one, two = trained(device, 2)
    optimizer = Recorder([{"params": [one]}, {"params": [two], "number": 2}])
    optimizer.step()
    assert [slot(optimizer, param, "number") for param in (one, two)] == [7.0, 2.0]


def test_what_slots_begin_with_is_read_once(device):
    (param,) = trained(device, 1)
    optimizer = Recorder([param])
    optimizer.step()
    optimizer.param_groups[0]["number"] = 9.0
    optimizer.step()
    assert slot(optimizer, param, "number") == 7.0


def test_a_slot_that_is_there_is_not_filled(device):
    (param,) = trained(device, 1)
    optimizer = Recorder([param])
    optimizer.state[param]["number"] = array([5.0], device)
    optimizer.step()
    assert [slot(optimizer, param, name) for name in ("number", "copy")] == [5.0, 1.0]


def test_slots_on_the_host_begin_with_what_the_rule_says(accelerator):
    (param,) = trained(accelerator, 1)
    optimizer = Recorder([param], number=3.0, state_device="host")
    optimizer.step()
    assert [slot(optimizer, param, name) for name in ("number", "copy", "own_t")] == [3.0, 1.0, 1.0]


def test_large_and_strided_slots_begin_with_what_the_rule_says(device):
    params = [
        Parameter(np.full(5000, 2.0, np.float32), device=device),
        Parameter(array(np.full((4, 6), 2.0), device)[:, ::2]),
        Parameter(np.full((3, 2), 2.0, np.float32, order="F"), device=device),
    ]
    for param in params:
        with gpu.on(device):
            param.grad = param.data * 0
    optimizer = Recorder(params)
    optimizer.step()
    for param in params:
        assert [slot(optimizer, param, name) for name in ("number", "copy")] == [7.0, 2.0]


def test_parameters_of_two_dtypes_have_slots_of_their_own(device):
    single = Parameter(np.ones(2, np.float32), device=device)
    double = Parameter(np.ones(2), device=device)
    for param in (single, double):
        param.grad = array([1.0, 1.0], device, param.dtype)
    optimizer = Recorder([single, double])
    optimizer.step()
    for param in (single, double):
        assert optimizer.state[param]["number"].dtype == param.dtype
        assert recorded(optimizer, param) == [1.0, 1.0, 1.5, 2.0]


def test_each_step_is_given_what_the_last_one_left(device):
    (param,) = trained(device, 1)
    optimizer = Recorder([param], amount=2.0)
    seen = []
    for _ in range(3):
        optimizer.step()
        seen.append(recorded(optimizer, param))
    assert seen == [[1, 1, 2.5, 2], [2, 0, 4.5, 4], [3, 0, 6.5, 8]]


def test_what_a_step_leaves_stands_in_the_state(device):
    (param,) = trained(device, 1)
    optimizer = Recorder([param], amount=2.0)
    for _ in range(2):
        optimizer.step()
    slots = optimizer.state[param]
    assert [slots[name] for name in ("step", "sum", "power")] == [2, 4.5, 4.0]
    assert [type(slots[name]) for name in ("step", "sum", "power")] == [int, float, float]


def test_a_loaded_state_goes_on_from_what_the_last_step_left(device):
    one, two = trained(device, 2)
    optimizer, other = Recorder([one], amount=2.0), Recorder([two])
    for _ in range(2):
        optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    other.step()
    assert recorded(other, two) == [3, 0, 6.5, 8]


def test_what_a_step_leaves_may_not_lack_in_a_state_that_is_loaded(device):
    (param,) = trained(device, 1)
    optimizer = Recorder([param])
    optimizer.step()
    saved = optimizer.state_dict()
    del saved["state"][0]["power"]
    with pytest.raises(ValueError, match="slot 'power' is missing"):
        optimizer.load_state_dict(saved)


def test_what_is_carried_may_be_edited_in_the_state(device):
    (param,) = trained(device, 1)
    optimizer = Recorder([param])
    optimizer.step()
    optimizer.state[param]["power"] = 16.0
    optimizer.step()
    assert recorded(optimizer, param) == [2, 0, 2.5, 32]


def test_a_step_count_may_be_edited_in_the_state(device):
    (param,) = trained(device, 1)
    optimizer = Recorder([param])
    optimizer.step()
    optimizer.state[param]["step"] = 10
    optimizer.step()
    assert recorded(optimizer, param)[0] == 11
    assert optimizer.state[param]["step"] == 11


def test_a_replay_gives_each_tensor_what_the_last_step_left(accelerator):
    params = trained(accelerator, 2)
    optimizer = Recorder([{"params": params[:1]}, {"params": params[1:], "amount": 2.0}])
    graph, stream = capture(optimizer)
    for number in (2, 3):
        with stream:
            optimizer.before_replay()
            graph.launch(stream)
        stream.synchronize()
        expected = [[number, 0, 0.5 + number * amount, 2**number] for amount in (1, 2)]
        assert [recorded(optimizer, param) for param in params] == expected
