from __future__ import annotations

import copy
import gc
import pickle
import tempfile
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lucid_gpu import Parameter, checkpoint, schedules
from lucid_gpu.device import transfer
from lucid_gpu.optim import SGD, Adam, AdamW, Optimizer, OptimizerStub
from lucid_gpu.schedules import Exponential, Linear, Scheduler, Step
from tests.contract.support import trained
from tests.execution.test_cuda import make
from tests.execution.test_graph import capture, replay
from tests.schedules.golden import halving, sgd


def rates(scheduler, steps):
    """Return what get_last_lr gives for each of the next steps, this one first."""
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        scheduler.step()
    return seen


# What is scheduled, and how it is written


def test_the_first_value_is_written_when_it_is_made():
    optimizer = sgd()
    Scheduler(optimizer, lr=Linear(0.5, 1, 2))
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_any_number_among_the_options_can_be_scheduled():
    optimizer = AdamW([Parameter([1.0])], lr=0.1, weight_decay=0.4, eps=1e-4)
    scheduler = Scheduler(
        optimizer, lr=Exponential(0.5), weight_decay=Step(2, 0.5), eps=Linear(1, 0.5, 1)
    )
    scheduler.step(2)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["eps"]) == (0.025, 0.2, 5e-5)


def test_momentum_stands_for_the_first_beta():
    optimizer = Adam([Parameter([1.0])], betas=(0.8, 0.999))
    scheduler = Scheduler(optimizer, momentum=Exponential(0.5))
    scheduler.step()
    assert optimizer.param_groups[0]["betas"] == (0.4, 0.999)
    assert optimizer.param_groups[0]["initial_momentum"] == 0.8


def test_a_step_uses_the_rate_that_the_group_shows(device):
    param = trained([1.0], [1.0], device)
    optimizer = SGD([param], lr=0.5)
    scheduler = Scheduler(optimizer, lr=Exponential(0.5))
    for rate in (0.5, 0.25, 0.125):
        assert optimizer.param_groups[0]["lr"] == rate
        optimizer.step()
        scheduler.step()
    assert param.numpy().tolist() == [1 - 0.5 - 0.25 - 0.125]


def test_groups_hold_plain_numbers():
    optimizer = sgd()
    Scheduler(optimizer, lr=lambda t, base: np.float32(0.5)).step()
    assert type(optimizer.param_groups[0]["lr"]) is float


def test_each_group_has_a_base_of_its_own():
    scheduler = Scheduler(sgd(groups=2), lr=Exponential(0.5))
    scheduler.step()
    assert scheduler.get_last_lr() == [0.05, 0.025]
    assert scheduler.base_lrs == [0.1, 0.05]


def test_a_list_has_a_schedule_for_each_group():
    scheduler = Scheduler(sgd(groups=2), lr=[Exponential(0.5), Step(9)])
    scheduler.step()
    assert scheduler.get_last_lr() == [0.05, 0.05]


def added(scheduler, **options):
    scheduler.optimizer.add_param_group({"params": [Parameter([1.0])], "lr": 0.8, **options})
    scheduler.step()
    return scheduler.get_last_lr()[-1]


def test_a_group_that_is_added_later_has_its_own_base_and_the_schedule_of_the_last():
    scheduler = Scheduler(sgd(groups=2), lr=[Exponential(0.5), Exponential(0.25)])
    assert added(scheduler) == 0.2
    assert scheduler.base_lrs[-1] == 0.8


def test_a_group_that_is_added_later_may_be_like_an_earlier_one():
    scheduler = Scheduler(sgd(groups=2), lr=[Exponential(0.5), Exponential(0.25)])
    assert added(scheduler, like=0) == 0.4
    assert added(scheduler, like=2) == 0.2


def test_one_schedule_for_all_is_also_that_of_a_group_that_is_added_later():
    assert added(Scheduler(sgd(), lr=Exponential(0.5))) == 0.4


@pytest.mark.parametrize("like", [2, -1, "0", True])
def test_a_group_can_only_be_like_an_earlier_one(like):
    scheduler = Scheduler(sgd(groups=2), lr=[Exponential(0.5), Exponential(0.25)])
    with pytest.raises(ValueError, match="'like' of parameter group 2 must be the number of an"):
        added(scheduler, like=like)


def test_what_was_written_by_hand_is_overwritten_by_the_next_tick():
    scheduler = Scheduler(sgd(), lr=Exponential(0.5))
    scheduler.optimizer.param_groups[0]["lr"] = 9.0
    scheduler.step()
    assert scheduler.get_last_lr() == [0.05]


def test_a_scheduler_takes_whatever_has_groups():
    class Theirs:
        param_groups = [{"lr": 0.1}]  # noqa: RUF012 - as small as can be

    scheduler = Scheduler(Theirs(), lr=Exponential(0.5))
    scheduler.step()
    assert scheduler.get_last_lr() == [0.05]


def test_a_stub_without_groups_can_be_scheduled():
    scheduler = Scheduler(OptimizerStub(), lr=Exponential(0.5))
    scheduler.step()
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (1, [])


def test_a_step_may_be_named():
    scheduler = Scheduler(sgd(), lr=Exponential(0.5))
    scheduler.step(3)
    assert rates(scheduler, 2) == [0.0125, 0.00625]
    scheduler.step(0.5)
    assert scheduler.get_last_lr() == [0.1 * 0.5**0.5]


def test_the_repr_shows_where_it_is():
    scheduler = Scheduler(sgd(groups=2), lr=Step(3), momentum=[Step(4), Step(5)])
    scheduler.step()
    assert repr(scheduler) == (
        "Scheduler(t=1, lr=Step(step_size=3, gamma=0.1), "
        "momentum=[Step(step_size=4, gamma=0.1), Step(step_size=5, gamma=0.1)])"
    )


# What is refused


class Unchecked(Optimizer):
    """Has options that cannot be scheduled."""

    def __init__(self):
        super().__init__([Parameter([1.0])], {"lr": 0.1, "name": "a", "flag": True, "none": None})

    def step(self, closure=None):
        return None


BAD = [
    ({}, TypeError, "no schedule is given"),
    ({"lr": 3}, TypeError, r"lr must be a function f\(t, base\), not 3"),
    ({"lr": [Step(3), Step(3)]}, ValueError, "lr has 2 schedules for 1 parameter groups"),
    ({"lr": [None]}, TypeError, "lr must be a function"),
    ({"decay": Step(3)}, ValueError, "group 0 has no option 'decay' .* its numbers are lr"),
    ({"name": Step(3)}, TypeError, "name must be a number, not 'a'"),
    ({"flag": Step(3)}, TypeError, "flag must be a number, not True"),
    ({"none": Step(3)}, TypeError, "none must be a number, not None"),
    ({"lr": lambda t, base: None}, TypeError, "gives None for 'lr' of group 0: lr must be a nu"),
    ({"lr": lambda t, base: "1"}, TypeError, "gives '1' for 'lr' of group 0"),
    ({"lr": lambda t, base: float("nan")}, ValueError, "gives nan for 'lr' of group 0: .* finite"),
    ({"lr": lambda t, base: float("inf")}, ValueError, "gives inf for 'lr' of group 0: .* finite"),
    ({"lr": lambda t, base: 10.0**400}, ValueError, "that no float can hold"),
    (
        {"lr": Step(3), "every": "epoch"},
        ValueError,
        "every must be one of None, 'step', 'update', not",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_what_cannot_be_scheduled_is_refused_and_nothing_is_changed(arguments, error, message):
    optimizer = Unchecked()
    before = dict(optimizer.param_groups[0])
    with pytest.raises(error, match=message):
        Scheduler(optimizer, **arguments)
    assert optimizer.param_groups[0] == before


@pytest.mark.parametrize("optimizer", [None, [Parameter([1.0])], SGD])
def test_what_has_no_groups_is_no_optimizer(optimizer):
    with pytest.raises(TypeError, match="optimizer must be one, with a list param_groups, not"):
        Scheduler(optimizer, lr=Step(3))


@pytest.mark.parametrize("bad", [-0.1, float("nan"), "0.1"])
def test_a_value_out_of_bounds_changes_no_group_and_not_the_count(bad):
    optimizer = sgd(groups=2)
    scheduler = Scheduler(optimizer, lr=[Exponential(0.5), lambda t, base: base if t < 2 else bad])
    scheduler.step()
    before = copy.deepcopy([scheduler.get_last_lr(), scheduler.last_epoch])
    with pytest.raises((ValueError, TypeError), match=r"at t = 2 .* gives .* of group 1: lr must"):
        scheduler.step()
    assert [scheduler.get_last_lr(), scheduler.last_epoch] == before


def test_a_combination_that_the_optimizer_refuses_is_named():
    optimizer = SGD([Parameter([1.0])], lr=0.1, momentum=0.9, nesterov=True)
    scheduler = Scheduler(optimizer, momentum=Linear(1, 0, 2))
    scheduler.step()
    with pytest.raises(ValueError, match=r"gives 0.* for 'momentum' of group 0: nesterov needs"):
        scheduler.step()
    assert optimizer.param_groups[0]["momentum"] == 0.45


@pytest.mark.parametrize("epoch", [-1, float("nan"), float("inf"), "1", True])
def test_a_step_that_is_no_number_or_negative_is_refused(epoch):
    scheduler = Scheduler(sgd(), lr=Exponential(0.5))
    with pytest.raises((ValueError, TypeError), match="epoch must be"):
        scheduler.step(epoch)
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (0, [0.1])


# Two schedulers on one optimizer


def test_of_two_schedulers_of_one_option_the_first_refuses_to_go_on():
    optimizer = sgd()
    first, second = Scheduler(optimizer, lr=Step(3)), Scheduler(optimizer, lr=Exponential(0.5))
    with pytest.raises(RuntimeError, match=r"'lr' .* is scheduled by .*Exponential.* made later"):
        first.step()
    with pytest.raises(RuntimeError, match="made later"):
        first.load_state_dict({"last_epoch": 3})
    second.step()
    assert (first.last_epoch, second.get_last_lr()) == (0, [0.05])


def test_a_scheduler_goes_on_after_a_later_one_is_gone():
    optimizer = sgd()
    first = Scheduler(optimizer, lr=Exponential(0.5))
    Scheduler(optimizer, lr=Step(3))
    gc.collect()
    first.step()
    assert first.get_last_lr() == [0.05]


def test_two_schedulers_of_different_options_do_not_disturb_each_other():
    optimizer = sgd()
    first, second = Scheduler(optimizer, lr=Step(3)), Scheduler(optimizer, momentum=Step(3))
    first.step()
    second.step()
    assert (first.last_epoch, second.last_epoch) == (1, 1)


def test_a_scheduler_that_ticks_by_itself_must_be_detached_before_another_is_made():
    optimizer = sgd()
    first = Scheduler(optimizer, every="step", lr=Step(3))
    with pytest.raises(ValueError, match=r"is scheduled already by .* call its detach"):
        Scheduler(optimizer, lr=Exponential(0.5))
    first.detach()
    Scheduler(optimizer, lr=Exponential(0.5))
    optimizer.step()
    assert first.last_epoch == 0


def test_schedulers_do_not_keep_optimizers_alive():
    optimizer = sgd()
    gone = weakref.ref(optimizer)
    scheduler = Scheduler(optimizer, every="step", lr=Step(3))
    del optimizer, scheduler
    gc.collect()
    assert gone() is None


# Ticking with the optimizer


def test_it_ticks_once_for_every_step(device):
    param = trained([1.0], [1.0], device)
    optimizer = SGD([param], lr=0.5)
    scheduler = Scheduler(optimizer, every="step", lr=Exponential(0.5))
    for _ in range(3):
        optimizer.step()
    assert scheduler.last_epoch == 3
    assert param.numpy().tolist() == [1 - 0.5 - 0.25 - 0.125]


def test_a_closure_that_runs_often_is_one_step():
    class Searching(Optimizer):
        def __init__(self):
            super().__init__([Parameter([1.0])], {"lr": 0.5})

        def step(self, closure=None):
            for _ in range(5):
                closure()

    optimizer = Searching()
    scheduler = Scheduler(optimizer, every="step", lr=Exponential(0.5))
    optimizer.step(lambda: 0.0)
    assert scheduler.last_epoch == 1


def test_a_closure_sees_the_rate_of_its_own_step():
    optimizer = sgd(0.5)
    Scheduler(optimizer, every="step", lr=Exponential(0.5))
    seen = [optimizer.step(lambda: optimizer.param_groups[0]["lr"]) for _ in range(3)]
    assert seen == [0.5, 0.25, 0.125]


def test_a_tick_inside_a_closure_is_that_of_the_step_at_hand(device):
    param = trained([1.0], [1.0], device)
    optimizer = SGD([param], lr=0.5)
    scheduler = Scheduler(optimizer, lr=Exponential(0.5))
    optimizer.step(scheduler.step)
    assert param.numpy().tolist() == [0.75]


def test_a_step_that_failed_does_not_tick():
    optimizer = sgd()
    scheduler = Scheduler(optimizer, every="step", lr=Exponential(0.5))
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (0, [0.1])


def test_post_hooks_see_the_rate_of_the_next_step():
    optimizer = sgd(0.5)
    seen = []
    optimizer.register_step_post_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    Scheduler(optimizer, every="step", lr=Exponential(0.5))
    optimizer.step()
    assert seen == [0.25]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize(("every", "ticks"), [("step", 4), ("update", 3)])
def test_a_step_that_is_skipped_ticks_unless_updates_are_counted(every, ticks, device, emulated):
    param = Parameter([1.0], device=device)
    optimizer = SGD([param], lr=0.1, skip_nonfinite=True)
    scheduler = Scheduler(optimizer, every=every, lr=Exponential(0.5))
    for value in (1.0, np.inf, 1.0, 1.0):
        param.grad = transfer.to(np.array([value], np.float32), device)
        optimizer.step()
    assert optimizer.skipped == 1
    assert scheduler.last_epoch == ticks


def test_a_step_that_is_skipped_is_not_waited_for(emulated):
    param = Parameter([1.0], device="cuda:0")
    optimizer = SGD([param], lr=0.1, skip_nonfinite=True)
    Scheduler(optimizer, every="step", lr=Exponential(0.5))
    param.grad = param.data.copy()
    optimizer.step()
    before = emulated.record.synchronizations
    optimizer.step()
    assert emulated.record.synchronizations == before


def test_a_copy_counts_updates_on():
    param = Parameter([1.0])
    optimizer = SGD([param], lr=0.1, skip_nonfinite=True)
    scheduler = Scheduler(optimizer, every="update", lr=Exponential(0.5))
    param.grad = np.array([np.inf], np.float32)
    optimizer.step()
    own, other, twin = copy.deepcopy((param, optimizer, scheduler))
    own.grad = np.ones(1, np.float32)
    other.step()
    assert (scheduler.last_epoch, twin.last_epoch) == (0, 1)


def test_an_optimizer_that_does_not_say_when_it_steps_is_refused():
    class Theirs:
        def __init__(self):
            self.param_groups = [{"lr": 0.1}]

    theirs = Theirs()
    with pytest.raises(TypeError, match="a Theirs does not say when it steps"):
        Scheduler(theirs, every="step", lr=Step(3))
    assert theirs.param_groups == [{"lr": 0.1}]


@pytest.mark.parametrize("rule", [SGD, Adam])
def test_replays_of_a_graph_tick_and_its_capture_does_not(rule, accelerator):
    params, twins = make(accelerator), make("cpu")
    optimizer, twin = rule(params, lr=0.5), rule(twins, lr=0.5)
    scheduler = Scheduler(optimizer, every="step", lr=Exponential(0.5))
    Scheduler(twin, every="step", lr=Exponential(0.5))
    graph, stream = capture(optimizer)  # after one ordinary step
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (1, [0.25])
    twin.step()
    for _ in range(4):
        replay(optimizer, graph, stream)
        twin.step()
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (5, [0.5**6])
    for param, other in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), other.numpy())


def test_a_replay_that_is_refused_does_not_tick(accelerator):
    params = make(accelerator)
    optimizer = SGD(params, lr=0.5)
    scheduler = Scheduler(optimizer, every="step", lr=Exponential(0.5))
    capture(optimizer)
    params[0].grad = None
    with pytest.raises(RuntimeError, match="capture the graph anew"):
        optimizer.before_replay()
    assert scheduler.last_epoch == 1


# Saving and resuming


def test_the_state_is_a_number():
    scheduler = Scheduler(sgd(), lr=schedules.Lambda(halving), momentum=Step(3))
    scheduler.step(4)
    assert scheduler.state_dict() == {"last_epoch": 4}


RESUMED = {
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.5),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [3], 0.5),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 10),
    "LinearLR": lambda o: schedules.LinearLR(o, 0.1, 1, 8),
    "LambdaLR": lambda o: schedules.LambdaLR(o, halving),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, 0.1, 20),
}
WANTED = {
    "ExponentialLR": (0.00625, 0.003125),
    "MultiStepLR": (0.05, 0.05),
    "CosineAnnealingLR": (0.06545, 0.05),
    "LinearLR": (0.055, 0.06625),
    "LambdaLR": (0.00625, 0.003125),
    "OneCycleLR": (0.0908, 0.1),
}
"""The rate at t = 4 and the one after."""


def the_scheduler_alone(make, optimizer_state, scheduler_state):
    scheduler = make(sgd())
    scheduler.load_state_dict(scheduler_state)
    return scheduler


def the_optimizer_ahead_of_making_it(make, optimizer_state, scheduler_state):
    optimizer = sgd()
    optimizer.load_state_dict(optimizer_state)
    scheduler = make(optimizer)
    scheduler.load_state_dict(scheduler_state)
    return scheduler


def both_after_making_it(make, optimizer_state, scheduler_state):
    scheduler = make(sgd())
    scheduler.optimizer.load_state_dict(optimizer_state)
    scheduler.load_state_dict(scheduler_state)
    return scheduler


def both_in_the_other_order(make, optimizer_state, scheduler_state):
    scheduler = make(sgd())
    scheduler.load_state_dict(scheduler_state)
    scheduler.optimizer.load_state_dict(optimizer_state)
    return scheduler


ORDERS = [
    the_scheduler_alone,
    the_optimizer_ahead_of_making_it,
    both_after_making_it,
    both_in_the_other_order,
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_rate_is_right_in_whatever_order_things_are_made_and_loaded(name, order):
    whole = RESUMED[name](sgd())
    for _ in range(4):
        whole.step()
    resumed = order(RESUMED[name], whole.optimizer.state_dict(), whole.state_dict())
    assert rates(resumed, 2) == pytest.approx(WANTED[name], rel=1e-3)
    whole.step()
    whole.step()
    assert resumed.get_last_lr() == whole.get_last_lr()
    assert resumed.base_lrs == whole.base_lrs == [0.1]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_rate_is_right_after_another_was_made_for_the_same_optimizer(name, order):
    def make_twice(optimizer):
        schedules.ExponentialLR(optimizer, 0.3).step()
        return RESUMED[name](optimizer)

    whole = RESUMED[name](sgd())
    whole.step(4)
    resumed = order(make_twice, whole.optimizer.state_dict(), whole.state_dict())
    assert resumed.get_last_lr() == whole.get_last_lr()


@given(st.permutations(["optimizer", "scheduler"]), st.integers(0, 30))
def test_a_checkpoint_holds_it_like_any_object(order, steps):
    optimizer = sgd()
    scheduler = Scheduler(optimizer, lr=schedules.warmup_cosine(5, 20), momentum=Step(4))
    scheduler.step(steps)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "saved"
        checkpoint.save(path, {"optimizer": optimizer, "scheduler": scheduler})
        other = sgd()
        resumed = Scheduler(other, lr=schedules.warmup_cosine(5, 20), momentum=Step(4))
        objects = {"optimizer": other, "scheduler": resumed}
        checkpoint.load(path, into={key: objects[key] for key in order})
    assert resumed.last_epoch == steps
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


STATES = [
    ({"last_epoch": 4, "base_lrs": [9.0], "_step_count": 5, "_last_lr": [9.0]}, 4),
    ({"last_epoch": np.int64(4)}, 4),
    ({"last_epoch": 4.0}, 4),
    ({"last_epoch": 5, "_schedulers": [{"last_epoch": 1}, {"last_epoch": -1}]}, 5),
    ({"_last_lr": [1.0], "_schedulers": [{"last_epoch": 3}, {"last_epoch": 9}]}, 3),
    ({"_schedulers": [{"_schedulers": [{"last_epoch": 2}]}]}, 2),
]


@pytest.mark.parametrize(("state", "t"), STATES)
def test_the_outermost_count_of_a_state_dict_is_read_and_nothing_else(state, t):
    scheduler = Scheduler(sgd(), lr=Exponential(0.5))
    scheduler.load_state_dict(state)
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (t, [0.1 * 0.5**t])
    assert scheduler.base_lrs == [0.1]
    assert type(scheduler.last_epoch) is int


BAD_STATES = [
    (3, TypeError, "state_dict must be a dict, not int"),
    ({}, KeyError, "no 'last_epoch'; it has"),
    ({"_schedulers": []}, KeyError, "no 'last_epoch'"),
    ({"_schedulers": [3]}, TypeError, "state_dict must be a dict, not int"),
    ({"last_epoch": None}, TypeError, "last_epoch must be a number, not None"),
    ({"last_epoch": True}, TypeError, "last_epoch must be a number, not True"),
    ({"last_epoch": -1}, ValueError, "last_epoch must be >= 0, not -1"),
    ({"last_epoch": float("nan")}, ValueError, "last_epoch must be finite"),
    ({"last_epoch": 10**400}, ValueError, "last_epoch must be finite"),
    ({"last_epoch": 7}, ValueError, "at t = 7 .* lr must be >= 0"),
]


@pytest.mark.parametrize(("state", "error", "message"), BAD_STATES)
def test_a_state_dict_that_is_wrong_changes_nothing(state, error, message):
    scheduler = Scheduler(sgd(), lr=lambda t, base: base - 0.02 * t)
    scheduler.step(2)
    before = scheduler.get_last_lr()
    with pytest.raises(error, match=message):
        scheduler.load_state_dict(state)
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (2, before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_ticks_with_the_copy_of_its_optimizer(copied):
    scheduler = Scheduler(sgd(), every="step", lr=Exponential(0.5))
    scheduler.optimizer.step()
    twin = copied(scheduler)
    twin.optimizer.step()
    assert (scheduler.last_epoch, twin.last_epoch) == (1, 2)
    assert (scheduler.get_last_lr(), twin.get_last_lr()) == ([0.05], [0.025])
    scheduler.optimizer.step()
    assert (scheduler.last_epoch, twin.last_epoch) == (2, 2)


@given(st.integers(0, 20), st.integers(0, 20))
def test_a_resumed_run_has_the_rates_of_one_that_was_not_interrupted(before, after):
    def make(optimizer):
        return Scheduler(optimizer, every="step", lr=schedules.wsd(3, 9, 6, 0.01))

    whole, part = make(sgd()), make(sgd())
    for _ in range(before):
        part.optimizer.step()
    rest = make(sgd())
    rest.load_state_dict(part.state_dict())
    expected = [whole.optimizer.step() or whole.get_last_lr() for _ in range(before + after)]
    seen = [rest.optimizer.step() or rest.get_last_lr() for _ in range(after)]
    assert seen == expected[before:]
