"""What does this package save a training loop of PyTorch?"""

from __future__ import annotations

import sys

from benchmarks import contest, peers, workloads
from benchmarks.clocks import Clock
from benchmarks.contest import Contest
from benchmarks.peers import Contender
from benchmarks.peers.in_pytorch import InPyTorch
from benchmarks.protocol import Options, Report
from benchmarks.timing import Sample
from benchmarks.workloads import ADAM, Workload

NAME = "torch"
QUESTION = "What does this package save a training loop of PyTorch?"
SHARE = 1

CONTENDERS = ("ours", "torch fused", "torch foreach")


def run(options: Options) -> Report:
    """Compare steps of parameters of PyTorch: how long they hold the host, and take in all."""
    work = [workloads.resnet50(), workloads.tensors_of_1000(5000)]
    builders = {**peers.BUILDERS, "ours": InPyTorch}
    contests = [
        Contest(each.name, each, ADAM, CONTENDERS, sets=2, builders=builders) for each in work
    ]
    contests += [
        Contest(small.name, small, ADAM, CONTENDERS, {}, 2, False, builders)
        for small in map(_of_one_element, work)
    ]
    notes = [
        "all contenders are instances of torch.optim.Optimizer, on the same parameters",
        "host: until step() returns; of tensors of one element next to nothing but the host's work",
    ]
    report = Report(NAME, options.device, [], notes)
    contest.hold_all(contests, options, _samplers, report)
    return report


def _of_one_element(workload: Workload) -> Workload:
    count = len(workload.shapes)
    return Workload(f"{count} tensors of 1", ((1,),) * count)


def _samplers(name: str, contender: Contender) -> dict[str, Sample]:  # noqa: ARG001 - as others
    clock = Clock(contender)
    return {
        "host, gradients stay": clock.host,
        "host, gradients move": lambda: clock.host(moving=True),
        "wall, moving gradients": clock.wall_moving,
    }


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main([NAME, *sys.argv[1:]]))
