"""What a step reads anew, and what it may keep from the last one."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.device import transfer
from lucid_gpu.optim import SGD, Adam
from tests.contract.support import Foreign, array, host
from tests.execution.test_graph import capture, first_capture
from tests.optim.core.rules.recorder import Recorder, recorded


def trained(device, count):
    """Parameters of value 1 with gradients of 1."""
    params = []
    for _ in range(count):
        params.append(Parameter(np.ones(1, np.float32), device=device))
        params[-1].grad = transfer.copy(np.ones(1, np.float32), device)
    return params


def values(params):
    return [param.numpy().item() for param in params]


def test_each_of_many_groups_follows_its_own_options_at_every_step(device):
    params = trained(device, 64)
    optimizer = SGD([{"params": [param]} for param in params], lr=0.0)
    expected = np.ones(64)
    for step in range(3):
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = (number + step) / 256
            expected[number] -= group["lr"]
        optimizer.step()
    assert values(params) == expected.tolist()


def test_a_group_may_be_replaced_by_another_dict(device):
    one, two = trained(device, 2)
    optimizer = SGD([{"params": [one]}, {"params": [two]}], lr=0.5)
    optimizer.step()
    optimizer.param_groups[1] = {**optimizer.param_groups[1]}
    optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.25
    optimizer.step()
    assert values([one, two]) == [-0.5, -0.25]


def test_parameters_may_move_from_one_group_to_another(device):
    params = trained(device, 3)
    optimizer = SGD([{"params": params[:1]}, {"params": params[1:], "lr": 0.25}], lr=0.5)
    optimizer.step()
    few, many = optimizer.param_groups
    for key in ("params", "param_names"):
        few[key].append(many[key].pop(0))
    optimizer.step()
    assert values(params) == [0.0, 0.25, 0.5]


def test_an_edited_option_is_checked_in_every_group_before_anything_steps(device):
    params = trained(device, 3)
    optimizer = SGD([{"params": [param]} for param in params], lr=0.5)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.param_groups[2]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr must be >= 0, not -1\.0"):
        optimizer.step()
    assert values(params) == [0.5] * 3
    assert [optimizer.state[param]["step"] for param in params] == [1] * 3


def misfit(device):
    """A foreign parameter whose gradient does not fit."""
    return Foreign(array([1.0], device), array([1.0, 2.0], device))


def test_a_first_step_that_was_refused_is_still_the_first(device):
    (param,), bad = trained(device, 1), misfit(device)
    optimizer = Recorder([param, bad])
    with pytest.raises(ValueError, match="reshape"):
        optimizer.step()
    bad.grad = array([1.0], device)
    optimizer.step()
    assert [recorded(optimizer, one) for one in (param, bad)] == [[1, 1, 1.5, 2]] * 2


def test_a_first_gradient_that_was_refused_later_begins_at_the_first_step(device):
    (param,), late = trained(device, 1), misfit(device)
    wrong, late.grad = late.grad, None
    optimizer = Recorder([param, late])
    optimizer.step()
    late.grad = wrong
    with pytest.raises(ValueError, match="reshape"):
        optimizer.step()
    assert late not in optimizer.state
    late.grad = array([1.0], device)
    optimizer.step()
    assert recorded(optimizer, param) == [2, 0, 2.5, 4]
    assert recorded(optimizer, late) == [1, 1, 1.5, 2]


def test_two_that_join_while_one_of_them_is_refused_join_together_later(device):
    (param, joins), bad = trained(device, 2), misfit(device)
    grads = [joins.grad, bad.grad]
    joins.grad = bad.grad = None
    optimizer = Recorder([param, joins, bad])
    optimizer.step()
    joins.grad, bad.grad = grads
    for _ in range(2):
        with pytest.raises(ValueError, match="reshape"):
            optimizer.step()
    bad.grad = array([1.0], device)
    optimizer.step()
    assert [recorded(optimizer, one)[:2] for one in (param, joins, bad)] == [[2, 0], [1, 1], [1, 1]]


def test_an_error_of_one_input_hides_no_change_of_another(device):
    (param,), other = trained(device, 1), Foreign(array([1.0], device), array([1.0], device))
    optimizer = Recorder([param, other])
    optimizer.step()
    param.data = array([5.0], device)
    other.grad = array([1.0, 2.0], device)
    with pytest.raises(ValueError, match="reshape"):
        optimizer.step()
    other.grad = array([1.0], device)
    optimizer.step()
    assert param.numpy().item() == 4.0
    assert [recorded(optimizer, one)[0] for one in (param, other)] == [2, 2]


def test_an_option_that_was_refused_is_refused_again(device):
    (param,) = trained(device, 1)
    optimizer = SGD([param], lr=0.5)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = -1.0
    for _ in range(2):
        with pytest.raises(ValueError, match="lr must be >= 0"):
            optimizer.step()
    assert values([param]) == [0.5]


def test_data_of_another_dtype_is_stepped_as_what_it_is(device):
    param = Foreign(array([1.0], device), array([1.0], device))
    optimizer = SGD([param], lr=0.25)
    optimizer.step()
    param.data, param.grad = (array([1.0], device, np.float64) for _ in range(2))
    optimizer.step()
    assert host(param.data).tolist() == [0.75]


def test_data_on_another_device_is_stepped_there(emulated):
    param = Foreign(array([1.0], "cpu"), array([1.0], "cpu"))
    optimizer = SGD([param], lr=0.25)
    optimizer.step()
    for place in ("cuda:1", "cuda:0", "cpu"):
        param.data, param.grad = array([1.0], place), array([1.0], place)
        optimizer.step()
        assert host(param.data).tolist() == [0.75]


def test_data_of_another_shape_is_refused_with_the_slot_that_does_not_fit(device):
    param = Foreign(array([1.0], device), array([1.0], device))
    optimizer = SGD([param], lr=0.25, momentum=0.5)
    optimizer.step()
    param.data, param.grad = array([1.0, 1.0], device), array([1.0, 1.0], device)
    with pytest.raises(ValueError, match=r"'momentum_buffer' .* shape \(1,\)"):
        optimizer.step()
    assert host(param.data).tolist() == [1.0, 1.0]


def test_data_that_becomes_trainable_steps(device):
    param = Foreign([1.0], None)
    optimizer = SGD([param, *trained(device, 1)], lr=0.25)
    optimizer.step()
    param.data, param.grad = array([1.0], device), array([1.0], device)
    optimizer.step()
    assert host(param.data).tolist() == [0.75]


def test_data_that_cannot_be_trained_any_more_is_refused(device):
    param = Foreign(array([1.0], device), array([1.0], device))
    optimizer = SGD([param], lr=0.25)
    optimizer.step()
    param.data = array([1], device, np.int32)
    with pytest.raises((TypeError, ValueError), match="int32"):
        optimizer.step()


def test_data_that_becomes_read_only_is_refused():
    param = Foreign(np.ones(1, np.float32), np.ones(1, np.float32))
    optimizer = SGD([param], lr=0.25)
    optimizer.step()
    param.data = np.ones(1, np.float32)
    param.data.flags.writeable = False
    with pytest.raises(ValueError, match=r"'0\.0' is read-only"):
        optimizer.step()


def test_what_lies_idle_may_be_anything(device):
    idle = [Foreign("text"), Foreign([1.0]), Foreign(array([1], device, np.int32)), Foreign(None)]
    (param,) = trained(device, 1)
    optimizer = SGD([*idle, param], lr=0.25)
    for _ in range(2):
        optimizer.step()
    assert values([param]) == [0.5]


def test_a_gradient_of_another_framework_is_taken_anew():
    class Tensor:
        def __init__(self, own):
            self.own = own

        def __dlpack__(self, **options):
            return self.own.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.own.__dlpack_device__()

    param = Foreign(array([1.0], "cpu"), None)
    optimizer = SGD([param], lr=0.25)
    for expected in (0.75, 0.5):
        param.grad = Tensor(array([1.0], "cpu"))
        optimizer.step()
        assert host(param.data).tolist() == [expected]


def test_a_capture_knows_no_tensor_that_joins_later(accelerator):
    params = trained(accelerator, 2)
    kept, params[1].grad = params[1].grad, None
    optimizer = Adam(params)
    capture(optimizer)
    params[1].grad = kept
    with pytest.raises(RuntimeError, match="capture the graph anew"):
        optimizer.before_replay(gradients="current")
    assert params[1] not in optimizer.state
    optimizer.step()
    with pytest.raises(RuntimeError, match="capture the graph anew"):
        optimizer.before_replay(gradients="current")
    assert [optimizer.state[param]["step"] for param in params] == [2, 1]


def test_a_capture_knows_no_data_that_was_replaced_and_stepped(accelerator):
    (param,) = trained(accelerator, 1)
    optimizer = Adam([param])
    capture(optimizer)
    param.data = transfer.copy(param.data, accelerator)
    optimizer.step()
    with pytest.raises(RuntimeError, match="capture the graph anew"):
        optimizer.before_replay()
    assert optimizer.state[param]["step"] == 2


def test_a_capture_with_data_that_was_replaced_is_refused(accelerator):
    (param,) = trained(accelerator, 1)
    optimizer = Adam([param])
    optimizer.step()
    param.data = transfer.copy(param.data, accelerator)
    with pytest.raises(RuntimeError, match="take one ordinary step"):
        first_capture(optimizer)


def test_parameters_of_several_places_take_each_gradient(emulated):
    """Some executors want gradients anew at each step, and some know where they are noted."""
    strided = transfer.copy(np.ones((4, 6), np.float32), "cuda:1")[:, ::2]
    params = [*trained("cpu", 1), *trained("cuda:0", 1), Parameter(strided)]
    optimizer = SGD(params, lr=0.5)
    for number in range(1, 4):
        for param in params:
            param.grad = transfer.copy(np.full(param.shape, number, np.float32), param.device)
        optimizer.step()
    assert [set(param.numpy().ravel().tolist()) for param in params] == [{-2.0}] * 3
