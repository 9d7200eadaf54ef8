"""Row 18c of docs/contract.md: parameters that share memory, or whose data is a copy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter, optim
from lucid_gpu.device import transfer
from tests.contract.support import Foreign, array, host, picture, trained, unchanged


def parameters(views, kind="own"):
    """Name views a, b, … and give each a gradient of ones."""
    params = []
    for name, view in zip("abcd", views, strict=False):
        params.append(Parameter(view, name=name) if kind == "own" else Foreign(view))
        params[-1].grad = ones_like(view)
    return list(zip("abcd", params, strict=False))


def ones_like(view):
    home = "cpu" if type(view) is np.ndarray else f"cuda:{view.data.device_id}"
    return transfer.copy(np.ones(view.shape, view.dtype), home)


def base_on(device, *shape):
    return array(np.arange(np.prod(shape)).reshape(shape), device)


SHARING = {
    "equal": lambda x: (x, x[:]),
    "slices that overlap in part": lambda x: (x[:4], x[3:]),
    "one inside the other": lambda x: (x, x[2:3]),
    "reversed": lambda x: (x, x[::-1]),
    "transposed": lambda x: (x, x.T),
    "flattened": lambda x: (x, x.reshape(-1)),
    "rows that meet a column": lambda x: (x[2], x[:, 3]),
    "strides that meet": lambda x: (x.reshape(-1)[::2], x.reshape(-1)[::3]),
    "reversed strides that meet": lambda x: (x.reshape(-1)[::3], x.reshape(-1)[::-1][::2]),
    "one that reaches over others": lambda x: (x[:, ::5], x[2:3, 1:4], x[4, 5:6]),
}
APART = {
    "halves": lambda x: (x[:3], x[3:]),
    "even and odd rows": lambda x: (x[::2], x[1::2]),
    "even and odd columns": lambda x: (x[:, ::2], x[:, 1::2]),
    "left and right": lambda x: (x[:, :2], x[:, 2:]),
    "left and right, transposed": lambda x: (x[:, :2].T, x[:, 2:].T),
    "even and odd, reversed": lambda x: (x[::-2], x[::2]),
    "a view of no elements": lambda x: (x, x[3:3]),
}


@pytest.mark.parametrize("kind", ["own", "foreign"])
@pytest.mark.parametrize("case", SHARING)
def test_parameters_that_share_memory_are_refused_by_name(device, case, kind):
    """Row 18c of docs/contract.md."""
    views = SHARING[case](base_on(device, 6, 6))
    optimizer = optim.SGD(parameters(views, kind), momentum=0.9)
    before = picture(list(views))
    with unchanged(optimizer), pytest.raises(ValueError, match=r"'[abc]' and '[abc]' share"):
        optimizer.step()
    assert picture(list(views)) == before
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("case", APART)
@pytest.mark.parametrize("rule", [optim.SGD, optim.Adam])
def test_views_that_interleave_step_each_for_itself(device, case, rule):
    """Row 18c of docs/contract.md."""
    views = APART[case](base_on(device, 6, 6))
    copies = [host(view).copy() for view in views]
    for own in (views, copies):
        optimizer = rule(parameters(own), lr=0.5)
        optimizer.step()
        optimizer.step()
    for view, copy in zip(views, copies, strict=True):
        np.testing.assert_array_equal(host(view), copy)


def test_the_names_are_those_of_the_two_that_share(device):
    """Row 18c of docs/contract.md."""
    base = base_on(device, 6)
    views = [base[:2], base_on(device, 6), base[1:4], base[4:]]
    with pytest.raises(ValueError, match="parameters 'a' and 'c' share memory"):
        optim.SGD(parameters(views)).step()


def test_a_parameter_without_gradient_may_lie_in_another(device):
    """Row 18c of docs/contract.md."""
    base = base_on(device, 6)
    (_, whole), (_, part) = parameters((base, base[2:4]))
    part.grad = None
    optimizer = optim.SGD([whole, part], lr=1.0)
    optimizer.step()
    part.grad = ones_like(part.data)
    before = picture(whole.data)
    with unchanged(optimizer), pytest.raises(ValueError, match="'a' and 'b' share memory"):
        optimizer.step()
    assert picture(whole.data) == before
    part.grad = None
    optimizer.step()
    assert optimizer.state[whole]["step"] == 2


@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_data_that_is_replaced_so_that_parameters_share_is_refused(device, kind):
    """Row 18c of docs/contract.md."""
    base = base_on(device, 6)
    named = parameters((base[:3], base[3:]), kind)
    other = named[1][1]
    optimizer = optim.SGD(named, lr=1.0)
    optimizer.step()
    apart = other.data
    other.data = base[2:5]
    with unchanged(optimizer), pytest.raises(ValueError, match="'a' and 'b' share memory"):
        optimizer.step()
    other.data = apart
    optimizer.step()
    assert host(base).tolist() == [-2, -1, 0, 1, 2, 3]


slices = st.builds(
    slice, st.integers(0, 11), st.integers(1, 12), st.sampled_from([1, 2, 3])
) | st.builds(slice, st.integers(6, 11), st.integers(0, 5), st.sampled_from([-1, -2]))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(chosen=st.lists(slices, min_size=2, max_size=3), frozen=st.sets(st.integers(0, 2)))
def test_a_step_is_refused_if_and_only_if_two_that_step_share_an_element(device, chosen, frozen):
    """Row 18c of docs/contract.md."""
    base = base_on(device, 12)
    named = parameters([base[own] for own in chosen])
    for number in frozen & set(range(len(named))):
        named[number][1].grad = None
    sets = [set(range(12)[own]) for i, own in enumerate(chosen) if i not in frozen]
    optimizer = optim.SGD(named, lr=1.0)
    expected = np.arange(12.0)
    if any(one & other for one, other in itertools.combinations(sets, 2)):
        with pytest.raises(ValueError, match="share memory"):
            optimizer.step()
    else:
        optimizer.step()
        expected[list(set().union(*sets))] -= 1
    assert host(base).tolist() == expected.tolist()


class Copying:
    """A parameter of a library that hands out what is on its mind, not what it holds."""

    def __init__(self, values, grad):
        self._values, self.grad = values, grad

    @property
    def data(self):
        return self._values.copy()


class CopyingParameter(Parameter):
    """A Parameter that does so."""

    data = property(lambda self: self._data.copy())


@pytest.mark.parametrize("how", ["foreign", "a subclass"])
def test_a_parameter_whose_data_is_a_copy_is_found_out_at_its_first_step(device, how):
    """Row 18c of docs/contract.md."""
    good = trained([1.0, 2.0], [1.0, 1.0], device, name="good")
    if how == "foreign":
        bad = Copying(array([1.0, 2.0], device), array([1.0, 1.0], device))
    else:
        bad = CopyingParameter(array([1.0, 2.0], device))
        bad.grad = array([1.0, 1.0], device)
    optimizer = optim.SGD([("good", good), ("bad", bad)])
    message = f"'bad' is a {type(bad).__name__} whose data is a new copy .*: return the array"
    with unchanged(optimizer), pytest.raises(RuntimeError, match=message):
        optimizer.step()


def test_a_parameter_whose_data_is_a_copy_is_found_out_when_it_joins(device):
    """Row 18c of docs/contract.md."""
    good = trained([1.0], [1.0], device, name="good")
    bad = Copying(array([1.0], device), None)
    optimizer = optim.SGD([("good", good), ("bad", bad)])
    optimizer.step()
    bad.grad = array([1.0], device)
    with unchanged(optimizer), pytest.raises(RuntimeError, match="'bad' is a Copying whose data"):
        optimizer.step()
    assert optimizer.state[good]["step"] == 1


def test_a_parameter_of_no_elements_may_hand_out_copies(device):
    """Row 18c of docs/contract.md."""
    optim.SGD([Copying(array([], device), array([], device))]).step()
