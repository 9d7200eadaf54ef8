"""One piece of work, done by every contender in turn."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks import peers
from benchmarks.clocks import Clock
from benchmarks.peers import Contender, Task
from benchmarks.protocol import OURS, Measurement, Options, Unavailable
from benchmarks.timing import Sample, interleaved
from benchmarks.workloads import Rule, Workload
from lucid_gpu import device

FAILURES = (RuntimeError, MemoryError, ValueError, TypeError, ImportError, AttributeError)
"""What a peer of another version, or one that runs out of memory, may raise."""


@dataclass(frozen=True)
class Contest:
    """Who does what.

    Attributes:
        label: what the table calls the work.
        workload: the tensors.
        rule: the optimizer.
        contenders: by the names of ``builders``.
        skipped: contenders that are not tried, and why.
        sets: how many sets of gradients there are.
        builders: what makes each contender.
    """

    label: str
    workload: Workload
    rule: Rule
    contenders: Sequence[str]
    skipped: dict[str, str] = field(default_factory=dict)
    sets: int = 1
    builders: Mapping[str, Callable[[Task], Contender]] = field(
        default_factory=lambda: peers.BUILDERS
    )


Samplers = Callable[[str, Contender], dict[str, Sample]]
"""Given a contender and its name, returns what takes a sample of each metric."""


def hold(
    contest: Contest, options: Options, seconds: float, samplers: Samplers
) -> list[Measurement]:
    """Return the measurements of all contenders, the missing ones included.

    Args:
        contest: the work.
        options: those of the question.
        seconds: how long it may take, set-up included.
        samplers: what to measure.
    """
    deadline = time.monotonic() + seconds
    workload = contest.workload.tiny() if options.quick else contest.workload
    task = Task(workload, contest.rule, options.device, contest.sets)
    result: list[Measurement] = []
    takers: dict[tuple[str, str], Sample] = {}
    failed: dict[str, str] = {}
    for name in contest.contenders:
        if name in contest.skipped:
            missing = contest.skipped[name]
            result.append(Measurement(contest.label, name, [], missing=missing))
            continue
        try:
            own = samplers(name, contest.builders[name](task))
        except Unavailable as error:
            result.append(Measurement(contest.label, name, [], missing=why_missing(error)))
        except FAILURES as error:
            if name == OURS:
                raise
            result.append(Measurement(contest.label, name, [], missing=why_missing(error)))
        else:
            if name != OURS:
                own = {metric: guarded(name, sample, failed) for metric, sample in own.items()}
            takers |= {(name, metric): sample for metric, sample in own.items()}
    samples = interleaved(
        takers,
        deadline - time.monotonic(),
        at_least=2 if options.quick else 3,
        at_most=2 if options.quick else 30,
    )
    result += [Measurement(contest.label, name, [], missing=why) for name, why in failed.items()]
    result += [
        Measurement(
            contest.label,
            name,
            taken,
            metric=metric,
            parameters=workload.parameters,
            traffic=task.traffic,
            note=workload.note,
        )
        for (name, metric), taken in samples.items()
        if name not in failed
    ]
    del task, takers
    release(options.device)
    return result


def guarded(name: str, sample: Sample, failed: dict[str, str]) -> Sample:
    """Return what takes samples of a peer until it fails, and from then on NaN.

    Args:
        name: the peer.
        sample: takes a sample.
        failed: for each peer that failed, why; shared by all its samples.
    """

    def take() -> float:
        if name not in failed:
            try:
                return sample()
            except FAILURES as error:
                failed[name] = why_missing(error)
        return math.nan

    return take


def hold_all(
    contests: Sequence[Contest], options: Options, samplers: Samplers
) -> list[Measurement]:
    """Hold several contests, each within its part of what is left of the time."""
    deadline = time.monotonic() + options.seconds
    result: list[Measurement] = []
    for done, contest in enumerate(contests):
        seconds = (deadline - time.monotonic()) / (len(contests) - done)
        result += hold(contest, options, seconds, samplers)
    return result


def why_missing(error: Exception) -> str:
    """Return in one line why a contender has no samples."""
    if isinstance(error, Unavailable):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


def wall(name: str, contender: Contender) -> dict[str, Sample]:  # noqa: ARG001 - as others
    """Measure wall time only."""
    return {"wall": Clock(contender).wall}


def release(home: str) -> None:
    """Give memory that nothing uses any more back, so that the next contest finds it."""
    gc.collect()
    if home == "cpu":
        return
    device.cupy().get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
