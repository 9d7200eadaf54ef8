"""Hooked: the hooks of an optimizer, and the order in which they run around a step."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from lucid_gpu.optim.core import hooks as _hooks

Step = TypeVar("Step", bound=Callable[..., Any])


class Hooked:
    """The part of an optimizer that registers hooks and runs them."""

    _stepping: tuple[int]
    """The thread that steps; absent while none does."""

    OptimizerPreHook: TypeAlias = _hooks.PreHook
    OptimizerPostHook: TypeAlias = _hooks.PostHook

    def _init_hooks(self) -> None:
        self._step_pre_hooks: _hooks.HookList[_hooks.PreHook] = _hooks.HookList()
        self._step_post_hooks: _hooks.HookList[_hooks.PostHook] = _hooks.HookList()
        self._step_count_hooks: _hooks.HookList[Callable[[Any], None]] = _hooks.HookList()
        self._is_recorded = False
        self._state_dict_pre_hooks: _hooks.HookList[Any] = _hooks.HookList()
        self._state_dict_post_hooks: _hooks.HookList[Any] = _hooks.HookList()
        self._load_state_dict_pre_hooks: _hooks.HookList[Any] = _hooks.HookList()
        self._load_state_dict_post_hooks: _hooks.HookList[Any] = _hooks.HookList()

    def register_step_pre_hook(self, hook: _hooks.PreHook) -> _hooks.RemovableHandle:
        """Register ``hook(optimizer, args, kwargs)`` to run ahead of each step.

        ``args`` and ``kwargs`` are the arguments of the step, without the optimizer itself. It may
        return a tuple ``(args, kwargs)`` that takes their place, or None.
        """
        return self._step_pre_hooks.register(hook)

    def register_step_post_hook(self, hook: _hooks.PostHook) -> _hooks.RemovableHandle:
        """Register ``hook(optimizer, args, kwargs)`` to run after each step."""
        return self._step_post_hooks.register(hook)

    def register_step_count_hook(self, hook: Callable[[Any], None]) -> _hooks.RemovableHandle:
        """Register ``hook(optimizer)`` to run once for each step.

        That is after each :meth:`step`, ahead of its post-hooks, and at the end of each
        ``before_replay()``, but not for a step that is only recorded in a CUDA graph. It runs for a
        step that is skipped because of its gradients, too, on every device, since that of a GPU is
        not known yet. A learning rate that it writes is that of the next step.
        """
        return self._step_count_hooks.register(hook)

    def register_state_dict_pre_hook(
        self, hook: Callable[..., None], prepend: bool = False
    ) -> _hooks.RemovableHandle:
        """Register ``hook(optimizer)`` to run ahead of :meth:`state_dict`."""
        return self._state_dict_pre_hooks.register(hook, prepend)

    def register_state_dict_post_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> _hooks.RemovableHandle:
        """Register ``hook(optimizer, state_dict)``, which may edit the dict or return another."""
        return self._state_dict_post_hooks.register(hook, prepend)

    def register_load_state_dict_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> _hooks.RemovableHandle:
        """Register ``hook(optimizer, state_dict)`` to run ahead of :meth:`load_state_dict`.

        It gets a shallow copy of the dict and may edit it or return another.
        """
        return self._load_state_dict_pre_hooks.register(hook, prepend)

    def register_load_state_dict_post_hook(
        self, hook: Callable[..., None], prepend: bool = False
    ) -> _hooks.RemovableHandle:
        """Register ``hook(optimizer)`` to run after a :meth:`load_state_dict` that succeeded."""
        return self._load_state_dict_post_hooks.register(hook, prepend)

    def require_whole(self) -> None:
        """Raise if groups or state were edited so that something is missing; a subclass knows."""

    def require_ready(self) -> None:
        """Raise if no step can be taken now; a subclass knows."""

    def _note_count(self) -> None:
        """Run the hooks that wait for a step."""
        for hook in self._step_count_hooks:
            hook(self)

    def _require_inner(self, is_same_thread: bool, step: Any) -> None:
        """Raise RuntimeError if a step that begins inside another is none of a base class.

        A subclass's step that calls ``super().step()`` is one step.
        """
        if not is_same_thread:
            raise RuntimeError(
                f"another thread is inside step() of this {type(self).__name__}: an optimizer "
                "belongs to one thread at a time"
            )
        if step is type(self).step:  # type: ignore[attr-defined]
            raise RuntimeError(
                f"step() of this {type(self).__name__} was called by a closure or hook of the "
                "step that is under way: take one step after the other"
            )

    @staticmethod
    def profile_hook_step(func: Step) -> Step:
        """Wrap a ``step`` so that hooks run around it; a wrapped one is returned as it is.

        The ``step`` of every subclass is wrapped when the class is made.
        """
        if getattr(func, "hooked", False):
            return func

        @functools.wraps(func)
        def step(self: Hooked, *args: Any, **kwargs: Any) -> Any:
            own = (threading.get_ident(),)
            held = vars(self).setdefault("_stepping", own)  # one thread's is the first
            if held is not own:
                code = step.__code__  # type: ignore[attr-defined]
                if _is_inside(code, self, *held):
                    self._require_inner(held == own, step)
                    return func(self, *args, **kwargs)
            self._stepping = own  # also where an interrupt kept another step from letting go
            try:
                if _hooks.global_step_pre_hooks or self._step_pre_hooks:
                    for hook in (*_hooks.global_step_pre_hooks, *self._step_pre_hooks):
                        args, kwargs = _arguments(hook, hook(self, args, kwargs), args, kwargs)
                self.require_whole()
                self.require_ready()
                self._is_recorded = False
                result = func(self, *args, **kwargs)
                if not self._is_recorded and self._step_count_hooks:
                    self._note_count()
                if self._step_post_hooks or _hooks.global_step_post_hooks:
                    for hook in (*self._step_post_hooks, *_hooks.global_step_post_hooks):
                        hook(self, args, kwargs)
            finally:
                vars(self).pop("_stepping", None)
            return result

        step.hooked = True  # type: ignore[attr-defined]
        return step  # type: ignore[return-value]


def _is_inside(code: Any, optimizer: Any, thread: int) -> bool:
    """Say whether a thread runs a step of an optimizer, besides the one that asks."""
    asking = sys._getframe(1)  # noqa: SLF001 - the only way to a stack
    frame = sys._current_frames().get(thread)  # noqa: SLF001
    while frame is not None:
        is_step = frame.f_code is code and frame is not asking
        if is_step and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


def _arguments(
    hook: Any, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> _hooks.Arguments:
    """Return the arguments that a step pre-hook left, or those it put in their place."""
    if result is None:
        return args, kwargs
    if isinstance(result, tuple) and len(result) == 2:
        new_args, new_kwargs = result
        if isinstance(new_args, tuple) and isinstance(new_kwargs, dict):
            return new_args, new_kwargs
    raise RuntimeError(
        f"step pre-hook {hook!r} returned {result!r}: it must return None or (args, kwargs), "
        "a tuple and a dict"
    )


def replaced(hook: Any, result: Any, current: Any) -> Any:
    """Return the state dict that a hook left, or the one it put in its place."""
    if result is None:
        return current
    if not isinstance(result, Mapping):
        raise RuntimeError(
            f"hook {hook!r} returned a {type(result).__name__}: it must return None or a state dict"
        )
    return result
