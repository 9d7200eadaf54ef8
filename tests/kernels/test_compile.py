"""NVRTC builds every rule, variant and dtype for every architecture, as one would hope it does."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from lucid_gpu.execution import cuda, plan
from lucid_gpu.execution.sources import joined
from tests import rules
from tests.kernels.nvrtc import ARCHITECTURES, compile_kernels

pytestmark = [
    pytest.mark.parametrize("rule", rules.rules(), ids=lambda rule: rule.__name__),
    pytest.mark.parametrize("dtype", rules.DTYPES),
    pytest.mark.parametrize("architecture", ARCHITECTURES),
]


@cache
def fused(rule, dtype, architecture):
    """The PTX of each variant's kernel, and under None of one that mixes several."""
    kinds = {variant: [variant] for variant in rules.variants(rule)}
    kinds[None] = rules.variants(rule)[::2]
    storage = rules.storage(rule, dtype)
    names = {key: plan.kernel_name(rule.rule, own, storage) for key, own in kinds.items()}
    source = joined("rule", rule.kernel, "fused_step")
    ptx = compile_kernels(source, list(names.values()), architecture)
    return {key: ptx[name] for key, name in names.items()}


def per_variant(rule, dtype, architecture):
    kernels = fused(rule, dtype, architecture)
    return [(variant, kernels[variant]) for variant in rules.variants(rule)]


def test_every_array_is_loaded_and_stored_16_bytes_at_a_time(rule, dtype, architecture):
    for variant, ptx in per_variant(rule, dtype, architecture):
        slots = len(rule.used_slots(variant))
        loads = len(re.findall(r"ld\.global\.cs\.v4\.[ub]32", ptx))
        stores = len(re.findall(r"st\.global\.cs\.v4\.[ub]32", ptx))
        unrolled, rest = divmod(loads, 2 + slots)
        assert unrolled >= 1, variant
        assert rest == 0, variant
        assert stores == unrolled * (1 + slots), variant


def test_multiplication_and_addition_are_not_fused(rule, dtype, architecture):
    assert all("fma" not in ptx for ptx in fused(rule, dtype, architecture).values())


def test_registers_hold_everything(rule, dtype, architecture):
    assert all(".local" not in ptx for ptx in fused(rule, dtype, architecture).values())


def test_floats_are_computed_in_float_and_doubles_in_double(rule, dtype, architecture):
    foreign = {"float32": r"\.f64\b", "float64": r"\.f32\b"}[dtype]
    for ptx in fused(rule, dtype, architecture).values():
        assert not re.search(foreign, ptx)
        assert not re.search(r"\.approx|\.full", ptx)


def test_the_text_for_strided_arrays_compiles(rule, dtype, architecture, emulated):
    texts = []
    for number, variant in enumerate(rules.variants(rule)):
        kernel = cuda._elementwise(rule.rule, np.dtype(dtype), variant)
        texts.append(strided_kernel(f"strided_{number}", kernel, len(plan.row_fields(rule.rule))))
    source = "\n".join([joined("rule", rule.kernel), *texts])
    ptx = compile_kernels(source, [f"strided_{n}" for n in range(len(texts))], architecture)
    assert all("fma" not in text for text in ptx.values())


def strided_kernel(name, kernel, scalars):
    """The function that CuPy makes of an ElementwiseKernel, with plain pointers for its arrays."""
    (dtype, grad), *constants = kernel.in_params
    c_type = {"float32": "float", "float64": "double"}[dtype]
    assert len(constants) == scalars
    arrays = [array for _, array in kernel.out_params]
    parameters = [
        f"const {c_type}* _raw_{grad}",
        *(f"const {c_type} {constant}" for _, constant in constants),
        *(f"{c_type}* _raw_{array}" for array in arrays),
    ]
    loads = [f"const {c_type} &{grad} = _raw_{grad}[_index];"]
    loads += [f"{c_type} &{array} = _raw_{array}[_index];" for array in arrays]
    return (
        f"__global__ void {name}({', '.join(parameters)}) {{ const long long _index = threadIdx.x;"
        f" {' '.join(loads)} {kernel.operation}; }}"
    )
