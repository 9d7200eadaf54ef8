"""One piece of work, done by every contender in turn."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks import peers
from benchmarks.clocks import Clock
from benchmarks.peers import Contender, Task
from benchmarks.protocol import Measurement, Options, Report, why_missing
from benchmarks.timing import Sample, interleaved
from benchmarks.workloads import Rule, Workload
from lucid_gpu.device import gpu


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
        is_bound_by_memory: whether the bytes that move say how long it should take.
        builders: what makes each contender.
    """

    label: str
    workload: Workload
    rule: Rule
    contenders: Sequence[str]
    skipped: dict[str, str] = field(default_factory=dict)
    sets: int = 1
    is_bound_by_memory: bool = True
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
    try:
        return _held(contest, options, time.monotonic() + seconds, samplers)
    except Exception as error:  # noqa: BLE001 - not even the arrays could be made
        reason = why_missing(error)
        return [Measurement(contest.label, name, [], missing=reason) for name in contest.contenders]
    finally:
        release(options.device)


def hold_all(
    contests: Sequence[Contest], options: Options, samplers: Samplers, report: Report
) -> None:
    """Hold several contests, each within its part of what is left of the time."""
    deadline = time.monotonic() + options.seconds
    for done, contest in enumerate(contests):
        seconds = (deadline - time.monotonic()) / (len(contests) - done)
        report.measurements += hold(contest, options, seconds, samplers)
        options.keep(report)


def _held(
    contest: Contest, options: Options, deadline: float, samplers: Samplers
) -> list[Measurement]:
    workload = contest.workload.tiny() if options.quick else contest.workload
    task = Task(workload, contest.rule, options.device, contest.sets)
    result: list[Measurement] = []
    takers: dict[tuple[str, str], Sample] = {}
    for name in contest.contenders:
        own, missing = _enter(contest, name, task, samplers)
        takers |= {(name, metric): sample for metric, sample in own.items()}
        if missing:
            result.append(Measurement(contest.label, name, [], missing=missing))
            release(options.device)  # of what it had before it failed
    failures: dict[tuple[str, str], str] = {}
    samples = interleaved(
        takers,
        deadline - time.monotonic(),
        at_least=2 if options.quick else 3,
        at_most=2 if options.quick else 30,
        failures=failures,
    )
    traffic = task.traffic if contest.is_bound_by_memory else 0
    for (name, metric), taken in samples.items():
        result.append(
            Measurement(
                contest.label,
                name,
                taken,
                metric=metric,
                parameters=workload.parameters,
                traffic=traffic,
                note=workload.note,
            )
        )
        if (name, metric) in failures:
            result[-1].end(failures[name, metric])
    return result


def _enter(
    contest: Contest, name: str, task: Task, samplers: Samplers
) -> tuple[dict[str, Sample], str]:
    """Return what takes samples of a contender, or why nothing does."""
    if name in contest.skipped:
        return {}, contest.skipped[name]
    try:
        return samplers(name, contest.builders[name](task)), ""
    except Exception as error:  # noqa: BLE001 - peers fail in many ways, and the others go on
        return {}, why_missing(error)


def wall(name: str, contender: Contender) -> dict[str, Sample]:  # noqa: ARG001 - as others
    """Measure wall time only."""
    return {"wall": Clock(contender).wall}


def release(home: str) -> None:
    """Give memory that nothing uses any more back, so that the next contest finds it."""
    gc.collect()
    if home == "cpu":
        return
    with contextlib.suppress(Exception):  # after a fault of the device, nothing can be freed
        gpu.cupy().get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()
