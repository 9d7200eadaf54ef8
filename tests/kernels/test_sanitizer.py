"""The kernels run under AddressSanitizer and UndefinedBehaviorSanitizer: no access goes astray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLAGS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"


def run_sanitized(*arguments):
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
            "LD_PRELOAD": asan.stdout.strip(),
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",
        },
        text=True,
        capture_output=True,
        check=False,
    )


def test_no_kernel_leaves_its_arrays():
    done = run_sanitized()
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_chunk_that_is_too_long_is_found():
    done = run_sanitized("overrun")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "kernels/fused_step.cuh" in done.stderr
