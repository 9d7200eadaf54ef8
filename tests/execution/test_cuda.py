"""What a step asks of the GPU: one launch, and after the first step nothing else but copies."""

from __future__ import annotations

import weakref
from functools import partial

import numpy as np
import pytest

from lucid_gpu import Parameter, transfer
from lucid_gpu.execution import cuda, plan
from lucid_gpu.optim import SGD, Adam
from tests import rules
from tests.emulation.machine import Record
from tests.stepping import host

every_optimizer = pytest.mark.parametrize(
    "rule", rules.optimizers(), ids=lambda rule: rule.__name__
)


def make(device, sizes=(5, 4099), dtype="float32"):
    """Parameters with gradients."""
    rng = np.random.default_rng(7)
    params = [Parameter(rng.normal(size=size).astype(dtype), device=device) for size in sizes]
    set_gradients(params, 0)
    return params


def set_gradients(params, seed):
    """Give each parameter another gradient, in other memory."""
    rng = np.random.default_rng(seed)
    for param in params:
        grad = rng.normal(size=param.shape).astype(param.dtype)
        param.grad = transfer.copy(grad, param.device)


def row_bytes(rule):
    return np.dtype(np.float32).itemsize * len(rule.Scalars._fields)


def groups_of_one(params):
    """Groups whose scalars differ."""
    return [{"params": [param], "lr": 1 / (2 + i)} for i, param in enumerate(params)]


def crowd(rule, device):
    """Parameters of one element, a group each: one group more than a launch carries scalars of."""
    return make(device, (1,) * (plan.CARRIED_BYTES // row_bytes(rule) + 1))


@every_optimizer
def test_a_step_is_one_launch_for_each_device_and_dtype(rule, emulated):
    params = [
        *make("cuda:0", (3,) * 40),
        *make("cuda:0", (3,) * 40, "float64"),
        *make("cuda:1", (3,) * 40),
    ]
    optimizer = rule(params)
    for _ in range(3):
        emulated.record = Record()
        optimizer.step()
        assert sorted(launch.device for launch in emulated.record.launches) == [0, 0, 1]


def test_groups_of_different_variants_share_the_launch(emulated):
    one, two, three = make("cuda:0", (3, 4, 5))
    groups = [
        {"params": [one], "amsgrad": True},
        {"params": [two], "weight_decay": 0.1},
        {"params": [three]},
    ]
    optimizer = Adam(groups)
    emulated.record = Record()
    optimizer.step()
    assert len(emulated.record.launches) == 1


def test_each_tensor_that_is_not_contiguous_has_a_launch_of_its_own(emulated):
    params = make("cuda:0", (3, 4))
    for view in (transfer.copy(np.ones((4, 6), np.float32), "cuda:0")[:, ::2] for _ in range(2)):
        params.append(Parameter(view))
        params[-1].grad = view
    emulated.record = Record()
    Adam(params).step()
    assert len(emulated.record.launches) == 3


def test_tensors_without_elements_launch_nothing(emulated):
    optimizer = Adam(make("cuda:0", (0, 0)))
    emulated.record = Record()
    optimizer.step()
    assert emulated.record.launches == []


@every_optimizer
def test_later_steps_neither_compile_nor_allocate_nor_synchronize(rule, emulated):
    params = make("cuda:0")
    optimizer = rule(params)
    optimizer.step()
    emulated.record = Record()
    for _ in range(cuda.STAGES - 1):
        optimizer.step()
    record = emulated.record
    assert (record.compiles, record.allocations, record.synchronizations) == ([], 0, 0)


@every_optimizer
def test_a_step_whose_gradients_stay_copies_nothing(rule, emulated):
    params = crowd(rule, "cuda:0")[1:]
    optimizer = rule(groups_of_one(params))
    optimizer.step()
    emulated.record = Record()
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.step()
    assert emulated.record.uploads == []


@every_optimizer
def test_more_scalars_than_a_launch_carries_are_one_copy(rule, emulated):
    params = crowd(rule, "cuda:0")
    optimizer = rule(groups_of_one(params))
    optimizer.step()
    emulated.record = Record()
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.step()
    (size,) = emulated.record.uploads
    assert size - len(params) * row_bytes(rule) in range(16)


def test_a_step_that_changes_nothing_copies_no_table(emulated):
    optimizer = SGD(groups_of_one(crowd(SGD, "cuda:0")))
    optimizer.step()
    emulated.record = Record()
    optimizer.step()
    assert emulated.record.uploads == []


@every_optimizer
@pytest.mark.parametrize("more", [-1, 0], ids=["carried", "table"])
def test_each_group_steps_with_its_own_scalars(rule, more, accelerator):
    params, twins = crowd(rule, accelerator), crowd(rule, "cpu")
    for own in (params, twins):
        optimizer = rule(groups_of_one(own[: len(own) + more or None]))
        for _ in range(3):
            optimizer.step()
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), twin.numpy())


def test_gradients_that_moved_cost_a_copy_of_their_addresses_and_nothing_else(emulated):
    params = make("cuda:0")
    optimizer = Adam(params, lr=0.1)
    optimizer.step()
    set_gradients(params, 1)
    emulated.record = Record()
    optimizer.step()
    record = emulated.record
    assert (record.uploads, len(record.launches)) == ([8 * len(params)], 1)
    assert (record.compiles, record.allocations) == ([], 0)


def test_gradients_that_moved_are_the_ones_that_step(accelerator):
    params, twins = make(accelerator), make("cpu")
    optimizers = Adam(params), Adam(twins)
    for seed in range(4):
        for own in (params, twins):
            set_gradients(own, seed)
        for optimizer in optimizers:
            optimizer.step()
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), twin.numpy())


def test_a_gradient_of_another_layout_steps_too(accelerator):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    results = []
    for device in (accelerator, "cpu"):
        param = Parameter(values.copy(), device=device)
        optimizer = SGD([param], lr=0.5, momentum=0.9)
        for order in "CFC":
            param.grad = transfer.copy(np.array(values, order=order), device)
            optimizer.step()
        results.append(param.numpy())
    np.testing.assert_array_equal(*results)


def test_one_optimizer_steps_parameters_everywhere(emulated):
    params = [*make("cpu"), *make("cuda:0"), *make("cuda:1")]
    Adam(params, lr=0.1).step()
    for one, two, three in zip(params[:2], params[2:4], params[4:], strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())
        np.testing.assert_array_equal(one.numpy(), three.numpy())


def test_work_goes_to_the_stream_that_is_current(emulated):
    import cupy

    (param,) = make("cuda:0", (4,))
    optimizer = SGD([param], lr=1.0)
    emulated.lazy = True
    stream = cupy.cuda.Stream(non_blocking=True)
    before = np.array(param.data.view(np.ndarray))
    with stream:
        optimizer.step()
    cupy.cuda.get_current_stream().synchronize()
    np.testing.assert_array_equal(param.data.view(np.ndarray), before)
    stream.synchronize()
    assert (param.data.view(np.ndarray) != before).all()


@pytest.mark.parametrize("make_own", [make, partial(crowd, SGD)], ids=["carried", "table"])
def test_the_host_may_run_ahead_of_the_device(make_own, emulated):
    params, twins = make_own(device="cuda:0"), make_own(device="cpu")
    optimizers = SGD(groups_of_one(params)), SGD(groups_of_one(twins))
    emulated.lazy = True
    for number in range(3 * cuda.STAGES):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1.0 / (number + 1)
            optimizer.step()
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), twin.numpy())


def test_the_host_waits_only_when_it_is_a_whole_round_of_stages_ahead(emulated):
    optimizer = Adam(groups_of_one(crowd(Adam, "cuda:0")))
    emulated.lazy = True
    emulated.record = Record()
    for _ in range(cuda.STAGES):
        optimizer.step()
    assert emulated.record.synchronizations == 0
    optimizer.step()
    assert emulated.record.synchronizations == 1


def test_the_device_reads_the_stages_of_a_plan_that_was_replaced(emulated):
    """As when another set of parameters has gradients at each step."""
    params, twins = make("cuda:0", (4, 4)), make("cpu", (4, 4))
    optimizers = SGD(params, lr=1.0), SGD(twins, lr=1.0)
    emulated.lazy = True
    for number in range(9):
        for own, optimizer in zip((params, twins), optimizers, strict=True):
            grads = [param.grad for param in own]
            own[number % 2].grad = None
            optimizer.param_groups[0]["lr"] = 1.0 / (number + 1)
            optimizer.step()
            for param, grad in zip(own, grads, strict=True):
                param.grad = grad
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), twin.numpy())


def replace_plan(optimizer, params, number):
    params[number % 2].grad, params[1 - number % 2].grad = None, params[1 - number % 2].data
    optimizer.step()


@pytest.mark.parametrize("is_captured", [False, True])
def test_tables_stay_while_another_stream_than_their_own_reads_them(emulated, is_captured):
    import cupy

    params = make("cuda:0", (4, 4))
    optimizer = SGD(params, lr=1.0)
    optimizer.step()
    stream = cupy.cuda.Stream(non_blocking=True)
    emulated.lazy = True
    with stream:
        if is_captured:
            stream.begin_capture()
            optimizer.step()
            graph = stream.end_capture()
            optimizer.before_replay()
            graph.launch(stream)
        else:
            optimizer.step()
    fused = optimizer._roster.batches[0].executor._fused
    tables = [weakref.ref(table) for table in (fused._chunks, fused._tensors, fused._table.device)]
    del fused
    optimizer._captured = None
    for number in range(2):
        replace_plan(optimizer, params, number)
        assert all(table() is not None for table in tables)
    stream.synchronize()
    replace_plan(optimizer, params, 2)
    assert all(table() is None for table in tables)


def test_tables_that_only_their_own_stream_reads_go_at_once(emulated):
    params = make("cuda:0", (4, 4))
    optimizer = SGD(params, lr=1.0)
    optimizer.step()
    chunks = weakref.ref(optimizer._roster.batches[0].executor._fused._chunks)
    replace_plan(optimizer, params, 0)
    assert chunks() is None


def test_tables_of_a_stream_that_records_a_graph_stay_until_it_is_done(emulated):
    import cupy

    params, others = make("cuda:0", (4, 4)), make("cuda:0", (4,))
    optimizer, other = SGD(params, lr=1.0), SGD(others, lr=1.0)
    optimizer.step()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        optimizer.step()
        chunks = weakref.ref(optimizer._roster.batches[0].executor._fused._chunks)
    replace_plan(optimizer, params, 0)
    stream.begin_capture()
    cuda._release_retired()
    assert chunks() is not None
    stream.end_capture()
    other.step()
    assert chunks() is None


def test_stages_that_were_read_go_back_to_the_pool(emulated):
    params = make("cuda:0", (4, 4))
    optimizer = SGD(params, lr=1.0)
    for number in range(9):
        set_gradients(params, number)
        params[number % 2].grad = None
        optimizer.step()
    assert len(cuda._retired) <= cuda.STAGES


def test_zero_grad_fills_buffers_of_every_device(emulated):
    params = [*make("cuda:0"), *make("cuda:1")]
    Adam(params).zero_grad(set_to_none=False)
    assert not any(host(param.grad).any() for param in params)


def test_state_moves_with_the_optimizer_and_steps_on_there(emulated):
    params, twins = make("cuda:0"), make("cpu")
    optimizers = Adam(params), Adam(twins)
    for device in ("cuda:1", "cpu", "cuda:0"):
        for own, optimizer in zip((params, twins), optimizers, strict=True):
            set_gradients(own, 5)
            optimizer.step()
        optimizers[0].to(device)
        assert {param.device for param in params} == {device}
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), twin.numpy())
