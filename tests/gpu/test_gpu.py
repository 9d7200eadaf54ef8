"""What only a real GPU can say: what it allocates, waits for, and holds in its registers."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.device import gpu, keep, kernels, staged, transfer
from lucid_gpu.execution import cuda, plan, streamed
from lucid_gpu.optim import SGD, Adam
from tests import rules
from tests.device.test_keep import LET_GO

pytestmark = pytest.mark.gpu

SPIN = """
extern "C" __global__ void spin(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {}
}
"""


@pytest.fixture
def cp():
    """CuPy, with a GPU."""
    if not gpu.count():
        pytest.skip(gpu.why_unavailable())
    return gpu.cupy()


@pytest.fixture
def spin(cp):
    """What keeps the current stream busy for a second."""
    kernel = cp.RawKernel(SPIN, "spin")
    kernel((1,), (1,), (np.int64(1),))
    cp.cuda.Device().synchronize()
    return lambda: kernel((1,), (1,), (np.int64(2_000_000_000),))


@pytest.fixture
def busy(cp, spin):
    """What keeps the device busy for a second, on a stream that is current."""
    with cp.cuda.Stream(non_blocking=True):
        yield spin


def make(cp, sizes=(5, 4099), dtype=np.float32):
    params = []
    for number, size in enumerate(sizes):
        values = np.linspace(-1, 1, size).astype(dtype)
        params.append(Parameter(values, device="cuda:0"))
        params[-1].grad = transfer.copy(values * (number + 1), "cuda:0")
    return params


def test_a_step_is_one_launch_for_each_dtype(cp, monkeypatch):
    launches = []

    class Counted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __call__(self, *arguments, **options):
            launches.append(arguments)
            self.kernel(*arguments, **options)

    compiled = cuda._compiled
    monkeypatch.setattr(cuda, "_compiled", lambda *key: Counted(compiled(*key)))
    optimizer = Adam([*make(cp, (3,) * 50), *make(cp, (3,) * 50, np.float64)])
    for _ in range(3):
        launches.clear()
        optimizer.step()
        assert len(launches) == 2


def test_later_steps_allocate_nothing_on_the_device(cp):
    class Mallocs(cp.cuda.MemoryHook):
        name = "mallocs"
        count = 0

        def malloc_preprocess(self, **event):
            self.count += 1

    optimizer = Adam(make(cp, (1000,) * 20))
    optimizer.step()
    pool = cp.get_default_memory_pool()
    before = pool.used_bytes(), pool.total_bytes()
    with Mallocs() as mallocs:
        for number in range(3 * staged.STAGES):
            optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
            optimizer.step()
    assert mallocs.count == 0
    assert (pool.used_bytes(), pool.total_bytes()) == before


def test_later_steps_compile_nothing(cp, monkeypatch):
    optimizer = Adam(make(cp))
    optimizer.step()
    monkeypatch.setattr(cp, "RawModule", None)
    monkeypatch.setattr(cp.cuda.nvrtc, "createProgram", None)
    optimizer.step()


@pytest.fixture(params=["carried", "table"])
def _scalars(request, monkeypatch):
    """Have launches carry their scalars, or read them from a table."""
    if request.param == "table":
        monkeypatch.setattr(plan, "CARRIED_BYTES", 0)


@pytest.mark.usefixtures("_scalars")
def test_a_step_does_not_wait_for_the_device(cp, busy):
    optimizer = Adam(make(cp))
    optimizer.step()
    busy()
    for number in range(staged.STAGES // 2):
        optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
        optimizer.step()
    assert not cp.cuda.get_current_stream().done
    cp.cuda.get_current_stream().synchronize()


@pytest.mark.usefixtures("_scalars")
def test_a_host_that_runs_ahead_overwrites_nothing(cp, busy):
    params = make(cp)
    twins = [Parameter(param.numpy().copy()) for param in params]
    for twin, param in zip(twins, params, strict=True):
        twin.grad = transfer.to(param.grad, "cpu")
    optimizers = Adam(params), Adam(twins)
    busy()
    for number in range(3 * staged.STAGES):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
            optimizer.step()
    for twin, param in zip(twins, params, strict=True):
        np.testing.assert_array_equal(param.numpy(), twin.data)


def test_plans_that_are_replaced_while_the_device_is_behind_are_read_in_time(cp, busy):
    params = make(cp, (64, 64))
    twins = [Parameter(param.numpy().copy()) for param in params]
    grads = [[param.grad for param in params], [transfer.to(p.grad, "cpu") for p in params]]
    optimizers = SGD(params, lr=1.0), SGD(twins, lr=1.0)
    busy()
    for number in range(12):
        for own, given, optimizer in zip((params, twins), grads, optimizers, strict=True):
            for position, param in enumerate(own):
                param.grad = given[position] if position == number % 2 else None
            optimizer.param_groups[0]["lr"] = 1 / (number + 1)
            optimizer.step()
    for twin, param in zip(twins, params, strict=True):
        np.testing.assert_array_equal(param.numpy(), twin.data)


@pytest.mark.parametrize("rule", rules.rules(), ids=lambda rule: rule.__name__)
def test_float_kernels_of_the_default_options_spill_nothing(cp, rule):
    variant = next(iter(rules.option_sets(rule))).variant
    kernel = cuda._compiled(rule.rule, rules.storage(rule, "float32"), (variant,))
    assert kernel.local_size_bytes == 0
    assert kernel.max_threads_per_block >= plan.THREADS


def test_arrays_larger_than_the_staging_buffers_go_there_and_back(cp):
    array = np.arange(5 * transfer.STAGING_BYTES // 8 + 3, dtype=np.float32)
    there = transfer.copy(array, "cuda:0")
    np.testing.assert_array_equal(cp.asnumpy(there), array)
    np.testing.assert_array_equal(transfer.copy(there, "cpu"), array)


def test_tensors_of_more_than_2_to_the_31_elements(cp):
    size = 2**31 + 5
    needed = 2 * 4 * size + (1 << 30)
    free = cp.cuda.Device(0).mem_info[0]
    if free < needed:
        pytest.skip(f"needs {needed >> 30} GiB of GPU memory, {free >> 30} GiB are free")
    param = Parameter(cp.zeros(size, np.float32))
    param.grad = cp.ones(size, np.float32)
    SGD([param], lr=0.5).step()
    assert float(param.data.min()) == float(param.data.max()) == -0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", rules.rules(), ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("step", [1, 2], ids=["contiguous", "strided"])
def test_numbers_below_the_normal_range_are_kept_as_on_the_cpu(cp, dtype, rule, step):
    values = (np.arange(1, 402) * 97 % 401 * np.finfo(dtype).smallest_subnormal).astype(dtype)
    for variant, (options, *_) in rules.option_sets(rule).items():
        params = [Parameter(transfer.copy(values, device)[::step]) for device in ("cuda:0", "cpu")]
        for param in params:
            param.grad = transfer.copy(values[::-1].copy(), param.device)[::step]
            optimizer = rule([{**options, "params": [param]}])
            for _ in range(3):
                optimizer.step()
        there, here = (param.numpy() for param in params)
        np.testing.assert_array_equal(there, here, str(variant))


def test_a_number_below_the_normal_range_stays_what_it_is(cp):
    values = np.array([np.finfo(np.float32).tiny / 2], np.float32)
    param = Parameter(values, device="cuda:0")
    param.grad = param.data * 0
    SGD([param], lr=1.0).step()
    assert param.numpy()[0] == values[0] > 0


def test_a_second_process_compiles_nothing(cp, monkeypatch, tmp_path):
    monkeypatch.setenv("LUCID_GPU_CACHE_DIR", str(tmp_path))
    program = (
        "import cupy, sys\n"
        "from lucid_gpu import Parameter\n"
        "from lucid_gpu.device import kernels\n"
        "from lucid_gpu.optim import Adam\n"
        "params = Parameter(cupy.zeros((4, 6), 'f4')[:, ::2]), Parameter(cupy.zeros(5, 'f4'))\n"
        "for param in params: param.grad = param.data\n"
        "if sys.argv[1:]: kernels.compiled = None\n"
        "Adam(params).step()\n"
    )
    for arguments in ([], ["again"]):
        subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    assert len([*tmp_path.glob("*.cubin")]) == 2


def test_the_driver_takes_a_cubin_from_memory_as_from_a_file(cp):
    text = 'extern "C" __global__ void idle() {}'
    image = kernels.compiled(text, ["idle"], f"sm_{cp.cuda.Device().compute_capability}")
    module = cp.cuda.function.Module()
    module.load(image.code)
    module.get_function(image.lowered["idle"])


def test_two_gpus_step_together(cp):
    if gpu.count() < 2:
        pytest.skip("needs two GPUs")
    values = np.linspace(-1, 1, 4099).astype(np.float32)
    params = [Parameter(values, device=name) for name in ("cuda:0", "cuda:1")]
    for param in params:
        param.grad = transfer.copy(values, param.device)
    optimizer = Adam(params)
    optimizer.step()
    np.testing.assert_array_equal(params[0].numpy(), params[1].numpy())
    optimizer.zero_grad(set_to_none=False)
    moved = transfer.copy(params[0].data[::-2], "cuda:1")
    np.testing.assert_array_equal(transfer.to(moved, "cpu"), params[0].numpy()[::-2])
    optimizer.to("cuda:1")
    assert {param.device for param in params} == {"cuda:1"}


def test_offload_gives_the_memory_of_the_state_back_and_reload_takes_it_again(cp):
    optimizer = Adam(make(cp, (1 << 20,) * 4))
    optimizer.step()
    pool = cp.get_default_memory_pool()
    before, state = pool.used_bytes(), 2 * 4 * (4 << 20)
    for _ in range(2):
        optimizer.offload()
        cp.cuda.Device().synchronize()
        deadline = time.monotonic() + 10
        while pool.used_bytes() > before - state and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pool.used_bytes() <= before - state
        optimizer.reload(block=True)
        optimizer.step()
        assert pool.used_bytes() <= before + (1 << 20)


def test_offload_and_reload_wait_for_nothing_on_the_device(cp, busy):
    optimizer = Adam(make(cp, (1 << 20,)))
    optimizer.step()
    optimizer.offload(block=True)
    optimizer.reload(block=True)
    busy()
    optimizer.offload()
    assert not cp.cuda.get_current_stream().done
    assert optimizer.state_device == "host"
    optimizer.reload()
    optimizer.step()
    cp.cuda.get_current_stream().synchronize()


def test_a_step_with_its_state_on_the_host_needs_a_few_windows_of_device_memory(cp):
    optimizer = Adam(make(cp, (1 << 26,)), state_device="host")
    pool = cp.get_default_memory_pool()
    before = pool.used_bytes()
    for _ in range(2):
        optimizer.step()
        grown = pool.used_bytes() - before
        assert grown < streamed.WINDOWS * streamed.WINDOW_BYTES + (4 << 20)


@pytest.mark.parametrize("let_go", [own for own, _ in LET_GO.values()], ids=LET_GO)
@pytest.mark.parametrize("is_strided", [False, True])
def test_memory_that_a_stream_uses_is_given_to_nobody_else(cp, spin, let_go, is_strided):
    """CuPy's pool takes it back for the stream it was made on, which is ahead."""
    if let_go is LET_GO["to another device"][0] and gpu.count() < 2:
        pytest.skip("needs two GPUs")
    size = 1 << 16
    params = make(cp, (size, size))
    if is_strided:
        for param in params:
            grad, param.grad = param.grad, None
            param.grad = cp.repeat(grad, 2)[::2]
    optimizer = Adam(params)
    optimizer.step()
    del params
    stream = cp.cuda.Stream(non_blocking=True)
    cp.cuda.Device().synchronize()
    with stream:
        spin()
        optimizer.step()
    let_go(optimizer)
    others = [cp.full(size, 7, np.float32) for _ in range(12)]
    cp.cuda.get_current_stream().synchronize()
    stream.synchronize()
    assert all((cp.asnumpy(other) == 7).all() for other in others)


def step_beside_a_twin(cp):
    """Take a first step on a GPU and on the CPU, and compare them."""
    params, twins = make(cp), [Parameter(param.numpy()) for param in make(cp)]
    for param, twin in zip(params, twins, strict=True):
        twin.grad = transfer.to(param.grad, "cpu")
    for own in (params, twins):
        Adam(own).step()
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), twin.data)


def test_a_first_step_is_possible_while_another_stream_records_a_graph(cp):
    """Although memory waits for the legacy stream, which takes no work meanwhile."""
    maker, recording = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream()
    with maker:
        gone = Adam(make(cp))
        gone.step()
        maker.synchronize()
    gone.step()
    cp.cuda.Device().synchronize()
    recording.begin_capture()
    try:
        del gone
        with maker:
            step_beside_a_twin(cp)
        assert keep._kept
    finally:
        recording.end_capture()
    keep.look()
    deadline = time.monotonic() + 10
    while keep._kept and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not keep._kept
