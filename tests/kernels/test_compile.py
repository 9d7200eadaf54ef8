"""NVRTC builds every rule, variant and dtype for its architectures, as one would hope it does."""

from __future__ import annotations

import re
from functools import cache

import pytest

from lucid_gpu.execution import plan, row_sums, strided
from lucid_gpu.execution.sources import joined, step_source
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
    """Each variant's kernel, and under None one that mixes several."""
    kinds = {variant: [variant] for variant in rules.variants(rule)}
    kinds[None] = rules.variants(rule)[::2]
    storage = rules.storage(rule, dtype)
    names = {key: plan.kernel_name(rule.rule, own, storage) for key, own in kinds.items()}
    source = step_source(rule.kernel, "fused_step")
    kernels = compile_kernels(source, list(names.values()), architecture)
    return {key: kernels[name] for key, name in names.items()}


@cache
def single(rule, dtype, architecture):
    """Each variant's kernel for strided tensors."""
    storage = rules.storage(rule, dtype)
    names = {
        variant: strided.kernel_name(rule.rule, variant, storage)
        for variant in rules.variants(rule)
    }
    kernels = compile_kernels(strided.source(rule.rule), list(names.values()), architecture)
    return {variant: kernels[name] for variant, name in names.items()}


def every_kernel(rule, dtype, architecture):
    kernels = [fused(rule, dtype, architecture), single(rule, dtype, architecture)]
    return [kernel for own in kernels for kernel in own.values()]


def per_variant(rule, dtype, architecture):
    kernels = fused(rule, dtype, architecture)
    return [(variant, kernels[variant].ptx) for variant in rules.variants(rule)]


@each_way
def test_every_array_is_loaded_and_stored_16_bytes_at_a_time(rule, dtype, architecture):
    for variant, ptx in per_variant(rule, dtype, architecture):
        slots = len(rule.used_slots(variant))
        loads = len(re.findall(r"ld\.global\.cs\.v4\.[ub]32", ptx))
        stores = len(re.findall(r"st\.global\.cs\.v4\.[ub]32", ptx))
        assert (loads, stores) == (2 + slots, 1 + slots), variant


@each_way
def test_multiplication_and_addition_are_not_fused(rule, dtype, architecture):
    assert all("fma" not in kernel.ptx for kernel in every_kernel(rule, dtype, architecture))


@each_way
def test_registers_hold_everything(rule, dtype, architecture):
    for kernel in every_kernel(rule, dtype, architecture):
        assert kernel.local == 0
        assert ".local" not in kernel.ptx


@each_way
def test_floats_are_computed_in_float_and_doubles_in_double(rule, dtype, architecture):
    foreign = {"float32": r"\.f64\b", "float64": r"\.f32\b"}[dtype]
    for kernel in every_kernel(rule, dtype, architecture):
        assert not re.search(foreign, kernel.ptx)
        assert not re.search(r"\.approx|\.full", kernel.ptx)


@each_way
def test_subnormal_numbers_are_kept(rule, dtype, architecture):
    assert all(".ftz" not in kernel.ptx for kernel in every_kernel(rule, dtype, architecture))


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
