"""flatten: parameters as views of one buffer."""

import copy
import pickle

import numpy as np
import pytest

from lucid_gpu import Parameter, flatten
from lucid_gpu.optim import SGD, Adam


def make(rng, shapes=((3, 4), (5,), (), (0, 2))):
    return [
        Parameter(rng.normal(size=s).astype(np.float32), name=f"p{i}") for i, s in enumerate(shapes)
    ]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_members_keep_identity_names_shapes_and_values(rng):
    params = make(rng)
    before = [(p.name, p.shape, p.numpy().copy()) for p in params]
    flat = flatten(params)
    assert flat.members == params
    for param, (name, shape, values) in zip(params, before, strict=True):
        assert (param.name, param.shape) == (name, shape)
        assert np.array_equal(param.numpy(), values)


def test_buffers_are_contiguous_and_shared(rng):
    params = make(rng)
    flat = flatten(params)
    assert flat.data.flags.c_contiguous
    assert flat.size == sum(p.size for p in params)
    for param in params:
        if param.size:
            assert np.shares_memory(param.data, flat.data)
            assert np.shares_memory(param.grad, flat.grad)


def test_gradients_are_kept_and_missing_ones_are_zero(rng):
    params = make(rng)
    params[1].grad = np.arange(5, dtype=np.float32)
    flat = flatten(params)
    assert flat.grad[12:17].tolist() == [0, 1, 2, 3, 4]
    assert not flat.grad[:12].any()


def test_assigned_arrays_are_copied_into_the_views(rng):
    w, *_ = params = make(rng)
    flat = flatten(params)
    home = w.grad
    w.grad = np.full((3, 4), 2, np.float32)
    w.data = np.full((3, 4), 7, np.float32)
    assert w.grad is home
    assert flat.grad[:12].tolist() == [2] * 12
    assert flat.data[:12].tolist() == [7] * 12


def test_assigning_no_gradient_fills_zeros(rng):
    w, *_ = params = make(rng)
    flat = flatten(params)
    flat.grad = np.ones_like(flat.data)
    w.grad = None
    assert not flat.grad[:12].any()
    assert flat.grad[12:].all()


def test_training_the_flat_parameter_equals_training_its_members_to_the_bit(rng):
    apart, together = make(rng), None
    together = copy.deepcopy(apart)
    flat = flatten(together)
    optimizers = Adam(apart, weight_decay=0.1), Adam([flat], weight_decay=0.1)
    for _ in range(5):
        for p, q in zip(apart, together, strict=True):
            p.grad = rng.normal(size=p.shape).astype(np.float32)
            q.grad = p.grad
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(apart, together, strict=True):
        assert np.array_equal(p.numpy(), q.numpy())


def test_zero_grad_keeps_the_buffer(rng):
    params = make(rng)
    flat = flatten(params)
    optimizer = SGD([flat], lr=0.1)
    buffer = flat.grad
    for set_to_none in (True, False):
        params[0].grad = np.ones((3, 4), np.float32)
        optimizer.zero_grad(set_to_none)
        assert flat.grad is buffer
        assert not buffer.any()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_flat_too_and_independent(rng, clone):
    flat = flatten(make(rng))
    twin = clone(flat)
    twin.members[0].data[...] = 9
    assert twin.data[:12].tolist() == [9] * 12
    assert not np.shares_memory(twin.data, flat.data)


@pytest.mark.usefixtures("emulated")
def test_a_member_cannot_move_alone(rng):
    params = make(rng)
    flatten(params)
    with pytest.raises(ValueError, match="'p0' is part of a flat parameter"):
        params[0].to("cuda:0")


@pytest.mark.usefixtures("emulated")
def test_the_flat_parameter_moves_with_its_members(rng):
    params = make(rng)
    flat = flatten(params)
    flat.to("cuda:0")
    assert {p.device for p in params} == {"cuda:0"}
    params[0].grad = flat.data[:12].reshape(3, 4)
    assert np.array_equal(flat.grad[:12].get(), params[0].numpy().reshape(-1))


def bad_inputs():
    one = Parameter([1.0])
    used = Parameter([1.0])
    flatten([used])
    return [
        ([], ValueError, "empty"),
        ([one, np.ones(2)], TypeError, "element 1 .* ndarray"),
        ([Parameter("text")], TypeError, "Parameter of numbers"),
        ([one, one], ValueError, "element 1 .* twice"),
        ([used], ValueError, "already"),
        ([one, Parameter([1.0], requires_grad=False)], ValueError, "requires_grad=False"),
        ([one, Parameter(np.ones(2))], ValueError, "dtype float64, the first has float32"),
    ]


@pytest.mark.parametrize(("params", "error", "message"), bad_inputs())
def test_bad_input_is_refused_and_changes_nothing(params, error, message):
    places = [getattr(p, "data", None) for p in params]
    with pytest.raises(error, match=message):
        flatten(params)
    assert all(
        getattr(p, "data", None) is place or isinstance(p, np.ndarray)
        for p, place in zip(params, places, strict=True)
    )
