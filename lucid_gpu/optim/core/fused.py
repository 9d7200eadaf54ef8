"""FusedOptimizer: what the author of an update rule declares, and how its steps run."""

from __future__ import annotations

import contextlib
from collections import namedtuple
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cache
from inspect import Parameter as Argument
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypedDict, Unpack

from lucid_gpu.device import gpu, torch_tensors
from lucid_gpu.execution.outcome import Outcome, Terms
from lucid_gpu.execution.rule import BESIDE, Rule, no_fills
from lucid_gpu.optim.core import checks, judging, storing
from lucid_gpu.optim.core.explain import described
from lucid_gpu.optim.core.groups import named
from lucid_gpu.optim.core.inputs import Inputs
from lucid_gpu.optim.core.judging import Judging
from lucid_gpu.optim.core.optimizer import Optimizer, evaluate
from lucid_gpu.optim.core.parts import Choice
from lucid_gpu.optim.core.placement import HOST
from lucid_gpu.optim.core.prepared import UNMEASURED, PreparedStep
from lucid_gpu.optim.core.tensors import Declared, numeric, require
from lucid_gpu.optim.core.torch_inputs import TorchInputs

REPLAYS = ("captured", "current")
"""Which gradients a replayed graph reads."""


class FrameOptions(TypedDict, total=False):
    """Keywords of every fused optimizer; :class:`FusedOptimizer` documents them."""

    maximize: bool
    state_device: str | None
    master: str | None
    state_dtype: str | None
    seed: int
    max_norm: float | None
    skip_nonfinite: bool
    telemetry: bool


FRAME_DEFAULTS = FrameOptions(
    maximize=False,
    state_device=None,
    master=None,
    state_dtype=None,
    seed=0,
    max_norm=None,
    skip_nonfinite=False,
    telemetry=False,
)


class _Captured(NamedTuple):
    """A step that a CUDA graph repeats.

    Attributes:
        prepared: what it does.
        options: by what the groups asked it to be judged.
        terms: by what it is, so that arrays of a scaler stay; None if nothing is measured.
    """

    prepared: PreparedStep
    options: Terms
    terms: Terms | None


class _OfClass:
    """What is worked out from the attributes of a class, when it is first asked for."""

    def __init__(self, work_out: Callable[[Any], Any]) -> None:
        self._work_out = cache(work_out)

    def __get__(self, _: object, cls: Hashable) -> Any:
        return self._work_out(cls)


def _rule_of(cls: type[Any]) -> Rule:
    return Rule(
        kernel=cls.kernel,
        functor=cls.functor,
        slots=cls.slots,
        switches=tuple(cls.switches.items()),
        Variant=cls.Variant,
        Scalars=cls.Scalars,
        scalars=cls.scalars,
        first_scalars=cls.first_scalars or cls.scalars,
        used_slots=cls.used_slots,
        update=cls.update,
        scratch=cls.scratch,
        decay=cls.decay,
        carries=tuple(cls.carries.items()),
        fills=cls.fills,
        sums=cls.sums,
        measure=cls.measure if cls.sums else None,
        finish=cls.finish if cls.sums else None,
        slots_move_first=cls.slots_move_first,
    )


def _spelled_out(cls: type[Any]) -> Any:
    """Return the signature of a class with the keywords of the frame in it, one by one."""
    own = signature(cls.__init__)
    _, *arguments = own.parameters.values()
    spelled = [each for each in arguments if each.kind is not Argument.VAR_KEYWORD]
    if len(spelled) < len(arguments):
        spelled += [
            Argument(name, Argument.KEYWORD_ONLY, default=default)
            for name, default in FRAME_DEFAULTS.items()
        ]
    return own.replace(parameters=spelled)


class FusedOptimizer(Optimizer):
    """An optimizer that is one elementwise update rule, written twice.

    A subclass declares the rule. What stands around it is the frame's business: groups, state,
    devices, launches, and ahead of the rule ``maximize`` and weight decay. A group's
    ``weight_decay`` λ adds λθ to the gradient (L2), or multiplies θ by 1 − ηλ first if the option
    ``decoupled_weight_decay`` is True; ``decay`` below changes that for a rule.

    Args:
        params: as for :class:`Optimizer`.
        defaults: as for :class:`Optimizer`.
        maximize: True follows the gradient upwards; an option of each group.
        state_device: ``"host"`` keeps the slots of parameters on a GPU in pinned host memory: for
            models whose state does not fit on the GPU. Each step brings them to the device and
            back, a window at a time, in both directions at once; it has several launches, and
            cannot be captured. Results are the same to the bit. An array that was read from
            ``state`` is written by the next step; read it there again, which waits for the step.
            None keeps them beside their parameters. :meth:`reload` and :meth:`offload` change
            from one to the other.
        master: where the exact value of a parameter of 16 bits is; an option of each group. None:
            in float32, in the slot ``master``, wherever a parameter is bfloat16 or float16.
            ``"float32"``: the same. ``"split"``: bfloat16 only; the parameter and the int16 slot
            ``master_low`` are the float32 value together, the parameter its upper half rounded to
            the nearest, ties away from zero. ``"none"``: bfloat16 only; nowhere, and each step
            rounds the parameter stochastically. A float32 or float64 parameter is its own master.
        state_dtype: what slots of the rule are stored as; an option of each group. None: float32,
            or float64 for float64 parameters. ``"bfloat16"``: rounded stochastically, always, for
            to the nearest a moving average with a rate near 1 would stand still.
        seed: of stochastic rounding, an int ≥ 0 and < 2⁶⁴; an option of each group. The random
            bits depend on it, on the name of the parameter (its position without one), the element
            and the step count alone, so that a resumed run repeats them.
        max_norm: None, or > 0: each step multiplies the gradients by ``max_norm / (norm + 1e-6)``
            if that is below 1, with the 2-norm of all gradients of the optimizer, summed in
            float64. ``grad`` stays as it was. An option that is alike in all groups.
        skip_nonfinite: True takes no step while an element of a gradient is infinite or NaN:
            nothing is changed, nor counted. An option that is alike in all groups.
        telemetry: True has each step measure the gradients, and add up how large each parameter is
            and how far it moves, for :meth:`report`. An option that is alike in all groups.

    Rules compute in float32 whatever arrays of a float32, bfloat16 or float16 parameter are stored
    as, in float64 for float64. Gradients have the dtype of the parameter, or its ``grad_dtype``.

    Raises:
        TypeError: there is no such keyword, or the declaration of the rule is wrong.
        ValueError: ``state_device`` is neither, or another option is none of its choices.

    Attributes:
        kernel: the rule's CUDA source: ``"adam"`` for ``kernels/adam.cuh`` of this package, or the
            path of a ``.cuh`` file elsewhere.
        functor: the name of the C++ functor in it.
        slots: the names of the arrays that the rule keeps beside a parameter in any variant.
        switches: for each template parameter of the functor after the type, in order, its choices;
            a choice counts as its position.
        Scalars: a NamedTuple of the constants of one step, in the order of the functor's members.
        scratch: how many arrays of a block's size ``update`` needs.
        decay: ``"either"`` as above; ``"l2"`` or ``"decoupled"`` if there is only that; ``"none"``
            if the rule decays on its own.
        carries: numbers that a step hands to the next one, with their start values; they stand in
            ``state`` beside ``step``.
        sums: names of sums of squares over a parameter, for a rule of two phases: ``measure``
            returns the elements whose squares are added up, ``finish`` makes one number of the
            sums, and ``update`` takes it. The parameter changes in ``update`` alone, so ``decay``
            is ``"none"`` or ``"l2"``.
        slots_move_first: True if ``measure`` changes the slots, and ``update`` then reads no
            gradient; False if ``update`` does, and ``measure`` reads no slots.
        rule: all of this as one value.
    """

    kernel: ClassVar[str | Path]
    functor: ClassVar[str]
    slots: ClassVar[tuple[str, ...]]
    switches: ClassVar[dict[str, tuple[Any, ...]]] = {}
    Scalars: ClassVar[Any]
    scratch: ClassVar[int] = 0
    decay: ClassVar[str] = "either"
    carries: ClassVar[dict[str, float]] = {}
    sums: ClassVar[tuple[str, ...]] = ()
    slots_move_first: ClassVar[bool] = False
    Variant: ClassVar[Any] = namedtuple("Variant", ())
    rule: ClassVar[Rule] = _OfClass(_rule_of)  # type: ignore[assignment]
    __signature__ = _OfClass(_spelled_out)
    _transient: ClassVar[dict[str, Any]] = {
        **Optimizer._transient,  # noqa: SLF001 - of the base class
        "_prepared": None,
        "_captured": None,
        "_scaling": None,
    }

    streams_state = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "switches" in cls.__dict__:
            cls.Variant = namedtuple("Variant", cls.switches)  # type: ignore[misc, assignment]

    def __init__(
        self, params: Any, defaults: Mapping[str, Any], **frame: Unpack[FrameOptions]
    ) -> None:
        unknown = set(frame) - set(FRAME_DEFAULTS)
        if unknown:
            raise TypeError(
                f"{type(self).__name__}() got an unexpected keyword argument {min(unknown)!r}"
            )
        given: dict[str, Any] = {**FRAME_DEFAULTS, **frame}
        state_device = given.pop("state_device")
        is_host = isinstance(state_device, str) and state_device == HOST
        if not (state_device is None or is_host):
            raise ValueError(
                f"state_device must be {HOST!r}, or None for beside the parameters, "
                f"not {state_device!r}"
            )
        self._prepared: PreparedStep | None = None
        self._captured: _Captured | None = None
        self._scaling: Callable[[str], Terms] | None = None
        self._judging = Judging()
        super().__init__(params, {**defaults, **given})
        self._placement.state_device = state_device

    @staticmethod
    def variant(options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG004 - a rule's depends
        """Return the choice of each switch that the options of a group ask for."""
        return {}

    @staticmethod
    def used_slots(variant: Any) -> tuple[str, ...]:
        """Return the names of the slots of a variant, in the order of the functor's arguments."""
        raise NotImplementedError

    @staticmethod
    def fills(options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what slots begin with, where that is not 0.

        A number, or ``"param"`` for a copy of the parameter. It is read once, when a slot is made.
        """
        return no_fills(options)

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int, *args: Any, **kwargs: Any) -> Any:
        """Return the constants of a step, computed in float64.

        Args:
            options: of the parameter's group.
            t: the number of the step of this parameter, from 1.
            args: of a rule with ``carries``, a dict of what its last step left. Such a rule returns
                a pair: the constants, and the dict for the next step.
            kwargs: none; here so that a type checker takes either kind.
        """
        raise NotImplementedError

    first_scalars: ClassVar[Callable[..., Any] | None] = None
    """As ``scalars``, for the step for which slots of a parameter were made; None if it is none
    apart."""

    @staticmethod
    def update(scalars: Any, variant: Any, /, *arrays: Any) -> None:
        """Update a block in place: parameter, gradient (not to be changed), slots, scratch.

        A rule with ``sums`` is given the number that ``finish`` returned ahead of the scratch.
        """
        raise NotImplementedError

    @staticmethod
    def measure(scalars: Any, variant: Any, /, *arrays: Any) -> None:
        """Fill one array for each of ``sums``: of parameter, gradient, slots, those, scratch."""
        raise NotImplementedError

    @staticmethod
    def finish(scalars: Any, variant: Any, /, totals: Sequence[float]) -> float:
        """Return a number from the sums of a parameter, in float64; it is rounded once."""
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
            TypeError: a parameter is of a dtype that cannot be trained.
            ValueError: an option is out of bounds, or a gradient or slot does not fit its
                parameter. Nothing was changed.
            RuntimeError: an earlier step was interrupted, another thread is stepping, or the data
                of a foreign parameter is a copy. Nothing was changed.
        """
        result = None if closure is None else evaluate(closure)
        self.advance()
        return result

    def advance(self) -> None:
        """Take, or record, a step without hooks and closure: for those who have their own."""
        if gpu.is_capturing(self._prepared.devices if self._prepared else self._homes()):
            self._capture()
            self._is_recorded = True
            return
        prepared = self._current()
        terms = self._judged_by(prepared)
        if terms is not None:
            self.state.expect_counts(self._judging.settle)
        if terms is None:
            rows, handed = prepared.rows(), UNMEASURED
        elif (judged := self._judging.judge(prepared, terms)) is not None:
            rows, handed = judged
        else:
            return
        self._is_torn = True
        prepared.run(rows, handed)
        self._judging.taken(terms)
        self._is_torn = False

    @property
    def last(self) -> Outcome | None:
        """What the gradients of a step amounted to: the latest that is known, without a wait.

        None before the first step that was measured: with ``max_norm``, ``skip_nonfinite``,
        ``telemetry`` or a scaler.
        """
        return self._judging.last

    @property
    def skipped(self) -> int:
        """How many steps were skipped since this optimizer was made; waits for a GPU to know."""
        self._judging.settle()
        return self._judging.skipped

    @property
    def steps_taken(self) -> int:
        """How many steps were taken since this optimizer was made; waits for a GPU to know.

        That is calls of :meth:`step` and replays of a graph, less those :attr:`skipped`. Loading a
        state dict changes neither; ``state[p]["step"]`` is what goes on from there.
        """
        self._judging.settle()
        return self._judging.calls - self._judging.skipped

    @property
    def first_skip(self) -> str | None:
        """Which step was the first to be skipped, and why; None for none. Waits for a GPU to know.

        Steps are calls of :meth:`step` and replays of a graph since this optimizer was made, from
        1. Elements are infinite or NaN; at most four gradients are named.

        Example:
            >>> import numpy as np
            >>> from lucid_gpu import Parameter
            >>> from lucid_gpu.optim import SGD
            >>> w = Parameter([3.0, 4.0])
            >>> optimizer = SGD([("w", w)], lr=0.1, skip_nonfinite=True)
            >>> for gradient in ([1, 2], [np.inf, 2], [np.nan, np.inf]):
            ...     w.grad = np.array(gradient, np.float32)
            ...     optimizer.step()
            >>> optimizer.first_skip, optimizer.skipped, optimizer.steps_taken
            ("step 2 skipped: 1 non-finite elements in 'w'", 2, 1)
        """
        return self._judging.first_skip()

    def report(self) -> dict[str, dict[str, Any]]:
        """Return of each parameter what the last measured step saw; waits for a GPU to know.

        Returns:
            For each name, ``grad_norm`` (of the gradient, unscaled) and ``nonfinite`` (elements).
            With ``telemetry``, also ``update_norm``, by how much the step moved the parameter, and
            ``param_norm``, of the parameter as the step left it: 2-norms of what the rule computed,
            so of the master where there is one, and ahead of any rounding to what is stored. A
            parameter that the step did not update, for lack of a gradient or because it was
            skipped, has ``update_norm`` 0 and ``param_norm`` None.
            Empty before the first step that was measured.

        Example:
            >>> import numpy as np
            >>> from lucid_gpu import Parameter
            >>> from lucid_gpu.optim import SGD
            >>> w = Parameter([3.0, 4.0], name="w")
            >>> optimizer = SGD([("w", w)], lr=0.1, max_norm=1.0)
            >>> w.grad = np.array([3.0, 4.0], np.float32)
            >>> optimizer.step()
            >>> optimizer.last.norm, optimizer.report()
            (5.0, {'w': {'grad_norm': 5.0, 'nonfinite': 0}})
        """
        told = self._judging.told()
        report: dict[str, dict[str, Any]] = {}
        for place, (name, norm, count) in enumerate(self._judging.report()):
            report[name] = {"grad_norm": norm, "nonfinite": count}
            if told is not None:
                report[name] |= {"param_norm": told[place][0], "update_norm": told[place][1]}
        return report

    @contextlib.contextmanager
    def scaled_by(self, terms_on: Callable[[str], Terms]) -> Iterator[None]:
        """Have steps inside a ``with`` block unscale gradients, and skip those that are not finite.

        For scalers of the loss, such as :class:`lucid_gpu.amp.GradScaler`.

        Args:
            terms_on: returns, for the device on which the gradients of all parameters are judged,
                by what: arrays of its terms are there.
        """
        self._scaling = terms_on
        try:
            yield
        finally:
            self._scaling = None

    def _judged_by(self, prepared: PreparedStep) -> Terms | None:
        """Return by what this step is judged; None if nothing is measured."""
        own = prepared.terms
        if self._scaling is not None:
            asked = self._scaling(prepared.home)
            return asked._replace(max_norm=own.max_norm, telemetry=own.telemetry)
        return None if own.are_idle else own

    def before_replay(self, gradients: str = "captured") -> None:
        """Count a step and bring its learning rates and bias corrections to the device.

        Call it before each replay of a CUDA graph in which a step was captured, on the stream on
        which the graph is launched. It waits for no outcome of a replay before 16 are unknown,
        but for each if the rule hands numbers from step to step.

        Args:
            gradients: ``"captured"``: the graph reads the gradients that the parameters had when
                the step was captured, as a graph that also records the backward pass writes them;
                they must still be there. ``"current"``: it reads those that the parameters have
                now, for a graph that records nothing but the step.

        Raises:
            RuntimeError: no step was captured, what it updates or how it is judged has changed
                since, a parameter has another gradient than the captured one, or the graph was not
                launched after earlier calls. Nothing was changed.
            ValueError: ``gradients`` is neither.

        Example:
            >>> def train(stream, optimizer, forward_backward, replays):
            ...     with stream:
            ...         forward_backward()
            ...         optimizer.step()  # allocates state and compiles
            ...         stream.begin_capture()
            ...         forward_backward()  # sets the gradients that the graph writes
            ...         optimizer.step()
            ...         graph = stream.end_capture()
            ...         for _ in range(replays):
            ...             optimizer.before_replay()
            ...             graph.launch(stream)
        """
        if gradients not in REPLAYS:
            raise ValueError(f"gradients must be one of {REPLAYS}, not {gradients!r}")
        if self._captured is None:
            raise RuntimeError("no step was captured: call step() while the stream is capturing")
        captured, options, terms = self._captured
        self.require_ready()
        holds = self._prepared is captured and self._refreshed(captured, keeps_tensors=True)
        if not (holds and captured.is_capture_current):
            raise RuntimeError(
                "parameters, groups or state have changed since the step was captured: "
                "capture the graph anew"
            )
        if captured.terms != options:
            max_norm, may_skip = captured.terms.max_norm, captured.terms.may_skip
            raise RuntimeError(
                f"max_norm and skip_nonfinite are {max_norm!r} and {may_skip!r}, others than when "
                "the step was captured: capture the graph anew"
            )
        if gradients == "captured":
            captured.require_captured_gradients()
        if terms is None:
            captured.upload(captured.rows())
        else:
            captured.upload(*self._judging.announce(captured, terms))
        self._judging.taken(terms, is_sent=False)
        self._note_count()

    def explain(self) -> None:
        """Print how the next step will run, without taking it.

        For each device and dtype: the launches, the bytes moved per element, the variants of the
        rule, and which tensors take a slow path and why.

        Raises:
            TypeError: what :meth:`step` would raise.
            ValueError: what :meth:`step` would raise.

        Example:
            >>> from lucid_gpu import Parameter
            >>> from lucid_gpu.optim import SGD
            >>> SGD([Parameter([1.0])]).explain()
            SGD: one step of 0 parameters
            no gradient, so no step: '0.0'
        """
        self.require_whole()
        self.require_ready()
        prepared = self._prepared
        if prepared is None or not self._refreshed(prepared):
            prepared = self._prepare()
        print(described(type(self).__name__, prepared))  # noqa: T201 - printing is what it is for

    def declared_slots(self) -> dict[str, Declared]:
        """Return the slots that the state of a parameter has.

        Those that only some variants use may lack: one may have been switched on since.
        """
        required = self.rule.always_used
        numbers = dict.fromkeys(self.carries, Declared("number", is_required=True))
        arrays = {name: Declared("state", name in required) for name in self.slots}
        masters = {
            name: Declared(dtype.name) for own in BESIDE.values() for name, dtype in own.items()
        }
        return {"step": Declared("count", is_required=True), **numbers, **arrays, **masters}

    def variant_of(self, group: Mapping[str, Any]) -> Any:
        """Return the variant that a group asks for.

        Raises:
            TypeError: an option is of the wrong type.
            ValueError: an option is out of bounds.
        """
        self.require_valid(group)
        return self.Variant(**self.variant(group))

    def choice_of(self, group: Mapping[str, Any]) -> Choice:
        """Return the variant that a group asks for, and what its arrays are to be stored as.

        Raises:
            TypeError: an option is of the wrong type.
            ValueError: an option is out of bounds.
        """
        return Choice(self.variant_of(group), storing.policy(group))

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group of parameters, as :meth:`Optimizer.add_param_group` does.

        Args:
            param_group: a dict with ``params`` and any options.

        Raises:
            TypeError: as there.
            ValueError: as there, or a parameter cannot be stored as the options ask for.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        found = [
            problem
            for name, param in named(group)
            if (data := numeric(param.data)) is not None
            for problem in storing.problems(name, storing.policy(group), data.dtype)
        ]
        if found:
            self.param_groups.pop()
            require(found)

    def require_valid(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option of the rule or of the frame is out of bounds.

        A subclass checks its own in :meth:`check_options`.
        """
        checks.switches(options, "maximize")
        storing.require_valid(options)
        judging.require_valid(options)
        super().require_valid(options)

    def _storage_of(self, group: Mapping[str, Any]) -> str:
        dtypes = {
            data.dtype for param in group["params"] if (data := numeric(param.data)) is not None
        }
        asked = storing.policy(group)
        stored = [
            storing.storage(self.rule, asked, dtype, dtype) for dtype in sorted(dtypes, key=str)
        ]
        told = [
            f"{own.param} with master {own.master}, state {own.slots[0] if own.slots else 'none'}"
            for own in stored
            if not own.is_uniform
        ]
        return f", stored as {' and '.join(told)}" if told else ""

    def _refreshed(self, prepared: PreparedStep, keeps_tensors: bool = False) -> bool:
        is_placed_alike = prepared.is_hosted == (self.state_device is not None)
        return is_placed_alike and prepared.refresh(
            self.param_groups, self.choice_of, keeps_tensors
        )

    def _prepare(self) -> PreparedStep:
        groups = self.param_groups
        choices = [self.choice_of(group) for group in groups]
        memory = self._placement.host_memory if self.state_device is not None else None
        return PreparedStep(
            self.rule,
            self.inputs_of(groups),
            choices,
            self.state,
            memory,
            self._prepared,
            self._judging.settle,
        )

    def inputs_of(self, groups: Sequence[dict[str, Any]]) -> Inputs:
        """Return what reads the parameters of groups at each step."""
        params = [param for group in groups for param in group["params"]]
        kind = TorchInputs if all(map(torch_tensors.is_tensor, params)) else Inputs
        return kind(groups, list(self.defaults))

    def _current(self) -> PreparedStep:
        """Return what this step does: as the last one did if that still holds."""
        if self._prepared is None or not self._refreshed(self._prepared):
            self._judging.settle()
            prepared = self._prepare()
            prepared.provide()
            self._prepared = prepared
        return self._prepared

    def _forget_arrays(self) -> None:
        self._prepared = None

    def _capture(self) -> None:
        prepared = self._prepared
        if prepared is None or not self._refreshed(prepared, keeps_tensors=True):
            raise RuntimeError(
                "a step that allocates state or compiles cannot be recorded in a CUDA graph: take "
                "one ordinary step, with the same parameters, groups and options, before capturing"
            )
        prepared.require_capturable()
        terms = self._judged_by(prepared)
        handed = UNMEASURED if terms is None else self._judging.capture(prepared, terms)
        prepared.capture(handed)
        self._captured = _Captured(prepared, prepared.terms, terms)
