"""NVRTC builds every rule, variant and dtype for its architectures, as one would hope it does."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from lucid_gpu.execution import cuda, plan, row_sums, strided
from lucid_gpu.execution.sources import joined
from tests import rules
from tests.kernels.nvrtc import ARCHITECTURES, architectures, compile_kernels

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_dtype = pytest.mark.parametrize("dtype", rules.DTYPES)
every_rule = pytest.mark.parametrize(
    ("rule", "architecture"),
    [
        pytest.param(rule, architecture, id=f"{rule.__name__}-{architecture}")
        for turn, rule in enumerate(rules.rules())
        for architecture in architectures(turn)
    ],
)


def each_way(test):
    return every_rule(every_dtype(test))


@cache
def fused(rule, dtype, architecture):
    """Each variant's kernel of each phase, and under None one that mixes several."""
    kinds = {variant: [variant] for variant in rules.variants(rule)}
    kinds[None] = rules.variants(rule)[::2]
    storage = rules.storage(rule, dtype)
    names = {
        (key, phase): plan.kernel_name(rule.rule, own, storage, phase)
        for key, own in kinds.items()
        for phase in range(len(plan.phases(rule.rule)))
    }
    kernels = compile_kernels(cuda.source(rule.rule), list(names.values()), architecture)
    return {key: kernels[name] for key, name in names.items()}


@cache
def single(rule, dtype, architecture):
    """Each variant's kernel for strided tensors."""
    storage = rules.storage(rule, dtype)
    names = {
        (variant, phase): strided.kernel_name(rule.rule, variant, storage, phase)
        for variant in rules.variants(rule)
        for phase in range(len(plan.phases(rule.rule)))
    }
    kernels = compile_kernels(strided.source(rule.rule), list(names.values()), architecture)
    return {key: kernels[name] for key, name in names.items()}


def every_kernel(rule, dtype, architecture):
    kernels = [fused(rule, dtype, architecture), single(rule, dtype, architecture)]
    return [kernel for own in kernels for kernel in own.values()]


def per_variant(rule, dtype, architecture):
    kernels = fused(rule, dtype, architecture)
    return [
        (variant, [kernels[variant, phase].ptx for phase in range(len(plan.phases(rule.rule)))])
        for variant in rules.variants(rule)
    ]


def vectors(rule, variant, dtype):
    """How many loads and stores of 16 bytes each phase has."""
    slots = len(rule.used_slots(variant))
    if not rule.sums:
        return [(2 + slots, 1 + slots)]
    turns = 4 // (16 // np.dtype(dtype).itemsize)  # of four neighbours in the first phase
    if rule.slots_move_first:
        return [(turns * (2 + slots), turns * slots), (1 + slots, 1)]
    return [(turns * 2, 0), (2 + slots, 1 + slots)]


@each_way
def test_every_array_is_loaded_and_stored_16_bytes_at_a_time(rule, dtype, architecture):
    for variant, phases in per_variant(rule, dtype, architecture):
        seen = [
            (
                len(re.findall(r"ld\.global\.cs\.v4\.[ub]32", ptx)),
                len(re.findall(r"st\.global\.cs\.v4\.[ub]32", ptx)),
            )
            for ptx in phases
        ]
        assert seen == vectors(rule, variant, dtype), variant


@each_way
def test_multiplication_and_addition_are_not_fused(rule, dtype, architecture):
    """But for squares of floats in double, which are exact."""
    is_exact = rule.sums and dtype == "float32"
    for kernel in every_kernel(rule, dtype, architecture):
        ptx = kernel.ptx.replace("fma.rn.f64", "") if is_exact else kernel.ptx
        assert "fma" not in ptx


@each_way
def test_registers_hold_everything(rule, dtype, architecture):
    for kernel in every_kernel(rule, dtype, architecture):
        assert kernel.local == 0
        assert ".local" not in kernel.ptx


@each_way
def test_floats_are_computed_in_float_and_doubles_in_double(rule, dtype, architecture):
    foreign = {"float32": r"\.f64\b", "float64": r"\.f32\b"}[dtype]
    for kernel in every_kernel(rule, dtype, architecture):
        if rule.sums and dtype == "float32":  # `finish` is in double, and rounds once
            assert len(re.findall(r"cvt\.rn\.f32\.f64", kernel.ptx)) <= len(rules.variants(rule))
        else:
            assert not re.search(foreign, kernel.ptx)
        assert not re.search(r"\.approx|\.full", kernel.ptx)


@each_way
def test_subnormal_numbers_are_kept(rule, dtype, architecture):
    assert all(".ftz" not in kernel.ptx for kernel in every_kernel(rule, dtype, architecture))


@every_rule
@every_dtype
def test_steps_that_tell_are_compiled_without_spilling_or_fusing(rule, dtype, architecture):
    """But for squares of floats in double, which are exact."""
    storage, last = rules.storage(rule, dtype), len(plan.phases(rule.rule)) - 1
    variants = rules.variants(rule)
    own = [plan.kernel_name(rule.rule, [kind], storage, last, telemetry=True) for kind in variants]
    kernels = compile_kernels(cuda.source(rule.rule, telemetry=True), own, architecture)
    names = [strided.kernel_name(rule.rule, variants[0], storage, last, telemetry=True)]
    kernels |= compile_kernels(strided.source(rule.rule, telemetry=True), names, architecture)
    for kernel in kernels.values():
        ptx = kernel.ptx.replace("fma.rn.f64", "") if dtype == "float32" else kernel.ptx
        assert not re.search(r"fma|\.ftz|\.local", ptx)
        assert kernel.local == 0


SPILLS = """
extern "C" __global__ void __launch_bounds__(1024) spills(float* data) {
  float at[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) at[i] = data[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; ++i) data[i * 1024 + threadIdx.x] = at[i] / at[127 - i];
}
"""


@every_architecture
def test_spilled_registers_are_seen_in_the_cubin(architecture):
    spilling = compile_kernels(SPILLS, ["spills"], architecture)["spills"]
    assert spilling.registers <= 64
    assert spilling.local > 0
    assert ".local" not in spilling.ptx


@every_architecture
def test_sums_of_rows_are_compiled_without_spilling_or_fusing(architecture):
    names = [f"row_sums<{name}>" for name in row_sums.C_TYPES.values()]
    for kernel in compile_kernels(joined("row_sums"), names, architecture).values():
        assert not re.search(r"fma|\.ftz|\.local", kernel.ptx)
        assert kernel.local == 0
