"""The NumPy twin runs in blocks, on threads, and neither can be told from the result."""

from __future__ import annotations

import threading
import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter
from lucid_gpu.execution import blocks, twin
from lucid_gpu.execution.blocks import NumpyStep
from lucid_gpu.execution.plan import TensorGroup
from lucid_gpu.execution.rule import NO_STEPS, FrameScalars, Rule, Storage
from lucid_gpu.execution.threads import thread_count
from lucid_gpu.optim import Adam

LENIENT = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Scalars(NamedTuple):
    amount: float


def counting(at_block=lambda param: None):
    """A rule that adds a constant, and what to do at each block besides."""

    def update(k, variant, /, param, grad, scratch):
        at_block(param)
        assert param.shape == grad.shape == scratch.shape
        np.add(param, k.amount, out=scratch)
        param[...] = scratch

    return Rule(
        kernel="none",
        functor="Count",
        slots=(),
        switches=(),
        Variant=tuple,
        Scalars=Scalars,
        scalars=None,
        first_scalars=None,
        used_slots=lambda variant: (),
        update=update,
        scratch=1,
    )


def count_into(params, rule=None):
    dtype = params[0].dtype
    count = len(params)
    tensors = TensorGroup(
        rule or counting(), Storage(dtype, dtype, ()), params, [()] * count, [()] * count
    )
    step = NumpyStep(tensors)
    step.take_gradients([np.zeros_like(param) for param in params], np.ones(count, np.bool_))
    step.run(
        np.array([(*FrameScalars(), 1.0, NO_STEPS)], dtype),
        np.zeros(count, np.int32),
        thread_count(),
    )


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 8 elements, and scratch that was not made for larger ones."""
    monkeypatch.setattr(twin, "BLOCK_ELEMENTS", 8)
    monkeypatch.setattr(twin, "_local", threading.local())


@pytest.fixture
def two_threads(monkeypatch):
    """Two threads, however little there is to do."""
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", "2")
    monkeypatch.setattr(blocks, "THREAD_ELEMENTS", 1)


@LENIENT
@given(
    shapes=st.lists(st.lists(st.integers(0, 7), max_size=4), min_size=1, max_size=4),
    layout=st.sampled_from(["C", "F", "strided", "reversed"]),
    threads=st.integers(1, 3),
)
def test_every_element_is_updated_once(small_blocks, monkeypatch, shapes, layout, threads):
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", str(threads))
    params = []
    for shape in shapes:
        array = np.zeros([2 * extent for extent in shape], order="F" if layout == "F" else "C")
        if layout == "strided":
            array = array[(..., *(slice(None, None, 2) for _ in shape))]
        elif layout == "reversed":
            array = array[(..., *(slice(None, None, -1) for _ in shape))]
        params.append(array)
    count_into(params)
    assert all((param == 1).all() for param in params)


def test_a_block_stays_in_the_cache(small_blocks):
    sizes = []

    strided = np.zeros((30, 10))[:, ::2]
    count_into(
        [np.zeros(50), strided, np.zeros((3, 3))], counting(lambda param: sizes.append(param.size))
    )
    assert max(sizes) <= 8


def trajectory(seed=3):
    rng = np.random.default_rng(seed)
    shapes = [(300_000,), (7,), (3,), (400, 300)]
    params = [Parameter(rng.normal(size=shape).astype(np.float32)) for shape in shapes]
    params.append(Parameter(np.ones((200, 20), np.float32)[:, ::3]))
    optimizer = Adam(params, weight_decay=0.1, amsgrad=True)
    for _ in range(2):
        for param in params:
            param.grad = rng.normal(size=param.shape).astype(np.float32)
        optimizer.step()
    return np.concatenate([param.data.ravel() for param in params])


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_the_result_does_not_depend_on_threads(threads, monkeypatch):
    results = []
    for count in (1, threads):
        monkeypatch.setenv("LUCID_GPU_NUM_THREADS", str(count))
        results.append(trajectory())
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("elements", [64, 1000, 1 << 20])
def test_the_result_does_not_depend_on_blocks(elements, monkeypatch):
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", "1")
    expected = trajectory()
    monkeypatch.setattr(twin, "BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(twin, "_local", threading.local())
    np.testing.assert_array_equal(trajectory(), expected)


def test_threads_run_at_the_same_time(two_threads, small_blocks):
    meeting = threading.Barrier(2, timeout=30)

    count_into([np.zeros(64)], counting(lambda param: meeting.wait()))


def test_an_error_in_a_worker_surfaces(two_threads, small_blocks):
    caller = threading.current_thread()
    meeting = threading.Barrier(2, timeout=30)

    def fail_elsewhere(param):
        meeting.wait()  # so that each thread has one of the two blocks
        if threading.current_thread() is not caller:
            raise ZeroDivisionError("in a worker")

    with pytest.raises(ZeroDivisionError, match="in a worker"):
        count_into([np.zeros(16)], counting(fail_elsewhere))


def test_overflow_passes_as_it_does_on_a_gpu():
    param = Parameter(np.full(3, 3e38, np.float32))
    param.grad = np.full(3, 3e38, np.float32)
    Adam([param]).step()


def test_a_step_needs_no_memory_beyond_its_scratch(monkeypatch):
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", "1")
    monkeypatch.setattr(twin, "_local", threading.local())
    param = Parameter(np.ones(1 << 22, np.float32))
    param.grad = np.ones_like(param.data)
    optimizer = Adam([param])
    optimizer.state[param] = {
        "step": 0,
        "exp_avg": np.zeros_like(param.data),
        "exp_avg_sq": np.zeros_like(param.data),
    }
    scratch = Adam.scratch * twin.BLOCK_ELEMENTS * param.dtype.itemsize
    tracemalloc.start()
    try:
        optimizer.step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < scratch + (1 << 18)


def test_later_steps_allocate_nothing_that_grows_with_the_parameters(monkeypatch):
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", "1")
    param = Parameter(np.ones(1 << 22, np.float32))
    param.grad = np.ones_like(param.data)
    optimizer = Adam([param])
    optimizer.step()
    tracemalloc.start()
    try:
        optimizer.step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 16
