"""The ledger's notes survive that others are made and read at the same time."""

from __future__ import annotations

import gc
import sys
import threading
from array import array
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


class Watched:
    """A lock that tells when a thread has to wait for it."""

    def __init__(self):
        self._lock = threading.Lock()
        self.is_awaited = threading.Event()

    def __enter__(self):
        if not self._lock.acquire(blocking=False):
            self.is_awaited.set()
            self._lock.acquire()

    def __exit__(self, *exception):
        self._lock.release()


class Meanwhile:
    """Have another thread do something now, until it is done or waits for the lock."""

    def __init__(self, lock, work):
        self._lock, self._pool = lock, ThreadPoolExecutor(1)
        self._work, self.future = work, None

    def run(self):
        if self.future is None:
            self.future = self._pool.submit(self._work)
            self.future.add_done_callback(lambda _: self._lock.is_awaited.set())
            assert self._lock.is_awaited.wait(60)

    def result(self):
        result = self.future.result(60)
        self._pool.shutdown()
        return result


@pytest.fixture
def empty_table(monkeypatch):
    """A table without entries, and its lock."""
    monkeypatch.setattr(gradient_table, "_lock", Watched())
    monkeypatch.setattr(gradient_table, "_free", [])
    monkeypatch.setattr(gradient_table, "_addresses", array("Q"))
    monkeypatch.setattr(gradient_table, "_layouts", array("B"))
    return gradient_table._lock


def test_entries_are_made_while_another_thread_reads(empty_table):
    entries = [gradient_table.enter()]
    meanwhile = Meanwhile(empty_table, lambda: [gradient_table.enter() for _ in range(100)])

    class Entries:
        """Asked for its indices in the middle of a read."""

        def __array__(self, dtype=None, copy=None):
            meanwhile.run()
            return np.array(entries)

    _, layouts = gradient_table.read(Entries())
    entries += meanwhile.result()
    assert layouts.tolist() == [gradient_table.ABSENT]
    assert len(set(entries)) == 101


def test_no_entry_is_made_twice_while_another_thread_makes_room(empty_table, monkeypatch):
    meanwhile = Meanwhile(empty_table, lambda: [gradient_table.enter() for _ in range(100)])

    class Growing(array):
        """Memory that takes its time to grow."""

        def frombytes(self, data):
            meanwhile.run()
            super().frombytes(data)

    monkeypatch.setattr(gradient_table, "_addresses", Growing("Q"))
    entries = [gradient_table.enter() for _ in range(100)]
    assert len({*entries, *meanwhile.result()}) == 200


def test_a_recycled_entry_has_no_gradient(device):
    grad = transfer.copy(np.ones(2, np.float32), device)
    param = Parameter(grad)
    param.grad = grad
    assert noted(param)[1] != gradient_table.ABSENT
    entry = param.entry
    del param
    gc.collect()
    others = []
    while entry not in {other.entry for other in others}:
        others.append(Parameter(grad))
        assert noted(others[-1])[1] == gradient_table.ABSENT
