"""The questions on an emulated GPU: no number means anything, but every line of them runs."""

import sys
import types

import numpy as np
import pytest

from benchmarks import checkpoint, clocks, host, kernel, memory, offload, peers, step
from benchmarks.clocks import DeviceClock
from benchmarks.peers import Task
from benchmarks.protocol import Options
from benchmarks.workloads import ADAM, MOMENTUM, Workload
from tests.emulation import arrays
from tests.emulation.elementwise import ElementwiseKernel

QUICK = Options("cuda:0", quick=True, seconds=0.5)
RUN_HERE = {"ours", "array expressions", "ElementwiseKernel", "limit"}


class MemoryHook:
    """What CuPy calls at each allocation; here, with one of 4096 bytes that lives on."""

    def __enter__(self):
        self.malloc_postprocess(device_id=0, size=4000, mem_size=4096, mem_ptr=1, pmem_id=1)
        self.malloc_postprocess(device_id=0, size=400, mem_size=512, mem_ptr=2, pmem_id=2)
        self.free_postprocess(device_id=0, mem_size=512, mem_ptr=2, pmem_id=2)
        return self

    def __exit__(self, *error):
        pass


class Generator:
    def __init__(self, seed):
        self._random = np.random.default_rng(seed)

    def standard_normal(self, shape, dtype):
        return sys.modules["cupy"].array(self._random.standard_normal(shape, dtype))


@pytest.fixture
def gpu(emulated, monkeypatch):
    """Add to the emulation what only benchmarks use, and note what is timed."""
    cupy = sys.modules["cupy"]
    machine = types.SimpleNamespace(spins=[], copied=[], freed=0)

    def free_all_blocks():
        machine.freed += 1

    def copy_from_device_async(target, source, size, stream):
        assert max(target.ptr + size - target._end, source.ptr + size - source._end) <= 0
        machine.copied.append(size)

    cupy.ElementwiseKernel = ElementwiseKernel
    cupy.random = types.SimpleNamespace(default_rng=Generator)
    cupy.RawKernel = lambda code, name: lambda grid, block, args: machine.spins.append(*args)
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_all_blocks=free_all_blocks)
    cupy.cuda.MemoryHook = MemoryHook
    cupy.cuda.get_elapsed_time = lambda start, end: 8.0
    cupy.cuda.runtime.deviceSynchronize = lambda: cupy.cuda.Device().synchronize()
    pointer = arrays.MemoryPointer
    monkeypatch.setattr(pointer, "copy_from_device_async", copy_from_device_async, raising=False)
    monkeypatch.setattr("benchmarks.peers.arrays.SMALLEST_TRAFFIC", 0)
    return machine


def samples(report, metric):
    return {m.contender: m.samples for m in report.measurements if m.metric == metric and m.samples}


def test_step_measures_wall_and_device_time_and_reports_the_peers_of_the_largest_model(gpu):
    report = step.run(QUICK)
    assert set(samples(report, "wall")) == RUN_HERE
    assert samples(report, "device") == {name: [0.002, 0.002] for name in RUN_HERE}
    assert gpu.spins
    assert gpu.freed
    largest = [m for m in report.measurements if m.workload == "GPT-2 1.5B"]
    assert {m.contender for m in largest} == set(peers.names("cuda:0"))
    assert {m.contender for m in largest if m.samples} == RUN_HERE - {"array expressions"}


def test_host_times_steps_without_waiting_for_the_device(gpu):
    assert set(samples(host.run(QUICK), "gradients move")) == {"ours"}


def test_memory_is_the_peak_of_the_pool_less_the_state(gpu):
    report = memory.run(QUICK)
    first = next(m for m in report.measurements if m.contender == "ours")
    assert first.samples == [4096 + 512 - 8 * first.parameters]


def test_the_device_spins_until_the_host_has_launched_all(gpu):
    task = Task(Workload("", ((5,),)), ADAM, "cuda:0")
    clock = DeviceClock(peers.BUILDERS["ours"](task))
    assert clock() == 0.002
    assert gpu.spins[0] > 1e9 * clock._host_seconds


def test_a_step_whose_launches_do_not_fit_into_the_queue_is_timed_alone(gpu, monkeypatch):
    monkeypatch.setattr(clocks, "LONGEST_SPIN", 0.0)
    clock = DeviceClock(peers.BUILDERS["ours"](Task(Workload("", ((5,),)), ADAM, "cuda:0")))
    assert clock() == 0.008


@pytest.mark.parametrize("rule", [ADAM, MOMENTUM], ids=lambda rule: rule.name)
def test_one_kernel_per_tensor_does_what_ours_does(gpu, rule):
    def stepped(name):
        task = Task(Workload("", ((3, 4), (5,))), rule, "cuda:0")
        contender = peers.BUILDERS[name](task)
        for _ in range(3):
            contender.step()
        return np.concatenate([param.get().ravel() for param in task.params])

    np.testing.assert_allclose(stepped("ElementwiseKernel"), stepped("ours"), rtol=1e-4, atol=1e-6)


def test_the_limit_copies_half_of_what_a_step_moves(gpu, monkeypatch):
    monkeypatch.setattr("benchmarks.peers.arrays.LARGEST_COPY", 100)
    task = Task(Workload("", ((9,),)), ADAM, "cuda:0")
    peers.BUILDERS["limit"](task).step()
    assert gpu.copied == [100, 28 * 9 // 2 - 100]


def test_offload_measures_both_ways_steps_and_what_other_work_notices(gpu):
    report = offload.run(QUICK)
    for metric in (offload.OFFLOAD, offload.RELOAD, offload.STEP, offload.BESIDE):
        assert set(samples(report, metric)) == {"ours", "limit"}
    assert {m.contender for m in report.measurements if m.missing} == {"torch, by hand"}
    step_there = next(m for m in report.measurements if m.metric == offload.STEP)
    assert step_there.traffic == 16 * step_there.parameters


def test_offload_goes_on_without_a_peer_that_fails_while_it_is_measured(gpu, monkeypatch):
    def fail(contender):
        raise MemoryError("no more")

    monkeypatch.setattr(offload._Limit, "step", fail)
    report = offload.run(QUICK)
    assert set(samples(report, offload.STEP)) == {"ours"}
    missing = {m.contender: m.missing for m in report.measurements if m.metric == offload.STEP}
    assert missing["limit"] == "MemoryError: no more"
    assert set(samples(report, offload.OFFLOAD)) == {"ours", "limit"}


def test_a_step_beside_a_background_save_is_waited_for(gpu, monkeypatch, tmp_path):
    waits = []
    monkeypatch.setattr(checkpoint, "_wait", waits.append)
    rows = list(checkpoint._training(tmp_path, QUICK))
    assert [row.metric for row in rows] == ["wall", "wall", "until it returns"]
    assert len(waits) > 2 * len(rows[0].samples)
    assert set(waits) == {"cuda:0"}


def test_kernel_compares_all_variations(gpu):
    report = kernel.run(QUICK)
    assert set(samples(report, "device")) == {*kernel.VARIATIONS, "limit"}
    assert not any(m.missing for m in report.measurements)
    assert "ours, plain loads, Adam: 32 registers, 0 bytes spilled" in report.notes


def test_a_variation_of_the_kernel_steps_alike(gpu):
    def stepped(variation):
        task = Task(Workload("", ((3, 4), (9001,))), ADAM, "cuda:0")
        contender = kernel.Varied(task, variation, {}, "")
        contender.step()
        return np.concatenate([param.get().ravel() for param in task.params])

    for variation in kernel.VARIATIONS.values():
        np.testing.assert_array_equal(stepped(variation), stepped(kernel.Variation()))
