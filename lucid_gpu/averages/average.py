"""Average: the running average of parameters beside training, to judge and to keep."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Self, TypeAlias

from lucid_gpu.averages.rule import Averaging
from lucid_gpu.device import gpu, torch_tensors, transfer
from lucid_gpu.device.arrays import as_array, device_of
from lucid_gpu.optim.core import checks, groups, slots
from lucid_gpu.optim.core.optimizer import Optimizer
from lucid_gpu.optim.core.tensors import (
    TRAINABLE,
    computing,
    misfits,
    require,
    require_trainable,
)
from lucid_gpu.parameter import Parameter

Decay: TypeAlias = float | Callable[[int], float] | None
"""How much of the average stays: of each model, by the number of models in it, or as in a mean."""


class Average:
    """The running average a of parameters θ: of all models alike, or a moving one.

    The first model is copied. Of each later one, with n models in the average already::

        a ← a + (θ − a) / (n + 1)           decay=None: the mean of all (SWA)
        a ← a + (1 − decay)·(θ − a)         a float, or decay(n): a moving average (EMA)

    One kernel launch for each device and dtype, as a step of an optimizer. Averages have the shape,
    dtype and device of their parameters, and float32 where a parameter is bfloat16 or float16: what
    they average are the parameters as stored, and these hold their averages rounded to the nearest.
    Until the first model is in, the parameters stand for their average.

    Args:
        params: an optimizer, whose parameters of now are meant, or parameters, ``(name,
            parameter)`` pairs or group dicts; arrays of float32, float64, bfloat16 or float16, of
            any shape.
        decay: None, a number in [0, 1], or a function of n ≥ 1 that returns one, such as
            ``lambda n: min(0.999, (1 + n) / (10 + n))``, which forgets the first models sooner.
        every: of so many calls of :meth:`update` one counts, an int ≥ 1.
        start: the number of calls, an int ≥ 0, ahead of the first that counts.

    Attributes:
        n_averaged: how many models are in the average.
        updates: how often :meth:`update` was called.
        averages: the arrays by the names of their parameters.

    Raises:
        TypeError: an argument is of the wrong type, or a parameter of a dtype that cannot be
            trained.
        ValueError: an argument is out of bounds, or two parameters have one name.

    Example:
        >>> from lucid_gpu.optim import SGD
        >>> w = Parameter([8.0])
        >>> optimizer = SGD([w], lr=0.25)
        >>> average = Average(optimizer, decay=0.5)
        >>> for _ in range(3):
        ...     w.grad = 2 * w.data
        ...     optimizer.step()
        ...     average.update()
        >>> with average.swap():
        ...     w.numpy().tolist()
        [2.0]
        >>> w.numpy().tolist()
        [1.0]

    Sources: Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992;
    Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
    arXiv:1803.05407.
    """

    def __init__(
        self,
        params: Optimizer | Iterable[Any],
        decay: Decay = None,
        every: int = 1,
        start: int = 0,
    ) -> None:
        counts = {"every": every, "start": start}
        checks.finite(counts, *counts)
        for name, least in (("every", 1), ("start", 0)):
            if type(counts[name]) is not int:
                raise TypeError(f"{name} must be an int, not {counts[name]!r}")
            if counts[name] < least:
                raise ValueError(f"{name} must be >= {least}, not {counts[name]!r}")
        self._every, self._start = counts["every"], counts["start"]
        self._decay = decay if decay is None or callable(decay) else _share("decay", decay)
        self._params = _named(params)
        self.n_averaged = self.updates = 0
        self._is_swapped = False
        self._held: dict[str, Any] = {}
        self._averages = [
            Parameter(slots.copy_as(data, computing(data.dtype)), name=name, grad_dtype=data.dtype)
            for name, param in self._params.items()
            for data in [require_trainable(name, param.data, TRAINABLE)]
        ]
        self._rule = Averaging(self._averages)

    @property
    def averages(self) -> dict[str, Any]:
        """The arrays by the names of their parameters."""
        return {name: own.data for name, own in zip(self._params, self._averages, strict=True)}

    def update(self) -> None:
        """Take the parameters into the average, if this call is one that counts.

        Call it after each step of the optimizer; a CUDA graph does not record it, so call it after
        each replay.

        Raises:
            TypeError: ``decay`` returned no number.
            ValueError: ``decay`` returned a number out of [0, 1], or a parameter has another shape,
                dtype or device than its average. Nothing was changed.
            RuntimeError: parameters and averages are swapped, or a CUDA graph is being recorded.
        """
        self._refuse("update")
        turn = self.updates - self._start
        if turn >= 0 and turn % self._every == 0:
            weights, arrays = self._weights(), self._arrays()
            for own, array in zip(self._averages, arrays, strict=True):
                own.grad = array
            try:
                self._rule.param_groups[0].update(weights)
                self._rule.step()
            finally:
                self._rule.zero_grad()
            self.n_averaged += 1
        self.updates += 1

    @contextlib.contextmanager
    def swap(self) -> Iterator[None]:
        """Have the parameters hold their averages in a ``with`` block, and themselves after it.

        Values change places, arrays do not; what parameters of 16 bits held is kept beside them
        meanwhile. Take no step in the block: it would change the averages.

        Raises:
            ValueError: a parameter has another shape, dtype or device than its average. Nothing was
                changed.
            RuntimeError: they are swapped already, or a CUDA graph is being recorded.
        """
        self._refuse("swap")
        if self.n_averaged:
            self._exchange()
        self._is_swapped = True
        try:
            yield
        finally:
            if self.n_averaged:
                self._exchange()
            self._is_swapped = False

    def copy_to(self, params: Optimizer | Iterable[Any] | None = None) -> None:
        """Overwrite parameters with their averages.

        Args:
            params: an optimizer or parameters, as many as were averaged and in that order, wherever
                they are; None for those that were averaged.

        Raises:
            TypeError: a parameter is of a dtype that cannot be trained.
            ValueError: there are more or fewer parameters, or one has another shape or dtype than
                its average. Nothing was changed.
            RuntimeError: parameters and averages are swapped, or a CUDA graph is being recorded.
        """
        self._refuse("copy_to")
        targets = self._params if params is None else _named(params)
        if len(targets) != len(self._averages):
            raise ValueError(
                f"params has {len(targets)} parameters, but {len(self._averages)} are averaged: "
                "pass one for each of them"
            )
        sources = [own.data for own in self._averages] if self.n_averaged else self._arrays()
        pairs = [
            (require_trainable(name, param.data, TRAINABLE), source, name)
            for (name, param), source in zip(targets.items(), sources, strict=True)
        ]
        for array, source, name in pairs:
            dtype = None if source.dtype == array.dtype else computing(array.dtype)
            label = f"the average of {name!r}"
            require(misfits(label, source, array, "shape", "dtype", dtype=dtype))
        for array, source, name in pairs:
            slots.fill_slot(array, source)
            torch_tensors.note_write(targets[name])

    def to(self, device: str) -> Self:
        """Move the averages to a device, as ``optimizer.to(device)`` does parameters; return self.

        Raises:
            ValueError: ``device`` is unknown.
            lucid_gpu.device.DeviceUnavailableError: ``device`` is a GPU that cannot be used.
            RuntimeError: a CUDA graph is being recorded.
        """
        self._rule.to(device)
        return self

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """Return ``{"n_averaged": …, "updates": …, "averages": {name: array}}``.

        Args:
            copy: False gives out the arrays themselves, for those who are done with them before the
                next update, like a checkpoint.

        Raises:
            RuntimeError: parameters and averages are swapped, or a CUDA graph is being recorded.
        """
        self._refuse("state_dict")
        arrays = {
            name: transfer.copy(array, device_of(array)) if copy else array
            for name, array in self.averages.items()
        }
        return {"n_averaged": self.n_averaged, "updates": self.updates, "averages": arrays}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state dict, all of it or nothing; arrays are matched by name and copied.

        Args:
            state_dict: what :meth:`state_dict` returned.

        Raises:
            TypeError: it is no dict, or part of it is of the wrong type.
            KeyError: it lacks a part.
            ValueError: its names are others, or an array has another shape or dtype.
            RuntimeError: parameters and averages are swapped, or a CUDA graph is being recorded.
        """
        self._refuse("load_state_dict")
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict, not {type(state_dict).__name__}")
        for key in ("n_averaged", "updates", "averages"):
            if key not in state_dict:
                raise KeyError(f"state_dict has no {key!r}; it has {sorted(map(str, state_dict))}")
        counts = {key: state_dict[key] for key in ("n_averaged", "updates")}
        checks.nonnegative(counts, *counts)
        if any(type(count) is not int for count in counts.values()):
            raise TypeError(f"n_averaged and updates must be ints, not {counts}")
        saved, own = state_dict["averages"], self.averages
        if not isinstance(saved, Mapping):
            raise TypeError(f"'averages' must be a dict, not {type(saved).__name__}")
        differing = [f"the average of {name!r} is missing" for name in own if name not in saved]
        differing += [f"an average of {name!r} is unknown" for name in saved if name not in own]
        arrays = {name: as_array(saved[name]) for name in own if name in saved}
        for name, array in arrays.items():
            differing += misfits(f"the average of {name!r}", array, own[name], "shape", "dtype")
        require(differing)
        for name, array in arrays.items():
            transfer.copy_into(own[name], array)
        self.n_averaged, self.updates = counts["n_averaged"], counts["updates"]

    def __repr__(self) -> str:
        return (
            f"Average({len(self._params)} parameters, decay={self._decay!r}, every={self._every}, "
            f"start={self._start}, n_averaged={self.n_averaged})"
        )

    def _weights(self) -> dict[str, float]:
        """Return how the rule weighs the model that comes next."""
        count, decay = self.n_averaged, self._decay
        if decay is None:
            return {"weight": 1.0, "divisor": count + 1.0}
        if count == 0:
            return {"weight": 1.0}
        if callable(decay):
            decay = _share(f"decay({count})", decay(count))
        return {"weight": 1 - decay}

    def _arrays(self) -> list[Any]:
        """Return the arrays of the parameters.

        Raises:
            ValueError: one does not fit its average.
        """
        arrays = [as_array(param.data) for param in self._params.values()]
        dtypes = {own.name: own.grad_dtype for own in self._averages}
        for (name, own), array in zip(self.averages.items(), arrays, strict=True):
            problems = misfits(f"parameter {name!r}", array, own, dtype=dtypes[name])
            if problems:
                raise ValueError(
                    f"{'; '.join(problems)}, as its average does: move the averages with to(), or "
                    "make a new Average"
                )
        return arrays

    def _exchange(self) -> None:
        arrays = self._arrays()
        for (name, param), own, array in zip(
            self._params.items(), self._averages, arrays, strict=True
        ):
            with gpu.on(own.device):
                if array.dtype == own.dtype:
                    held = array.copy()
                    array[...] = own.data
                    own.data[...] = held
                elif name in self._held:
                    array[...] = self._held.pop(name)
                else:
                    self._held[name] = array.copy()
                    slots.fill_slot(array, own.data)
            torch_tensors.note_write(param)

    def _refuse(self, method: str) -> None:
        if self._is_swapped:
            raise RuntimeError(
                f"{method}() is not possible while parameters and averages are swapped: call it "
                "after the with block of swap()"
            )
        gpu.refuse_capture(method, {own.device for own in self._averages})


def _named(params: Optimizer | Iterable[Any]) -> dict[str, Any]:
    """Return parameters by their names.

    Raises:
        TypeError: ``params`` is no ordered collection of parameters.
        ValueError: it is empty, or two parameters have one name.
    """
    if isinstance(params, Optimizer):
        given = params.param_groups
    else:
        dicts, loose = groups.split(params)
        given = [
            groups.normalize(group, index)
            for index, group in enumerate(dicts or [{"params": loose}])
        ]
    pairs = list(chain.from_iterable(map(groups.named, given)))
    repeated = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if repeated:
        raise ValueError(
            f"the names {', '.join(map(repr, repeated))} stand for several parameters: give each "
            "its own name"
        )
    return dict(pairs)


def _share(name: str, value: Any) -> float:
    """Return a number in [0, 1] as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of bounds.
    """
    given = {name: value}
    checks.finite(given, name)
    share: float = given[name]
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must be >= 0 and <= 1, not {share!r}")
    return share
