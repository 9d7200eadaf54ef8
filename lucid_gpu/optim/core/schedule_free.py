"""ScheduleFree: what optimizers share that average as they go, in place of a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from lucid_gpu.device import gpu, torch_tensors, transfer
from lucid_gpu.device.arrays import as_array, device_of
from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer
from lucid_gpu.optim.core.slots import fill_slot


class ScheduleFree(FusedOptimizer):
    """Base of the optimizers without a schedule.

    Beside the parameters y, at which gradients are taken, there are the iterates z of the plain
    optimizer and their average x, of which ``y = (1 − β1)·z + β1·x``. Only y and z are kept: the
    parameters hold y while training, and after :meth:`eval` x, by which to judge, and which to use
    in the end. The option ``train_mode`` of each group says which, in state dicts too; it is
    changed by :meth:`train` and :meth:`eval` alone.
    """

    carries = {"weight_sum": 0.0, "lr_max": -1.0}  # noqa: RUF012 - declared by the base class

    def __init__(
        self, params: Any, defaults: Mapping[str, Any], **frame: Unpack[FrameOptions]
    ) -> None:
        super().__init__(params, {**defaults, "train_mode": True}, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "weight_decay", "warmup_steps", "r", "weight_lr_power")
        checks.switches(options, "train_mode")

    @staticmethod
    def beta(options: Mapping[str, Any]) -> float:
        """Return β1."""
        raise NotImplementedError

    @staticmethod
    def fills(options: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG004 - others' do
        """Return that iterates begin at the parameters."""
        return {"z": "param"}

    def eval(self) -> None:
        """Have the parameters hold the averages: ``θ ← θ + (1 − 1/β1)(z − θ)``.

        Nothing happens where they do already. No step can be taken until :meth:`train`.

        Raises:
            RuntimeError: a step was interrupted, or a current stream records a CUDA graph.
        """
        self._exchange("eval", False)

    def train(self) -> None:
        """Have the parameters hold the points of gradients again: ``θ ← θ + (1 − β1)(z − θ)``.

        The reverse of :meth:`eval`, but for rounding.

        Raises:
            RuntimeError: a step was interrupted, or a current stream records a CUDA graph.
        """
        self._exchange("train", True)

    def require_ready(self) -> None:
        """Raise RuntimeError if no step can be taken now, because of averages for one."""
        super().require_ready()
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(
                "the parameters hold averages, at which no step can be taken: call train() first, "
                "and compute the gradients after it"
            )

    def _exchange(self, method: str, train_mode: bool) -> None:
        self._refuse_torn()
        self._refuse_capture(method)
        self.require_whole()
        others = [group for group in self.param_groups if group["train_mode"] is not train_mode]
        for group in others:
            self.require_valid(group)
        self._is_torn = True
        for group in others:
            beta = self.beta(group)
            weight = 1 - beta if train_mode else 1 - 1 / beta
            for param in group["params"]:
                slots = self.state.get(param, {})
                if "z" in slots:
                    arrays = {n: as_array(slots[n]) for n in ("z", "master") if n in slots}
                    _exchange(as_array(param.data), arrays, weight, train_mode)
                    torch_tensors.note_write(param)
            group["train_mode"] = train_mode
        self._is_torn = False


def averaging(
    options: Mapping[str, Any], t: int, carry: Mapping[str, float]
) -> tuple[float, float, dict[str, float]]:
    """Return the learning rate η', the weight c of a step in the average, and what it leaves.

    Args:
        options: of the parameter's group.
        t: the number of the step of this parameter, from 1.
        carry: what the step before it left.
    """
    warmup = options["warmup_steps"]
    lr = options["lr"] * (min(1, t / warmup) if warmup else 1)
    lr_max = max(carry["lr_max"], lr)
    weight = t ** options["r"] * lr_max ** options["weight_lr_power"]
    total = carry["weight_sum"] + weight
    return lr, weight / total if total else 0.0, {"weight_sum": total, "lr_max": lr_max}


def _exchange(data: Any, slots: Mapping[str, Any], weight: float, train_mode: bool) -> None:
    """Have data hold the averages, or, with ``train_mode``, the points of gradients again."""
    if "master" not in slots:
        _approach(data, slots["z"], weight)
    elif train_mode:  # the master has been holding them
        fill_slot(data, slots["master"])
    else:
        moved = transfer.copy(slots["master"], device_of(data))
        _approach(moved, slots["z"], weight)
        fill_slot(data, moved)


def _approach(data: Any, target: Any, weight: float) -> None:
    """Move an array by a part of its distance from another: ``data ← data + w(target − data)``."""
    home = device_of(data)
    with gpu.on(home):
        way = transfer.to(target, home) - data
        way *= weight
        data += way
