"""TorchOptimizer: a ``torch.optim.Optimizer`` that steps by a rule of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import is_
from typing import Any, ClassVar

import torch

from lucid_gpu.device import torch_tensors
from lucid_gpu.device.arrays import as_array, is_array
from lucid_gpu.execution.outcome import Outcome
from lucid_gpu.optim.core.optimizer import evaluate
from lucid_gpu.torch import options as spelling
from lucid_gpu.torch.engine import Engine, streams
from lucid_gpu.torch.state import TorchState, as_saved, loaded, to_save


class TorchOptimizer(torch.optim.Optimizer):  # type: ignore[misc]
    """Base of the optimizers of :mod:`lucid_gpu.torch`.

    Groups, hooks, ``zero_grad``, ``add_param_group``, ``state_dict`` and ``load_state_dict`` are
    PyTorch's. A step is one launch per device and dtype on the stream that is current there, or
    one pass of compiled code on a CPU; it is opaque to ``torch.compile``.

    Attributes:
        engine_class: what steps.
        state: a mapping from parameter to its slots: tensors, of the memory of PyTorch's allocator,
            and numbers such as ``step``, which :meth:`state_dict` gives as a tensor.
        grad_scale: if set, a tensor of one element: a step divides the gradients by it.
        found_inf: if set, likewise: a step is skipped if it is not 0. Both are set, and deleted
            after the step, by ``torch.amp.GradScaler``, which then does not wait for the device.
    """

    engine_class: ClassVar[type[Engine]]
    _step_supports_amp_scaling = True  # PyTorch's scaler looks for this
    _engine: Engine

    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        if not hasattr(type(self), "engine_class"):
            raise TypeError("TorchOptimizer is abstract: use one of its subclasses, such as AdamW")
        if isinstance(params, torch.nn.Module):
            raise TypeError(f"params is a {type(params).__name__}: pass its parameters()")
        if options.get("fused") is False:
            self._step_supports_amp_scaling = False
        given = self._bound(args, options)
        self._start(given)
        known = self._engine.defaults
        super().__init__(params, {name: given.get(name, value) for name, value in known.items()})

    @property
    def state(self) -> TorchState:
        """What is remembered of each parameter."""
        return self._engine.state

    @state.setter
    def state(self, entries: Mapping[Any, Mapping[str, Any]]) -> None:
        self._engine.state.replace(entries)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        On a stream that records a CUDA graph the launch is recorded, and nothing steps; see
        :meth:`before_replay`.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            What ``closure`` returned; None without one.

        Raises:
            TypeError: a parameter that has a gradient is made of a dtype that cannot step, or
                ``closure`` cannot be called.
            ValueError: an option is out of bounds, or a gradient does not fit its parameter, is
                sparse, or has no memory. Nothing was changed.
            RuntimeError: an earlier step was interrupted, or a step cannot be recorded.
        """
        # Dynamo, which takes this for a constant, leaves alone what is behind its own decorator.
        return _step_apart(self, closure) if torch.compiler.is_compiling() else _step(self, closure)

    def _go(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = evaluate(closure)
        self._follow_groups()
        self._engine.go(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        return loss

    @property
    def last(self) -> Outcome | None:
        """What the gradients of a step amounted to: the latest that is known, without a wait.

        None before the first step with ``max_norm``, ``skip_nonfinite``, ``telemetry`` or a scaler.
        """
        return self._engine.last

    @property
    def skipped(self) -> int:
        """How many steps were skipped since this optimizer was made; waits for a GPU to know."""
        return self._engine.skipped

    @property
    def steps_taken(self) -> int:
        """How many steps were not, replays of graphs among them; waits for a GPU to know."""
        return self._engine.steps_taken

    @property
    def first_skip(self) -> str | None:
        """Which step was skipped first, and why; None for none. Waits for a GPU to know.

        As :attr:`lucid_gpu.optim.FusedOptimizer.first_skip`; a scaler of PyTorch does not tell
        which gradient was not finite.
        """
        return self._engine.first_skip

    def report(self) -> dict[str, dict[str, Any]]:
        """Return of each parameter what the last measured step saw; waits for a GPU to know.

        As :meth:`lucid_gpu.optim.FusedOptimizer.report` does.
        """
        return self._engine.report()

    def before_replay(self, gradients: str = "captured") -> None:
        """Count a step and bring its scalars to the device, before a CUDA graph is replayed.

        Call it on the stream on which the graph is replayed.

        Args:
            gradients: ``"captured"`` or ``"current"``; see
                :meth:`lucid_gpu.optim.FusedOptimizer.before_replay`.

        Raises:
            RuntimeError: no step was captured, or what it updates has changed since.
            ValueError: ``gradients`` is neither.
        """
        self._call("before_replay", gradients)

    def explain(self) -> None:
        """Print how the next step will run, without taking it."""
        self._call("explain")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as PyTorch does, once its options are found to be in bounds.

        A parameter that is twice in the group is kept once.

        Raises:
            TypeError: an option is of a wrong type.
            ValueError: an option is out of bounds.
        """
        if isinstance(param_group, dict):
            spelling.take_execution(param_group, type(self).__name__)
            self._require_valid({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        kept = {id(param): i for i, param in reversed([*enumerate(group["params"])])}
        for key in {"params", "param_names"} & group.keys():
            group[key] = [group[key][i] for i in sorted(kept.values())]

    def state_dict(self) -> dict[str, Any]:
        """Return state and options as ``torch.optim`` does, which loads them.

        State is by reference, as there; step counts are not.
        """
        hook = self.register_state_dict_post_hook(TorchOptimizer._save_plain_slots, prepend=True)
        try:
            saved: dict[str, Any] = super().state_dict()
        finally:
            hook.remove()
        return saved

    def _save_plain_slots(self, state_dict: dict[str, Any]) -> None:
        counterpart = self.engine_class.counterpart
        groups = {i: group for group in state_dict["param_groups"] for i in group["params"]}
        options = {
            id(group): spelling.own(
                {name: group[name] for name in self._names if name in group}, counterpart
            )
            for group in state_dict["param_groups"]
        }
        state_dict["state"] = {
            key: to_save(slots, options[id(groups[key])] if key in groups else {}, counterpart)
            for key, slots in state_dict["state"].items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict, all of it or nothing: of this class, or of ``torch.optim``'s.

        Slots keep the dtype that they were saved in: a float32 moment, or master, of a bfloat16
        parameter stays float32.

        Raises:
            TypeError: it is no dict.
            ValueError: it does not match this optimizer. Nothing was changed.
        """
        self._require_state_dict(state_dict)
        hook = self.register_load_state_dict_pre_hook(TorchOptimizer._note_saved)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
            self._saved.clear()

    def _require_state_dict(self, state_dict: Any) -> None:
        if not isinstance(state_dict, dict):
            remedy = ": pass its state_dict()" if hasattr(state_dict, "state_dict") else ""
            raise TypeError(f"state_dict must be a dict, not a {type(state_dict).__name__}{remedy}")
        lacking = [key for key in ("state", "param_groups") if key not in state_dict]
        if lacking:
            found = ", ".join(map(repr, [*state_dict][:4])) or "nothing"
            raise ValueError(
                f"state_dict has no {lacking[0]!r}, but {found}: it must be what state_dict() of "
                "an optimizer returned"
            )

    def _note_saved(self, state_dict: dict[str, Any]) -> None:
        """Note slots as they were saved, which PyTorch converts to the dtype of the parameter."""
        ids = [saved_id for group in state_dict["param_groups"] for saved_id in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        saved = state_dict["state"]
        pairs = zip(ids, params, strict=False)  # of another length, PyTorch refuses them
        self._saved.update((id(param), saved[i]) for i, param in pairs if i in saved)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_engine" not in self.__dict__:
            known = type(self).__signature__.parameters
            given = {name: value for name, value in state["defaults"].items() if name in known}
            spelling.take_execution(given, type(self).__name__)
            self._start(given)
            self.defaults = state["defaults"]
        groups = [{**self.defaults, **group} for group in state["param_groups"]]
        for group in groups:
            self._require_valid(group)
        entries = self._fitting(state["state"])
        rest = {key: value for key, value in state.items() if key not in ("state", "param_groups")}
        super().__setstate__({**rest, "param_groups": groups})
        self._engine.state.replace(entries)
        self._engine.heal()

    def _start(self, given: dict[str, Any]) -> None:
        """Make what steps, of options that are checked by that."""
        self._engine = self.engine_class(**spelling.own(given, self.engine_class.counterpart))
        self._names = list(self._engine.defaults)
        self._followed: list[dict[str, Any]] = []
        self._seen: list[Any] = []
        self._has_tensors = False
        self._saved: dict[int, Mapping[str, Any]] = {}

    def _bound(self, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
        """Return the options that were given, by name."""
        spelling.take_execution(options, type(self).__name__)
        try:
            bound = type(self).__signature__.bind(None, *args, **options)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}() {error}") from None
        return {name: value for name, value in bound.arguments.items() if name != "params"}

    def _require_valid(self, group: Mapping[str, Any]) -> None:
        own = spelling.own(
            {name: group[name] for name in self._names}, self.engine_class.counterpart
        )
        self._engine.require_valid(own)

    def _fitting(self, state: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
        """Return slots as this optimizer keeps them.

        Raises:
            ValueError: some do not fit their parameter.
        """
        declared = self._engine.declared_slots()
        numbers = {name: slot for name, slot in declared.items() if slot.kind == "number"}
        entries, problems = {}, []
        for param, slots in state.items():
            if not torch_tensors.is_tensor(param):
                raise ValueError(f"the state has an entry for {param!r}, which no group holds")
            found = as_saved(
                loaded(slots, numbers, self.engine_class.counterpart),
                self._saved.get(id(param), {}),
            )
            arrays = {name: _as_array(value) for name, value in found.items()}
            problems += self._engine.slot_problems(param, arrays) if arrays else []
            entries[param] = found
        if problems:
            name = type(self).__name__
            listed = "".join(f"\n  - {text}" for text in dict.fromkeys(problems))
            raise ValueError(f"the state does not fit this {name}; nothing was loaded:{listed}")
        return entries

    def _follow_groups(self) -> None:
        """Give what steps the groups as they are now."""
        groups: list[dict[str, Any]] = self.param_groups
        own = self._engine.param_groups
        if len(groups) != len(own) or not all(map(is_, groups, self._followed)):
            own[:] = [{} for _ in groups]  # filled below
            self._followed, self._seen = list(groups), []
        try:
            now = [group[name] for group in groups for name in self._names]
        except KeyError as error:
            raise ValueError(f"a parameter group has no {error}: put back what was there") from None
        if not (self._seen and all(map(is_, now, self._seen)) and not self._has_tensors):
            for mine, theirs in zip(own, groups, strict=True):
                mine.update(
                    spelling.own(
                        {name: theirs[name] for name in self._names}, self.engine_class.counterpart
                    )
                )
            self._seen, self._has_tensors = now, any(map(spelling.has_tensors, now))
        for number, (mine, theirs) in enumerate(zip(own, groups, strict=True)):
            params: list[Any] = theirs["params"]
            if mine.get("params") is not params or len(mine["param_names"]) != len(params):
                names = theirs.get("param_names") or [f"{number}.{i}" for i in range(len(params))]
                mine.update(params=params, param_names=list(names))

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of what steps, on the current streams; follow the options that it sets."""
        self._follow_groups()
        before = [dict(group) for group in self._engine.param_groups]
        with streams(self._engine.cuda_devices()):
            result = getattr(self._engine, method)(*args, **kwargs)
        now = zip(before, self._engine.param_groups, self.param_groups, strict=True)
        for old, mine, theirs in now:
            theirs.update({name: mine[name] for name in self._names if mine[name] is not old[name]})
        return result


_step = TorchOptimizer._go  # noqa: SLF001 - of this module
# As PyTorch's own: torch.compiler.disable would load Dynamo for those who do not compile.
_step_apart = torch._disable_dynamo(_step)  # noqa: SLF001


def tensors_of(result: Any) -> Any:
    """Return arrays as tensors, alone or in a list."""
    if isinstance(result, list):
        return [tensors_of(each) for each in result]
    return torch_tensors.from_array(result) if is_array(result) else result


def _as_array(value: Any) -> Any:
    array = as_array(value) if torch_tensors.is_tensor(value) else None
    return value if array is None else array
