"""How long does a step hold the host?"""

from __future__ import annotations

import sys
from functools import partial

from benchmarks import contest, peers, workloads
from benchmarks.clocks import Clock
from benchmarks.contest import Contest
from benchmarks.peers import Contender
from benchmarks.protocol import Options, Report
from benchmarks.timing import Sample
from benchmarks.workloads import ADAM, Workload

NAME = "host"
QUESTION = "How long does a step hold the host?"
SHARE = 1


def run(options: Options) -> Report:
    """Time steps until they return: gradients that stay, move, come and go, and setting them."""
    on_cpu = options.device == "cpu"
    work = [workloads.resnet50(), workloads.tensors_of_1000(5000), workloads.tensors_of_1000(1)]
    work.append(workloads.tensors_of_1000(50 if options.quick else 20_000))
    work.append(work[0].in_groups(64))
    if on_cpu:
        work = [_of_one_element(workload) for workload in work]
    names = [name for name in peers.names(options.device) if name.startswith(("ours", "torch"))]
    names = [name for name in names if "graph" not in name]
    contests = [
        Contest(_label(workload), workload, ADAM, names, sets=2, is_bound_by_memory=False)
        for workload in work
    ]
    note = (
        "tensors of one element, so that next to nothing but the host's work is left"
        if on_cpu
        else "the time until step() returns, the device idle before it"
    )
    report = Report(NAME, options.device, [], [note])
    contest.hold_all(contests, options, _samplers, report)
    return report


def _of_one_element(workload: Workload) -> Workload:
    return Workload(workload.name, ((1,),) * len(workload.shapes), workload.groups)


def _label(workload: Workload) -> str:
    count = len(workload.shapes)
    tensors = "1 tensor" if count == 1 else f"{count} tensors"
    return tensors if workload.groups == 1 else f"{tensors}, {workload.groups} groups"


def _samplers(name: str, contender: Contender) -> dict[str, Sample]:  # noqa: ARG001 - as others
    clock = Clock(contender)
    return {
        "gradients stay": clock.host,
        "gradients move": lambda: clock.host(moving=True),
        "setting the gradients": clock.setting_gradients,
        "setting the gradients and the step": partial(clock.host, moving=True, counts_setting=True),
        "one gradient comes and goes": clock.host_toggling,
    }


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main([NAME, *sys.argv[1:]]))
