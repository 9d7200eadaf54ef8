"""LBFGS: against PyTorch's, and what is its own: groups, the best point, few waits."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.optim import LBFGS, pytorch
from tests.contract.support import Foreign, array, host, picture, unchanged

START = [-1.2, 1.0, 0.5, -0.5, 0.8, 1.5]
CUTS = (slice(0, 2), slice(2, 6))


def rosenbrock(x):
    """Rosenbrock's function of any number of variables, and its gradient."""
    ahead = x[1:] - x[:-1] ** 2
    gradient = np.zeros_like(x)
    gradient[:-1] = -400 * ahead * x[:-1] - 2 * (1 - x[:-1])
    gradient[1:] += 200 * ahead
    return float((100 * ahead**2 + (1 - x[:-1]) ** 2).sum()), gradient


def two(device="cpu", names=("a", "b"), dtype=np.float64, **options):
    """An optimizer of two parameters in two groups, and those."""
    values = np.array(START, dtype)
    params = [
        Parameter(array(values[cut].reshape(shape), device, dtype), name=name)
        for cut, shape, name in zip(CUTS, [(2,), (2, 2)], names, strict=True)
    ]
    return LBFGS([{"params": [param]} for param in params], **options), params


def elements(params):
    return np.concatenate([host(param).reshape(-1) for param in params])


def closure_of(params, function=rosenbrock):
    """A closure that sets gradients and returns the loss, and a list of what it returned."""
    seen = []

    def closure():
        loss, gradient = function(elements(params))
        for param, cut in zip(params, CUTS, strict=True):
            own = gradient[cut].reshape(param.shape).astype(param.dtype)
            param.grad = array(own, param.device, param.dtype)
        seen.append(loss)
        return loss

    return closure, seen


def test_strong_wolfe_finds_the_minimum_of_rosenbrocks_function(device):
    optimizer, params = two(device, line_search_fn="strong_wolfe", max_iter=100)
    closure, _ = closure_of(params)
    optimizer.step(closure)
    np.testing.assert_allclose(elements(params), 1, atol=1e-5)


def test_the_first_step_goes_against_the_gradient(device):
    optimizer, params = two(device, max_iter=1, lr=0.5)
    closure, _ = closure_of(params)
    _, gradient = rosenbrock(elements(params))
    expected = elements(params) - min(1, 1 / np.abs(gradient).sum()) * 0.5 * gradient
    optimizer.step(closure)
    np.testing.assert_allclose(elements(params), expected, rtol=1e-12)


def test_it_returns_what_the_closure_returned_first():
    optimizer, params = two(line_search_fn="strong_wolfe")
    closure, seen = closure_of(params)
    assert optimizer.step(closure) == seen[0] != seen[-1]


def test_evaluations_and_iterations_are_bounded_and_counted():
    for options, most in (
        ({"max_iter": 7}, 7),
        ({"max_iter": 50, "max_eval": 5}, 5),
        ({"max_iter": 50, "max_eval": 5, "line_search_fn": "strong_wolfe"}, 5),
        ({"max_iter": 8, "lr": 1e-3}, 8),
    ):
        optimizer, params = two(**options)
        closure, seen = closure_of(params)
        for call in (1, 2):
            optimizer.step(closure)
            slots = optimizer.state[params[0]]
            assert slots["step"] == call
            assert slots["func_evals"] == len(seen) <= call * (most + 1)
            assert slots["n_iter"] <= call * options["max_iter"]


def test_as_many_evaluations_as_iterations_allow_are_the_default():
    optimizer, params = two(max_iter=6)
    assert optimizer.param_groups[0]["max_eval"] == 7
    for group in optimizer.param_groups:
        group["max_eval"] = None
    optimizer.step(closure_of(params)[0])
    assert optimizer.param_groups[1]["max_eval"] == 7


@pytest.mark.parametrize("history_size", [1, 2, 5])
def test_the_history_ends_where_it_is_told(history_size):
    optimizer, params = two(history_size=history_size, line_search_fn="strong_wolfe")
    closure, _ = closure_of(params)
    optimizer.step(closure)
    slots = optimizer.state[params[0]]
    assert [len(slots[name]) for name in ("old_dirs", "old_stps", "ro")] == [history_size] * 3


def test_at_an_optimum_nothing_is_done():
    optimizer, params = two()
    closure, seen = closure_of(params)
    for param in params:
        param.data[...] = 1.0
    optimizer.step(closure)
    assert elements(params).tolist() == [1.0] * 6
    assert len(seen) == 1


@pytest.mark.parametrize(("search", "waits"), [(None, 2), ("strong_wolfe", 1)])
@pytest.mark.parametrize("loss_is_on_device", [False, True])
def test_it_waits_for_the_device_as_often_as_documented(emulated, search, waits, loss_is_on_device):
    import cupy

    param = Parameter(np.array(START), device="cuda:0")
    optimizer = LBFGS([param], lr=1e-3 if search is None else 1.0, line_search_fn=search)
    hessian = cupy.asarray(np.arange(1.0, 7.0))
    evaluations = []

    def closure():
        param.grad = hessian * param.data
        evaluations.append(param.grad)
        return (param.data * param.grad).sum() if loss_is_on_device else 1.0 / len(evaluations)

    emulated.record.downloads.clear()
    optimizer.step(closure)
    iterations = optimizer.state[param]["n_iter"]
    assert iterations > 2
    # Of each iteration the slope; of each evaluation what it found.
    assert len(emulated.record.downloads) <= iterations + len(evaluations)
    if search is None:
        assert len(emulated.record.downloads) == waits * iterations


def test_a_group_that_differs_is_refused():
    optimizer, _ = two()
    with (
        unchanged(optimizer),
        pytest.raises(ValueError, match=r"groups 0 and 2 differ in lr \(1.0 "),
    ):
        optimizer.add_param_group({"params": [Parameter([1.0], name="c")], "lr": 0.5})
    optimizer.param_groups[1]["max_iter"] = 3
    with unchanged(optimizer), pytest.raises(ValueError, match="groups 0 and 1 differ in max_iter"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize("closure", [None, 3.0])
def test_without_a_closure_it_says_what_it_needs(closure):
    optimizer, _ = two()
    with unchanged(optimizer), pytest.raises(TypeError, match="LBFGS needs a closure"):
        optimizer.step(closure)


@pytest.mark.parametrize("value", [None, (1.0, "good"), "1.0", np.ones(2)])
def test_a_loss_that_is_no_number_is_refused(value):
    optimizer, _ = two()
    with unchanged(optimizer), pytest.raises(TypeError, match="must return the loss, a number"):
        optimizer.step(lambda: value)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_closure_that_raises_leaves_all_as_it_was(search, at):
    optimizer, params = two(lr=1e-3, line_search_fn=search)
    closure, seen = closure_of(params)
    optimizer.step(closure)
    before, found = picture(optimizer.state_dict()), elements(params)
    seen.clear()

    def failing():
        if len(seen) == at:
            raise KeyboardInterrupt
        return closure()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(failing)
    assert elements(params).tolist() == found.tolist()
    assert picture(optimizer.state_dict()) == before
    optimizer.step(closure)


def wall(x):
    """A slope down to a wall, behind which there are no numbers."""
    return (
        (float(-x[0]), np.array([-1.0, *[0.0] * 5])) if x[0] < 0 else (np.nan, np.full(6, np.nan))
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_where_the_loss_is_not_finite_it_goes_back_to_the_best_point(search, bad, device):
    optimizer, params = two(device, lr=10.0, max_iter=30, line_search_fn=search)

    def walled(x):
        loss, gradient = wall(x)
        return (loss if np.isfinite(loss) else bad), gradient

    closure, seen = closure_of(params, walled)
    for _ in range(4):
        optimizer.step(closure)
        assert np.isfinite(elements(params)).all()
    assert not np.isfinite(seen).all()
    assert wall(elements(params))[0] <= min(loss for loss in seen if np.isfinite(loss)) + 1e-12


def scripted(params, *outcomes):
    """A closure on a bowl whose losses and gradients are spoilt in turn, and the points it saw."""
    seen, waiting = [], list(outcomes)

    def function(x):
        seen.append(x)
        loss, factor = waiting.pop(0) if waiting else (0.0, 1.0)
        return loss, factor * np.arange(1.0, 7.0) * x

    return closure_of(params, function)[0], seen


@pytest.mark.parametrize("spoilt", [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan)])
def test_the_best_point_is_the_lowest_and_the_history_is_forgotten(spoilt):
    optimizer, params = two(lr=0.1)
    closure, seen = scripted(params, (5.0, 1.0), (4.0, 1.0), (2.0, 1.0), (3.0, 1.0), spoilt)
    optimizer.step(closure)
    assert len(seen) == 5
    assert elements(params).tolist() == seen[2].tolist()
    slots = optimizer.state[params[0]]
    assert (slots["old_dirs"], slots["old_stps"], slots["ro"]) == ([], [], [])
    assert "d" not in slots


def test_a_search_that_finds_no_number_ahead_begins_a_new_history():
    optimizer, params = two(line_search_fn="strong_wolfe", max_iter=3)
    optimizer.step(closure_of(params)[0])
    found = elements(params)
    closure, _ = scripted(params, (1.0, 1.0), *[(np.nan, 1.0)] * 30)
    optimizer.step(closure)
    assert elements(params).tolist() == found.tolist()
    assert "d" not in optimizer.state[params[0]]


def test_a_history_that_leads_nowhere_is_forgotten():
    optimizer, params = two(line_search_fn="strong_wolfe", max_iter=4)
    closure, _ = closure_of(params)
    optimizer.step(closure)
    found = elements(params)
    optimizer.state[params[0]]["old_stps"][0][...] = np.inf
    optimizer.step(closure)
    assert elements(params).tolist() == found.tolist()
    optimizer.step(closure)
    assert rosenbrock(elements(params))[0] < rosenbrock(found)[0]


def test_a_pair_of_little_curvature_is_left_out():
    optimizer, params = two(lr=0.1, max_iter=4)
    closure, _ = closure_of(params, lambda x: (float(x.sum()), np.ones(6)))
    optimizer.step(closure)
    slots = optimizer.state[params[0]]
    assert slots["n_iter"] == 4
    assert slots["old_dirs"] == []


def test_a_move_that_no_parameter_feels_ends_the_call():
    optimizer, params = two(lr=1e-4, tolerance_change=1e-3)
    closure, seen = closure_of(params, lambda x: (1e6 * x.sum(), np.full(6, 1e6)))
    optimizer.step(closure)
    assert optimizer.state[params[0]]["n_iter"] == 1
    assert abs(seen[0] - seen[1]) > 1e-3


def test_the_closure_runs_on_its_callers_device_and_its_loss_may_be_there(emulated):
    import cupy

    param = Parameter(np.array(START), device="cuda:1")
    optimizer = LBFGS([param], lr=0.1, max_iter=3)
    devices = []

    def closure():
        devices.append(cupy.cuda.Device().id)
        param.grad = array(2 * host(param), "cuda:1", np.float64)
        return array((host(param) ** 2).sum(), "cuda:0", np.float64)

    assert optimizer.step(closure).device.id == 0
    assert set(devices) == {0}
    assert (host(param) ** 2).sum() < (np.array(START) ** 2).sum()


def test_a_move_that_the_next_call_finds_bad_is_taken_back():
    optimizer, params = two(lr=1e6, max_iter=1)
    calls = []

    def once(x):
        calls.append(x)
        return rosenbrock(x) if len(calls) == 1 else (np.nan, np.zeros(6))

    closure, _ = closure_of(params, once)
    optimizer.step(closure)
    assert elements(params).tolist() != START
    assert np.isnan(optimizer.step(closure))
    assert elements(params).tolist() == START
    assert (
        "old_dirs" not in optimizer.state[params[0]] or not optimizer.state[params[0]]["old_dirs"]
    )


def test_a_first_loss_that_is_not_finite_moves_nothing():
    optimizer, params = two()
    closure, _ = closure_of(params, lambda x: (np.nan, x))
    assert np.isnan(optimizer.step(closure))
    assert elements(params).tolist() == START


def test_a_group_that_is_added_begins_a_new_history():
    optimizer, params = two(line_search_fn="strong_wolfe", max_iter=5)
    closure, _ = closure_of(params)
    optimizer.step(closure)
    added = Parameter(np.array([3.0]), name="c")
    optimizer.add_param_group({"params": [added]})

    def more():
        added.grad = 2 * added.data
        return closure() + float((added.data**2).sum())

    optimizer.step(more)
    slots = optimizer.state[params[0]]
    assert slots["step"] == 2
    assert {array.size for array in slots["old_dirs"]} == {7}
    assert [name for name, _ in slots["members"]] == ["a", "b", "c"]


SPOILT = [
    ({"extra": 1}, "slot 'extra' is unknown"),
    ({"n_iter": None}, "slot 'n_iter' is missing"),
    ({"func_evals": -1}, "slot 'func_evals' must be an int >= 0"),
    ({"t": "far"}, "slot 't' must be a number, not 'far'"),
    ({"prev_flat_grad": None}, "slot 'prev_flat_grad' is missing"),
    ({"d": np.zeros(5)}, r"slot 'd' has shape \(5,\)"),
    ({"d": np.zeros(6, np.float32)}, "slot 'd' has dtype float32"),
    ({"ro": [1.0]}, "'old_dirs', 'old_stps' and 'ro' must be lists of one length"),
    ({"ro": 3}, "'old_dirs', 'old_stps' and 'ro' must be lists of one length"),
    ({"old_dirs": [np.zeros(6)] * 3 + [np.zeros(2)]}, r"slot 'old_dirs\[3\]' has shape \(2,\)"),
    ({"members": [["a", 3], ["b", 3]]}, r"vectors are of parameters of \[3, 3\] elements"),
    ({"members": [["b", 2], ["a", 4]]}, r"vectors are of \['b', 'a'\], in this order, not of"),
    ({"members": 3}, "slot 'members' must be a list of names with sizes, not 3"),
]


@pytest.mark.parametrize(("change", "text"), SPOILT, ids=[text for _, text in SPOILT])
def test_strict_loading_checks_its_state(change, text):
    optimizer, params = two(line_search_fn="strong_wolfe", max_iter=5)
    closure, _ = closure_of(params)
    optimizer.step(closure)
    state_dict = optimizer.state_dict()
    slots = state_dict["state"][0]
    slots.update(change)
    for name in [name for name, value in change.items() if value is None]:
        del slots[name]
    with unchanged(optimizer), pytest.raises(ValueError, match=text):
        optimizer.load_state_dict(state_dict)


def test_parameters_in_another_order_are_refused():
    optimizer, params = two(max_iter=3)
    optimizer.step(closure_of(params)[0])
    other = LBFGS([{"params": [param]} for param in reversed(params)])
    with unchanged(other), pytest.raises(ValueError, match="in the order in which they were saved"):
        other.load_state_dict(optimizer.state_dict())


def test_parameters_of_another_library_train(device):
    foreign = Foreign(array([3.0, -2.0], device, np.float64))

    def closure():
        foreign.grad = 2 * (foreign.data - 1)
        return ((foreign.data - 1) ** 2).sum()

    LBFGS([foreign], line_search_fn="strong_wolfe").step(closure)
    np.testing.assert_allclose(host(foreign), 1)


def test_parameters_of_no_elements_have_nothing_to_do(device):
    param = Parameter(array(np.empty((0, 2)), device))
    optimizer = LBFGS([param])
    assert optimizer.step(lambda: 5.0) == 5.0
    assert optimizer.state[param]["func_evals"] == 1


def test_warnings_of_the_closure_are_its_callers():
    optimizer, _ = two()

    def closure():
        np.float64(1.0) / np.float64(0.0)
        return 0.0

    with np.errstate(divide="warn"), pytest.raises(RuntimeWarning, match="divide by zero"):
        optimizer.step(closure)


torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")


def theirs_of(**options):
    """PyTorch's optimizer of the same start in one parameter, that, and a closure."""
    param = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    theirs = torch.optim.LBFGS([param], **options)

    def closure():
        loss, gradient = rosenbrock(param.detach().numpy())
        param.grad = torch.from_numpy(gradient)
        return loss

    return theirs, param, closure


CONFIGURATIONS = [
    ({}, 6.7e-11),
    ({"lr": 0.01}, 6.7e-11),
    ({"lr": 0.001}, 6.7e-11),
    ({"lr": 0.1, "history_size": 3}, 6.7e-11),
    ({"tolerance_grad": 1e-6}, 6.7e-11),
    ({"line_search_fn": "strong_wolfe"}, 7.9e-9),
    ({"line_search_fn": "strong_wolfe", "history_size": 3, "max_iter": 7}, 7.9e-9),
    ({"line_search_fn": "strong_wolfe", "max_eval": 4}, 7.9e-9),
    ({"line_search_fn": "strong_wolfe", "tolerance_change": 1e-3}, 7.9e-9),
]


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize(("options", "most"), CONFIGURATIONS, ids=str)
def test_it_is_pytorchs_on_rosenbrocks_function(options, most, calls):
    theirs, their, their_closure = theirs_of(**options)
    ours, params = two(**options)
    closure, _ = closure_of(params)
    for _ in range(calls):
        theirs.step(their_closure)
        ours.step(closure)
    expected = their.detach().numpy()
    assert np.abs(elements(params) - expected).max() <= most * np.abs(expected).max()
    for name in ("n_iter", "func_evals"):
        assert ours.state[params[0]][name] == theirs.state[their][name]


def test_every_configuration_of_pytorchs_own_tests_is_among_those():
    pytest.importorskip("expecttest", reason="needs PyTorch's own tests")
    from torch.testing._internal.common_optimizers import optim_db

    (info,) = [each for each in optim_db if each.optim_cls is torch.optim.LBFGS]
    tried = [options for options, _ in CONFIGURATIONS]
    for given in info.optim_inputs_func(device="cpu"):
        rate = given.kwargs.get("lr")
        if isinstance(rate, torch.Tensor):
            given.kwargs["lr"] = round(rate.item(), 6)
        assert given.kwargs in tried


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_a_state_dict_of_pytorch_goes_on_here(search):
    theirs, their, their_closure = theirs_of(line_search_fn=search, max_iter=5)
    theirs.step(their_closure)
    param = Parameter(their.detach().numpy().copy())
    ours = LBFGS([param])
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["max_iter"] == 5

    def closure():
        loss, param.grad = rosenbrock(param.data)
        return loss

    for _ in range(2):
        theirs.step(their_closure)
        ours.step(closure)
    np.testing.assert_allclose(param.data, their.detach().numpy(), rtol=1e-8)
    assert ours.state[param]["n_iter"] == theirs.state[their]["n_iter"]


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_a_state_dict_from_here_goes_on_in_pytorch(search):
    param = Parameter(np.array(START))
    ours = LBFGS([param], line_search_fn=search, max_iter=5)

    def closure():
        loss, param.grad = rosenbrock(param.data)
        return loss

    ours.step(closure)
    theirs, their, their_closure = theirs_of()
    with torch.no_grad():
        their.copy_(torch.from_numpy(param.data))
    theirs.load_state_dict(pytorch.export(ours.state_dict()))
    for _ in range(2):
        theirs.step(their_closure)
        ours.step(closure)
    np.testing.assert_allclose(param.data, their.detach().numpy(), rtol=1e-8)
