"""What a step asks of the GPU: one launch, and after the first step nothing else but copies."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.device import staged, transfer
from lucid_gpu.execution import plan
from lucid_gpu.optim import SGD, Adam
from tests import emulation, rules
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
    return np.dtype(np.float32).itemsize * len(plan.row_fields(rule.rule))


def groups_of_one(params):
    """Groups whose scalars differ."""
    return [{"params": [param], "lr": 1 / (2 + i)} for i, param in enumerate(params)]


def crowd(rule, device):
    """Parameters of one element, a group each: one group more than a launch carries scalars of."""
    return make(device, (1,) * (plan.CARRIED_BYTES // row_bytes(rule) + 1))


@every_optimizer
def test_a_step_is_one_launch_for_each_device_and_dtype(rule, emulated):
    """Or two of a rule of two phases."""
    params = [
        *make("cuda:0", (3,) * 40),
        *make("cuda:0", (3,) * 40, "float64"),
        *make("cuda:1", (3,) * 40),
    ]
    optimizer = rule(params)
    for _ in range(3):
        emulated.record = Record()
        optimizer.step()
        launches = sorted(launch.device for launch in emulated.record.launches)
        assert launches == ([0] * 4 + [1] * 2 if rule.sums else [0, 0, 1])


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
    gc.collect()  # what other tests have left may wait for a stream when it goes
    emulated.record = Record()
    for _ in range(staged.STAGES - 1):
        optimizer.step()
    record = emulated.record
    assert (record.compiles, record.allocations, record.synchronizations) == ([], 0, 0)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The folder of compiled kernels, which is not there yet."""
    monkeypatch.setenv("LUCID_GPU_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def one_of_each(device):
    """A contiguous parameter and one that is not."""
    params = make(device, (3,))
    view = transfer.copy(np.ones((4, 6), np.float32), device)[:, ::2]
    params.append(Parameter(view))
    params[-1].grad = view
    return params


def test_a_second_optimizer_neither_compiles_nor_loads(emulated, cache):
    Adam(one_of_each("cuda:0")).step()
    assert len(emulated.record.compiles) == 2
    emulated.record = Record()
    Adam(one_of_each("cuda:0"), lr=0.5).step()
    assert (emulated.record.compiles, emulated.record.loads) == ([], [])


def test_a_second_process_loads_what_the_first_has_compiled(emulated, cache):
    Adam(one_of_each("cuda:0")).step()
    emulation.forget()
    emulated.record = Record()
    Adam(one_of_each("cuda:0")).step()
    assert emulated.record.compiles == []
    assert len(emulated.record.loads) == 2


def test_each_device_has_modules_of_its_own(emulated, cache):
    cache.write_text("nothing can be kept here")
    for device in ("cuda:0", "cuda:1"):
        Adam(one_of_each(device)).step()
    assert len(emulated.record.loads) == 4


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
    optimizer.param_groups[0]["maximize"] = True  # a scalar of every rule
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


def test_groups_that_part_step_on_with_scalars_of_their_own(accelerator):
    """Their rows grow from one to more than a launch carries, and come together again."""
    results = []
    for device in (accelerator, "cpu"):
        params = crowd(SGD, device)
        optimizer = SGD([{"params": [param]} for param in params], lr=0.5, momentum=0.5)
        for number in range(5):
            if number in (1, 2):
                set_gradients(params, number)
            for i, param in enumerate(params[:number]):
                param.grad = None if i % 2 else param.grad
            optimizer.step()
        results.append([param.numpy() for param in params])
    np.testing.assert_array_equal(*results)


def test_step_counts_that_part_grow_the_table(accelerator):
    """One group, whose tensors are of more and more ages."""
    results = []
    for device in (accelerator, "cpu"):
        params = make(device, (1,) * (plan.CARRIED_BYTES // row_bytes(Adam) + 9))
        optimizer = Adam(params, lr=0.5)
        for number, param in enumerate(params):
            optimizer.state[param]["step"] = 0
            kept, param.grad = param.grad, None
            if number % 7 == 0:
                optimizer.step()
            param.grad = kept
        set_gradients(params, 1)
        for age, param in enumerate(params):
            optimizer.state[param]["step"] = age
        for _ in range(2):
            optimizer.step()
        set_gradients(params, 2)
        optimizer.step()
        results.append([param.numpy() for param in params])
    np.testing.assert_array_equal(*results)


def test_tensors_that_fall_apart_while_others_step_outgrow_the_table(accelerator):
    """The table is made anew behind tensors that already step."""
    results = []
    for device in (accelerator, "cpu"):
        params = make(device, (1,) * (plan.CARRIED_BYTES // row_bytes(Adam) + 9))
        optimizer = Adam(params, lr=0.5)
        optimizer.step()
        grads = [param.grad for param in params]
        for number in range(1, len(params)):
            params[number - 1].grad = None
            optimizer.step()
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        for _ in range(2):
            optimizer.step()
        results.append([param.numpy() for param in params])
    np.testing.assert_array_equal(*results)


def test_scalars_of_strided_tensors_leave_room_for_those_of_others(accelerator):
    """There are more rows of scalars than contiguous tensors."""
    params = [Parameter(transfer.copy(np.ones(6, np.float32), accelerator)[::2]) for _ in range(3)]
    params += make(accelerator, (3,))
    before = params[-1].numpy().copy()
    set_gradients(params, 1)
    SGD(groups_of_one(params)).step()
    grad = host(params[-1].grad) * np.float32(1 / 5)
    np.testing.assert_array_equal(params[-1].numpy(), before - grad)


def test_strided_tensors_among_others_take_their_own_scalars_gradients_and_slots(accelerator):
    results = []
    for device in (accelerator, "cpu"):
        views = [transfer.copy(np.ones((4, 6), np.float32), device)[:, ::2] for _ in range(3)]
        params = [*make(device, (3,)), *map(Parameter, views), *make(device, (5,))]
        groups = [{"params": [p], "lr": 1 / (1 + i)} for i, p in enumerate(params)]
        optimizer = SGD(groups, momentum=0.5)
        for number in range(4):
            set_gradients(params, number)
            params[1 + number % 3].grad = None
            optimizer.step()
        for number in (1, 2):
            again = transfer.copy(np.ones((4, 6), np.float32), device)[:, ::2]
            params[number].data = again
        optimizer.step()
        results.append([np.array(param.numpy()).ravel() for param in params])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_strided_gradient_that_goes_is_not_stepped_with_again(accelerator):
    view = transfer.copy(np.ones((4, 6), np.float32), accelerator)[:, ::2]
    param, other = Parameter(view), *make(accelerator, (3,))
    param.grad = transfer.copy(np.ones((4, 3), np.float32), accelerator)
    optimizer = SGD([param, other], lr=0.5)
    optimizer.step()
    param.grad = None
    optimizer.step()
    assert (param.numpy() == 0.5).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_data_that_is_replaced_by_a_strided_array_is_stepped(accelerator, order):
    results = []
    for device in (accelerator, "cpu"):
        params = make(device, (3, 4))
        optimizer = Adam(params, lr=0.5)
        optimizer.step()
        wide = transfer.copy(np.ones((2, 6), np.float32, order=order), device)
        params[0].data = wide[1, ::2]
        for _ in range(2):
            optimizer.step()
        params[0].data = transfer.copy(params[0].data, device)
        optimizer.step()
        results.append([np.array(param.numpy()) for param in params])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


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
