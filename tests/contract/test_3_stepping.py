"""Section 3 of docs/contract.md: stepping. Row 17, hooks, has a file of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter, RowGradient, optim
from lucid_gpu.device import gpu, transfer
from tests.contract.support import (
    Foreign,
    MyOptimizer,
    array,
    host,
    picture,
    trained,
    unchanged,
    values,
)

RULES = [optim.SGD, optim.Adam, optim.AdamW]


@pytest.mark.parametrize("how", ["positional", "keyword"])
def test_the_closure_runs_once_and_before_the_update(device, how):
    """Row 11 of docs/contract.md."""
    param = trained([1.0], [1.0], device)
    optimizer = optim.SGD([param], lr=0.5)
    seen = []

    def closure():
        seen.append(values(param))
        return "loss"

    result = optimizer.step(closure) if how == "positional" else optimizer.step(closure=closure)
    assert (result, seen, values(param)) == ("loss", [[1.0]], [0.5])


def test_gradients_that_the_closure_sets_are_the_ones_used(device):
    """Row 11 of docs/contract.md."""
    param = trained([1.0], [100.0], device)
    optimizer = optim.SGD([param], lr=0.5)

    def closure():
        optimizer.zero_grad()
        param.grad = array([2.0], device)

    optimizer.step(closure)
    assert values(param) == [0.0]


def test_a_closure_that_raises_changes_nothing(device):
    """Row 11 of docs/contract.md."""
    optimizer = optim.Adam([trained([1.0], [1.0], device)])

    def closure():
        raise ArithmeticError("no loss")

    with unchanged(optimizer), pytest.raises(ArithmeticError, match="no loss"):
        optimizer.step(closure)
    optimizer.step()


@pytest.mark.parametrize("rule", RULES)
def test_a_parameter_without_gradient_is_skipped(device, rule):
    """Row 12 of docs/contract.md."""
    idle, busy = Parameter([1.0], device=device), trained([1.0], [1.0], device)
    optimizer = rule([idle, busy], lr=0.5)
    optimizer.step()
    assert idle not in optimizer.state
    assert values(idle) == [1.0]
    assert optimizer.state[busy]["step"] == 1


def test_the_step_count_of_a_skipped_parameter_does_not_move(device):
    """Row 12 of docs/contract.md."""
    param, other = trained([1.0], [1.0], device), trained([1.0], [1.0], device)
    optimizer = optim.Adam([param, other])
    optimizer.step()
    before = picture(dict(optimizer.state[param]))
    param.grad = None
    optimizer.step()
    assert picture(dict(optimizer.state[param])) == before
    assert optimizer.state[other]["step"] == 2


def test_a_step_without_any_gradient_does_nothing(device):
    """Row 12 of docs/contract.md."""
    optimizer = optim.Adam([Parameter([1.0], device=device)])
    with unchanged(optimizer):
        optimizer.step()


@pytest.mark.parametrize("rule", RULES)
def test_step_never_modifies_the_gradient(device, rule):
    """Row 13 of docs/contract.md."""
    param = trained([1.0, -2.0], [0.5, 3.0], device)
    gradient, before = param.grad, picture(param.grad)
    options = {"momentum": 0.9, "nesterov": True} if rule is optim.SGD else {"amsgrad": True}
    optimizer = rule([param], lr=0.1, weight_decay=0.1, maximize=True, **options)
    optimizer.step()
    optimizer.step()
    assert param.grad is gradient
    assert picture(gradient) == before


def test_step_counts_are_per_parameter(device):
    """Row 14 of docs/contract.md."""
    early, late = trained([1.0], [1.0], device), Parameter([1.0], device=device)
    alone = Parameter([1.0], device=device)
    optimizer, reference = optim.Adam([early, late], lr=0.1), optim.Adam([alone], lr=0.1)
    optimizer.step()
    optimizer.step()
    late.grad = array([1.0], device)
    alone.grad = array([1.0], device)
    optimizer.step()
    reference.step()
    assert [optimizer.state[p]["step"] for p in (early, late)] == [3, 1]
    assert values(late) == values(alone)


def test_a_gradient_of_another_shape_is_refused_where_it_is_set(device):
    """Row 15 of docs/contract.md."""
    param = Parameter([1.0, 2.0], name="w", device=device)
    with pytest.raises(ValueError, match=r"grad of parameter 'w'.*\(3,\).*\(2,\): reshape it"):
        param.grad = array([1.0, 2.0, 3.0], device)
    assert param.grad is None


def test_a_gradient_of_another_dtype_is_refused_where_it_is_set(device):
    """Row 15 of docs/contract.md."""
    param = Parameter([1.0], name="w", device=device)
    with pytest.raises(ValueError, match=r"'w'.*float64.*float32: cast it with"):
        param.grad = array([1.0], device, np.float64)


def test_a_gradient_of_another_device_is_refused_where_it_is_set(emulated):
    """Row 15 of docs/contract.md."""
    param = Parameter([1.0], name="w", device="cuda:0")
    with pytest.raises(ValueError, match=r"'w'.*device cpu.*cuda:0: copy it to 'cuda:0'"):
        param.grad = np.ones(1, np.float32)
    assert emulated.record.launches == []


WRONG = {
    "shape": (lambda d: array([1.0, 2.0, 3.0], d), r"shape \(3,\).*shape \(2,\): reshape it"),
    "dtype": (lambda d: array([1.0, 2.0], d, np.float64), "dtype float64.*float32: cast it with"),
    "kind": (lambda _: [1.0, 2.0], "is a list, not a NumPy or CuPy array"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_gradient_that_does_not_fit_is_refused_before_anything_is_written(device, wrong):
    """Row 15 of docs/contract.md."""
    make, message = WRONG[wrong]
    fits = trained([1.0], [1.0], device, name="fits")
    foreign = Foreign(array([1.0, 2.0], device), make(device))
    optimizer = optim.Adam([("fits", fits), ("foreign", foreign)])
    with unchanged(optimizer), pytest.raises(ValueError, match="'foreign'.*(" + message + ")"):
        optimizer.step()


def test_a_gradient_on_another_device_is_refused_before_anything_is_written(emulated):
    """Row 15 of docs/contract.md."""
    fits = trained([1.0], [1.0], "cuda:0", name="fits")
    foreign = Foreign(array([1.0], "cuda:0"), np.ones(1, np.float32))
    optimizer = optim.Adam([("fits", fits), ("foreign", foreign)])
    message = r"'foreign' has device cpu.*device cuda:0: optimizer\.to\(device\)"
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.step()
    assert emulated.record.launches == []


def test_gradients_of_rows_are_added_in_order_and_kept_apart_from_arrays(device):
    """Row 15a of docs/contract.md."""
    params = [Parameter(array([[1.0], [1.0]], device), name=name) for name in ("table", "w")]
    dense = array([[1.0], [1.0]], device)
    rows, own = array([1, 1, 1], device, np.int64), array([[1e8], [1.0], [-1e8]], device)
    gradient = RowGradient(rows, own)
    assert host(gradient.coalesced()[1]).tolist() == [[0.0]]
    for kind, taken, other in ((optim.Adam, dense, gradient), (optim.SparseAdam, gradient, dense)):
        optimizer = kind(params)
        params[0].grad, params[1].grad = taken, other
        with unchanged(optimizer), pytest.raises(ValueError, match=r"'w' is a .* SparseAdam"):
            optimizer.step()
    params[0].grad = params[1].grad = RowGradient(rows[:0], own[:0])
    optimizer.step()
    assert [optimizer.state[param]["step"] for param in params] == [1, 1]
    assert [values(param) for param in params] == [[[1.0], [1.0]]] * 2


def test_a_gradient_that_stops_fitting_is_refused_at_a_later_step(device):
    """Row 15 of docs/contract.md."""
    foreign = Foreign(array([1.0], device), array([1.0], device))
    fits = Foreign(array([1.0], device), array([1.0], device))
    optimizer = optim.Adam([("fits", fits), ("w", foreign)])
    optimizer.step()
    foreign.grad = array([1.0, 2.0], device)
    with unchanged(optimizer), pytest.raises(ValueError, match="gradient of parameter 'w'"):
        optimizer.step()
    foreign.grad = array([1.0], device)
    optimizer.step()
    assert optimizer.state[foreign]["step"] == 2


LAYOUTS = {
    "no elements": lambda x: x.reshape(-1)[:0],
    "no elements of rank 3": lambda x: x.reshape(-1)[:0].reshape(1, 0, 2),
    "no dimensions": lambda x: x.reshape(-1)[0:1].reshape(()),
    "one element": lambda x: x.reshape(-1)[:1],
    "a prime number": lambda x: x.reshape(-1)[:59].copy(),
    "C order": lambda x: x,
    "Fortran order": lambda x: x.copy(order="F"),
    "transposed": lambda x: x.T,
    "every other column": lambda x: x[:, ::2],
    "backwards": lambda x: x[::-1, ::-1],
    "offset by one": lambda x: x.reshape(-1)[1:],
}


@pytest.mark.parametrize("grad_layout", ["alike", "C"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", RULES)
def test_every_layout_updates_as_its_contiguous_copy(device, rule, layout, grad_layout):
    """Row 16 of docs/contract.md."""
    rng = np.random.default_rng(0)
    data, gradient = (rng.standard_normal((8, 12)).astype(np.float32) for _ in range(2))
    xp = gpu.module(device)
    view = LAYOUTS[layout](transfer.to(data, device))
    grad_view = LAYOUTS[layout](transfer.to(gradient, device))
    if grad_layout == "C":
        grad_view = xp.ascontiguousarray(grad_view).reshape(view.shape)
    param = Parameter(view)
    param.grad = grad_view
    plain = Parameter(host(view).copy(order="C"))
    plain.grad = host(grad_view).copy(order="C")
    for p in (param, plain):
        optimizer = rule([p], lr=0.1, weight_decay=0.1)
        optimizer.step()
        optimizer.step()
    assert param.data is view
    assert param.numpy().tobytes() == plain.numpy().tobytes()


def test_a_strided_view_leaves_what_lies_between(device):
    """Row 16 of docs/contract.md."""
    whole = array(np.ones((4, 6)), device)
    param = Parameter(whole[:, ::2])
    param.grad = array(np.ones((4, 3)), device)
    optim.SGD([param], lr=0.5).step()
    assert host(whole)[:, 1::2].tolist() == np.ones((4, 3)).tolist()
    assert host(whole)[:, ::2].tolist() == np.full((4, 3), 0.5).tolist()


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_the_order_of_parameters_does_not_matter(shapes, order):
    """Row 16 of docs/contract.md."""
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((2, *shape)).astype(np.float32) for shape in shapes]

    def run(permutation):
        params = {}
        for i in permutation:
            params[i] = Parameter(arrays[i][0].copy())
            params[i].grad = arrays[i][1].copy()
        optim.Adam(params.values(), lr=0.1).step()
        return [params[i].numpy().tobytes() for i in range(len(arrays))]

    mixed = list(range(len(arrays)))
    order.shuffle(mixed)
    assert run(mixed) == run(range(len(arrays)))


def test_profile_hook_step_wraps_once_however_many_instances(device):
    """Row 18 of docs/contract.md."""

    class Counted(MyOptimizer):
        def step(self, closure=None):
            return super().step(closure)

    wrapped = Counted.step
    calls = []
    for _ in range(3):
        optimizer = Counted([trained([1.0], [1.0], device)])
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.step()
    assert Counted.step is wrapped
    assert calls == ["pre"]
    assert optim.Optimizer.profile_hook_step(wrapped) is wrapped


def test_profile_hook_step_wraps_a_function_of_ones_own():
    """Row 18 of docs/contract.md."""

    class Late(optim.Optimizer):
        pass

    def step(self, closure=None):
        return "stepped"

    Late.step = optim.Optimizer.profile_hook_step(step)
    optimizer = Late([Parameter([1.0])], {})
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    assert optimizer.step() == "stepped"
    assert calls == ["post"]
    assert Late.step.__name__ == "step"


def test_a_step_inherited_from_a_mixin_is_wrapped():
    """Row 18 of docs/contract.md."""

    class Mixin:
        def step(self, closure=None):
            return "mixed"

    class Mixed(Mixin, optim.Optimizer):
        pass

    optimizer = Mixed([Parameter([1.0])], {})
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    assert optimizer.step() == "mixed"
    assert calls == ["pre"]
    assert not hasattr(Mixin.step, "hooked")


def test_the_stub_needs_no_parameters():
    """Row 19 of docs/contract.md."""
    assert optim.OptimizerStub().param_groups == []


def test_the_stub_updates_nothing(device):
    """Row 19 of docs/contract.md."""
    stub = optim.OptimizerStub([trained([1.0], [1.0], device)])
    with unchanged(stub):
        assert stub.step(lambda: 0.25) == 0.25
        assert stub.step() is None


def test_the_state_dict_of_a_stub_has_the_normal_form():
    """Row 19 of docs/contract.md."""
    assert optim.OptimizerStub().state_dict() == {"state": {}, "param_groups": []}


class StepDecay:
    """A learning-rate scheduler, as PyTorch's are built: counts and wraps the steps it sees."""

    def __init__(self, optimizer, factor):
        self.optimizer, self.factor, self.steps = optimizer, factor, 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        inner = optimizer.step

        def counted(*args, **kwargs):
            self.steps += 1
            return inner(*args, **kwargs)

        optimizer.step = counted

    def step(self):
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor**self.steps


@pytest.mark.parametrize("rule", [optim.OptimizerStub, optim.SGD])
def test_learning_rate_schedulers_attach(device, rule):
    """Row 19 of docs/contract.md."""
    optimizer = rule([trained([1.0], [1.0], device)], lr=1.0)
    schedule = StepDecay(optimizer, 0.5)
    rates = []
    for _ in range(3):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [0.5, 0.25, 0.125]
    assert optimizer.state_dict()["param_groups"][0]["initial_lr"] == 1.0


def test_a_scheduler_attaches_to_a_stub_without_parameters():
    """Row 19 of docs/contract.md."""
    stub = optim.OptimizerStub()
    schedule = StepDecay(stub, 0.5)
    stub.step()
    schedule.step()
    assert schedule.steps == 1
