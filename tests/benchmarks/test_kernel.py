"""The variations of the kernel that benchmarks compare."""

import pytest

from benchmarks.kernel import VARIATIONS, Variation
from lucid_gpu.execution import plan
from lucid_gpu.optim import Adam
from tests import rules
from tests.kernels.nvrtc import compile_kernels


@pytest.mark.parametrize("name", VARIATIONS)
def test_each_compiles_without_spilling(name):
    variation = VARIATIONS[name]
    kernel = plan.kernel_name(Adam.rule, rules.variants(Adam)[:1], rules.storage(Adam, "float32"))
    (compiled,) = compile_kernels(variation.text(Adam), [kernel], "sm_90").values()
    assert f".maxntid {variation.threads}" in compiled.ptx
    assert compiled.local == 0


def test_a_part_that_is_gone_cannot_be_replaced():
    with pytest.raises(ValueError, match="the kernel has no 'gone' to replace"):
        Variation({"gone": ""}).text(Adam)
