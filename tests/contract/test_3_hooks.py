"""Row 17 of docs/contract.md: hooks around a step, a state dict and its loading."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.optim import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from tests.contract.support import array, picture, trained, unchanged, values

STATE_HOOKS = ["state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"]


@pytest.fixture
def optimizer(device):
    return optim.Adam([trained([1.0, 2.0], [0.5, 1.0], device)], lr=0.1)


def register(optimizer, name, hook, **options):
    return getattr(optimizer, f"register_{name}_hook")(hook, **options)


def exercise(optimizer):
    """Step, save and load once each."""
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("name", ["step_pre", "step_post", *STATE_HOOKS])
def test_every_registration_fires_once_per_call(optimizer, name):
    """Row 17 of docs/contract.md."""
    calls = []
    register(optimizer, name, lambda *_: calls.append(name))
    exercise(optimizer)
    assert calls == [name]


@pytest.mark.parametrize("name", ["step_pre", "step_post"])
def test_step_hooks_get_optimizer_args_and_kwargs(optimizer, name):
    """Row 17 of docs/contract.md."""
    calls = []
    register(optimizer, name, lambda *given: calls.append(given))

    def closure():
        return 1.0

    optimizer.step(closure)
    optimizer.step(closure=closure)
    assert calls == [(optimizer, (closure,), {}), (optimizer, (), {"closure": closure})]


def test_the_post_hook_runs_after_the_update_and_the_pre_hook_before(optimizer):
    """Row 17 of docs/contract.md."""
    param = optimizer.param_groups[0]["params"][0]
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(values(param)))
    optimizer.register_step_post_hook(lambda *_: seen.append(values(param)))
    optimizer.step()
    assert seen == [[1.0, 2.0], values(param)]
    assert seen[0] != seen[1]


def test_a_pre_hook_can_replace_the_arguments(optimizer):
    """Row 17 of docs/contract.md."""
    seen = []
    optimizer.register_step_pre_hook(lambda *_: ((), {"closure": lambda: "replaced"}))
    optimizer.register_step_post_hook(lambda _, args, kwargs: seen.append((args, list(kwargs))))
    assert optimizer.step(lambda: "given") == "replaced"
    assert seen == [((), ["closure"])]


def test_each_pre_hook_sees_what_the_one_before_it_left(optimizer):
    """Row 17 of docs/contract.md."""
    seen = []
    optimizer.register_step_pre_hook(lambda *_: ((lambda: 1,), {}))
    optimizer.register_step_pre_hook(lambda _, args, __: seen.append(args[0]()))
    assert optimizer.step(lambda: 0) == 1
    assert seen == [1]


@pytest.mark.parametrize(
    "wrong", [1, "no", (), ((), {}, ()), ([], {}), ((), []), ((), None), {}, False]
)
def test_a_pre_hook_that_returns_anything_else_is_an_error(optimizer, wrong):
    """Row 17 of docs/contract.md."""
    optimizer.register_step_pre_hook(lambda *_: wrong)
    message = r"must return None or \(args, kwargs\)"
    with unchanged(optimizer), pytest.raises(RuntimeError, match=message):
        optimizer.step()


def test_step_hooks_run_in_order_with_the_process_outside(optimizer):
    """Row 17 of docs/contract.md."""
    calls = []

    def note(text):
        return lambda *_: calls.append(text)

    optimizer.register_step_pre_hook(note("own pre 1"))
    optimizer.register_step_post_hook(note("own post 1"))
    with (
        register_optimizer_step_pre_hook(note("process pre 1")),
        register_optimizer_step_pre_hook(note("process pre 2")),
        register_optimizer_step_post_hook(note("process post 1")),
        register_optimizer_step_post_hook(note("process post 2")),
    ):
        optimizer.register_step_pre_hook(note("own pre 2"))
        optimizer.register_step_post_hook(note("own post 2"))
        optimizer.step(note("closure"))
    assert calls == [
        "process pre 1",
        "process pre 2",
        "own pre 1",
        "own pre 2",
        "closure",
        "own post 1",
        "own post 2",
        "process post 1",
        "process post 2",
    ]


def test_process_wide_hooks_run_for_every_optimizer(device):
    """Row 17 of docs/contract.md."""
    calls = []
    optimizers = [
        optim.SGD([trained([1.0], [1.0], device)]),
        optim.Adam([trained([1.0], [1.0], device)]),
        optim.OptimizerStub(),
    ]
    with register_optimizer_step_post_hook(lambda own, *_: calls.append(own)):
        for optimizer in optimizers:
            optimizer.step()
    optimizers[0].step()
    assert calls == optimizers


def test_a_process_wide_pre_hook_can_replace_the_arguments(optimizer):
    """Row 17 of docs/contract.md."""
    with register_optimizer_step_pre_hook(lambda *_: ((lambda: "process",), {})):
        assert optimizer.step() == "process"


@pytest.mark.parametrize("name", STATE_HOOKS)
def test_prepend_runs_a_hook_ahead_of_the_others(optimizer, name):
    """Row 17 of docs/contract.md."""
    calls = []
    for text, options in (
        ("1", {}),
        ("2", {}),
        ("0", {"prepend": True}),
        ("00", {"prepend": True}),
    ):
        register(optimizer, name, lambda *_, text=text: calls.append(text), **options)
    exercise(optimizer)
    assert calls == ["00", "0", "1", "2"]


def test_the_state_dict_pre_hook_runs_ahead_of_the_snapshot(optimizer):
    """Row 17 of docs/contract.md."""

    def set_rate(own):
        own.param_groups[0]["lr"] = 0.75

    optimizer.register_state_dict_pre_hook(set_rate)
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.75


def test_a_state_dict_post_hook_can_edit_the_dict(optimizer):
    """Row 17 of docs/contract.md."""
    optimizer.register_state_dict_post_hook(lambda _, saved: saved.update(note="edited"))
    assert optimizer.state_dict()["note"] == "edited"


def test_a_state_dict_post_hook_can_replace_the_dict(optimizer):
    """Row 17 of docs/contract.md."""
    optimizer.register_state_dict_post_hook(lambda *_: {"replaced": 1})
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "again": 2})
    assert optimizer.state_dict() == {"replaced": 1, "again": 2}


def test_a_load_pre_hook_can_edit_its_shallow_copy(optimizer):
    """Row 17 of docs/contract.md."""
    saved = optimizer.state_dict()
    before = picture(saved)

    def edit(_, given):
        assert given is not saved
        assert given["state"] is saved["state"]
        given["param_groups"] = [{**given["param_groups"][0], "lr": 0.75}]

    optimizer.register_load_state_dict_pre_hook(edit)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.75
    assert picture(saved) == before


def test_a_load_pre_hook_can_replace_the_dict(optimizer):
    """Row 17 of docs/contract.md."""
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 0.75
    optimizer.register_load_state_dict_pre_hook(lambda *_: saved)
    optimizer.load_state_dict({"this": "is not loaded"})
    assert optimizer.param_groups[0]["lr"] == 0.75


@pytest.mark.parametrize("name", ["state_dict_post", "load_state_dict_pre"])
def test_a_replacement_that_is_no_dict_is_an_error(optimizer, name):
    """Row 17 of docs/contract.md."""
    call = {
        "state_dict_post": optimizer.state_dict,
        "load_state_dict_pre": functools.partial(optimizer.load_state_dict, optimizer.state_dict()),
    }[name]
    register(optimizer, name, lambda *_: [1])
    message = "must return None or a state dict"
    with unchanged(optimizer), pytest.raises(RuntimeError, match=message):
        call()


def test_load_post_hooks_see_what_was_loaded(optimizer):
    """Row 17 of docs/contract.md."""
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 0.75
    seen = []
    optimizer.register_load_state_dict_post_hook(lambda own: seen.append(own.param_groups[0]["lr"]))
    optimizer.load_state_dict(saved)
    assert seen == [0.75]


def test_load_post_hooks_do_not_run_when_loading_failed(optimizer):
    """Row 17 of docs/contract.md."""
    calls = []
    optimizer.register_load_state_dict_post_hook(calls.append)
    with pytest.raises(KeyError):
        optimizer.load_state_dict({})
    assert calls == []


def test_a_handle_removes_its_hook_and_no_other(optimizer):
    """Row 17 of docs/contract.md."""
    calls = []
    first = optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    optimizer.register_step_pre_hook(lambda *_: calls.append(2))
    first.remove()
    optimizer.step()
    assert calls == [2]


def test_removing_twice_is_harmless(optimizer):
    """Row 17 of docs/contract.md."""
    calls = []
    handle = optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    handle.remove()
    optimizer.register_step_pre_hook(lambda *_: calls.append(2))
    handle.remove()
    optimizer.step()
    assert calls == [2]


def test_one_function_registered_twice_is_two_hooks(optimizer):
    """Row 17 of docs/contract.md."""
    calls = []

    def hook(*_):
        calls.append(1)

    first = optimizer.register_step_pre_hook(hook)
    optimizer.register_step_pre_hook(hook)
    optimizer.step()
    first.remove()
    optimizer.step()
    assert calls == [1, 1, 1]


def test_a_handle_is_a_context_manager(optimizer):
    """Row 17 of docs/contract.md."""
    calls = []
    with optimizer.register_step_pre_hook(lambda *_: calls.append(1)) as handle:
        assert isinstance(handle, optim.RemovableHandle)
        optimizer.step()
    optimizer.step()
    assert calls == [1]


def test_a_handle_removes_its_hook_when_the_block_raises(optimizer):
    """Row 17 of docs/contract.md."""
    calls = []

    def fail():
        with optimizer.register_step_pre_hook(lambda *_: calls.append(1)):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    optimizer.step()
    assert calls == []


def test_a_hook_may_remove_itself_while_running(optimizer):
    """Row 17 of docs/contract.md."""
    calls = []

    def once(*_):
        calls.append("once")
        handle.remove()

    handle = optimizer.register_step_pre_hook(once)
    optimizer.register_step_pre_hook(lambda *_: calls.append("always"))
    optimizer.step()
    optimizer.step()
    assert calls == ["once", "always", "always"]


def test_a_hook_may_register_another_for_the_next_step(optimizer):
    """Row 17 of docs/contract.md."""
    calls = []

    def spawn(*_):
        optimizer.register_step_pre_hook(lambda *_: calls.append("spawned"))
        handle.remove()

    handle = optimizer.register_step_pre_hook(spawn)
    optimizer.step()
    assert calls == []
    optimizer.step()
    assert calls == ["spawned"]


def raise_once(*_):
    raise ArithmeticError("from the hook")


@pytest.mark.parametrize("name", ["step_pre", "state_dict_pre", "load_state_dict_pre"])
def test_a_pre_hook_that_raises_leaves_the_optimizer_unchanged(optimizer, name):
    """Row 17 of docs/contract.md."""
    optimizer.step()
    saved = optimizer.state_dict()
    optimizer.step()
    handle = register(optimizer, name, raise_once)
    call = {
        "step_pre": optimizer.step,
        "state_dict_pre": optimizer.state_dict,
        "load_state_dict_pre": lambda: optimizer.load_state_dict(saved),
    }[name]
    with unchanged(optimizer), pytest.raises(ArithmeticError, match="from the hook"):
        call()
    handle.remove()
    exercise(optimizer)
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] == 3


def test_a_process_wide_hook_that_raises_leaves_the_optimizer_unchanged(optimizer):
    """Row 17 of docs/contract.md."""
    with (
        register_optimizer_step_pre_hook(raise_once),
        unchanged(optimizer),
        pytest.raises(ArithmeticError),
    ):
        optimizer.step()
    optimizer.step()


def test_the_step_after_a_post_hook_that_raised_works(optimizer):
    """Row 17 of docs/contract.md."""
    param = optimizer.param_groups[0]["params"][0]
    with optimizer.register_step_post_hook(raise_once), pytest.raises(ArithmeticError):
        optimizer.step()
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    optimizer.step()
    assert optimizer.state[param]["step"] == 2
    assert calls == [1]


def test_a_step_that_calls_super_runs_the_hooks_once(device):
    """Row 17 of docs/contract.md."""

    class Clipped(optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for param in group["params"]:
                    param.grad.clip(-1, 1, out=param.grad)
            return super().step(closure)

    param = trained([1.0], [10.0], device)
    optimizer = Clipped([param], lr=0.5)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    assert optimizer.step(lambda: 3) == 3
    assert calls == ["pre", "post"]
    assert values(param) == [0.5]


def test_a_closure_may_step_another_optimizer_with_its_hooks(device):
    """Row 17 of docs/contract.md."""
    inner = optim.SGD([trained([1.0], [1.0], device)])
    outer = optim.SGD([trained([1.0], [1.0], device)])
    calls = []
    for name, own in (("inner", inner), ("outer", outer)):
        own.register_step_pre_hook(lambda *_, name=name: calls.append(name))
    outer.step(inner.step)
    assert calls == ["outer", "inner"]


@pytest.mark.parametrize("name", ["step_pre", "step_post", *STATE_HOOKS])
def test_what_cannot_be_called_is_no_hook(optimizer, name):
    """Row 17 of docs/contract.md."""
    with pytest.raises(TypeError, match="hook must be callable, not 'print'"):
        register(optimizer, name, "print")


@pytest.mark.parametrize("name", ["step_pre", "step_post", *STATE_HOOKS])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_hooks_are_not_copied_or_pickled(name, duplicate):
    """Row 17 of docs/contract.md."""
    optimizer = optim.Adam([trained([1.0], [1.0], "cpu")])
    calls = []
    register(optimizer, name, lambda *_: calls.append(name))
    twin = duplicate(optimizer)
    exercise(twin)
    assert calls == []
    register(twin, name, lambda *_: calls.append("twin"))
    exercise(optimizer)
    assert calls == [name]


def test_a_copy_made_inside_a_hook_runs_its_own_hooks():
    """Row 17 of docs/contract.md."""
    optimizer = optim.SGD([trained([1.0], [1.0], "cpu")])
    copies = []
    optimizer.register_step_pre_hook(lambda own, *_: copies.append(copy.deepcopy(own)))
    optimizer.step()
    calls = []
    copies[0].register_step_pre_hook(lambda *_: calls.append(1))
    copies[0].step()
    assert calls == [1]


def test_the_documented_aliases_of_hook_types_exist():
    """Row 17 of docs/contract.md: mighty documents them as attributes."""
    assert optim.OptimizerStub.OptimizerPreHook is optim.Optimizer.OptimizerPreHook
    assert optim.OptimizerStub.OptimizerPostHook is not None


def test_gradient_clipping_as_a_hook(device):
    """Row 17 of docs/contract.md."""
    param = Parameter(np.zeros(2, np.float32), device=device)
    optimizer = optim.SGD([param], lr=1.0)

    def clip(own, args, kwargs):
        for group in own.param_groups:
            for p in group["params"]:
                p.grad.clip(-1, 1, out=p.grad)

    optimizer.register_step_pre_hook(clip)
    param.grad = array([5.0, -0.5], device)
    optimizer.step()
    assert values(param) == [-1.0, 0.5]
