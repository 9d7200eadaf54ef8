"""Steps every rule, variant and dtype, and sums; run by test_sanitizer.py in its own process.

With the argument ``overrun``, the last chunk of each tensor is one element too long.
"""

from __future__ import annotations

import sys

import numpy as np

from lucid_gpu.execution import cuda_sums, plan, row_sums
from lucid_gpu.optim import LAMB, AdamW
from tests import emulation, rules
from tests.execution import sums_oracle
from tests.stepping import Tensor, host, place, steps

SHAPES = [(), (0,), (1,), (3,), (7,), (5, 13), (4095,), (4097,), (9001,)]


def overrun(sizes, chunk_elements, cut=plan.cut):
    chunks = cut(sizes, chunk_elements)
    ends = chunks["start"] + chunks["count"]
    chunks["count"][ends == sizes[chunks["tensor"]]] += 1
    return chunks


def main() -> None:
    if sys.argv[1:] == ["overrun"]:
        plan.cut = overrun
    rng = np.random.default_rng(0)
    with emulation.installed():
        for rule in rules.rules():
            for dtype in rules.DTYPES:
                groups = [
                    (sets[0], [_tensor(rng, shape, dtype) for shape in SHAPES])
                    for sets in rules.option_sets(rule).values()
                ]
                groups[0][1].append(_tensor(rng, (6, 5), dtype)._replace(layouts=("strided",)))
                steps(rule, groups, "cuda:0")
        tell(rng)
        measure(rng)
        for dtype in ("float32", "float64"):
            rows = place(rng.integers(0, 40, 3000), "cuda:0").view
            row_sums.coalesced(rows, place(rng.normal(size=(3000, 7)).astype(dtype), "cuda:0").view)


def measure(rng: np.random.Generator) -> None:
    grads = sums_oracle.arrays(rng, "cuda:0")
    sums = cuda_sums.CudaSums("cuda:0", sums_oracle.sizes(grads), sums_oracle.dtypes(grads))
    sums.take(grads)
    sums.run()
    assert sums_oracle.results(sums, host) == sums_oracle.described(grads, host)
    for how in cuda_sums.CHANGES:
        sums.change(how, 0.5)


def tell(rng: np.random.Generator) -> None:
    for rule in (AdamW, LAMB):
        tensors = [_tensor(rng, shape, "float32") for shape in SHAPES]
        tensors.append(_tensor(rng, (6, 5), "float32")._replace(layouts=("strided",)))
        steps(rule, [({"telemetry": True}, tensors)], "cuda:0")


def _tensor(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Tensor:
    values, *grads = (np.asarray(one) for one in rng.normal(size=(3, *shape)).astype(dtype))
    return Tensor(values, grads)


if __name__ == "__main__":
    main()
