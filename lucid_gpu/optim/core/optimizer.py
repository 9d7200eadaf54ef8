"""Optimizer: groups, gradients, state, and the order of a step and its hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, ClassVar, Self

import numpy as np

from lucid_gpu.device import gpu, torch_tensors
from lucid_gpu.device.arrays import as_array, device_of, is_array, is_writable
from lucid_gpu.optim.core import groups as _groups
from lucid_gpu.optim.core import state_dict as _state_dict
from lucid_gpu.optim.core.explain import described_own
from lucid_gpu.optim.core.hooked import Hooked, replaced
from lucid_gpu.optim.core.placed import Placed
from lucid_gpu.optim.core.placement import Placement
from lucid_gpu.optim.core.pytorch import Counterpart, note_counterpart
from lucid_gpu.optim.core.state import State
from lucid_gpu.optim.core.storing import gradient_dtype
from lucid_gpu.optim.core.tensors import (
    DTYPES,
    TRAINABLE,
    Declared,
    Tensor,
    misfits,
    require,
    require_apart,
    require_own_memory,
    require_slots,
    require_trainable,
    slot_problems,
    unstrange,
)
from lucid_gpu.optim.core.tree import check_depth, is_plain


class Optimizer(Hooked, Placed):
    """Base class of all optimizers; a subclass adds ``step``.

    Args:
        params: the parameters: an iterable of them, of ``(name, parameter)`` pairs, or of group
            dicts, each with ``params`` and options of its own. A parameter is a
            :class:`lucid_gpu.Parameter` or any object with ``data`` and ``grad``.
        defaults: the options of a group that does not give its own.

    Attributes:
        param_groups: the groups, each a dict of its options, ``params`` and ``param_names``.
            An option that is edited takes effect at the next step. A number may be given as
            NumPy's, or as an array of no dimension of any framework: what the optimizer checks
            becomes a Python number when the group is made or loaded, and when an edited option
            is first used.
        state: a mapping from parameter to its slots, filled by the first step of each parameter.
        defaults: a copy of the argument.
        slots: the names of the arrays that a subclass keeps in ``state``, each of the shape of its
            parameter: loading checks them. None if it does not say; then only the shapes of slots
            that are there already are compared.
        streams_state: whether a step can bring the state of parameters on a GPU from the host.
        widens: whether :meth:`stepping` takes parameters of bfloat16 and float16, and gradients
            of their ``grad_dtype``.
        counterpart: what PyTorch's class of the same name writes otherwise in its state dicts, a
            :class:`~lucid_gpu.optim.core.pytorch.Counterpart`.

    Raises:
        TypeError: ``params`` is no ordered collection of parameters, or ``defaults`` no dict.
        ValueError: ``params`` is empty, an option is out of bounds or nested more than 100 levels
            deep, a parameter is in two groups, or some parameters are named and others not.

    Example:
        An optimizer of one's own, for parameters on any device:

        >>> from lucid_gpu import Parameter
        >>> class MyOptimizer(Optimizer):
        ...     def __init__(self, params, lr=0.01):
        ...         super().__init__(params, {"lr": lr})
        ...
        ...     def step(self, closure=None):
        ...         for group in self.param_groups:
        ...             for param in group["params"]:
        ...                 if param.grad is not None:
        ...                     param.data -= group["lr"] * param.grad
        >>> w = Parameter([1.0, 2.0])
        >>> optimizer = MyOptimizer([w], lr=0.5)
        >>> w.grad = w.data.copy()
        >>> optimizer.step()
        >>> w.numpy().tolist()
        [0.5, 1.0]
    """

    requires_parameters: ClassVar[bool] = True
    streams_state: ClassVar[bool] = False
    widens: ClassVar[bool] = False
    slots: ClassVar[tuple[str, ...] | None] = None
    counterpart: ClassVar[Counterpart] = Counterpart()
    _transient: ClassVar[dict[str, Any]] = {}
    """What no copy takes along, and what it has instead."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ARG004, D102
        if cls is Optimizer:
            raise TypeError("Optimizer is abstract: use a subclass that defines step(), as Adam")
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        note_counterpart(cls.__name__, cls.counterpart)
        if cls.step is not Optimizer.step and not getattr(cls.step, "hooked", False):
            cls.step = cls.profile_hook_step(cls.step)  # type: ignore[method-assign]

    def __init__(self, params: Any, defaults: Mapping[str, Any]) -> None:
        if not isinstance(defaults, Mapping):
            raise TypeError(f"defaults must be a dict of options, not {type(defaults).__name__}")
        self.defaults: dict[str, Any] = dict(defaults)
        _check_depths(self.defaults)
        self.require_valid(self.defaults)
        self.param_groups: list[dict[str, Any]] = []
        self.state = State()
        self._init_hooks()
        self._is_torn = False
        self._placement = Placement()
        groups, loose = _groups.split(params, self.requires_parameters)
        for group in groups or (self.param_groups_setup(loose, self.defaults) if loose else []):
            self.add_param_group(group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss; called once, before the update.

        Returns:
            What ``closure`` returned; None without one.

        Raises:
            NotImplementedError: the subclass does not define ``step``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step(closure=None)")

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError or TypeError if a hyperparameter is out of bounds; a subclass knows.

        The functions of :mod:`lucid_gpu.optim.checks` do so, and make numbers of any kind Python's.
        """

    def require_whole(self) -> None:
        """Raise if groups or state were edited so that no step and no state dict can be made.

        Raises:
            TypeError: ``state``, ``param_groups`` or a group was replaced by something else.
            ValueError: a group lacks an option, its parameters or their names.
        """
        if not isinstance(self.state, State):
            raise TypeError(
                f"state was replaced by a {type(self.state).__name__}: put back the mapping that "
                "it was; state.clear() empties it"
            )
        _groups.require_whole(self.param_groups, self.defaults)

    def require_valid(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError or TypeError if an option is out of bounds."""
        self.check_options(options)

    def declared_slots(self) -> dict[str, Declared] | None:
        """Return the slots that the state of a parameter may have; None if that is unknown."""
        if self.slots is None:
            return None
        return {"step": Declared("count"), **dict.fromkeys(self.slots, Declared("array"))}

    def param_problems(self, data: Any, options: Mapping[str, Any]) -> list[str]:  # noqa: ARG002
        """Return, in words, why a parameter cannot be trained; a subclass knows.

        Asked when a group is made, loaded, and before each step that :meth:`stepping` begins.

        Args:
            data: what it holds.
            options: of its group.
        """
        return []

    def gradient_problems(
        self, what: str, grad: Any, data: Any, dtype: np.dtype[Any] | None = None
    ) -> list[str]:
        """Return, in words, why a gradient cannot be used; a subclass may take other kinds.

        Args:
            what: how to call it.
            grad: it.
            data: the parameter's array.
            dtype: that the gradient must have; None for that of the parameter.
        """
        return misfits(what, grad, data, dtype=dtype)

    def slot_problems(self, param: Any, slots: Mapping[str, Any]) -> list[str]:
        """Return, in words, why ``slots`` cannot be loaded as the state of ``param``."""
        declared = self.declared_slots()
        if declared is not None:
            return slot_problems(declared, slots, as_array(param.data))
        return [
            f"slot {name!r} has shape {slots[name].shape}, here it has {array.shape}"
            for name, array in self.state.get(param, {}).items()
            if is_array(array) and is_array(slots.get(name)) and slots[name].shape != array.shape
        ]

    def stepping(self) -> list[Tensor]:
        """Return the parameters that have a gradient, checked, for a ``step`` in array code.

        Each has ``name``, ``param``, ``data`` and ``grad`` as arrays, and ``group``, the number of
        its group.

        Raises:
            TypeError: an option is of a wrong type, or a parameter not of float32 or float64, nor
                of 16 bits if :attr:`widens`.
            ValueError: an option is out of bounds, parameters share memory, or a gradient or
                declared slot does not fit its parameter or cannot be written to.
            RuntimeError: the data of a foreign parameter is a copy.
        """
        tensors: list[Tensor] = []
        position, taken = -1, TRAINABLE if self.widens else DTYPES
        for number, group in enumerate(self.param_groups):
            self.require_valid(group)
            for name, param in _groups.named(group):
                position += 1
                if param.grad is not None:
                    data = require_trainable(name, param.data, taken)
                    dtype = gradient_dtype(param, data.dtype) if self.widens else None
                    grad = unstrange(param.grad)
                    self._require_fitting(name, data, group)
                    require_own_memory(name, param, data)
                    what = f"the gradient of parameter {name!r}"
                    require(self.gradient_problems(what, grad, data, dtype))
                    tensor = Tensor(position, number, name, param, data, None, grad=grad)
                    self._require_slots(tensor, group)
                    tensors.append(tensor)
        require_apart(tensors)
        return tensors

    def _require_fitting(self, name: str, data: Any, options: Mapping[str, Any]) -> None:
        require(f"parameter {name!r} {text}" for text in self.param_problems(data, options))

    def _require_slots(self, tensor: Tensor, options: Mapping[str, Any]) -> None:  # noqa: ARG002
        used = dict.fromkeys(self.slots or ())
        require_slots(tensor, self.state.get(tensor.param, {}), used, False)

    def explain(self) -> None:
        """Print which parameters the next step will update, without taking it."""
        pairs = [pair for group in self.param_groups for pair in _groups.named(group)]
        print(described_own(type(self).__name__, pairs, self.widens))  # noqa: T201 - what it is for

    def param_groups_setup(self, params: Any, defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return a list with the one group dict that ``params`` and ``defaults`` make.

        The constructor asks it for the groups of parameters that were passed without any, so a
        subclass can group them otherwise.

        Args:
            params: the parameters of the group; names that were given appear in ``param_names``.
            defaults: its options.

        Raises:
            TypeError: ``params`` is no ordered collection of parameters.
            ValueError: ``params`` is empty.
        """
        group = _groups.normalize({"params": params}, 0)
        if _groups.is_positional(group["param_names"]):
            del group["param_names"]
        return [{**group, **defaults}]

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group of parameters; options it lacks come from ``defaults``.

        Args:
            param_group: a dict with ``params``, any options, and keys of one's own, which are
                kept. The dict itself is not changed.

        Raises:
            TypeError: it is no dict, or holds something that is no parameter.
            ValueError: ``params`` is missing or empty, a parameter is in another group already,
                an option is out of bounds or nested more than 100 levels deep, or names are given
                to some parameters only.
        """
        index = len(self.param_groups)
        group = _groups.normalize(param_group, index)
        options = {**self.defaults, **_groups.options(group)}
        _check_depths(options)
        self.require_valid(options)
        for name, param in _groups.named(group):
            self._require_fitting(name, param.data, options)
        owners = {
            id(param): (number, name)
            for number, other in enumerate(self.param_groups)
            for name, param in _groups.named(other)
        }
        for param in group["params"]:
            if id(param) in owners:
                number, name = owners[id(param)]
                raise ValueError(
                    f"parameter {name!r} is already in parameter group {number}: "
                    "a parameter belongs to one group"
                )
        first = self.param_groups[0] if self.param_groups else group
        if _groups.is_positional(first["param_names"]) != _groups.is_positional(
            group["param_names"]
        ):
            raise ValueError(
                f"the parameters of one of the groups 0 and {index} have names, those of the "
                "other have none: name those of all groups, or of none"
            )
        names = {"params": group["params"], "param_names": group["param_names"]}
        self.param_groups.append({**options, **names})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients.

        Args:
            set_to_none: True sets each ``grad`` to None. False fills the existing buffers with
                zeros in place; no buffer is made where there is none. The gradient of a text
                becomes an empty list either way, unless it is frozen.

        Raises:
            TypeError: with False, a gradient cannot be changed in place. None of them was.
        """
        if not set_to_none:
            for name, param in chain.from_iterable(map(_groups.named, self.param_groups)):
                _require_writable(name, param.grad)
        for param in self._params():
            grad = param.grad
            if isinstance(param.data, str) or isinstance(grad, list):
                if getattr(param, "requires_grad", True):
                    param.grad = []
            elif set_to_none:
                param.grad = None
            elif torch_tensors.is_tensor(grad):
                grad.detach().zero_()
            elif grad is not None:
                with gpu.on(device_of(grad)):
                    grad[...] = 0

    def clear_grad(self) -> None:
        """Reset the gradients: :meth:`zero_grad` by another name."""
        self.zero_grad()

    def reset_grad(self) -> None:
        """Reset the gradients: :meth:`zero_grad` by another name."""
        self.zero_grad()

    def state_dict(self, device: str | None = None, *, copy: bool = True) -> dict[str, Any]:
        """Return a snapshot of state and options: ``{"state": {id: slots}, "param_groups": […]}``.

        Stepping on does not change it. Each group holds its options, ``params`` (ids, counted in
        group order), ``param_names``, and the class of the optimizer.

        Args:
            device: ``"cpu"`` brings the arrays to the host; None leaves them where they are.
            copy: False gives out the optimizer's own arrays where they need not move: for those
                who are done with them before the next step, like a checkpoint.

        Raises:
            TypeError: a slot holds something that is no plain data, or an option holds a live
                object inside a list, tuple or dict.
            ValueError: ``device`` is unknown, or a slot or an option is nested more than 100
                levels deep.
        """
        device = None if device is None else gpu.resolve(device)
        self._refuse_torn()
        self._refuse_capture("state_dict")
        for hook in self._state_dict_pre_hooks:
            hook(self)
        self.require_whole()
        snapshot = _state_dict.snapshot(self, device, copy)
        for hook in self._state_dict_post_hooks:
            snapshot = replaced(hook, hook(self, snapshot), snapshot)
        return snapshot

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,
        *,
        model_clients: Mapping[str, Any] | None = None,
    ) -> None:
        """Load a state dict: state, and the options of each group. All of it, or nothing.

        Parameters are matched by name where both sides have names, else by position. Arrays are
        copied to the device of their parameter, or to the host if the state is there, and keep
        their dtype. Saved options replace the present ones; those the dict lacks stay. A
        ``torch.optim`` state dict is understood too; its ``amsgrad=True`` becomes
        ``amsgrad="raw"``.

        Args:
            state_dict: what :meth:`state_dict` returned; it is not changed.
            strict: False loads what fits and warns with a list of what did not.
            model_clients: for each option that held a live object when it was saved, the instance
                to install. Its own ``load_state_dict`` gets what its ``state_dict`` had given.

        Raises:
            TypeError: it is no mapping, or part of it is of the wrong type.
            KeyError: ``state``, ``param_groups`` or the ``params`` of a group is missing.
            ValueError: it does not match this optimizer; the text lists every mismatch. Or a
                model client is missing or of another class, or a slot or an option is nested more
                than 100 levels deep.
        """
        self._load(state_dict, strict, model_clients, keep=True)

    def use_up_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load a state dict as :meth:`load_state_dict` does, for who has no other use for it.

        Each array is taken out of it once it is copied, so that no more than one is there twice.

        Args:
            state_dict: what :meth:`state_dict` returned.
            strict: False loads what fits and warns with a list of what did not.
        """
        if type(self).load_state_dict is not Optimizer.load_state_dict:
            self.load_state_dict(state_dict, strict)  # a subclass has its own way
        else:
            self._load(state_dict, strict, None, keep=False)

    def _load(
        self,
        state_dict: Mapping[str, Any],
        strict: bool,
        model_clients: Mapping[str, Any] | None,
        keep: bool,
    ) -> None:
        if not isinstance(strict, bool):
            raise TypeError(
                f"strict must be True or False, not a {type(strict).__name__}: "
                "pass model clients as model_clients={option: instance}"
            )
        if not isinstance(model_clients, Mapping | None):
            raise TypeError(
                "model_clients must be a dict {option: instance}, "
                f"not a {type(model_clients).__name__}"
            )
        self._refuse_capture("load_state_dict")
        if isinstance(state_dict, Mapping):
            state_dict = dict(state_dict)
        for hook in self._load_state_dict_pre_hooks:
            state_dict = replaced(hook, hook(self, state_dict), state_dict)
        self.require_whole()
        _state_dict.restore(self, state_dict, strict, model_clients or {}, keep)
        self._is_torn = False
        for hook in self._load_state_dict_post_hooks:
            hook(self)

    def require_ready(self) -> None:
        """Raise RuntimeError if no step can be taken now."""
        self._refuse_torn()
        if not (self.streams_state or self._placement.is_state_beside(self.state)):
            raise RuntimeError(
                f"the state of this {type(self).__name__} is in host memory: "
                "call reload() before step()"
            )

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_torn()
        self._check_depths()
        held = [
            *self._live_options(),
            *(k for slots in self.state.values() for k in slots if not is_plain(slots[k])),
        ]
        if held:
            raise TypeError(
                f"{', '.join(map(repr, held))} hold live objects, which a pickle would write with "
                "all their attributes: save state_dict() instead"
            )
        return self._lasting()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        self._refuse_torn()
        self._check_depths()
        # Live objects, such as a client with its connections, are shared by the copy.
        memo.update((id(value), value) for value in self._live_options().values())
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self._lasting(), memo))
        return twin

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for index, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {index}")
            for key, value in sorted(_groups.options(group).items()):
                # The repr of a live object may show what is secret.
                shown = value if is_plain(value) else f"<{type(value).__name__}>"
                lines.append(f"    {key}: {shown}")
            lines.append(f"    {_describe_parameters(group)}{self._storage_of(group)}")
        return "\n".join([*lines, ")"])

    def _storage_of(self, group: Mapping[str, Any]) -> str:  # noqa: ARG002 - a subclass tells
        """Return, for ``repr``, what the arrays of a group are stored as."""
        return ""

    def _lasting(self) -> dict[str, Any]:
        """Return the attributes that a copy takes along."""
        own = {key: value for key, value in vars(self).items() if key != "_stepping"}
        return {**own, **self._transient}

    def _refuse_torn(self) -> None:
        """Raise RuntimeError if a step was interrupted, so that counts and arrays may disagree."""
        if self._is_torn:
            raise RuntimeError(
                f"a step of this {type(self).__name__} was interrupted, so that parameters and "
                "state may disagree: restore both, the parameters from a checkpoint and the state "
                "with load_state_dict()"
            )

    def _check_depths(self) -> None:
        for options in self.param_groups:
            _check_depths(options)
        for slots in self.state.values():
            for name, value in slots.items():
                check_depth(value, f"slot {name!r}")

    def _live_options(self) -> dict[str, Any]:
        every = [self.defaults, *map(_groups.options, self.param_groups)]
        return {k: v for options in every for k, v in options.items() if not is_plain(v)}


def evaluate(closure: Callable[[], Any] | None) -> Any:
    """Call the closure of a step and return its result; None without one.

    Raises:
        TypeError: it cannot be called.
    """
    if closure is None:
        return None
    if not callable(closure):
        raise TypeError(
            f"closure must be a function that returns the loss, not {closure!r}: "
            "pass the function itself, not its result"
        )
    return closure()


def _check_depths(options: Mapping[str, Any]) -> None:
    for name, value in _groups.options(options).items():
        check_depth(value, f"option {name!r}")


def _require_writable(name: str, grad: Any) -> None:
    may_be = grad is None or isinstance(grad, list) or torch_tensors.is_tensor(grad)
    if not (may_be or is_writable(grad)):
        raise TypeError(
            f"the gradient of parameter {name!r} is a {type(grad).__name__} that cannot be changed "
            "in place: zero_grad() sets it to None instead"
        )


def _describe_parameters(group: Mapping[str, Any]) -> str:
    """Return how many parameters a group has, the first few names, and where they live."""
    named = _groups.named(group)
    shown = ", ".join([name for name, _ in named[:4]] + ["…"] * (len(named) > 4))
    arrays = [as_array(param.data) for _, param in named]
    numeric = [array for array in arrays if array is not None]
    places = ", ".join(sorted({device_of(array) for array in numeric})) or "cpu"
    elements = sum(array.size for array in numeric)
    return f"{len(named)} parameters ({shown}), {elements} elements on {places}"
