"""How long do unscaling, clipping and the step take together, in which precision?"""

from __future__ import annotations

import sys

from benchmarks import contest, workloads
from benchmarks.clocks import Clock
from benchmarks.contest import Contest
from benchmarks.peers import Contender
from benchmarks.peers.mixed import BUILDERS
from benchmarks.protocol import Options, Report
from benchmarks.timing import Sample
from benchmarks.workloads import ADAM

NAME = "mixed"
QUESTION = "How long do unscaling, clipping and the step take together?"
SHARE = 1


def run(options: Options) -> Report:
    """Compare a scaled and clipped step of AdamW."""
    work = [
        workloads.one_tensor(24 if options.device == "cpu" else 28),
        workloads.resnet50(),
        workloads.tensors_of_1000(5000),
    ]
    contests = [
        Contest(
            each.name,
            each,
            ADAM,
            tuple(BUILDERS),
            is_bound_by_memory=False,
            builders=BUILDERS,
        )
        for each in work
    ]
    notes = [
        "GradScaler.step and update, gradients clipped to a norm, AdamW",
        "torch: unscale_, clip_grad_norm_, fused AdamW; all bfloat16 keeps no exact weights",
    ]
    report = Report(NAME, options.device, [], notes)
    contest.hold_all(contests, options, _samplers, report)
    return report


def _samplers(name: str, contender: Contender) -> dict[str, Sample]:  # noqa: ARG001 - as others
    return {"wall": Clock(contender).wall}


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main([NAME, *sys.argv[1:]]))
