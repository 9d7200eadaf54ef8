"""Hooks: callables that run around a step, a state dict and its loading."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeAlias, TypeVar

Hook = TypeVar("Hook", bound=Callable[..., Any])

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a step, without the optimizer itself."""

PreHook: TypeAlias = Callable[[Any, tuple[Any, ...], dict[str, Any]], Arguments | None]
PostHook: TypeAlias = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]

_ids = itertools.count()


class RemovableHandle:
    """What a registration returns: removes its hook, directly or at the end of a ``with`` block."""

    def __init__(self, hooks: dict[int, Any], hook_id: int) -> None:
        self._hooks = hooks
        self._id = hook_id

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        self._hooks.pop(self._id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class HookList(Generic[Hook]):
    """Hooks in the order in which they run.

    Iterating takes a snapshot, so a hook may remove itself or register others while it runs.
    Copies and pickles are empty: a hook belongs to the object on which it was registered.
    """

    def __init__(self) -> None:
        self._hooks: dict[int, Hook] = {}

    def register(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Add a hook, last or (``prepend=True``) first, and return its handle.

        Raises:
            TypeError: ``hook`` is not callable.
        """
        if not callable(hook):
            raise TypeError(f"hook must be callable, not {hook!r}")
        hook_id = next(_ids)
        self._hooks[hook_id] = hook
        if prepend:
            later = [key for key in self._hooks if key != hook_id]
            for key in later:
                self._hooks[key] = self._hooks.pop(key)
        return RemovableHandle(self._hooks, hook_id)

    def __iter__(self) -> Iterator[Hook]:
        return iter(tuple(self._hooks.values()))

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def __len__(self) -> int:
        return len(self._hooks)

    def __reduce__(self) -> tuple[type[HookList[Hook]], tuple[()]]:
        return type(self), ()


global_step_pre_hooks: HookList[PreHook] = HookList()
global_step_post_hooks: HookList[PostHook] = HookList()


def register_optimizer_step_pre_hook(hook: PreHook) -> RemovableHandle:
    """Register ``hook(optimizer, args, kwargs)`` to run ahead of every step of every optimizer.

    It may return ``(args, kwargs)`` to replace the arguments, or None. Hooks of the process run
    ahead of the optimizer's own.

    Example:
        >>> with register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: None):
        ...     pass
    """
    return global_step_pre_hooks.register(hook)


def register_optimizer_step_post_hook(hook: PostHook) -> RemovableHandle:
    """Register ``hook(optimizer, args, kwargs)`` to run after every step of every optimizer.

    Hooks of the process run after the optimizer's own.

    Example:
        >>> with register_optimizer_step_post_hook(lambda optimizer, args, kwargs: None):
        ...     pass
    """
    return global_step_post_hooks.register(hook)
