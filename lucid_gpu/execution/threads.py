"""The threads that step arrays on the CPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any


def thread_count() -> int:
    """Return how many threads step: ``LUCID_GPU_NUM_THREADS``, else the cores of the process.

    Raises:
        ValueError: the variable is set and is no whole number of at least 1.
    """
    if "LUCID_GPU_NUM_THREADS" not in os.environ:  # a lookup that fails takes three times as long
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    text = os.environ["LUCID_GPU_NUM_THREADS"]
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"LUCID_GPU_NUM_THREADS must be a whole number >= 1, not {text!r}")
    return int(text)


def together(count: int, work: Callable[[Any], None], shared: Any) -> None:
    """Call ``work(shared)`` on so many threads at once, this one among them.

    Returns when all of them are done; an error of one is raised here.
    """
    if count == 1:
        work(shared)
        return
    others = _submitted(count - 1, work, shared)
    try:
        work(shared)
    finally:
        errors = [other.exception() for other in others]
    for error in errors:
        if error is not None:
            raise error


def _submitted(count: int, work: Callable[[Any], None], shared: Any) -> list[Future[None]]:
    """Have threads of the pool work too; fewer where the interpreter is about to end."""
    submitted: list[Future[None]] = []
    with contextlib.suppress(RuntimeError):
        for _ in range(count):
            pool = _pool(count, os.getpid())
            submitted.append(pool.submit(work, shared))
    return submitted


@cache
def _pool(workers: int, pid: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a fork inherits no threads
    return ThreadPoolExecutor(workers, thread_name_prefix="lucid_gpu")
