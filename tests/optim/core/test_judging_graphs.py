"""Measured steps that a CUDA graph replays are the steps that would be taken one by one."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid_gpu.amp import GradScaler
from lucid_gpu.device import gpu, transfer
from lucid_gpu.execution.cuda_outcomes import WINDOW
from lucid_gpu.optim import LAMB, SGD, Adam, AdamW, AdamWScheduleFree, NAdam
from lucid_gpu.schedules import Scheduler
from tests.optim.core.test_judging import contents, parameters, set_gradients

pytestmark = pytest.mark.usefixtures("emulated")
KINDS = [AdamW, SGD, LAMB, NAdam, AdamWScheduleFree, partial(SGD, momentum=0.9)]


class Replayed:
    """An optimizer on a GPU, its step in a graph, and its twin on the CPU."""

    def __init__(self, kind, scaler=False, groups=1, is_first_bad=False, **options):
        self.stream = gpu.module("cuda").cuda.Stream(non_blocking=True)
        self.pinned = []
        self.sides = []
        with self.stream:
            for device in ("cuda:0", "cpu"):
                params = parameters(device)
                given = [{"params": params[i::groups]} for i in range(groups)]
                own = GradScaler(device, init_scale=8.0, growth_interval=3) if scaler else None
                self.sides.append((params, kind(given, **options), own))
            self.params, self.optimizer, self.scaler = self.sides[0]
            self.eager(0, is_first_bad)
            self.capture()

    def eager(self, number, bad=False):
        """Take an ordinary step, on both sides."""
        with self.stream:
            for params, optimizer, scaler in self.sides:
                step(params, optimizer, scaler, number, bad)

    def capture(self):
        self.stream.begin_capture()
        with self.stream:
            take(self.optimizer, self.scaler)
        self.graph = self.stream.end_capture()

    def replay(self, number, bad=False):
        """Replay the graph with other gradients in the same memory; step on the other side."""
        params, optimizer, scaler = self.sides[1]
        step(params, optimizer, scaler, number, bad)
        for param, twin in zip(self.params, params, strict=True):
            pinned = transfer.pinned(twin.grad.shape, twin.grad.dtype)
            pinned[...] = twin.grad
            self.pinned.append(pinned)
            with gpu.on("cuda:0"):
                at = pinned.ctypes.data
                param.grad.data.copy_from_host_async(at, pinned.nbytes, self.stream)
        with self.stream:
            self.optimizer.before_replay()
            self.graph.launch(self.stream)

    def advance(self, pieces):
        with gpu.on("cuda:0"):
            for _ in range(min(pieces, len(self.stream._queue))):
                self.stream.advance()

    def require_equal(self):
        (params, optimizer, scaler), (twins, twin, other) = self.sides
        assert (optimizer.skipped, optimizer.steps_taken) == (twin.skipped, twin.steps_taken)
        assert optimizer.first_skip == twin.first_skip
        assert repr(optimizer.last) == repr(twin.last)
        assert repr(optimizer.report()) == repr(twin.report())
        assert contents(params, optimizer) == contents(twins, twin)
        if scaler is not None:
            with self.stream:  # on which the scale was moved
                assert scaler.state_dict() == other.state_dict()


def step(params, optimizer, scaler, number, bad):
    set_gradients(params, number, bad)
    if scaler is not None:
        scaler.scale(1.0)
    take(optimizer, scaler)


def take(optimizer, scaler):
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


steps = st.lists(
    st.tuples(st.booleans(), st.integers(0, 30), st.sampled_from(["replay", "replay", "eager"])),
    min_size=1,
    max_size=40,
)
some_examples = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@some_examples
@given(steps, st.sampled_from(KINDS), st.booleans(), st.sampled_from([None, 0.5]))
def test_replays_with_outcomes_that_arrive_late_are_ordinary_steps(
    emulated, steps, kind, scaled, max_norm
):
    run = Replayed(kind, scaler=scaled, groups=2, max_norm=max_norm, skip_nonfinite=not scaled)
    emulated.lazy = True
    try:
        for number, (bad, pieces, way) in enumerate(steps):
            getattr(run, way)(number + 1, bad)
            if way == "eager":  # the graph goes on writing the gradients that it knows
                with run.stream:
                    run.capture()
            run.advance(pieces)
        run.require_equal()
    finally:
        emulated.lazy = False


@pytest.mark.parametrize("kind", KINDS)
def test_the_ordinary_step_ahead_of_the_capture_may_be_skipped(kind):
    run = Replayed(kind, scaler=True, is_first_bad=True)
    run.replay(1, bad=True)
    assert len(run.optimizer.state) == 0
    for number in range(2, 5):
        run.replay(number, bad=number == 3)
    run.require_equal()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_moved_are_measured_if_told_to(kind):
    run = Replayed(kind, max_norm=0.5, skip_nonfinite=True)
    for number in range(1, 6):
        for params, _, _ in run.sides:
            set_gradients(params, number, bad=number in (2, 3))
        run.sides[1][1].step()
        with run.stream:
            run.optimizer.before_replay(gradients="current")
            run.graph.launch(run.stream)
    run.require_equal()


def test_a_replay_waits_for_no_outcome_before_the_window_is_full(emulated):
    run = Replayed(Adam, skip_nonfinite=True)
    run.optimizer.skipped  # noqa: B018 - waits
    emulated.lazy = True
    try:
        before = emulated.record.synchronizations
        for number in range(WINDOW - 1):
            run.replay(number + 1)
        assert emulated.record.synchronizations == before
        assert run.optimizer.skipped == 0
        assert emulated.record.synchronizations > before
    finally:
        emulated.lazy = False


def test_replays_allocate_and_compile_nothing(emulated):
    run = Replayed(Adam, scaler=True, max_norm=1.0)
    before = emulated.record.allocations, len(emulated.record.compiles)
    with run.stream:
        for _ in range(2 * WINDOW):
            run.optimizer.before_replay()
            run.graph.launch(run.stream)
    assert (emulated.record.allocations, len(emulated.record.compiles)) == before


def test_the_outcome_of_a_replay_is_known_at_the_next_look():
    run = Replayed(Adam, skip_nonfinite=True)
    run.replay(1, bad=True)
    assert run.optimizer.last.skipped
    run.replay(2)
    assert not run.optimizer.last.skipped
    assert run.optimizer.skipped == 1


def test_asking_between_the_call_and_the_launch_spoils_nothing():
    run = Replayed(Adam, skip_nonfinite=True)
    run.replay(1, bad=True)
    with run.stream:
        run.optimizer.before_replay()
        assert run.optimizer.skipped == 1
        assert run.optimizer.last.skipped
        run.graph.launch(run.stream)
    assert run.optimizer.skipped == 2
    assert run.optimizer.steps_taken == 1


def test_replays_that_are_never_launched_are_named():
    run = Replayed(Adam, skip_nonfinite=True)
    with run.stream:
        for _ in range(WINDOW):
            run.optimizer.before_replay()
        with pytest.raises(RuntimeError, match="called 16 times without that the graph was launc"):
            run.optimizer.before_replay()


def test_a_scale_that_is_updated_outside_of_the_graph_moves_alike():
    run = Replayed(Adam, scaler=True)
    run.stream.begin_capture()
    with run.stream:
        run.scaler.step(run.optimizer)
    run.graph = run.stream.end_capture()
    for number in range(8):
        run.replay(number + 1, bad=number in (1, 2, 6))
        with run.stream:
            run.scaler.update()
    run.require_equal()


def test_a_schedule_of_a_captured_optimizer_ticks_with_its_replays():
    run = Replayed(Adam, skip_nonfinite=True, lr=0.1)
    schedulers = [Scheduler(own, lr=lambda t, base: base / (1 + t)) for _, own, _ in run.sides]
    for number in range(5):
        run.replay(number + 1, bad=number == 2)
        for scheduler in schedulers:
            scheduler.step()
    run.require_equal()


def test_a_schedule_that_ticks_with_steps_has_the_rates_of_ordinary_steps():
    run = Replayed(Adam, skip_nonfinite=True, lr=0.1)
    schedulers = [
        Scheduler(own, every="step", lr=lambda t, base: base / (1 + t)) for _, own, _ in run.sides
    ]
    for number in range(5):
        run.replay(number + 1, bad=number == 2)
    assert [scheduler.last_epoch for scheduler in schedulers] == [5, 5]
    run.require_equal()


def test_a_schedule_that_ticks_with_updates_knows_of_a_skip_one_replay_later():
    run = Replayed(Adam, skip_nonfinite=True, lr=0.1)
    scheduler = Scheduler(run.optimizer, every="update", lr=lambda t, base: base / (1 + t))
    ticks = []
    for number in range(4):
        run.replay(number + 1, bad=number == 1)
        ticks.append(scheduler.last_epoch)
    assert ticks == [1, 2, 2, 3]


def test_tensors_that_step_in_more_ways_than_there_is_room_for_wait(emulated):
    """The table has room for 16 rows: three kinds of tensors leave it for five outcomes."""
    run = Replayed(Adam, skip_nonfinite=True)
    for number, kept in enumerate([0, 1]):
        for params, optimizer, _ in run.sides:
            set_gradients(params, 20 + number)
            for param in params[kept + 1 :]:
                param.grad = None
            with run.stream:
                optimizer.step()
            set_gradients(params, 30)
    with run.stream:
        run.eager(40)
        run.capture()
    emulated.lazy = True
    try:
        for number in range(12):
            run.replay(number + 1, bad=number % 3 == 1)
        run.require_equal()
    finally:
        emulated.lazy = False


@pytest.mark.parametrize("option", [{"max_norm": 2.0}, {"skip_nonfinite": True}])
def test_a_replay_that_would_be_judged_otherwise_is_refused(option):
    run = Replayed(Adam, max_norm=1.0)
    run.optimizer.param_groups[0].update(option)
    with pytest.raises(RuntimeError, match="others than when the step was captured"):
        run.optimizer.before_replay()


def test_a_step_that_begins_to_measure_is_not_recorded():
    run = Replayed(Adam)
    run.optimizer.param_groups[0]["max_norm"] = 1.0
    run.stream.begin_capture()
    with run.stream, pytest.raises(RuntimeError, match="begins to measure"):
        run.optimizer.step()
    run.stream.end_capture()


def test_a_scaler_that_has_not_stepped_yet_is_not_recorded():
    run = Replayed(Adam, max_norm=1.0)
    scaler = GradScaler("cuda:0")
    scaler.scale(1.0)
    run.stream.begin_capture()
    with run.stream, pytest.raises(RuntimeError, match="after an ordinary one with the same"):
        scaler.step(run.optimizer)
    run.stream.end_capture()


@pytest.mark.parametrize("what", ["scale", "unscale_", "update"])
def test_what_a_scaler_cannot_have_recorded_is_named(what):
    run = Replayed(Adam, scaler=True)
    fresh = GradScaler("cuda:0")
    calls = {
        "scale": lambda: fresh.scale(1.0),
        "unscale_": lambda: run.scaler.unscale_(run.optimizer),
        "update": lambda: run.scaler.update(4.0),
    }
    run.stream.begin_capture()
    with run.stream, pytest.raises(RuntimeError, match=rf"{what}.*cannot be recorded"):
        calls[what]()
    run.stream.end_capture()


def test_counts_of_a_graph_cannot_be_asked_while_its_stream_records():
    run = Replayed(Adam, skip_nonfinite=True)
    run.replay(1)
    run.stream.begin_capture()
    assert run.optimizer.last is not None
    with pytest.raises(RuntimeError, match="cannot be asked while a CUDA graph is recorded"):
        run.optimizer.skipped  # noqa: B018 - waits
    run.stream.end_capture()


def test_norms_of_replays_are_those_of_their_gradients():
    run = Replayed(SGD, max_norm=0.5)
    run.replay(3)
    squares = [np.sum(transfer.to(p.grad, "cpu").astype(float) ** 2) for p in run.params]
    assert run.optimizer.report().keys() == {"p0", "p1", "p2"}
    assert run.optimizer.last.norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-12)
