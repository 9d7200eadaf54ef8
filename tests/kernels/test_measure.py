"""NVRTC builds the kernels of canonical sums as one would hope it does."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from lucid_gpu.execution import cuda_sums, sums
from tests.execution import sums_oracle
from tests.kernels.nvrtc import architectures, compile_kernels

DTYPES = [sums_oracle.dtype(name) for name in sums.TYPES]
KINDS = [cuda_sums.kernel_name(dtype) for dtype in DTYPES]
CHANGES = [cuda_sums.change_name(how, dtype) for how in cuda_sums.CHANGES for dtype in DTYPES]
every_kind = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_architecture = pytest.mark.parametrize("architecture", architectures(3))


@cache
def built(architecture):
    return compile_kernels(cuda_sums.source(), [*KINDS, "conclude"], architecture)


@cache
def built_to_change(architecture):
    return compile_kernels(cuda_sums.change_source(), CHANGES, architecture)


@every_architecture
def test_registers_hold_everything(architecture):
    for kernel in [*built(architecture).values(), *built_to_change(architecture).values()]:
        assert kernel.local == 0
        assert ".local" not in kernel.ptx


@every_architecture
@every_kind
def test_four_neighbours_are_loaded_at_once(dtype, architecture):
    kernel = built(architecture)[cuda_sums.kernel_name(dtype)]
    width = {2: "v2", 4: "v4", 8: "v4"}[dtype.itemsize]
    loads = re.findall(rf"ld\.global\.nc\.{width}\.[ub]32", kernel.ptx)
    assert len(loads) == max(4, dtype.itemsize)


@every_architecture
def test_only_what_is_exact_is_multiplied_and_added_at_once(architecture):
    kernels = built(architecture)
    assert "fma" not in kernels[cuda_sums.kernel_name(np.dtype(np.float64))].ptx
    assert "fma" not in kernels["conclude"].ptx


@every_architecture
def test_subnormal_numbers_are_kept(architecture):
    assert all(".ftz" not in kernel.ptx for kernel in built(architecture).values())


@every_architecture
def test_gradients_are_changed_16_bytes_at_a_time_with_subnormal_numbers_kept(architecture):
    for kernel in built_to_change(architecture).values():
        for access in ("ld", "st"):
            assert re.search(rf"{access}\.global\.cg\.v4\.[ub]32", kernel.ptx)
        assert ".ftz" not in kernel.ptx
