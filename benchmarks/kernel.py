"""Would the kernel be faster otherwise: with other blocks, loads, unrolling or chunks?"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

from benchmarks import contest, workloads
from benchmarks.clocks import DeviceClock
from benchmarks.contest import Contest
from benchmarks.peers import BUILDERS, Contender, Task
from benchmarks.peers.ours import Ours
from benchmarks.protocol import LIMIT, OURS, Options, Report, Unavailable
from benchmarks.timing import Sample
from benchmarks.workloads import ADAM, MOMENTUM
from lucid_gpu.device.kernels import kernel as kernel_of
from lucid_gpu.execution import cuda, plan, sources

NAME = "kernel"
QUESTION = "Would the kernel be faster otherwise?"
SHARE = 1

PLAIN = {
    "__ldcs(reinterpret_cast<const W*>(from))": "*reinterpret_cast<const W*>(from)",
    "__stcs(reinterpret_cast<W*>(to), word)": "*reinterpret_cast<W*>(to) = word",
}
"""Loads and stores that stay in caches."""

VECTORS = "#pragma unroll 1\n    for (int i = threadIdx.x * vector;"


@dataclass(frozen=True)
class Variation:
    """The kernel with parts of its text replaced.

    Attributes:
        edits: old and new parts of the text.
        threads: of a block.
        chunk_elements: that a block updates.
    """

    edits: dict[str, str] = field(default_factory=dict)
    threads: int = plan.THREADS
    chunk_elements: int = plan.CHUNK_ELEMENTS

    def text(self, rule: Any) -> str:
        """Return the sources of a rule's kernel.

        Raises:
            ValueError: the text does not have a part that is to be replaced.
        """
        text = sources.step_source(rule.kernel, "fused_step")
        size = f"constexpr int kThreads = {plan.THREADS};"
        edits = {size: size.replace(str(plan.THREADS), str(self.threads)), **self.edits}
        for old, new in edits.items():
            if old not in text:
                raise ValueError(f"the kernel has no {old!r} to replace")
            text = text.replace(old, new)
        return text

    @contextlib.contextmanager
    def applied(self) -> Iterator[list[Any]]:
        """Compile and cut like this inside a ``with`` block; yield the kernels compiled there."""
        kernels: list[Any] = []

        def compiled(rule: Any, storage: Any, kinds: Any, *how: Any) -> Any:
            kernel = kernel_of(self.text(rule), plan.kernel_name(rule, kinds, storage, *how))
            kernels.append(kernel)
            return lambda grid, _block, *rest, **named: kernel(
                grid, (self.threads,), *rest, **named
            )

        build = partial(plan.build, chunk_elements=self.chunk_elements)
        with (
            mock.patch.object(cuda, "_compiled", compiled),
            mock.patch.object(plan, "build", build),
        ):
            yield kernels


VARIATIONS = {
    OURS: Variation(),
    "ours, 128 threads": Variation(threads=128),
    "ours, 512 threads": Variation(threads=512),
    "ours, plain loads": Variation(PLAIN),
    "ours, 512 threads, plain loads": Variation(PLAIN, threads=512),
    "ours, vectors unrolled": Variation({VECTORS: VECTORS.partition("\n")[2]}),
    "ours, aligned arrays only": Variation({"(head + i, aligned)": "(head + i, ~0u)"}),
    "ours, chunks of 16384": Variation(chunk_elements=16384),
}


class Varied(Ours):
    """This package with a variation of its kernel."""

    def __init__(self, task: Task, variation: Variation, notes: dict[str, None], name: str) -> None:
        super().__init__(task)
        with variation.applied() as kernels:
            self.step()
        (kernel,) = kernels
        notes[
            f"{name}, {task.rule.name}: {kernel.num_regs} registers, "
            f"{kernel.local_size_bytes} bytes spilled"
        ] = None


def run(options: Options) -> Report:
    """Compare variations on large and on small tensors, in device time."""
    if options.device == "cpu":
        raise Unavailable("the kernel runs on GPUs")
    notes: dict[str, None] = {}
    builders: dict[str, Any] = {
        name: partial(Varied, variation=variation, notes=notes, name=name)
        for name, variation in VARIATIONS.items()
    }
    builders[LIMIT] = BUILDERS[LIMIT]
    large = workloads.one_tensor(28)
    work = [
        (large.name, large, ADAM),
        (f"{large.name}, momentum", large, MOMENTUM),
        ("GPT-2 124M", workloads.gpt2("GPT-2 124M", 12, 768), ADAM),
        ("ResNet-50", workloads.resnet50(), ADAM),
    ]
    contests = [
        Contest(label, workload, rule, list(builders), builders=builders)
        for label, workload, rule in work
    ]
    report = Report(NAME, options.device, [])
    contest.hold_all(contests, options, _samplers, report)
    report.notes += notes
    return report


def _samplers(name: str, contender: Contender) -> dict[str, Sample]:  # noqa: ARG001 - as others
    return {"device": DeviceClock(contender)}


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main([NAME, *sys.argv[1:]]))
