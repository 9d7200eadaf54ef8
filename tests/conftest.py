"""Fixtures for all tests: where they run, and by which code.

NumPy steps on the CPU unless a test asks for compiled code, so that no compiler works beside the
tests.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import lucid_gpu
from lucid_gpu.device import gpu
from lucid_gpu.execution import building, cuda, cuda_sums, plan, strided
from tests import emulation, rules
from tests.emulation import nvrtc
from tests.emulation.compiler import COMPILER
from tests.execution import sums_oracle

# For pytest-timeout, and by way of the environment: the ini file could not name an option of a
# plugin that some environments, such as one made for GPUs alone, do not have.
os.environ.setdefault("PYTEST_TIMEOUT", "600")

os.environ.setdefault("LUCID_GPU_CPU", "numpy")

# PyTorch's threads wait for each other where other tests have the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A process that has built nothing, and the folder of its empty disk cache."""
    builds: dict[tuple[str, tuple[str, ...]], building.Build] = {}
    monkeypatch.setattr(building, "_builds", builds)
    monkeypatch.setenv("LUCID_GPU_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    for build in builds.values():
        build.stop()


@pytest.fixture
def without_cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which CuPy cannot be imported."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    gpu._probe.cache_clear()
    yield
    gpu._probe.cache_clear()


@pytest.fixture
def emulated() -> Iterator[emulation.Machine]:
    """Put the emulated CuPy in place and return its machine, which counts what it is asked."""
    with emulation.installed() as machine:
        yield machine


@pytest.fixture(params=["cpu", "cuda", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device that a test runs on: the CPU, an emulated GPU, a real one."""
    with installed(request.param) as name:
        yield name


@pytest.fixture(params=["cuda", pytest.param("gpu", marks=pytest.mark.gpu)])
def accelerator(request: pytest.FixtureRequest) -> Iterator[str]:
    """A GPU, emulated or real, to be compared with the CPU."""
    with installed(request.param) as name:
        yield name


@pytest.fixture(scope="session", autouse=True)
def _kernels_are_compiled_together() -> None:
    """Announce the kernels of all variants, so that the first one needed compiles its like too."""
    for rule, dtype in itertools.product(rules.rules(), rules.DTYPES):
        kinds, storage = rules.variants(rule), rules.storage(rule, dtype)
        pairs = list(itertools.product(kinds, range(len(plan.phases(rule.rule)))))
        fused = [plan.kernel_name(rule.rule, [kind], storage, phase) for kind, phase in pairs]
        COMPILER.expect(cuda.source(rule.rule), nvrtc.entries(fused))
        single = [strided.kernel_name(rule.rule, kind, storage, phase) for kind, phase in pairs]
        COMPILER.expect(strided.source(rule.rule), nvrtc.entries(single))
    dtypes = [sums_oracle.dtype(name) for name in sums_oracle.DTYPES]
    measures = map(cuda_sums.kernel_name, dtypes)
    COMPILER.expect(cuda_sums.source(), nvrtc.entries([*measures, "conclude"]))
    changes = itertools.starmap(cuda_sums.change_name, itertools.product(cuda_sums.CHANGES, dtypes))
    COMPILER.expect(cuda_sums.change_source(), nvrtc.entries(changes))


@pytest.fixture(scope="session", autouse=True)
def _kernels_are_kept_for_this_run_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled kernels out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUCID_GPU_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20261121)


@contextlib.contextmanager
def installed(kind: str) -> Iterator[str]:
    """Put what a test runs on in place, and yield the name of its device."""
    if kind == "cpu":
        yield "cpu"
    elif kind == "compiled":
        lucid_gpu.set_cpu_code("compiled")
        try:
            yield "cpu"
        finally:
            lucid_gpu.set_cpu_code(None)
    elif kind == "cuda":
        with emulation.installed():
            yield "cuda:0"
    elif gpu.count():
        yield "cuda:0"
    else:
        pytest.skip(gpu.why_unavailable())
