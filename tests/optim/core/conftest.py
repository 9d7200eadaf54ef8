"""Fixtures for optimizers whose state moves."""

from __future__ import annotations

import gc
import time

import pytest

from lucid_gpu.device import keep


@pytest.fixture
def released():
    """Wait until the thread that keeps arrays while they are copied has let go of them."""

    def wait():
        deadline = time.monotonic() + 60
        while keep._kept and time.monotonic() < deadline:
            time.sleep(keep.POLL_SECONDS)
        gc.collect()

    yield wait
    wait()
