"""Fixtures for all tests: where they run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lucid_gpu import device as _device
from tests import emulation


@pytest.fixture
def emulated() -> Iterator[emulation.Machine]:
    """Put the emulated CuPy in place and return its machine, which counts what it is asked."""
    with emulation.installed() as machine:
        yield machine


@pytest.fixture(params=["cpu", "cuda", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device that a test runs on: the CPU, an emulated GPU, a real one."""
    if request.param == "cpu":
        yield "cpu"
    elif request.param == "cuda":
        with emulation.installed():
            yield "cuda:0"
    elif _device.count():
        yield "cuda:0"
    else:
        pytest.skip(_device.why_unavailable())
