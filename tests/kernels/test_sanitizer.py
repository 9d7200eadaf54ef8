"""The kernels run under AddressSanitizer and UndefinedBehaviorSanitizer: no access goes astray."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"


@pytest.fixture
def run_sanitized(tmp_path):
    """Run the steps in a process whose kernels are sanitized, with a cache of its own for them."""
    return functools.partial(_run_sanitized, tmp_path)


def _run_sanitized(cache, *arguments):
    asan = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], text=True, capture_output=True, check=True
    )
    return subprocess.run(
        [sys.executable, "-m", "tests.kernels.sanitized", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "EMULATION_CXXFLAGS": FLAGS,
            "LUCID_GPU_CACHE_DIR": str(cache),
            "LD_PRELOAD": asan.stdout.strip(),
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",
        },
        text=True,
        capture_output=True,
        check=False,
    )


def test_no_kernel_leaves_its_arrays(run_sanitized):
    done = run_sanitized()
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_chunk_that_is_too_long_is_found(run_sanitized):
    done = run_sanitized("overrun")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "kernels/fused_step.cuh" in done.stderr
