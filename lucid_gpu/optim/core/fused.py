"""FusedOptimizer: what an update rule must declare, and how its parameters reach the executors."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from lucid_gpu.device import gpu
from lucid_gpu.execution.cuda import CudaExecutor
from lucid_gpu.optim.core.explain import explain
from lucid_gpu.optim.core.optimizer import Optimizer, evaluate
from lucid_gpu.optim.core.placement import HOST
from lucid_gpu.optim.core.prepared import Roster, misfits, step_problems

DECAYS = ("none", "l2", "decoupled")


def decay_kind(options: Mapping[str, Any]) -> str:
    """Return which weight decay the options ask for: one of ``DECAYS``."""
    if not options["weight_decay"]:
        return "none"
    return "decoupled" if options["decoupled_weight_decay"] else "l2"


class FusedOptimizer(Optimizer):
    """An optimizer that is one elementwise update rule, written twice.

    A subclass declares the rule; groups, state, devices and launches are this class's business.

    Args:
        params: as for :class:`Optimizer`.
        defaults: as for :class:`Optimizer`.
        state_device: ``"host"`` keeps the slots of parameters on a GPU in pinned host memory: for
            models whose state does not fit on the GPU. Each step brings them to the device and
            back, a window at a time, in both directions at once; it has several launches, and
            cannot be captured. Results are the same to the bit. An array that was read from
            ``state`` is written by the next step; read it there again, which waits for the step.
            None keeps them beside their parameters. :meth:`reload` and :meth:`offload` change
            from one to the other.

    Raises:
        ValueError: ``state_device`` is neither.

    Attributes:
        kernel: the rule's CUDA source: ``"adam"`` for ``kernels/adam.cuh`` of this package, or the
            path of a ``.cuh`` file elsewhere.
        functor: the name of the C++ functor in it.
        slots: the names of the arrays that the rule keeps beside each parameter, in the order of
            the functor's arguments; they start as zeros.
        switches: for each template parameter of the functor after the type, in order, its choices;
            a choice counts as its position.
        Scalars: a NamedTuple of the constants of one step, in the order of the functor's members.
        scratch: how many arrays of a block's size ``update`` needs.
    """

    kernel: ClassVar[str | Path]
    functor: ClassVar[str]
    slots: ClassVar[tuple[str, ...]]
    switches: ClassVar[dict[str, tuple[Any, ...]]]
    Scalars: ClassVar[Any]
    scratch: ClassVar[int] = 0
    Variant: ClassVar[Any]
    _transient: ClassVar[dict[str, Any]] = {
        **Optimizer._transient,  # noqa: SLF001 - of the base class
        "_roster": None,
        "_captured": None,
    }

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "switches" in cls.__dict__:
            cls.Variant = namedtuple("Variant", cls.switches)  # type: ignore[misc]

    streams_state = True

    def __init__(
        self, params: Any, defaults: Mapping[str, Any], state_device: str | None = None
    ) -> None:
        if state_device not in (None, HOST):
            raise ValueError(
                f"state_device must be {HOST!r}, or None for beside the parameters, "
                f"not {state_device!r}"
            )
        self._roster: Roster | None = None
        self._captured: Roster | None = None
        super().__init__(params, defaults)
        self._state_device = state_device

    @staticmethod
    def variant(options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the choice of each switch that the options of a group ask for."""
        raise NotImplementedError

    @staticmethod
    def used_slots(variant: Any) -> int:
        """Return how many of the slots, from the first on, a variant uses."""
        raise NotImplementedError

    @classmethod
    def scalars(cls, options: Mapping[str, Any], step: int) -> Any:
        """Return the constants of a step, computed in float64; ``step`` counts from 1."""
        raise NotImplementedError

    @staticmethod
    def update(scalars: Any, variant: Any, /, *arrays: Any) -> None:
        """Update a block in place: parameter, gradient (not to be changed), slots, scratch."""
        raise NotImplementedError

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient: one kernel launch per device and dtype.

        On a stream that records a CUDA graph, the launch is recorded instead and nothing steps;
        see :meth:`before_replay`. While the state is in host memory, there is a launch for each
        window of it.

        Args:
            closure: re-evaluates the model and returns the loss; called once, before the update.

        Returns:
            What ``closure`` returned; None without one.

        Raises:
            TypeError: a parameter is not made of float32 or float64.
            ValueError: an option is out of bounds, or a gradient or slot does not fit its
                parameter. Nothing was changed.
        """
        result = evaluate(closure)
        if gpu.is_capturing(self._roster.devices if self._roster else ()):
            self._capture()
            return result
        roster = self._current_roster()
        ticked = roster.tick(type(self).scalars)
        for executor in roster.streamed:
            self.state.expect(executor.arrive)
        for batch, scalars in ticked:
            batch.executor.run(scalars)
        return result

    def before_replay(self) -> None:
        """Count a step and bring its learning rates and bias corrections to the device.

        Call it before each replay of a CUDA graph in which a step was captured, on the stream on
        which the graph is launched.

        Raises:
            RuntimeError: no step was captured, or what it updates has changed since: capture anew.

        Example:
            >>> def train(stream, optimizer, forward_backward, replays):
            ...     with stream:
            ...         forward_backward()
            ...         optimizer.step()  # allocates state and compiles
            ...         stream.begin_capture()
            ...         forward_backward()
            ...         optimizer.step()
            ...         graph = stream.end_capture()
            ...         for _ in range(replays):
            ...             optimizer.before_replay()
            ...             graph.launch(stream)
        """
        if self._captured is None:
            raise RuntimeError("no step was captured: call step() while the stream is capturing")
        if self._roster is not self._captured or not self._captured.still_holds(self):
            raise RuntimeError(
                "parameters, groups or state have changed since the step was captured: "
                "capture the graph anew"
            )
        for batch, scalars in self._captured.tick(type(self).scalars):
            batch.executor.upload(scalars)  # type: ignore[union-attr]

    def explain(self) -> None:
        """Print how the next step will run, without taking it.

        For each device and dtype: the launches, the bytes moved per element, the variants of the
        rule, and which tensors take the slow path and why.

        Example:
            >>> from lucid_gpu import Parameter
            >>> from lucid_gpu.optim import SGD
            >>> SGD([Parameter([1.0])]).explain()
            SGD: one step of 0 parameters
            no gradient, so no step: '0.0'
        """
        print(explain(self))  # noqa: T201 - printing is what it is for

    def slot_problems(
        self, param: Any, slots: Mapping[str, Any], options: Mapping[str, Any]
    ) -> list[str]:
        """Return, in words, why ``slots`` cannot be loaded as the state of ``param``."""
        used = self.slots[: self.used_slots(self.variant_of(options))]
        problems = [f"slot {name!r} is missing" for name in ("step", *used) if name not in slots]
        problems += [
            f"slot {name!r} is unknown" for name in slots if name not in ("step", *self.slots)
        ]
        problems += step_problems(slots.get("step", 0))
        for name in self.slots:
            if name in slots:
                problems += misfits(f"slot {name!r}", slots[name], param.data, "shape", "dtype")
        return problems

    def variant_of(self, group: Mapping[str, Any]) -> Any:
        """Return the variant that a group asks for.

        Raises:
            TypeError: an option is of the wrong type.
            ValueError: an option is out of bounds.
        """
        self.check_options(group)
        return self.Variant(**self.variant(group))

    def _current_roster(self) -> Roster:
        """Return the roster of this step: the last one if it still holds, else a new one."""
        if self._roster is None or not self._roster.still_holds(self):
            self._roster = Roster(self)
        return self._roster

    def _forget_arrays(self) -> None:
        self._roster = None

    def _capture(self) -> None:
        roster = self._roster
        if roster is None or not roster.still_holds(self):
            raise RuntimeError(
                "a step that allocates state or compiles cannot be recorded in a CUDA graph: take "
                "one ordinary step, with the same parameters, groups and options, before capturing"
            )
        for batch in roster.batches:
            if not isinstance(batch.executor, CudaExecutor):
                raise RuntimeError("a CUDA graph cannot record the step of parameters on the CPU")
            batch.executor.capture()
        self._captured = roster
