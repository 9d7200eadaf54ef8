"""hooks: the list of hooks and the handles that remove them."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest

from lucid_gpu.optim.core.hooks import HookList


def hook_a():
    return "a"


def hook_b():
    return "b"


def test_hooks_come_in_the_order_of_registration():
    hooks = HookList()
    hooks.register(hook_a)
    hooks.register(hook_b)
    assert [hook() for hook in hooks] == ["a", "b"]
    assert len(hooks) == 2


def test_prepend_goes_first():
    hooks = HookList()
    for hook in (hook_a, hook_b):
        hooks.register(hook, prepend=True)
    assert [hook() for hook in hooks] == ["b", "a"]


def test_a_handle_still_removes_its_hook_after_others_were_prepended():
    hooks = HookList()
    handle = hooks.register(hook_a)
    hooks.register(hook_b, prepend=True)
    handle.remove()
    assert list(hooks) == [hook_b]


def test_iterating_takes_a_snapshot():
    hooks = HookList()
    handle = hooks.register(hook_a)
    hooks.register(hook_b)
    seen = []
    for hook in hooks:
        handle.remove()
        hooks.register(hook_a)
        seen.append(hook)
    assert seen == [hook_a, hook_b]


def test_an_empty_list_is_false():
    hooks = HookList()
    assert not hooks
    with hooks.register(hook_a):
        assert hooks
    assert not hooks


def test_a_handle_is_given_by_its_with_block():
    hooks = HookList()
    handle = hooks.register(hook_a)
    with handle as same:
        assert same is handle


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))]
)
def test_copies_are_empty_and_of_their_own(duplicate):
    hooks = HookList()
    hooks.register(hook_a)
    twin = duplicate(hooks)
    assert len(twin) == 0
    twin.register(hook_b)
    assert list(hooks) == [hook_a]


def test_a_removed_hook_is_let_go():
    class Hook:
        def __call__(self):
            return None

    hooks, hook = HookList(), Hook()
    alive = weakref.ref(hook)
    handle = hooks.register(hook)
    handle.remove()
    del hook
    gc.collect()
    assert alive() is None


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="hook must be callable, not 3"):
        HookList().register(3)
