"""Fixtures for optimizers whose state moves."""

from __future__ import annotations

import gc
import threading

import pytest


@pytest.fixture
def released():
    """Wait until the threads that keep arrays while they are copied have let go of them."""
    before = set(threading.enumerate())

    def wait():
        for thread in set(threading.enumerate()) - before:
            thread.join(60)
        gc.collect()

    yield wait
    wait()
