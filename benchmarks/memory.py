"""How much memory does a step need beside parameters, gradients and state?"""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import contest, peers, workloads
from benchmarks.peers import Task, pytorch
from benchmarks.protocol import Measurement, Options, Report, Unavailable, why_missing
from benchmarks.workloads import ADAM, Workload
from lucid_gpu.device import gpu

NAME = "memory"
QUESTION = "How much memory does a step need beside parameters, gradients and state?"
SHARE = 1

STEPS = 3
MOST_SAMPLES = 3

STATE_BYTES = 8
"""Bytes of Adam's two moments, per parameter."""


def run(options: Options) -> Report:
    """Measure the peak over the first steps of each contender, less what they must keep."""
    on_cpu = options.device == "cpu"
    deadline = time.monotonic() + options.seconds
    work = [
        workloads.one_tensor(25 if on_cpu else 28),
        workloads.resnet50(),
        workloads.tensors_of_1000(5000),
    ]
    names = [
        name for name in peers.names(options.device) if name != "limit" and "graph" not in name
    ]
    peak = _peak_in_process_of_its_own if on_cpu else _peak_on_gpu
    cells = [(workload, name) for workload in work for name in names]
    notes = [
        "peak over the first steps, above parameters, gradients and the two moments",
        "resident memory of a process of its own" if on_cpu else "what the framework's pool gave",
    ]
    if on_cpu:
        notes.append("optax, jit: with what XLA takes to compile the step")
    report = Report(NAME, options.device, [], notes)
    for done, (workload, name) in enumerate(cells):
        seconds = (deadline - time.monotonic()) / (len(cells) - done)
        size = workload.tiny() if options.quick else workload
        report.measurements.append(_measure(peak, name, size, options, seconds))
        options.keep(report)
    return report


def plot(report: Report, figure: Any) -> None:
    """Draw bars of MiB: ours is so near zero that ratios say nothing."""
    work = list(dict.fromkeys(m.workload for m in report.measurements))
    axes = figure.subplots(1, len(work), sharey=True)
    for axis, workload in zip(axes, work, strict=True):
        own = [m for m in report.measurements if m.workload == workload and m.samples]
        bars = axis.barh([m.contender for m in own], [min(m.samples) / 2**20 for m in own])
        axis.bar_label(bars, fmt="%.0f", padding=2)
        axis.set(title=workload, xlabel="MiB")
        axis.margins(x=0.2)
    axes[0].invert_yaxis()


def _measure(
    peak: Callable[[str, Workload, str], int],
    name: str,
    workload: Workload,
    options: Options,
    seconds: float,
) -> Measurement:
    deadline = time.monotonic() + seconds
    row = Measurement(workload.name, name, [], "peak memory", "B", workload.parameters)
    try:
        while not row.samples or (
            len(row.samples) < MOST_SAMPLES and not options.quick and time.monotonic() < deadline
        ):
            row.samples.append(float(peak(name, workload, options.device)))
    except Exception as error:  # noqa: BLE001 - peers fail in many ways, and the others go on
        row.end(why_missing(error))
    return row


def _peak_in_process_of_its_own(name: str, workload: Workload, home: str) -> int:
    if not Path("/proc/self/clear_refs").exists():
        raise Unavailable("the peak of resident memory can be reset on Linux only")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_peak_resident, name, workload, home).result()


def _peak_resident(name: str, workload: Workload, home: str) -> int:
    """Return the growth of this process beyond the state; libraries are loaded before."""
    warm_up = peers.BUILDERS[name](Task(workload.tiny(), ADAM, home))
    warm_up.step()
    task = Task(workload, ADAM, home)
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM to VmRSS
    contender = peers.BUILDERS[name](task)
    for _ in range(STEPS):
        contender.step()
    contender.synchronize()
    return _status("VmHWM") - before - contender.copied - STATE_BYTES * workload.parameters


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _peak_on_gpu(name: str, workload: Workload, home: str) -> int:
    if name.startswith("optax"):
        raise Unavailable("JAX reports the peak of the whole process only")
    task = Task(workload, ADAM, home)
    peak = _peak_of_torch if name.startswith("torch") else _peak_of_cupy
    try:
        return peak(name, task) - STATE_BYTES * workload.parameters
    finally:
        del task
        contest.release(home)


def _peak_of_torch(name: str, task: Task) -> int:
    torch = pytorch.load(task.device)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _take_steps(name, task)
    return int(torch.cuda.max_memory_allocated() - before)


def _peak_of_cupy(name: str, task: Task) -> int:
    class Peak(gpu.cupy().cuda.MemoryHook):  # type: ignore[misc]
        name = "peak"
        live = highest = 0

        def malloc_postprocess(self, **event: Any) -> None:
            self.live += event["mem_size"]
            self.highest = max(self.highest, self.live)

        def free_postprocess(self, **event: Any) -> None:
            self.live -= event["mem_size"]

    with Peak() as peak:
        _take_steps(name, task)
    return int(peak.highest)


def _take_steps(name: str, task: Task) -> None:
    contender = peers.BUILDERS[name](task)
    for _ in range(STEPS):
        contender.step()
    contender.synchronize()


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main([NAME, *sys.argv[1:]]))
