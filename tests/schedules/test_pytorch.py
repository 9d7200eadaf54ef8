"""PyTorch as the oracle: 40 steps of every scheduler, and its state dicts."""

from __future__ import annotations

import itertools
import math
import warnings
from types import SimpleNamespace

import pytest

from lucid_gpu import schedules
from lucid_gpu.schedules import ReduceLROnPlateau, Scheduler
from tests.schedules import golden

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")

from torch.optim import lr_scheduler, swa_utils  # noqa: E402

THEIRS = SimpleNamespace(**vars(lr_scheduler), SWALR=swa_utils.SWALR)
STEPS = 40
CLOSE = {"rel": 1e-14, "abs": 1e-15}
"""Where a rate comes to 0, what is left of it is a rounding of the base, 0.1."""

MORE = {
    "OneCycleLR, longer": lambda s, o: s.OneCycleLR(o, 0.1, 41),
    "OneCycleLR, three phases": lambda s, o: s.OneCycleLR(o, 0.1, 41, three_phase=True),
    "OneCycleLR, all of it a rise": lambda s, o: s.OneCycleLR(o, 0.1, 41, pct_start=1.0),
    "OneCycleLR, no rise": lambda s, o: s.OneCycleLR(o, 0.1, 41, pct_start=0.0),
    "CyclicLR, many cycles": lambda s, o: s.CyclicLR(o, 0.01, 0.1, 2, 5, "triangular2"),
    "CyclicLR, a scale of one's own": lambda s, o: s.CyclicLR(
        o, 0.01, 0.1, 3, scale_fn=golden.decaying, scale_mode="iterations"
    ),
    "CosineAnnealingWarmRestarts, even": lambda s, o: s.CosineAnnealingWarmRestarts(o, 7),
    "PolynomialLR, a root": lambda s, o: s.PolynomialLR(o, 50, 0.5),
    "LinearLR, down": lambda s, o: s.LinearLR(o, 1.0, 0.1, 30),
    "SWALR, linear": lambda s, o: s.SWALR(o, 0.02, 30, "linear"),
    "SWALR, at once": lambda s, o: s.SWALR(o, 0.02, 0),
    "StepLR, default": lambda s, o: s.StepLR(o, 7),
    "ConstantLR, default": lambda s, o: s.ConstantLR(o),
    "LinearLR, default": lambda s, o: s.LinearLR(o),
    "PolynomialLR, default": lambda s, o: s.PolynomialLR(o),
    "CosineAnnealingLR, long": lambda s, o: s.CosineAnnealingLR(o, 50),
    "ChainedScheduler of one that overwrites": lambda s, o: s.ChainedScheduler(
        [s.CosineAnnealingWarmRestarts(o, 7), s.ExponentialLR(o, 0.9)][:1]
    ),
}
SCHEDULERS = {**golden.SCHEDULERS, **MORE}
ONE_CYCLES_END = {name for name in golden.SCHEDULERS if name.startswith("OneCycleLR")}


def their_sgd(lr=0.1, momentum=0.9, groups=1):
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(groups)]
    dicts = [{"params": [param], "lr": lr / (1 + i)} for i, param in enumerate(params)]
    return torch.optim.SGD(dicts, momentum=momentum)


def course(make, namespace, optimizer, steps):
    """Return rates and momenta of every group, step by step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of stepping a scheduler without its optimizer
        scheduler = make(namespace, optimizer)
        seen = []
        for _ in range(steps):
            seen += [group[key] for group in optimizer.param_groups for key in ("lr", "momentum")]
            scheduler.step()
    return seen


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("groups", [1, 2])
def test_rates_and_momenta_are_pytorchs_to_the_last_digits(name, groups):
    steps = 10 if name in ONE_CYCLES_END else STEPS
    ours = course(SCHEDULERS[name], schedules, golden.sgd(groups=groups), steps)
    theirs = course(SCHEDULERS[name], THEIRS, their_sgd(groups=groups), steps)
    assert ours == pytest.approx(theirs, **CLOSE)


PLATEAUS = [
    dict(zip(("mode", "threshold_mode", "patience", "cooldown"), chosen, strict=True))
    for chosen in itertools.product(["min", "max"], ["rel", "abs"], [0, 2], [0, 3])
]


@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_a_plateau_is_seen_where_pytorch_sees_it(options):
    own, their = golden.sgd(groups=2), their_sgd(groups=2)
    options = {**options, "factor": 0.5, "min_lr": [1e-3, 1e-4], "threshold": 0.05}
    ours, theirs = ReduceLROnPlateau(own, **options), THEIRS.ReduceLROnPlateau(their, **options)
    for t in range(STEPS):
        metric = math.nan if t == 17 else 3 + math.cos(t / 5) + 0.3 * (t % 3)
        ours.step(metric)
        theirs.step(metric)
        assert ours.get_last_lr() == pytest.approx(theirs.get_last_lr(), **CLOSE)
        for counter in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch"):
            assert getattr(ours, counter) == getattr(theirs, counter)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_state_dict_of_pytorchs_scheduler_is_loaded(name):
    their = their_sgd()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = SCHEDULERS[name](THEIRS, their)
        for _ in range(7):
            theirs.step()
    ours = SCHEDULERS[name](schedules, golden.sgd())
    ours.load_state_dict(theirs.state_dict())
    assert ours.last_epoch == 7
    assert ours.get_last_lr() == pytest.approx([their.param_groups[0]["lr"]], **CLOSE)


def test_the_state_dict_of_pytorchs_plateau_is_loaded():
    their, options = their_sgd(), {"patience": 1, "factor": 0.5, "cooldown": 2}
    theirs = THEIRS.ReduceLROnPlateau(their, **options)
    for metric in (3, 3, 3, 2, 2):
        theirs.step(metric)
    ours = ReduceLROnPlateau(golden.sgd(), **options)
    ours.load_state_dict(theirs.state_dict())
    for metric in (2, 2, 2, 2, 2, 1):
        ours.step(metric)
        theirs.step(metric)
        assert ours.get_last_lr() == pytest.approx(theirs.get_last_lr(), **CLOSE)


def test_both_state_dicts_of_pytorch_resume_a_run():
    their = their_sgd()
    theirs = lr_scheduler.CosineAnnealingLR(their, 50)
    for _ in range(5):
        their.step()
        theirs.step()
    own = golden.sgd(lr=0.9)
    own.load_state_dict(their.state_dict())
    ours = schedules.CosineAnnealingLR(own, 50)
    ours.load_state_dict(theirs.state_dict())
    assert ours.base_lrs == [0.1]
    assert ours.get_last_lr() == pytest.approx(theirs.get_last_lr(), **CLOSE)


@pytest.mark.parametrize("kind", ["ExponentialLR", "LambdaLR"])
def test_pytorchs_last_epoch_is_the_same_step(kind):
    made = {"ExponentialLR": 0.5, "LambdaLR": golden.halving}[kind]
    own, their = golden.sgd(), their_sgd()
    for optimizer in (own, their):
        optimizer.param_groups[0]["initial_lr"] = 0.1
    ours = getattr(schedules, kind)(own, made, last_epoch=4)
    theirs = getattr(lr_scheduler, kind)(their, made, last_epoch=4)
    assert ours.last_epoch == theirs.last_epoch == 5


def test_a_tensor_is_a_metric():
    scheduler = ReduceLROnPlateau(golden.sgd())
    scheduler.step(torch.tensor(0.5))
    assert scheduler.best == 0.5


def test_an_optimizer_of_pytorch_can_be_scheduled():
    optimizer = their_sgd()
    scheduler = Scheduler(optimizer, lr=schedules.Exponential(0.5))
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
