"""Scaling of the loss, so that gradients of float16 neither vanish nor overflow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import numpy as np

from lucid_gpu.device import gpu, kernels, transfer
from lucid_gpu.device.arrays import as_array, device_of
from lucid_gpu.execution import cuda_outcomes, formats
from lucid_gpu.execution.measured import Measured
from lucid_gpu.execution.outcome import Terms
from lucid_gpu.gradients.inputs import gradients_of
from lucid_gpu.optim import ArrayOptimizer, FusedOptimizer, Optimizer
from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.groups import named
from lucid_gpu.optim.core.tensors import TRAINABLE

ADJUSTED = np.dtype(
    [(name, "u8") for name in ("scale", "tracker", "found")]
    + [("growth", "f4"), ("backoff", "f4"), ("interval", "i4")],
    align=True,
)
"""What a scale is adjusted by: ``Adjusted`` of ``kernels/judge.cuh``."""


class _Stage(Enum):
    """How far the step of an optimizer is since the last update."""

    READY = 0
    UNSCALED = 1
    STEPPED = 2


class _Run:
    """The step of one optimizer.

    Attributes:
        stage: how far it is.
        found: whether an element was not finite when they were unscaled, in an array; or None.
        home: where the kernels of the step note whether one was not; None if they do not.
        is_recorded: whether a CUDA graph repeats it.
    """

    def __init__(self) -> None:
        self.stage = _Stage.READY
        self.found: Any = None
        self.home: str | None = None
        self.is_recorded = False


class GradScaler:
    """Multiplies the loss, divides the gradients, and skips steps whose gradients are not finite.

    The names, stages and errors are PyTorch's; nothing waits for a GPU but :meth:`get_scale` and
    :meth:`state_dict`. For a fused optimizer, :meth:`step` divides, looks, clips and updates in the
    kernels of the step, and ``grad`` stays as it is.

    As in PyTorch, elements are looked at as they are: one that is finite, and overflows where it is
    divided by a scale below 1, skips no step.

    After an ordinary iteration, :meth:`scale`, :meth:`step` of a fused optimizer and :meth:`update`
    may be recorded in a CUDA graph, with the factors and the interval that they then have; or
    :meth:`step` alone, with :meth:`update` after each launch.

    Args:
        device: where the scale is while nothing but numbers were scaled: ``"cpu"`` or
            ``"cuda:N"``; None for the GPU if there is one.
        init_scale: the first scale, > 0.
        growth_factor: > 1, by which the scale grows after ``growth_interval`` steps without an
            infinity or NaN.
        backoff_factor: in (0, 1), by which it shrinks after one.
        growth_interval: an int ≥ 1.
        enabled: False makes :meth:`step` the optimizer's, and everything else nothing.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of bounds.

    Example:
        >>> from lucid_gpu import Parameter
        >>> from lucid_gpu.optim import SGD
        >>> w = Parameter(np.ones(2, np.float16), device="cpu")
        >>> optimizer, scaler = SGD([w], lr=0.5), GradScaler("cpu", init_scale=8.0)
        >>> for factor in (1.0, np.inf):
        ...     loss_gradient = np.array([0.5, 1.0]) * factor
        ...     w.grad = (loss_gradient * scaler.scale(1.0)).astype(np.float16)
        ...     scaler.step(optimizer)
        ...     scaler.update()
        >>> w.data.tolist(), scaler.get_scale(), optimizer.skipped
        ([0.75, 0.5], 4.0, 1)

    PyTorch: https://docs.pytorch.org/docs/2.13/amp.html
    """

    def __init__(
        self,
        device: str | None = None,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        options = {
            "init_scale": init_scale,
            "growth_factor": growth_factor,
            "backoff_factor": backoff_factor,
            "growth_interval": growth_interval,
            "enabled": enabled,
        }
        checks.switches(options, "enabled")
        _require_valid(options)
        self._enabled = enabled
        self._device = None if device is None else gpu.resolve(device)
        self._options = options
        self._scale: Any = None
        self._tracker: Any = None
        self._init_tracker = 0
        self._found: dict[str, Any] = {}
        self._runs: dict[int, tuple[Any, _Run]] = {}

    def is_enabled(self) -> bool:
        """Return whether it scales."""
        return self._enabled

    def scale(self, outputs: Any) -> Any:
        """Return the scale times a number, an array, or each of several of them.

        Args:
            outputs: a number; an array of NumPy or CuPy, on whose device the scale will be; or a
                list or tuple of them.

        Raises:
            TypeError: it is none of these.
        """
        if not self._enabled:
            return outputs
        if isinstance(outputs, list | tuple):
            return type(outputs)(self.scale(output) for output in outputs)
        array = None if isinstance(outputs, int | float) else as_array(outputs)
        if array is None and not isinstance(outputs, int | float):
            if isinstance(outputs, Iterable):
                return map(self.scale, outputs)
            raise TypeError(
                f"outputs must be a number, an array or a list of them, not {outputs!r}"
            )
        self._make(None if array is None else device_of(array))
        home = device_of(self._scale) if array is None else device_of(array)
        with gpu.on(home):
            scale = transfer.to(self._scale, home).reshape(())
            return (
                scale * np.float32(outputs) if array is None else array * scale.astype(array.dtype)
            )

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients of an optimizer by the scale, in place: to clip them, say.

        Args:
            optimizer: any of this package.

        Raises:
            RuntimeError: it was called already since the last :meth:`update`, or after
                :meth:`step`, or :meth:`scale` was never called.
            ValueError: gradients are float16, in which what is divided may vanish:
                :meth:`step` alone divides in float32.
        """
        if not self._enabled:
            return
        run = self._run_of(optimizer)
        if run.stage is _Stage.UNSCALED:
            raise RuntimeError(
                "unscale_() has already been called on this optimizer since the last update(): "
                "accumulate gradients first, and unscale once"
            )
        if run.stage is _Stage.STEPPED:
            raise RuntimeError("unscale_() is being called after step().")
        self._require_scale("unscale_")
        names, grads = gradients_of(optimizer, "unscale_", is_written=True)
        half = [name for name, g in zip(names, grads, strict=False) if _is_half(g)]
        if half:
            raise ValueError(
                f"Attempting to unscale FP16 gradients, of {half[0]!r} for one: leave it to "
                "step(), which computes in float32; clip with the optimizer's max_norm"
            )
        if grads:
            self._unscale(grads, run)
        run.stage = _Stage.UNSCALED

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """Step an optimizer, with gradients divided by the scale; or skip the step.

        Whether it was skipped is known when its outcome has arrived: ``optimizer.last`` and
        ``optimizer.skipped`` tell.

        Args:
            optimizer: any of this package.
            args: for its ``step``.
            kwargs: likewise; no closure.

        Returns:
            What ``optimizer.step`` returned.

        Raises:
            RuntimeError: it was called already since the last :meth:`update`, or with a closure, or
                :meth:`scale` was never called.
            AssertionError: there are no gradients.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs or any(map(callable, args)):
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")
        run = self._run_of(optimizer)
        if run.stage is _Stage.STEPPED:
            raise RuntimeError("step() has already been called since the last update().")
        self._require_scale("step")
        if _home_of(optimizer) is None:
            raise AssertionError("No inf checks were recorded for this optimizer.")
        is_unscaled = run.stage is _Stage.UNSCALED
        if isinstance(optimizer, FusedOptimizer):
            with optimizer.scaled_by(lambda home: self._terms(home, run)):
                result = optimizer.step(*args, **kwargs)
        elif isinstance(optimizer, ArrayOptimizer) and optimizer.widens and not is_unscaled:
            measured = Measured(gradients_of(optimizer, "step", is_written=False)[1])
            measured.measure()
            run.found = measured.found()
            with optimizer.divided_by(self._scale):
                result = None if bool(run.found[0]) else optimizer.step(*args, **kwargs)
        else:
            if not is_unscaled:
                self.unscale_(optimizer)
            result = None if bool(run.found[0]) else optimizer.step(*args, **kwargs)
        run.stage = _Stage.STEPPED
        return result

    def update(self, new_scale: float | None = None) -> None:
        """Adjust the scale, after all optimizers of this iteration have stepped.

        Args:
            new_scale: the scale from now on; None for what the steps ask for.

        Raises:
            RuntimeError: :meth:`scale` was never called.
            AssertionError: nothing was unscaled or stepped since the last update.
            ValueError: ``new_scale`` is not > 0.
        """
        if not self._enabled:
            return
        self._require_scale("update")
        if new_scale is not None:
            _require_positive("new_scale", new_scale)
            gpu.refuse_capture("update(new_scale)", [device_of(self._scale)])
            self._scale.fill(new_scale)
            self._forget_found(self._found)
        else:
            self._update()
        is_recorded = gpu.is_capturing([device_of(self._scale)])
        self._runs = {
            key: kept for key, kept in self._runs.items() if kept[1].is_recorded and not is_recorded
        }

    def get_scale(self) -> float:
        """Return the scale; waits for the GPU."""
        if not self._enabled:
            return 1.0
        if self._scale is None:
            return float(self._options["init_scale"])
        return float(transfer.to(self._scale, "cpu")[0])

    def state_dict(self) -> dict[str, Any]:
        """Return scale and counts, under PyTorch's names; ``{}`` if it is not enabled. Waits."""
        if not self._enabled:
            return {}
        tracker = self._init_tracker
        if self._tracker is not None:
            tracker = int(transfer.to(self._tracker, "cpu")[0])
        kept = ("growth_factor", "backoff_factor", "growth_interval")
        own = {name: self._options[name] for name in kept}
        return {"scale": self.get_scale(), **own, "_growth_tracker": tracker}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or that of PyTorch's scaler.

        Raises:
            RuntimeError: it is empty, saved by a scaler that was not enabled.
            KeyError: an entry is missing.
            ValueError: an entry is out of bounds.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError(
                "The source state dict is empty, possibly because it was saved from a disabled "
                "instance of GradScaler."
            )
        options = {
            "init_scale": state_dict["scale"],
            **{
                name: state_dict[name]
                for name in ("growth_factor", "backoff_factor", "growth_interval")
            },
            "enabled": True,
        }
        tracker = {"_growth_tracker": state_dict["_growth_tracker"]}
        _require_valid(options)
        checks.integer(tracker, "_growth_tracker", 0, 2**31 - 1)
        self._options, self._init_tracker = options, tracker["_growth_tracker"]
        if self._scale is not None:
            self._scale.fill(options["init_scale"])
            self._tracker.fill(self._init_tracker)

    def _make(self, home: str | None) -> None:
        """Make the scale, where the first outputs are."""
        if self._scale is None:
            home = self._device or home or gpu.default()
            gpu.refuse_capture("the first scale", [home])
            with gpu.on(home):
                xp = gpu.module(home)
                self._scale = xp.full(1, self._options["init_scale"], np.float32)
                self._tracker = xp.full(1, self._init_tracker, np.int32)

    def _require_scale(self, what: str) -> None:
        if self._scale is None:
            raise RuntimeError(
                f"Attempted {what} but the scale is None.  This may indicate your script did not "
                "use scaler.scale(loss or outputs) earlier in the iteration."
            )

    def _run_of(self, optimizer: Any) -> _Run:
        _, run = self._runs.get(id(optimizer), (None, None))
        if run is None or run.is_recorded:
            run = _Run()
            self._runs[id(optimizer)] = optimizer, run
        return run

    def _terms(self, home: str, run: _Run) -> Terms:
        """Return by what the gradients of a step are judged on a device."""
        is_unscaled = run.stage is _Stage.UNSCALED
        run.is_recorded = gpu.is_capturing([home])
        if run.is_recorded and (home not in self._found or device_of(self._scale) != home):
            raise RuntimeError(
                f"a CUDA graph records a step with gradients on {home} after an ordinary one with "
                f"the same scaler, whose scale is there, too; it is on {device_of(self._scale)}"
            )
        if home not in self._found:
            with gpu.on(home):
                self._found[home] = gpu.module(home).zeros(1, np.int32)
        run.home = home
        scale = None if is_unscaled else transfer.to(self._scale, home)
        heeded = transfer.to(run.found, home) if is_unscaled else None
        return Terms(None, True, scale, self._found[home], heeded)

    def _update(self) -> None:
        """Move the scale by what the steps since the last time have found."""
        runs = [run for _, run in self._runs.values()]
        homes = dict.fromkeys(run.home for run in runs if run.home is not None)
        founds = [self._found[own] for own in homes]
        every = founds + [run.found for run in runs if run.found is not None]
        if not every:
            raise AssertionError("No inf checks were recorded prior to update.")
        home = device_of(self._scale)
        if len(every) > 1 or device_of(every[0]) != home:
            gpu.refuse_capture("an update for what was found on several devices", [home])
        with gpu.on(home):
            first, *others = (transfer.to(found, home) for found in every)
            self._adjust(home, sum(others, first.copy()) if others else first)
        if others or home not in homes:  # else the adjustment has
            self._forget_found(homes)

    def _forget_found(self, homes: Iterable[str]) -> None:
        for home in homes:
            with gpu.on(home):
                self._found[home].fill(0)

    def _unscale(self, grads: list[Any], run: _Run) -> None:
        measured = Measured(grads)
        home = measured.home
        with gpu.on(home):
            scale = transfer.to(self._scale, home).astype(np.float64)
            inverse = (1 / scale).astype(np.float32).astype(np.float64)
        measured.change("scale", inverse)
        measured.measure()
        run.found = measured.found()

    def _adjust(self, home: str, found: Any) -> None:
        growth, backoff, interval = (
            self._options[name] for name in ("growth_factor", "backoff_factor", "growth_interval")
        )
        if home == "cpu":
            if found[0]:
                found[0] = 0
                self._scale *= np.float32(backoff)
                self._tracker[0] = 0
                return
            self._tracker += 1
            if self._tracker[0] == interval:
                with np.errstate(over="ignore"):
                    grown = self._scale * np.float32(growth)
                if math.isfinite(grown[0]):
                    self._scale[:] = grown
                self._tracker[0] = 0
            return
        argument = np.zeros((), ADJUSTED)
        arrays = {"scale": self._scale, "tracker": self._tracker, "found": found}
        for name, array in arrays.items():
            argument[name] = array.data.ptr
        argument["growth"], argument["backoff"], argument["interval"] = growth, backoff, interval
        kernel = kernels.kernel(cuda_outcomes.source(), "adjust")
        kernel((1,), (1,), (argument.view(f"V{ADJUSTED.itemsize}"),))


def masters(optimizer: Optimizer) -> dict[str, Any]:
    """Return the exact values of all parameters of an optimizer, by name: a model to hand over.

    Args:
        optimizer: of any kind. Names that were not given are positions.

    Returns:
        Arrays of float32, or float64 for float64 parameters, each on the device of its parameter:
        copies.

    Raises:
        ValueError: two parameters have the same name.

    Example:
        >>> import ml_dtypes
        >>> from lucid_gpu import Parameter
        >>> from lucid_gpu.optim import SGD
        >>> w = Parameter(np.ones(1, ml_dtypes.bfloat16))
        >>> optimizer = SGD([("w", w)], lr=2**-12)
        >>> w.grad = np.ones(1, ml_dtypes.bfloat16)
        >>> optimizer.step()
        >>> w.data.astype(float).tolist(), masters(optimizer)["w"].tolist()
        ([1.0], [0.999755859375])
    """
    found: dict[str, Any] = {}
    for group in optimizer.param_groups:
        for name, param in named(group):
            if name in found:
                raise ValueError(f"two parameters are called {name!r}: give each its own name")
            data = as_array(param.data)
            if data is not None and data.dtype in TRAINABLE:
                found[name] = _exact(data, optimizer.state.get(param, {}))
    return found


def _exact(data: Any, slots: Mapping[str, Any]) -> Any:
    home = device_of(data)
    with gpu.on(home):
        if "master" in slots:
            return transfer.copy(slots["master"], home)
        if "master_low" in slots:
            return formats.join(data, transfer.to(slots["master_low"], home))
        return formats.widen(data) if data.dtype in formats.HALVES else data.copy()


def _require_valid(options: dict[str, Any]) -> None:
    _require_positive("init_scale", options["init_scale"])
    checks.finite(options, "init_scale", "growth_factor", "backoff_factor")
    if options["growth_factor"] <= 1:
        raise ValueError(f"growth_factor must be > 1, not {options['growth_factor']!r}")
    if not 0 < options["backoff_factor"] < 1:
        raise ValueError(f"backoff_factor must be > 0 and < 1, not {options['backoff_factor']!r}")
    checks.integer(options, "growth_interval", 1, 2**31 - 1)


def _require_positive(name: str, value: Any) -> None:
    checks.finite({name: value}, name)
    if not 0 < np.float64(value) <= np.finfo(np.float32).max:
        raise ValueError(f"{name} must be > 0 and a float32, not {value!r}")


def _is_half(grad: Any) -> bool:
    return grad is not None and grad.dtype == np.float16


def _home_of(optimizer: Any) -> str | None:
    """Return the device of the first gradient, or None if there is none."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            array = None if param.grad is None else as_array(param.grad)
            if array is not None:
                return device_of(array)
    return None
