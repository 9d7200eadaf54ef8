"""host_memory: pinned memory comes back when nobody uses it any more, and no sooner."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu.device import transfer
from tests.execution.test_cuda import make, set_gradients
from tests.optim.core.placing import assert_same, trained


@pytest.fixture
def blocks(emulated, monkeypatch):
    """The sizes of the blocks of pinned memory that are allocated."""
    sizes, allocate = [], transfer.pinned_block
    monkeypatch.setattr(
        transfer, "pinned_block", lambda nbytes: sizes.append(nbytes) or allocate(nbytes)
    )
    return sizes


def test_host_memory_is_kept_for_the_next_time(blocks, released):
    optimizer = trained("cuda:0")
    for _ in range(3):
        optimizer.offload(block=True)
        optimizer.reload(block=True)
        released()
        optimizer.step()
    assert len(blocks) == 2


def test_host_memory_that_fits_no_more_is_given_back(blocks, released):
    optimizer = trained("cuda:0")
    for size in (7, 8, 9):
        optimizer.offload(block=True)
        assert optimizer._placement.host_memory._spare == []
        optimizer.reload(block=True)
        released()
        (param,) = make("cuda:0", (size,))
        optimizer.add_param_group({"params": [param]})
        optimizer.step()


@pytest.mark.parametrize("holder", ["a user", "a parameter that moved to the CPU"])
def test_host_memory_is_not_lent_again_while_it_is_in_use(emulated, released, holder):
    optimizer = trained("cuda:0", (6, 6))
    optimizer.offload(block=True)
    if holder != "a user":
        optimizer._params()[1].to("cpu")
    kept = optimizer.state[optimizer._params()[1]]["exp_avg"]
    before = kept.copy()
    optimizer.reload(block=True)
    released()
    set_gradients(optimizer._params(), 5)
    optimizer.step()
    if holder != "a user":
        before = kept.copy()
        optimizer.add_param_group({"params": make("cuda:0", (6,))})
        optimizer._params()[1].grad = None
        optimizer.step()
    optimizer.offload(block=True)
    np.testing.assert_array_equal(kept, before)


def test_a_block_that_is_still_read_is_not_lent_again(emulated):
    optimizer, twin = trained("cuda:0"), trained("cpu")
    optimizer.offload(block=True)
    emulated.lazy = True
    optimizer.reload()
    optimizer.offload()
    assert_same(optimizer, twin)
