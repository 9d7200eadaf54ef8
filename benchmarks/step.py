"""How fast is a step?"""

from __future__ import annotations

import sys

from benchmarks import contest, peers, workloads
from benchmarks.clocks import Clock, DeviceClock
from benchmarks.contest import Contest
from benchmarks.peers import Contender
from benchmarks.protocol import Options, Report
from benchmarks.timing import Sample
from benchmarks.workloads import ADAM, MOMENTUM, SWITCHES, Workload

NAME = "step"
QUESTION = "How fast is a step?"
SHARE = 6

GROUPS = (1, 8, 64)

MANY = 1000
"""More tensors than this make a launch per tensor a matter of the launch queue."""

TOO_LARGE = dict.fromkeys(
    ("torch foreach, graph", "torch single, graph", "optax, jit", "array expressions"),
    "its state and temporaries do not fit on the GPU beside those of its peers",
)
TOO_MANY_NODES = dict.fromkeys(
    ("torch foreach, graph", "torch single, graph"),
    "a graph of tens of thousands of kernels takes minutes to make",
)


def run(options: Options) -> Report:
    """Compare steps on models, in groups and with each switch."""
    notes = [
        "wall: a loop of steps, host and device; ours and peers in turn in one run",
        "wall, moving gradients: each step finds its gradients elsewhere; setting them is not "
        "counted, nor is it hidden: the host question counts it",
    ]
    if options.device == "cpu":
        notes.append(
            "ours: as it is set up, which is compiled code where the machine has a C++ compiler"
        )
    else:
        notes += [
            "device: between CUDA events, with the launches queued ahead as far as the queue "
            "holds them (about a thousand)",
            "limit: a copy, on the device, of as many bytes as the step must move",
        ]
    report = Report(NAME, options.device, [], notes)
    contest.hold_all(_contests(options.device), options, _samplers(options.device), report)
    return report


def _contests(device: str) -> list[Contest]:
    everyone = peers.names(device)
    eager = [name for name in everyone if name.startswith(("ours", "torch", "limit"))]
    eager = [name for name in eager if "graph" not in name]
    resnet, vector = workloads.resnet50(), workloads.one_tensor(23 if device == "cpu" else 27)
    large = workloads.one_tensor(25 if device == "cpu" else 28)
    contests = [_of_model(workload, everyone) for workload in workloads.models(device)]
    contests.append(Contest(f"{large.name}, momentum", large, MOMENTUM, everyone))
    contests += [
        Contest(workload.name, workload, ADAM, eager) for workload in map(resnet.in_groups, GROUPS)
    ]
    contests += [Contest(rule.name, vector, rule, eager) for rule in SWITCHES]
    return contests


def _of_model(workload: Workload, everyone: list[str]) -> Contest:
    skipped = {}
    if workload.name == "GPT-2 1.5B":
        skipped = TOO_LARGE
    elif len(workload.shapes) > MANY:
        skipped = TOO_MANY_NODES
    moves = 1 if workload.parameters > 100_000_000 or len(workload.shapes) == 1 else 2
    return Contest(workload.name, workload, ADAM, everyone, skipped, sets=moves)


def _samplers(device: str) -> contest.Samplers:
    def samplers(name: str, contender: Contender) -> dict[str, Sample]:
        clock = Clock(contender)
        metrics = {"wall": clock.wall}
        is_captured = "graph" in name  # a graph holds the addresses that it was captured with
        if len(contender.task.grads) > 1 and not is_captured and name != "limit":
            metrics["wall, moving gradients"] = clock.wall_moving
        if device != "cpu" and name != "optax, jit":  # JAX launches on streams of its own
            metrics["device"] = DeviceClock(contender)
        return metrics

    return samplers


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main([NAME, *sys.argv[1:]]))
