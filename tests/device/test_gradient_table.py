"""The ledger's notes survive that others are made and read at the same time."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.device import gradient_table, transfer
from lucid_gpu.device.arrays import contiguity

THREADS = 4


@pytest.fixture
def eager_threads():
    """Threads that take turns as often as the interpreter allows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def noted(param):
    """Return the address and layout that are noted for the gradient of one parameter."""
    addresses, layouts = gradient_table.read(np.array([param.entry]))
    return addresses.item(), layouts.item()


def test_a_gradient_is_noted_by_where_it_lies_and_how(accelerator):
    param = Parameter(np.zeros((2, 3), np.float32), device=accelerator)
    assert noted(param)[1] == gradient_table.ABSENT
    for order in "CF":
        param.grad = transfer.copy(np.ones((2, 3), np.float32, order=order), accelerator)
        assert noted(param) == (param.grad.data.ptr, contiguity(param.grad))
    param.grad = None
    assert noted(param)[1] == gradient_table.ABSENT


def test_a_gradient_on_the_host_is_noted_as_present():
    param = Parameter([1.0])
    param.grad = param.data
    assert noted(param)[1] != gradient_table.ABSENT


def test_no_note_is_lost_while_other_threads_make_entries(eager_threads):
    start = threading.Barrier(THREADS, timeout=30)

    def work(_):
        start.wait()
        params = [Parameter([1.0]) for _ in range(500)]
        for param in params:
            param.grad = param.data
        return params

    with ThreadPoolExecutor(THREADS) as pool:
        params = [param for own in pool.map(work, range(THREADS)) for param in own]
    assert len({param.entry for param in params}) == len(params)
    _, layouts = gradient_table.read(np.array([param.entry for param in params]))
    assert (layouts != gradient_table.ABSENT).all()


def test_entries_are_made_while_another_thread_reads(eager_threads):
    entries = [gradient_table.enter()]
    many, is_done = np.full(100_000, entries[0]), threading.Event()

    def read():
        while not is_done.wait(1e-5):
            gradient_table.read(many)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            entries += [gradient_table.enter() for _ in range(20_000)]
        finally:
            is_done.set()
        reading.result()
    assert len(set(entries)) == len(entries)
    for entry in entries:
        gradient_table.leave(entry)
