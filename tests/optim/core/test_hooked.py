"""hooked: the hooks that run once for each step that is counted."""

from __future__ import annotations

import copy

import pytest

from lucid_gpu.optim import SGD, Adam, OptimizerStub
from tests.contract.support import trained
from tests.execution.test_cuda import make
from tests.execution.test_graph import capture, replay


def counted(optimizer):
    """Return the list into which the number of counted steps grows."""
    seen = []
    optimizer.register_step_count_hook(seen.append)
    return seen


@pytest.mark.parametrize("rule", [SGD, Adam])
def test_a_count_hook_runs_after_each_step_with_the_optimizer(device, rule):
    optimizer = rule([trained([1.0], [1.0], device)])
    seen = counted(optimizer)
    optimizer.step()
    optimizer.step()
    assert seen == [optimizer, optimizer]


def test_a_count_hook_runs_ahead_of_post_hooks():
    optimizer, order = OptimizerStub(), []
    optimizer.register_step_post_hook(lambda *_: order.append("post"))
    optimizer.register_step_count_hook(lambda _: order.append("count"))
    optimizer.step()
    assert order == ["count", "post"]


def test_a_count_hook_does_not_run_for_a_step_that_failed():
    optimizer = OptimizerStub()
    seen = counted(optimizer)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert seen == []


def test_a_count_hook_runs_for_replays_and_not_for_the_capture(accelerator):
    optimizer = SGD(make(accelerator), lr=0.1)
    graph, stream = capture(optimizer)  # after one ordinary step
    seen = counted(optimizer)
    replay(optimizer, graph, stream)
    replay(optimizer, graph, stream)
    with stream:
        optimizer.step()
    stream.synchronize()
    assert len(seen) == 3


def test_a_count_hook_does_not_run_while_a_graph_is_recorded(accelerator):
    optimizer = SGD(make(accelerator), lr=0.1)
    seen = counted(optimizer)
    capture(optimizer)
    assert len(seen) == 1


def test_a_count_hook_is_removed_by_its_handle_and_left_behind_by_copies():
    optimizer, seen = OptimizerStub(), []
    handle = optimizer.register_step_count_hook(seen.append)
    copy.deepcopy(optimizer).step()
    handle.remove()
    optimizer.step()
    assert seen == []
