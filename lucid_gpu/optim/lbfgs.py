"""LBFGS."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core import groups as _groups
from lucid_gpu.optim.core.flat_vector import FlatVector
from lucid_gpu.optim.core.memory import Memory, memory_problems
from lucid_gpu.optim.core.optimizer import Optimizer
from lucid_gpu.optim.core.pytorch import Counterpart
from lucid_gpu.optim.core.quasi_newton import Search
from lucid_gpu.optim.core.tensors import (
    Tensor,
    require,
    require_own_memory,
    require_trainable,
    unstrange,
)

SEARCHES = (None, "strong_wolfe")


def _slots_of_pytorch(slots: dict[str, Any]) -> dict[str, Any]:
    ours = ("members", "best_point", "best_loss")
    return {name: value for name, value in slots.items() if name not in ours}


class LBFGS(Optimizer):
    r"""Limited-memory BFGS: steps along directions that the last gradients make of curvature.

    Every call of :meth:`step` takes up to ``max_iter`` iterations. With all parameters as one
    vector :math:`θ`, and of the last ``history_size`` moves the changes :math:`s` of θ and
    :math:`y` of the gradient::

        d = −H·g                    H by the two loops of Nocedal, from (y·s / y·y)·I;
                                    a pair is kept if y·s > 1e-10
        t = min(1, 1 / ‖g‖₁)·lr     in the first iteration, later t = lr; where a line search is
                                    asked for, its result, from there
        θ ← θ + t·d

    A call ends after ``max_iter`` iterations or ``max_eval`` evaluations, when no element of the
    gradient exceeds ``tolerance_grad``, or when neither θ nor the loss, nor the loss along d,
    changes by more than ``tolerance_change``. Without a line search, what follows the last move is
    evaluated by the next call.

    If the loss, or a gradient, is not finite, the parameters go back to the best point of this
    call, or of the one before if it is the first evaluation, and the history begins anew; a line
    search comes back by itself. If the closure raises, the parameters go back to where the call
    found them, and the state is as it was.

    The device is waited for twice in an iteration without line search: for the slope along d, and
    for what an evaluation found, the loss included if it is a CuPy array without dimensions; with
    one, for the slope, and once for each evaluation.

    State, kept with the first parameter: ``step``, ``func_evals`` and ``n_iter`` (ints), ``t``,
    ``H_diag``, ``prev_loss`` and ``best_loss`` (floats); ``d``, ``prev_flat_grad`` and
    ``best_point``, and in the lists ``old_dirs`` (y) and ``old_stps`` (s) for each pair, arrays of
    as many elements as all parameters have; ``ro`` (1 / y·s); ``members``, the name and size of
    each parameter. A group that is added, or another size, begins a new history.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; float32 or float64 arrays
            of any shape, of one dtype on one device. Groups are there for names and order: all
            have the same options.
        lr: the step t ≥ 0 along a direction.
        max_iter: a whole number of iterations ≥ 1 in a call.
        max_eval: a whole number of evaluations ≥ 1 in a call; None becomes 5/4 of ``max_iter``.
        tolerance_grad: ≥ 0.
        tolerance_change: ≥ 0.
        history_size: a whole number of pairs ≥ 1.
        line_search_fn: None, or ``"strong_wolfe"``.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds, or groups differ in one; the text names option,
            bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([3.0, -2.0])
        >>> optimizer = LBFGS([w], line_search_fn="strong_wolfe")
        >>> def closure():
        ...     w.grad = 2 * (w.data - 1)
        ...     return ((w.data - 1) ** 2).sum()
        >>> f"{optimizer.step(closure):.1f}", w.numpy().round(4).tolist()
        ('13.0', [1.0, 1.0])

    Sources: Liu & Nocedal, "On the limited memory BFGS method for large scale optimization",
    Mathematical Programming 45, 1989; for the line search, :func:`strong_wolfe`.
    """

    counterpart = Counterpart(keeps_step=False, slots=_slots_of_pytorch)

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
        }
        super().__init__(params, defaults)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "tolerance_grad", "tolerance_change")
        checks.whole_numbers(options, "max_iter", "history_size", least=1, most=math.inf)
        if options["max_eval"] is None and isinstance(options, dict):
            options["max_eval"] = options["max_iter"] * 5 // 4
        checks.whole_numbers(options, "max_eval", least=1, most=math.inf)
        checks.one_of(options, "line_search_fn", SEARCHES)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group of parameters, whose options are those of the others.

        Raises:
            TypeError: as of :class:`Optimizer`.
            ValueError: as of :class:`Optimizer`, or the group differs from another in an option.
        """
        if self.param_groups and isinstance(param_group, Mapping):
            options = {**self.defaults, **param_group}
            self.require_valid(options)
            self._require_alike(len(self.param_groups), options)
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take up to ``max_iter`` iterations.

        Args:
            closure: sets the gradients anew and returns the loss, one number; called again and
                again. It may call ``zero_grad``, but no other method of the optimizer.

        Returns:
            What ``closure`` returned first.

        Raises:
            TypeError: there is no closure, what it returns is no number, or a parameter is not made
                of float32 or float64.
            ValueError: an option is out of bounds, groups differ in one, parameters are on several
                devices or of several dtypes, or a gradient or slot does not fit. Nothing was
                changed, but for gradients by the closure.
            RuntimeError: an earlier step was interrupted, another thread is stepping, the stream
                records a CUDA graph, or the data of a foreign parameter is a copy. Nothing was
                changed.
        """
        self._refuse_capture("step")
        if not callable(closure):
            raise TypeError(
                "LBFGS needs a closure, which sets the gradients and returns the loss: call "
                f"step(closure), not with {closure!r}"
            )
        vector = FlatVector(self._tensors())
        options = self.param_groups[0]
        slots = self.state.get(self._params()[0], {})
        memory = Memory.read(slots, vector)
        search = Search(vector, closure, memory, options)
        start = vector.data()
        self._is_torn = True
        try:
            search.run(start)
        except BaseException:
            vector.put(start)
            self._is_torn = False
            raise
        self.state[self._params()[0]] = memory.slots(vector)
        self._is_torn = False
        return search.result

    def slot_problems(self, param: Any, slots: Mapping[str, Any]) -> list[str]:
        """Return, in words, why ``slots`` cannot be loaded as the state of ``param``."""
        pairs = [pair for group in self.param_groups for pair in _groups.named(group)]
        if param is not pairs[0][1]:
            return [
                "it has the state of all parameters, which is kept with the first: pass the "
                "parameters in the order in which they were saved"
            ]
        data = [(name, unstrange(own.data)) for name, own in pairs]
        members = [[name, array.size] for name, array in data]
        return memory_problems(slots, members, data[0][1].dtype)

    def _tensors(self) -> list[Tensor]:
        """Return all parameters, checked."""
        tensors: list[Tensor] = []
        for number, group in enumerate(self.param_groups):
            self.require_valid(group)
            self._require_alike(number, group)
            for name, param in _groups.named(group):
                data = require_trainable(name, param.data)
                require_own_memory(name, param, data)
                tensors.append(Tensor(len(tensors), number, name, param, data, None))
        return tensors

    def _require_alike(self, number: int, options: Mapping[str, Any]) -> None:
        """Raise ValueError if a group differs from the first."""
        first = self.param_groups[0]
        require(
            f"parameter groups 0 and {number} differ in {name} ({first[name]!r} and "
            f"{options[name]!r}), but LBFGS moves all parameters at once: give all groups the same"
            for name in self.defaults
            if options[name] != first[name]
        )
