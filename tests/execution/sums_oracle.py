"""Canonical sums as a plain loop, with what they are compared by."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.stepping import place

DTYPES = ("float32", "float64", "float16", "bfloat16")


def dtype(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def tree(lanes):
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [one + other for one, other in zip(lanes[:half], lanes[half:], strict=True)]
    return lanes[0]


def fold(values):
    lanes = [0.0] * 256
    for i, value in enumerate(values):
        lanes[i % 256] += value
    return tree(lanes)


def chunk(elements):
    lanes = [0.0] * 256
    for e, x in enumerate(elements):
        lanes[(e // 4) % 256] += x * x
    return tree(lanes)


def batches(values, size):
    return [values[start : start + size] for start in range(0, len(values), size)]


def tensor(array):
    """The sum of the squares of an array, element by element in its C order."""
    if array is None:
        return 0.0
    elements = [float(x) for x in array.ravel("C")]
    chunks = [chunk(own) for own in batches(elements, 4096)]
    return fold([fold(own) for own in batches(chunks, 256)])


def nonfinite(array):
    if array is None:
        return 0
    return int(np.sum(~np.isfinite(array.astype(np.float64))))


def bits(values):
    """Bits of float64, every NaN the same."""
    values = np.array(values, np.float64)
    values[np.isnan(values)] = np.nan
    return values.view(np.uint64).tolist()


def arrays(rng, device="cpu"):
    """Gradients of all dtypes, in many layouts, with a few elements that are not finite."""
    shapes = [(), (0,), (1,), (7,), (3, 5), (4095,), (4097,), (9001,), (3, 41, 43), (2, 1, 1030)]
    found = []
    for name in DTYPES:
        for turn, shape in enumerate(shapes):
            values = np.asarray(rng.normal(size=shape)).astype(dtype(name))
            layout = ("C", "F", "strided", "reversed", 1, 3)[turn % 6]
            found.append(place(values, device, layout).view)
        poisoned = rng.normal(size=(90, 100)).astype(dtype(name))
        poisoned[3, 4], poisoned[70, 1], poisoned[89, 99] = np.nan, np.inf, -np.inf
        found.append(place(poisoned, device).view)
        found.append(place(poisoned[:50], device, "F").view)
    found.insert(5, None)
    return found


def described(grads, host):
    """What the results must be: bits of the sum of each, counts, and the same in all."""
    own = [None if grad is None else host(grad) for grad in grads]
    sums, counts = [tensor(one) for one in own], [nonfinite(one) for one in own]
    return bits(sums), counts, bits([fold(sums)]), sum(counts)


def results(sums, host):
    return (
        bits(host(sums.sums)),
        host(sums.counts).tolist(),
        bits(host(sums.total)),
        int(host(sums.total_count)[0]),
    )


def sizes(grads):
    return [0 if grad is None else grad.size for grad in grads]


def dtypes(grads):
    return [np.dtype(np.float32) if grad is None else grad.dtype for grad in grads]
