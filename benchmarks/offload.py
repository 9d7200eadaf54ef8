"""How fast does the state go to the host and back, and how fast is a step meanwhile?"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks import contest, workloads
from benchmarks.memory import STATE_BYTES
from benchmarks.peers import Task, pytorch
from benchmarks.peers.arrays import LARGEST_COPY, parts
from benchmarks.peers.task import LR
from benchmarks.protocol import (
    LIMIT,
    OURS,
    Measurement,
    Options,
    Report,
    Unavailable,
    why_missing,
)
from benchmarks.timing import Sample, clock, interleaved
from benchmarks.workloads import ADAM, Workload
from lucid_gpu import Parameter
from lucid_gpu.device import gpu, transfer
from lucid_gpu.optim import Adam

NAME = "offload"
QUESTION = "How fast does the state go to the host and back, and how fast is a step meanwhile?"
SHARE = 2
PINS = True
"""It pins tens of GiB of host memory."""

MOST_PEER_PARAMETERS = 500_000_000
"""Beyond, a peer is left out: the largest model would pin 60 GB and take the time of all others."""

TOO_LARGE = "left out: it would pin as much host memory again"

STEPS = 3
"""Steps of a sample."""

OFFLOAD, RELOAD, STEP = "offload", "reload", "step, state on the host"
BESIDE = "other work beside offload and reload"

FASTER = 80
"""About how many times the bandwidth of a link to the host device memory has."""

CROSSINGS = {OFFLOAD: 1, RELOAD: 1, STEP: 2}
"""How often the state crosses the link."""


def run(options: Options) -> Report:
    """Time offload, reload, steps with the state on the host, and what other work notices."""
    if options.device == "cpu":
        raise Unavailable("the state of parameters on a CPU is on the host already")
    deadline = time.monotonic() + options.seconds
    work = [
        workloads.gpt2("GPT-2 1.5B", 48, 1600),
        workloads.one_tensor(28),
        workloads.gpt2("GPT-2 124M", 12, 768),
        workloads.resnet50(),
    ]
    notes = [
        f"limit of {OFFLOAD} and {RELOAD}: copies of as many bytes in large pieces, pinned memory",
        f"limit of {STEP}: the same in both directions at once",
        f"limit of {BESIDE}: the same work alone; it is a series of copies on the device",
        "pinned memory is allocated before the first sample",
    ]
    report = Report(NAME, options.device, [], notes)
    for done, workload in enumerate(work):
        seconds = (deadline - time.monotonic()) / (len(work) - done)
        try:
            report.measurements += _compare(workload, options, seconds)
        except Exception as error:  # noqa: BLE001 - not even the arrays could be made
            report.measurements.append(
                Measurement(workload.name, OURS, [], missing=why_missing(error))
            )
        contest.release(options.device)
        options.keep(report)
    return report


def _compare(workload: Workload, options: Options, seconds: float) -> Iterator[Measurement]:
    deadline = time.monotonic() + seconds
    size = workload.tiny() if options.quick else workload
    takers: dict[tuple[str, str], Sample] = {}
    failures: dict[tuple[str, str], str] = {}
    with gpu.on(options.device):
        task = Task(size, ADAM, options.device)
        for contender in (_Limit, _Ours, _Torch):
            if contender is _Torch and size.parameters > MOST_PEER_PARAMETERS:
                yield Measurement(workload.name, contender.name, [], missing=TOO_LARGE)
                continue
            try:
                takers |= contender(task).samples()
            except Exception as error:  # noqa: BLE001 - peers fail in many ways, the others go on
                missing = why_missing(error)
                yield Measurement(workload.name, contender.name, [], missing=missing)
        samples = interleaved(
            takers,
            deadline - time.monotonic(),
            at_least=2 if options.quick else 3,
            at_most=2 if options.quick else 20,
            failures=failures,
        )
    for (name, metric), taken in samples.items():
        traffic = STATE_BYTES * size.parameters * CROSSINGS.get(metric, 0)
        row = Measurement(workload.name, name, taken, metric, "s", size.parameters, traffic)
        if (name, metric) in failures:
            row.end(failures[name, metric])
        yield row


class _Contender:
    """Something that moves the state of a task's parameters."""

    name = ""

    def __init__(self, task: Task) -> None:
        self._task = task

    def samples(self) -> dict[tuple[str, str], Sample]:
        """Return what takes a sample of each metric."""
        metrics = {OFFLOAD: self.offload, RELOAD: self.reload, STEP: self.step}
        return {(self.name, metric): sample for metric, sample in metrics.items()}

    def offload(self) -> float:
        """Return the seconds that the way to the host takes."""
        raise NotImplementedError

    def reload(self) -> float:
        """Return the seconds that the way back takes."""
        raise NotImplementedError

    def step(self) -> float:
        """Return the seconds that a step takes while the state is on the host."""
        raise NotImplementedError

    def _timed(self, launch: Any) -> float:
        self._synchronize()
        return clock(lambda: (launch(), self._synchronize()))

    def _synchronize(self) -> None:
        self._task.xp.cuda.runtime.deviceSynchronize()


class _Limit(_Contender):
    """Plain copies between pinned and device memory."""

    name = LIMIT

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        cp = task.xp
        self._parts = parts(STATE_BYTES * task.workload.parameters)
        size = max(self._parts)
        self._hosts = [transfer.pinned_block(size) for _ in range(2)]
        self._arrays = [cp.empty(size, np.uint8) for _ in range(2)]
        self._streams = [cp.cuda.Stream(non_blocking=True) for _ in range(2)]
        self._work = _Work(task)

    def samples(self) -> dict[tuple[str, str], Sample]:
        """Return what takes a sample of each metric."""
        return {**super().samples(), (LIMIT, BESIDE): self._alone}

    def offload(self) -> float:
        """Copy to the host."""
        return self._timed(self._down)

    def reload(self) -> float:
        """Copy to the device."""
        return self._timed(self._up)

    def step(self) -> float:
        """Copy in both directions at once."""
        return self._timed(lambda: (self._down(), self._up()))

    def _alone(self) -> float:
        """Time other work with nothing beside it."""
        return self._timed(lambda: (self._work.launch(), self._work.launch()))

    def _down(self) -> None:
        host, array, stream = self._hosts[0], self._arrays[0], self._streams[0]
        for nbytes in self._parts:
            array.data.copy_to_host_async(host.ctypes.data, nbytes, stream)

    def _up(self) -> None:
        host, array, stream = self._hosts[1], self._arrays[1], self._streams[1]
        for nbytes in self._parts:
            array.data.copy_from_host_async(host.ctypes.data, nbytes, stream)


class _Ours(_Contender):
    """This package."""

    name = OURS

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        params = [Parameter(array) for array in task.params]
        for param, grad in zip(params, task.grads[0], strict=True):
            param.grad = grad
        self._optimizer = Adam(params, lr=LR)
        self._optimizer.step()
        self._optimizer.offload(block=True)
        self._work = _Work(task)

    def samples(self) -> dict[tuple[str, str], Sample]:
        """Return what takes a sample of each metric."""
        return {**super().samples(), (OURS, BESIDE): self._beside}

    def offload(self) -> float:
        """Have the optimizer offload its state."""
        self._optimizer.reload(block=True)
        return self._timed(lambda: self._optimizer.offload(block=True))

    def reload(self) -> float:
        """Have the optimizer reload its state."""
        self._optimizer.offload(block=True)
        return self._timed(lambda: self._optimizer.reload(block=True))

    def step(self) -> float:
        """Take steps after offload()."""
        self._optimizer.offload(block=True)
        self._optimizer.step()

        def launch() -> None:
            for _ in range(STEPS):
                self._optimizer.step()

        return self._timed(launch) / STEPS

    def _beside(self) -> float:
        """Time other work while the state goes to the host, and more while it comes back."""
        self._optimizer.reload(block=True)
        stream = self._task.xp.cuda.get_current_stream()

        def launch() -> None:
            self._optimizer.offload()
            self._work.launch()
            self._optimizer.reload()
            self._work.launch()
            stream.synchronize()

        self._synchronize()
        return clock(launch)


class _Torch(_Contender):
    """What one writes with PyTorch: copies tensor by tensor, and steps on the CPU."""

    name = "torch, by hand"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._torch = torch = pytorch.load(task.device)
        params = [torch.from_dlpack(array) for array in task.params]
        self._params = params
        self._grads = [torch.from_dlpack(array) for array in task.grads[0]]
        self._state = [torch.zeros_like(param) for param in params for _ in range(2)]
        pinned = partial(torch.empty_like, device="cpu", pin_memory=True)
        self._hosts, self._own = [*map(pinned, self._state)], [*map(pinned, params)]
        self._copy(self._own, params)
        for own in self._own:
            own.grad = pinned(own)
        self._optimizer = torch.optim.Adam(self._own, lr=LR, fused=True)

    def offload(self) -> float:
        """Copy each slot to pinned memory."""
        return self._timed(lambda: self._copy(self._hosts, self._state))

    def reload(self) -> float:
        """Copy each slot to the device."""
        return self._timed(lambda: self._copy(self._state, self._hosts))

    def step(self) -> float:
        """Bring gradients to the host, step there with ``fused``, and bring parameters back."""

        def launch() -> None:
            self._copy([own.grad for own in self._own], self._grads)
            self._synchronize()
            self._optimizer.step()
            self._copy(self._params, self._own)

        return self._timed(launch)

    @staticmethod
    def _copy(targets: list[Any], sources: list[Any]) -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source, non_blocking=True)


class _Work:
    """Copies on the device for about as long as the state takes to the host."""

    def __init__(self, task: Task) -> None:
        self._task = task
        nbytes = STATE_BYTES * task.workload.parameters
        size = max(1, min(nbytes, LARGEST_COPY) // 2)
        self._source, self._target = (task.xp.zeros(size, np.uint8) for _ in range(2))
        self._copies = -(-FASTER * nbytes // (2 * size))

    def launch(self) -> None:
        """Launch the copies on the current stream."""
        stream = self._task.xp.cuda.get_current_stream()
        for _ in range(self._copies):
            nbytes = self._source.nbytes
            self._target.data.copy_from_device_async(self._source.data, nbytes, stream)


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main([NAME, *sys.argv[1:]]))
