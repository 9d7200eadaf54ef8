"""PreparedStep: the tensors of a step, what runs them, and whether it still holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gradient_table, keep, torch_tensors
from lucid_gpu.device.arrays import address, device_of
from lucid_gpu.execution.compiled import MISFITS, OTHERS_PRESENT
from lucid_gpu.execution.cpu import CpuExecutor
from lucid_gpu.execution.cuda import CudaExecutor
from lucid_gpu.execution.outcome import PLAIN, Handed, terms_of
from lucid_gpu.execution.plan import WATCHED
from lucid_gpu.execution.rule import Rule
from lucid_gpu.execution.streamed import StreamedExecutor
from lucid_gpu.optim.core import masters, storing
from lucid_gpu.optim.core import slots as making
from lucid_gpu.optim.core.inputs import Inputs
from lucid_gpu.optim.core.newcomers import Newcomers
from lucid_gpu.optim.core.parts import Choice, Executor, Part, grouped
from lucid_gpu.optim.core.rows import Rows
from lucid_gpu.optim.core.tensors import (
    TRAINABLE,
    Tensor,
    misfits,
    numeric,
    require,
    require_apart,
    require_own_memory,
    require_slots,
    require_trainable,
    unstrange,
    unwritable,
)
from lucid_gpu.parameter import Parameter, gradient_dtypes, rows_were_given
from lucid_gpu.row_gradient import RowGradient

if TYPE_CHECKING:
    from lucid_gpu.optim.core.host_memory import HostMemory
    from lucid_gpu.optim.core.state import State

UNMEASURED: Mapping[str, Handed] = {}
"""What a step is handed for which nothing was measured."""


class PreparedStep:
    """What one step of a fused optimizer does.

    Made when parameters, groups or state are others than before; kept while gradients move, come
    and go, data is replaced, and options change that ask for no other variant. Making it reads and
    checks; nothing is written before :meth:`provide`.

    Args:
        rule: what updates the tensors.
        inputs: the parameters in their groups.
        choices: what each group asks for.
        state: the slots that the parameters have.
        host_memory: where slots of parameters on a GPU live; None for beside their parameters.
        previous: the prepared step in whose place this one is.
        settle: waits until it is known which steps were skipped, before counts begin to differ.

    Attributes:
        parts: one for each device and storage.
        home: the device on which they are judged: the CPU if a parameter is there.
        terms: by what the groups ask their steps to be judged.
        has_gradient: which of all parameters have a gradient.
        devices: those on which tensors step.

    Raises:
        TypeError: a parameter with a gradient is made of a dtype that cannot step.
        ValueError: a gradient or slot does not fit its parameter, cannot be written to, or
            parameters share memory.
    """

    def __init__(
        self,
        rule: Rule,
        inputs: Inputs,
        choices: Sequence[Choice],
        state: State,
        host_memory: HostMemory | None,
        previous: PreparedStep | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._settle = settle
        self._rule, self._state, self._host_memory = rule, state, host_memory
        self._choices = list(choices)
        self.inputs = inputs
        self.terms = terms_of(inputs.groups)
        self.parts: list[Part] = []
        self._place: dict[int, tuple[Part, int]] = {}
        for part in grouped(rule, inputs, self._choices, self.terms.telemetry):
            self.parts.append(part)
            for number, tensor in enumerate(part.tensors):
                self._place[tensor.position] = part, number
                self._note_making(tensor.param, tensor.data)
        grads = self.inputs.gradients()
        self.home = min((part.device for part in self.parts), default="cpu")
        self._note_presence(np.array([grad is not None for grad in grads], np.bool_))
        self._admitted = np.zeros(len(grads), np.bool_)
        self._newcomers = Newcomers(inputs, state)
        self._is_spoiled = False
        self._captured_gradients: list[int | None] = []
        # Gradients that must live until the step is done: those that compiled code reads, and those
        # of foreign parameters, which may be computed whenever they are read.
        self._held: list[Any] = []
        self._layouts: Any = None
        self._is_capture_current = False
        self._keeps_tensors = False
        self.streamed: list[StreamedExecutor] = []
        self._on_cpu: list[tuple[Part, CpuExecutor]] = []
        self._are_all_on_cpu = False
        self._known = {} if previous is None else masters.known(previous.tensors())
        with state.settled():
            self._check(np.flatnonzero(self.has_gradient).tolist(), grads)
        self._version = state.version

    @property
    def is_hosted(self) -> bool:
        """Whether slots of parameters on a GPU live in host memory."""
        return self._host_memory is not None

    def slots_of(self, tensor: Tensor) -> Mapping[str, Any]:
        """Return the slots that a tensor has: those made for its next step, else its state."""
        if tensor.slots is not None:
            return tensor.slots
        return self._kept(tensor)

    def _note_presence(self, present: npt.NDArray[np.bool_]) -> None:
        """Note which of all parameters have a gradient."""
        self.has_gradient = present
        self.devices = {part.device for part in self.parts if part.of(present).any()}

    def provide(self) -> None:
        """Make the slots that tensors lack, and what runs them; the state stays as it is."""
        grads = [unstrange(grad) for grad in self.inputs.gradients()]
        is_on_cpu = any(part.device == "cpu" for part in self.parts)
        self._held = grads if is_on_cpu or not self.inputs.are_own else []
        with self._state.settled():
            self._admit(np.flatnonzero(self.has_gradient).tolist())
            for part in self.parts:
                own = [grads[position] for position in part.positions.tolist()]
                part.executor = self._make_executor(part, own)
                part.counts.set_present(self.has_gradient[part.positions])
        executors = [part.executor for part in self.parts]
        self.streamed = [each for each in executors if isinstance(each, StreamedExecutor)]
        self._on_cpu = [
            (part, part.executor) for part in self.parts if isinstance(part.executor, CpuExecutor)
        ]
        stepped = sum(len(part.tensors) for part, _ in self._on_cpu)
        self._are_all_on_cpu = self.inputs.are_own and stepped == len(grads)
        self.inputs.gradients_may_have_moved()

    def refresh(
        self,
        groups: Sequence[dict[str, Any]],
        choice_of: Callable[[Mapping[str, Any]], Choice],
        keeps_tensors: bool = False,
    ) -> bool:
        """Take in what has changed since the last step; False if that asks for another one.

        Args:
            groups: the parameter groups.
            choice_of: returns what a group asks for, or raises.
            keeps_tensors: True takes neither other data nor tensors that are new to stepping, as a
                graph cannot.

        Raises:
            TypeError: an option is of a wrong type, or a parameter of a wrong dtype.
            ValueError: an option is out of bounds, or an array does not fit its parameter.
        """
        if self._is_spoiled or self._state.version is not self._version:
            return False
        if not self.inputs.has_same_groups(groups):
            return False
        if self.inputs.options_changed():
            if [choice_of(group) for group in groups] != self._choices:
                return False
            terms = terms_of(groups)
            if terms.telemetry != self.terms.telemetry:
                return False
            self.terms = terms
            self.inputs.accept_options()
        self._is_spoiled = True  # until what may raise below is done: then all is looked at anew
        self._keeps_tensors = keeps_tensors
        holds = self._take_data() and self._take_gradients()
        self._is_spoiled = not holds
        return holds

    def rows(self, unknown: int = 0) -> list[Rows]:
        """Return the scalars of the next step, for each part; nothing is changed.

        Args:
            unknown: how many of the last steps may turn out to have been skipped.
        """
        return [part.counts.rows(unknown) for part in self.parts]

    def run(self, rows: Sequence[Rows], handed: Mapping[str, Handed] = UNMEASURED) -> None:
        """Update all tensors that have a gradient and count their step.

        Args:
            rows: the scalars.
            handed: what the gradients amount to, on each device where they were measured.
        """
        self._enter(handed)
        for executor in self.streamed:
            self._state.expect(executor.arrive)
        for part, own in zip(self.parts, rows, strict=True):
            if part.executor is not None and len(own.scalars):
                part.executor.run(own.scalars, own.row_of, _handed(part, own, handed))
        self._held = []
        self._count(rows)
        self.inputs.note_writes(self.has_gradient)

    @property
    def needs_exact_counts(self) -> bool:
        """Whether the next step waits until it is known which steps were skipped."""
        return any(
            part.counts.needs_exact_counts
            or (isinstance(part.executor, CudaExecutor) and part.executor.needs_exact_rows)
            for part in self.parts
        )

    def take_back(self, skipped: int, unknown: int) -> None:
        """Uncount steps that turned out to have been skipped.

        Args:
            skipped: how many.
            unknown: how many of the last steps may still turn out to have been.
        """
        if skipped:
            for part in self.parts:
                part.counts.take_back(skipped)
        if self._state.version is self._version:
            self._newcomers.review(unknown)
            self._version = self._state.version

    def measured(self) -> tuple[list[str], list[int], list[np.dtype[Any]]]:
        """Return device, size and dtype of the gradient of each parameter, as it is or may be."""
        count = len(self.inputs.params)
        devices, sizes = [self.home] * count, [0] * count
        dtypes = [np.dtype(np.float32)] * count
        for part in self.parts:
            for position, tensor in zip(part.positions.tolist(), part.tensors, strict=True):
                sizes[position], dtypes[position] = tensor.data.size, part.group.storage.grad
                devices[position] = part.device
        return devices, sizes, dtypes

    def told(self) -> npt.NDArray[np.float64]:
        """Return norm and move of each parameter in the last step that updated it, a row each."""
        squares = np.zeros((len(self.inputs.params), len(WATCHED)))
        for part in self.parts:
            if part.executor is not None:
                squares[part.positions] = part.executor.watched()
        with np.errstate(invalid="ignore"):
            return np.sqrt(squares)

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors of all parts."""
        for part in self.parts:
            yield from part.tensors

    def gradients(self) -> list[Any]:
        """Return the gradient of each parameter as an array, or None."""
        return [unstrange(grad) for grad in self.inputs.gradients()]

    @property
    def sets(self) -> int:
        """For how many numbers of skipped steps a replay has room for rows."""
        return min(
            part.executor.room // max(1, part.counts.kinds)
            for part in self.parts
            if isinstance(part.executor, CudaExecutor)
        )

    def require_capturable(self) -> None:
        """Raise RuntimeError if a launch cannot be recorded in a graph."""
        for part in self.parts:
            if not isinstance(part.executor, CudaExecutor):
                raise RuntimeError("a CUDA graph cannot record the step of parameters on the CPU")
            part.executor.require_capturable()

    def capture(self, handed: Mapping[str, Handed] = UNMEASURED) -> None:
        """Record the launches in the graph that the current streams record.

        Args:
            handed: what the gradients amount to, on each device where they are measured.
        """
        for part in self.parts:
            if isinstance(part.executor, CudaExecutor):
                part.executor.capture(handed.get(part.device, PLAIN))
        self._captured_gradients = self._addresses()
        self._is_capture_current = True

    @property
    def is_capture_current(self) -> bool:
        """Whether arrays and tensors are those that a captured graph knows."""
        return self._is_capture_current

    def require_captured_gradients(self) -> None:
        """Raise RuntimeError if a parameter has another gradient than when a step was captured."""
        for name, then, now in zip(
            self.inputs.names, self._captured_gradients, self._addresses(), strict=True
        ):
            if now != then:
                raise RuntimeError(
                    f"parameter {name!r} has another gradient than when the step was captured, so "
                    "that the graph would write one and read the other: set that one again, "
                    "capture the graph anew, or, if the graph records nothing but the step, pass "
                    "gradients='current'"
                )

    def upload(self, rows: Sequence[Rows], handed: Mapping[str, Handed] = UNMEASURED) -> None:
        """Bring scalars and gradients to the devices for the next replay, and count its step."""
        self._enter(handed)
        for part, own in zip(self.parts, rows, strict=True):
            if isinstance(part.executor, CudaExecutor):
                part.executor.upload(own.scalars, own.row_of, _handed(part, own, handed))
        self._held = []
        self._count(rows)
        self.inputs.note_writes(self.has_gradient)

    def _count(self, rows: Sequence[Rows]) -> None:
        for part, own in zip(self.parts, rows, strict=True):
            part.counts.count(own)

    def _addresses(self) -> list[int | None]:
        grads = map(unstrange, self.inputs.gradients())
        return [None if grad is None else address(grad) for grad in grads]

    def _check(self, positions: Sequence[int], grads: Sequence[Any]) -> None:
        """Raise if parameters that have their first gradient cannot step."""
        for position in positions:
            name = self.inputs.names[position]
            data = require_trainable(name, self.inputs.data[position], TRAINABLE)
            require_own_memory(name, self.inputs.params[position], data)
            tensor = self._tensor(position)
            self._require_gradient(tensor, unstrange(grads[position]))
            kept = self._kept(tensor)
            policy = self._choices[tensor.group].policy
            require(storing.problems(name, policy, data.dtype))
            require(storing.leftovers(name, kept, tensor.used))
            is_brought = self.is_hosted and device_of(tensor.data) != "cpu"
            require_slots(tensor, kept, tensor.used, is_brought)
        known = [*np.flatnonzero(self._admitted).tolist(), *positions]
        require_apart([self._tensor(position) for position in known])

    def _admit(self, positions: Sequence[int]) -> None:
        """Have tensors step from now on that were checked: with the slots that they lack."""
        tensors = [self._tensor(position) for position in positions]
        lacking = []
        for tensor in tensors:
            kept = self._kept(tensor)
            tensor.slots = {
                name: self._as_stored(tensor, name, kept.get(name)) for name in tensor.used
            }
            used = self._rule.used_slots(tensor.variant)
            lacking.append(any(kept.get(name) is None for name in used))
        masters.renew([own for own in tensors if masters.is_stale(own, self._known)])
        fills = [{**self._rule.fills(group), **masters.FILLS} for group in self.inputs.groups]
        making.provide(tensors, fills, self._host_memory, self.inputs.zeros)
        for tensor, lacks in zip(tensors, lacking, strict=True):
            part, number = self._place[tensor.position]
            part.group.slots[number] = tuple((tensor.slots or {}).values())
            part.counts.admit(number, self._state.get(tensor.param, {}), lacks)
            self._newcomers.add(part, number)
        self._admitted[positions] = True
        known = [self._tensor(position) for position in np.flatnonzero(self._admitted).tolist()]
        self.inputs.watch([own.position for own in known if "master" in (own.slots or {})])

    def _as_stored(self, tensor: Tensor, name: str, array: Any) -> Any:
        return None if array is None else making.cast(array, tensor.used[name])

    def _enter(self, handed: Mapping[str, Handed]) -> None:
        """Put the slots of tensors on their first step into the state."""
        if self._newcomers.are_waiting:
            self._newcomers.enter(any(own.sets > 1 for own in handed.values()))
            self._version = self._state.version

    def _note_making(self, param: Any, array: Any) -> None:
        """Note on which stream the data of a parameter was made; of a foreign one, this is new."""
        made = param.made if isinstance(param, Parameter) else keep.made_on(array)
        if made is not None:
            self._state.made.add(made)

    def _make_executor(self, part: Part, grads: list[Any]) -> Executor:
        if part.device == "cpu":
            return CpuExecutor(part.group, grads)
        if self.is_hosted and any(len(own or ()) for own in part.group.slots):
            return StreamedExecutor(part.group, grads, self._state.made)
        return CudaExecutor(part.group, grads, self._state.made)

    def _take_data(self) -> bool:
        """Take arrays that replaced others; False if one asks for another prepared step."""
        moved, written = self.inputs.take_data(), self.inputs.written_by_others()
        if not (moved or written):
            return True
        if moved and self._keeps_tensors:
            return False
        self._is_capture_current = self._is_capture_current and not moved
        renewed: dict[int, tuple[Part, list[int]]] = {}
        for position in moved:
            if position not in self._place:
                return False
            tensor = self._tensor(position)
            array = numeric(self.inputs.data[position])
            if array is None or misfits("", array, tensor.data):
                return False
            require(unwritable(f"parameter {tensor.name!r}", array))
            self._note_making(tensor.param, array)
            part, number = self._place[position]
            tensor.data = part.group.params[number] = array
            renewed.setdefault(id(part), (part, []))[1].append(number)
        # A split parameter needs no watch: its lower half changes what was written by half a bit.
        others = dict.fromkeys([*moved, *written])
        masters.follow([self._tensor(position) for position in others])
        if moved:
            admitted = np.flatnonzero(self._admitted).tolist()
            require_apart([self._tensor(position) for position in admitted])
        return all(
            part.executor is not None and part.executor.renew(numbers)
            for part, numbers in renewed.values()
        )

    def _take_gradients(self) -> bool:
        """Take the gradients of this step; False if one asks for another prepared step."""
        for _, executor in self._on_cpu:
            executor.get_ready()
        may_have_moved = self.inputs.gradients_may_have_moved()
        # Compiled code works on addresses, and another thread may set gradients.
        self._held = self.inputs.hold(bool(self._on_cpu))
        if self._needs_gradients():
            return self._take_arrays()
        if not may_have_moved:
            self._lend()
            return True
        for take in (self._retake, self._take_noted):
            taken = take()
            if taken is not None:
                return taken
        return self._take_arrays()

    def _take_arrays(self) -> bool:
        """Take gradients as arrays; False if one asks for another prepared step."""
        self._layouts = None  # of gradients that were noted, which these may not be
        if self.inputs.have_other_types():
            return False
        grads = self.inputs.gradients(self._held)
        if not self.inputs.are_own:  # a Parameter has checked its gradient when it was set
            grads = [unstrange(grad) for grad in grads]
            self._held += grads
            self._require_fitting(grads)
        elif rows_were_given() and any(isinstance(grad, RowGradient) for grad in grads):
            self._require_fitting(grads)
        present = np.array([grad is not None for grad in grads], np.bool_)
        if not self._take_presence(present, grads):
            return False
        return all(
            part.executor is not None
            and part.executor.replace_gradients([grads[i] for i in part.positions.tolist()])
            for part in self.parts
        )

    def _needs_gradients(self) -> bool:
        """Say whether the arrays themselves must be looked at, not only what was noted of them."""
        if not self.inputs.tell_addresses:
            return True
        for part in self.parts:
            if part.executor is not None and part.executor.needs_gradients:
                return True
        return False

    def _retake(self) -> bool | None:
        """Take NumPy arrays in place of the gradients of the last step.

        Returns:
            None if they must be taken otherwise; False if one asks for another prepared step.
        """
        if not self._are_all_on_cpu or rows_were_given():
            return None
        are_others = False
        for part, executor in self._on_cpu:
            own = self._held if part.is_all else [self._held[i] for i in part.positions.tolist()]
            found = executor.retake_gradients(own)
            if found == MISFITS:
                return None
            are_others = are_others or found == OTHERS_PRESENT
        if not are_others:
            return True
        present = np.zeros(len(self._held), np.bool_)
        for part, executor in self._on_cpu:
            present[slice(None) if part.is_all else part.positions] = executor.present
        if not self._take_presence(present, self._held):
            return False
        return None if self._needs_gradients() else True

    def _lend(self) -> None:
        """Have NumPy read the gradients that it read at the last step."""
        for part, executor in self._on_cpu:
            if executor.reads_arrays:
                grads = self.inputs.gradients(self._held)
                executor.lend(grads if part.is_all else [grads[i] for i in part.positions.tolist()])

    def _take_noted(self) -> bool | None:
        """Take gradients as they were noted.

        Returns:
            None if the arrays must be looked at; False if one asks for another prepared step.
        """
        noted, layouts = self.inputs.noted_gradients(self._held)
        if layouts is not self._layouts:
            if not self._take_presence(layouts != gradient_table.ABSENT, None):
                return False
            self._layouts = layouts
        are_taken = all(
            part.executor is not None
            and part.executor.move_gradients(part.of(noted), part.of(layouts))
            for part in self.parts
        )
        return True if are_taken else None

    def _take_presence(self, present: npt.NDArray[np.bool_], grads: list[Any] | None) -> bool:
        """Admit tensors that have their first gradient; False if one has no place here."""
        if present.tobytes() == self.has_gradient.tobytes():
            return True
        self._settle()
        are_new = present > self._admitted
        if are_new.any():
            new = np.flatnonzero(are_new).tolist()
            if self._keeps_tensors or not all(position in self._place for position in new):
                return False
            with self._state.settled():
                self._check(new, grads if grads is not None else self.inputs.gradients())
                self._admit(new)
            self._is_capture_current = False
            for part in self.parts:
                numbers = [self._place[i][1] for i in new if self._place[i][0] is part]
                if numbers and not (part.executor is not None and part.executor.renew(numbers)):
                    return False
        self._note_presence(present)
        for part in self.parts:
            part.counts.set_present(part.of(present))
        return True

    def _require_fitting(self, grads: Sequence[Any]) -> None:
        for position, grad in enumerate(grads):
            if grad is not None and position in self._place:
                self._require_gradient(self._tensor(position), grad)

    def _require_gradient(self, tensor: Tensor, grad: Any) -> None:
        wanted = tensor.storage.grad if tensor.storage is not None else None
        label = f"the gradient of parameter {tensor.name!r}"
        found = misfits(label, grad, tensor.data, dtype=wanted)
        if found and getattr(grad, "dtype", None) in gradient_dtypes(tensor.data.dtype):
            name = grad.dtype.name
            found[-1] += (
                f", or set the parameter's grad_dtype = torch.{name}"
                if torch_tensors.is_tensor(tensor.param)
                else f", or make the parameter with grad_dtype={name!r}"
            )
        require(found)

    def _kept(self, tensor: Tensor) -> Mapping[str, Any]:
        """Return the slots in the state of a tensor, as it works on them."""
        return self.inputs.arrays(tensor.position, self._state.get(tensor.param, {}))

    def _tensor(self, position: int) -> Tensor:
        part, number = self._place[position]
        return part.tensors[number]


def _handed(part: Part, rows: Rows, handed: Mapping[str, Handed]) -> Handed:
    """Return what the tensors of a part are handed of the outcome of their step."""
    own = handed.get(part.device)
    return PLAIN if own is None else own._replace(stride=rows.stride)
