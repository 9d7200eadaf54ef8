"""A step recorded in a CUDA graph and replayed is a step like any other."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.device import gpu, transfer
from lucid_gpu.optim import LAMB, LARS, SGD, Adam
from tests.execution.test_cuda import crowd, groups_of_one, make, set_gradients


def capture(optimizer):
    """Record a step after an ordinary one; return the graph and the stream it was captured on."""
    import cupy

    optimizer.step()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        stream.begin_capture()
        try:
            optimizer.step()
        finally:
            graph = stream.end_capture()
    return graph, stream


def replay(optimizer, graph, stream, **options):
    import cupy

    cupy.cuda.get_current_stream().synchronize()  # which gradients were written on
    with stream:
        optimizer.before_replay(**options)
        graph.launch(stream)
    stream.synchronize()


@pytest.mark.parametrize("rule", [SGD, Adam, LAMB, LARS])
def test_replays_count_steps_and_follow_the_schedule(rule, accelerator):
    params, twins = make(accelerator), make("cpu")
    optimizer, twin = rule(params), rule(twins)
    graph, stream = capture(optimizer)
    twin.step()
    for number in range(5):
        for one in (optimizer, twin):
            one.param_groups[0]["lr"] = 0.1 / (1 + number)
        replay(optimizer, graph, stream)
        twin.step()
    assert optimizer.state[params[0]]["step"] == twin.state[twins[0]]["step"] == 6
    for param, other in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), other.numpy())


@pytest.mark.parametrize("rule", [SGD, Adam, LAMB, LARS])
def test_replays_take_the_scalars_of_every_group(rule, accelerator):
    params, twins = crowd(rule, accelerator), crowd(rule, "cpu")
    optimizer, twin = rule(groups_of_one(params)), rule(groups_of_one(twins))
    graph, stream = capture(optimizer)
    twin.step()
    for _ in range(3):
        replay(optimizer, graph, stream)
        twin.step()
    for param, other in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), other.numpy())


def test_capturing_itself_steps_nothing(accelerator):
    params, twins = make(accelerator), make("cpu")
    optimizer, twin = Adam(params), Adam(twins)
    capture(optimizer)
    twin.step()
    assert optimizer.state[params[0]]["step"] == 1
    np.testing.assert_array_equal(params[0].numpy(), twins[0].numpy())


def test_replays_read_gradients_that_were_refilled_in_place(accelerator):
    (param,), (twin,) = make(accelerator, (4,)), make("cpu", (4,))
    optimizer, other = SGD([param], lr=1.0), SGD([twin], lr=1.0)
    graph, stream = capture(optimizer)
    other.step()
    for one in (param, twin):
        with gpu.on(one.device):
            one.grad[...] = 3
    replay(optimizer, graph, stream)
    other.step()
    np.testing.assert_array_equal(param.numpy(), twin.numpy())


def test_replays_read_gradients_that_moved_if_told_to(accelerator):
    (param,), (twin,) = make(accelerator, (4,)), make("cpu", (4,))
    optimizer, other = SGD([param], lr=1.0), SGD([twin], lr=1.0)
    graph, stream = capture(optimizer)
    other.step()
    for one in (param, twin):
        set_gradients([one], 3)
    replay(optimizer, graph, stream, gradients="current")
    other.step()
    np.testing.assert_array_equal(param.numpy(), twin.numpy())


def test_a_replay_refuses_a_gradient_that_the_graph_does_not_write(accelerator):
    (param,) = make(accelerator, (4,))
    optimizer = SGD([param], lr=1.0)
    graph, stream = capture(optimizer)
    captured = param.grad
    set_gradients([param], 3)
    with pytest.raises(RuntimeError, match=r"'0\.0' has another gradient than when the step was"):
        optimizer.before_replay()
    assert optimizer.state[param]["step"] == 1
    param.grad = captured
    replay(optimizer, graph, stream)
    assert optimizer.state[param]["step"] == 2


def test_which_gradients_a_replay_reads_is_one_of_two(accelerator):
    with pytest.raises(ValueError, match=r"gradients must be one of .* not 'new'"):
        SGD(make(accelerator, (4,))).before_replay(gradients="new")


def test_ordinary_steps_may_come_between_replays(accelerator):
    (param,), (twin,) = make(accelerator, (4,)), make("cpu", (4,))
    optimizer, other = Adam([param]), Adam([twin])
    graph, stream = capture(optimizer)
    with stream:
        optimizer.step()
    stream.synchronize()
    replay(optimizer, graph, stream)
    for _ in range(3):
        other.step()
    np.testing.assert_array_equal(param.numpy(), twin.numpy())


def first_capture(optimizer):
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            optimizer.step()
        finally:
            stream.end_capture()


def test_a_first_step_cannot_be_captured(accelerator):
    optimizer = Adam(make(accelerator))
    with pytest.raises(RuntimeError, match="take one ordinary step"):
        first_capture(optimizer)
    assert len(optimizer.state) == 0


def test_a_capture_after_another_gradient_appeared_is_refused_and_changes_nothing(accelerator):
    params = make(accelerator)
    params[1].grad = None
    optimizer = Adam(params)
    optimizer.step()
    set_gradients(params[1:], 1)
    with pytest.raises(RuntimeError, match="take one ordinary step"):
        first_capture(optimizer)
    assert params[1] not in optimizer.state


def test_parameters_on_the_cpu_cannot_be_captured(accelerator):
    optimizer = SGD([*make(accelerator), *make("cpu")], lr=0.1)
    optimizer.step()
    with pytest.raises(RuntimeError, match="parameters on the CPU"):
        first_capture(optimizer)


def test_arrays_that_are_not_contiguous_cannot_be_captured(accelerator):
    view = transfer.copy(np.ones((4, 6), np.float32), accelerator)[:, ::2]
    param = Parameter(view)
    param.grad = view
    optimizer = SGD([param], lr=0.1)
    optimizer.step()
    with pytest.raises(RuntimeError, match="1 parameters or gradients are not contiguous"):
        first_capture(optimizer)


def test_parameters_on_another_gpu_than_the_stream_cannot_be_captured(emulated):
    optimizer = SGD(make("cuda:1"), lr=0.1)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"parameters on cuda:1 .* records no graph"):
        first_capture(optimizer)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_capture_on_one_of_two_gpus_is_refused_and_steps_nothing(emulated, device):
    import cupy

    params = [*make("cuda:0", (4,)), *make("cuda:1", (4,))]
    optimizer = SGD(params, lr=0.1)
    optimizer.step()
    before = [param.numpy() for param in params]
    with gpu.on(device):
        stream = cupy.cuda.Stream(non_blocking=True).use()
        stream.begin_capture()
    with pytest.raises(RuntimeError, match="capture one optimizer for each device"):
        optimizer.step()
    stream.end_capture()
    assert optimizer.state[params[0]]["step"] == 1
    for param, values in zip(params, before, strict=True):
        np.testing.assert_array_equal(param.numpy(), values)


def test_a_replay_needs_a_capture(accelerator):
    optimizer = SGD(make(accelerator), lr=0.1)
    optimizer.step()
    with pytest.raises(RuntimeError, match="no step was captured"):
        optimizer.before_replay()


def drop_a_gradient(optimizer, params):
    params[0].grad = None


def add_a_group(optimizer, params):
    optimizer.add_param_group({"params": make(params[0].device, (2,))})


def replace_data(optimizer, params):
    params[0].data = params[0].data + 0


def load_state(optimizer, params):
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("change", [drop_a_gradient, add_a_group, replace_data, load_state])
def test_a_replay_of_what_has_changed_is_refused(change, accelerator):
    params = make(accelerator)
    optimizer = Adam(params)
    capture(optimizer)
    change(optimizer, params)
    with pytest.raises(RuntimeError, match="capture the graph anew"):
        optimizer.before_replay()


def test_a_capture_may_be_repeated_after_a_change(accelerator):
    params, twins = make(accelerator), make("cpu")
    optimizer, twin = Adam(params), Adam(twins)
    capture(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    replay(optimizer, *capture(optimizer))
    for _ in range(3):
        twin.step()
    np.testing.assert_array_equal(params[0].numpy(), twins[0].numpy())


def test_a_replay_is_refused_where_the_graph_has_no_room_for_the_scalars(accelerator):
    """Tensors that stepped alike when the step was captured are of more ages now."""
    params = crowd(Adam, accelerator)
    optimizer = Adam(params)
    capture(optimizer)
    grads = [param.grad for param in params]
    for number in range(1, len(params)):
        params[number - 1].grad = None
        optimizer.step()
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    before = [optimizer.state[param]["step"] for param in params]
    with pytest.raises(RuntimeError, match="than the captured graph has room for: capture it anew"):
        optimizer.before_replay()
    optimizer.step()
    with pytest.raises(RuntimeError, match="than the captured graph has room for: capture it anew"):
        optimizer.before_replay()
    assert [optimizer.state[param]["step"] for param in params] == [step + 1 for step in before]
