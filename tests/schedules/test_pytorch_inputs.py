"""PyTorch's own inputs for schedulers: those that it has act together on one optimizer."""

from __future__ import annotations

import inspect

import pytest

from lucid_gpu import schedules
from lucid_gpu.schedules import Scheduler, chain
from tests.schedules import golden

REASON = "needs PyTorch's own tests: pip install -e '.[oracle]'"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("expecttest", reason=REASON)

from torch.testing._internal.common_optimizers import optim_db  # noqa: E402

from tests.schedules.test_pytorch import CLOSE, their_sgd  # noqa: E402


def scheduler_inputs():
    """PyTorch's own lists of schedulers that are to act together on one optimizer."""
    return [
        (f"{info.optim_cls.__name__}-{number}", makers)
        for info in optim_db
        for number, makers in enumerate(info.scheduler_inputs or ())
    ]


def translated(theirs, optimizer, **more):
    """Return ours with the arguments that one of theirs was made with."""
    kind = getattr(schedules, type(theirs).__name__)
    held = {**vars(theirs), "min_lr": getattr(theirs, "min_lrs", None)}
    names = set(inspect.signature(kind.__init__).parameters) & set(held)
    return kind(
        optimizer, **{name: held[name] for name in names - {"optimizer", "last_epoch"}} | more
    )


@pytest.mark.parametrize(("name", "makers"), scheduler_inputs())
def test_schedulers_that_pytorch_steps_together_are_a_chain(name, makers):
    own, their = golden.sgd(), their_sgd()
    theirs = [make(their) for make in makers]
    plain = [
        each for each in theirs if type(each) is not torch.optim.lr_scheduler.ReduceLROnPlateau
    ]
    watching = [each for each in theirs if type(each) is torch.optim.lr_scheduler.ReduceLROnPlateau]
    parts = [translated(each, own).schedules["lr"][0] for each in plain]
    together = chain(*parts) if parts else schedules.Constant(1.0, 0)
    ours = translated(watching[0], own, lr=together) if watching else Scheduler(own, lr=together)
    for t in range(40):
        metric = 1 / (1 + min(t, 5))
        their.step()
        for each in theirs:
            each.step(*[metric] * (each in watching))
        ours.step(*[metric] * bool(watching))
        assert ours.get_last_lr() == pytest.approx([their.param_groups[0]["lr"]], **CLOSE)
