"""The ledger's notes survive that others are made and read at the same time."""

from __future__ import annotations

import gc
import itertools
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
    addresses, layouts = gradient_table.Look([param.entry]).read()
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
    _, layouts = gradient_table.Look([param.entry for param in params]).read()
    assert (layouts != gradient_table.ABSENT).all()


@pytest.fixture
def empty_table(monkeypatch):
    """A table without entries."""
    monkeypatch.setattr(gradient_table, "_unused", itertools.count())
    monkeypatch.setattr(gradient_table, "_free", [])
    monkeypatch.setattr(gradient_table, "_addresses", array("Q"))
    monkeypatch.setattr(gradient_table, "_layouts", array("B"))


def in_the_middle_of(call, work):
    """Have ``work`` done at each line of the package that ``call`` runs, as by a signal handler."""

    def trace(frame, event, _):
        if frame.f_code.co_filename != gradient_table.__file__:
            return None
        if event == "line":
            sys.settrace(None)
            work()
            sys.settrace(trace)
        return trace

    sys.settrace(trace)
    try:
        return call()
    finally:
        sys.settrace(None)


def in_another_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(60)


@pytest.mark.parametrize("where", [lambda work: work(), in_another_thread])
def test_entries_are_made_in_the_middle_of_a_read(empty_table, where):
    entries = [gradient_table.enter() for _ in range(3)]
    look = gradient_table.Look(entries)

    def make():
        entries.extend(gradient_table.enter() for _ in range(100))

    _, layouts = in_the_middle_of(look.read, lambda: where(make))
    assert layouts.tolist() == [gradient_table.ABSENT] * 3
    assert len(set(entries)) == len(entries) > 103


@pytest.mark.parametrize("where", [lambda work: work(), in_another_thread])
def test_no_entry_is_made_twice_while_room_is_made(empty_table, where):
    others = []

    def make():
        others.extend(gradient_table.enter() for _ in range(100))

    def make_in_the_middle():
        return in_the_middle_of(gradient_table.enter, lambda: where(make))

    entries = [make_in_the_middle() for _ in range(3)]
    assert len({*entries, *others}) == len(entries) + len(others) > 300


def test_an_interrupted_read_hinders_no_other(empty_table):
    class Interrupt(KeyboardInterrupt):
        pass

    def interrupt():
        nonlocal count
        count -= 1
        if count == 0:
            raise Interrupt

    look = gradient_table.Look([gradient_table.enter()])
    for at in itertools.count(1):
        count = at
        try:
            in_the_middle_of(look.read, interrupt)
        except Interrupt:
            gradient_table.enter()
            look.read()
        else:
            break
    assert at > 1


def test_entries_are_read_in_the_order_that_is_asked_for(empty_table):
    entries = [gradient_table.enter() for _ in range(6)]
    grads = [np.zeros(2) for _ in range(6)]
    for entry, grad in zip(entries, grads, strict=True):
        gradient_table.note(entry, grad)
    for order in ([], [3], [1, 2, 3], [4, 1, 5], [5, 4, 3], [2, 4]):
        addresses, layouts = gradient_table.Look([entries[i] for i in order]).read()
        assert addresses.tolist() == [id(grads[i]) for i in order]
        assert layouts.tolist() == [gradient_table.ON_HOST] * len(order)


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
