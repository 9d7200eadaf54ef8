"""What every optimizer obeys, on every device, in every variant."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.optim import ArrayOptimizer, FusedOptimizer, Optimizer, OptimizerStub
from tests import array_rules, rules
from tests.conftest import installed
from tests.oracle import ORACLES
from tests.stepping import Tensor, bits, host, place, steps

every_case = pytest.mark.parametrize("case", rules.cases(), ids=lambda case: case.label)
every_optimizer = pytest.mark.parametrize(
    "rule", rules.optimizers(), ids=lambda rule: rule.__name__
)
SHAPES = [(), (0,), (1,), (1, 0, 2), (13,), (2, 3, 5)]
LAYOUTS = ["C", "F", "strided", "reversed", 1]
TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-5}, "float64": {"rtol": 1e-10, "atol": 1e-12}}


@pytest.fixture(params=["cpu", "compiled", "cuda", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device that a law must hold on; the CPU with either kind of code."""
    with installed(request.param) as name:
        yield name


def make(rng, device, shapes=((3, 4), (5,), ()), dtype="float32"):
    """Parameters and a gradient for each."""
    params, grads = [], []
    for shape in shapes:
        params.append(Parameter(place(rng.normal(size=shape).astype(dtype), device).view))
        grads.append(place(rng.normal(size=shape).astype(dtype), device).view)
    return params, grads


def train(optimizer, params, grads, count=3):
    """Take some steps, with gradients that change."""
    for _ in range(count):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
        grads = [None if grad is None else grad * 0.5 for grad in grads]


def everything(optimizer):
    """The bits of all parameters and slots."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    arrays = [param.data for param in params]
    for param in params:
        slots = optimizer.state.get(param, {})
        arrays += [slots[name] for name in sorted(slots) if name != "step"]
    return [bits(array) for array in arrays]


def assert_same(one, other):
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_exported_optimizer_is_held_to_these_laws():
    exported = [getattr(optim, name) for name in optim.__all__]
    optimizers = {
        kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Optimizer)
    }
    bases = {Optimizer, FusedOptimizer, ArrayOptimizer, OptimizerStub}
    in_array_code = set(array_rules.optimizers())  # which tests/optim/test_array_laws.py holds
    assert optimizers - bases - in_array_code == set(rules.optimizers())


@every_optimizer
def test_every_exported_optimizer_has_an_oracle(rule):
    assert rule.__name__ in ORACLES


@every_optimizer
def test_options_lead_to_every_variant(rule):
    assert {kind.variant for kind in rules.option_sets(rule)} == set(rules.variants(rule))


@every_case
@pytest.mark.parametrize("dtype", rules.DTYPES)
def test_it_agrees_with_the_textbook(case, dtype, device, rng):
    values, *grads = rng.normal(size=(6, 7)).astype(dtype)
    oracle = ORACLES[case.rule.__name__]
    expected = oracle(values.tolist(), [grad.tolist() for grad in grads], **case.options)
    param = Parameter(place(values, device).view)
    optimizer = case.rule([param], **case.options)
    for grad, wanted in zip(grads, expected, strict=True):
        param.grad = place(grad, device).view
        optimizer.step()
        np.testing.assert_allclose(param.numpy(), wanted, **TOLERANCE[dtype])


@every_case
def test_the_order_of_parameters_does_not_matter(case, device):
    results = []
    for order in (slice(None), slice(None, None, -1)):
        params, grads = make(np.random.default_rng(1), device)
        optimizer = case.rule(params[order], **case.options)
        train(optimizer, params, grads)
        results.append([bits(param.data) for param in params])
    assert_same(*results)


@pytest.mark.parametrize("case", rules.elementwise(rules.cases()), ids=lambda case: case.label)
def test_splitting_a_tensor_does_not_matter(case, device, rng):
    values, *grads = rng.normal(size=(4, 4500)).astype("float32")
    cuts = [0, 1, 8, 4099, 4500]
    whole = Tensor(values, grads)
    parts = [
        Tensor(values[a:b], [grad[a:b] for grad in grads]) for a, b in itertools.pairwise(cuts)
    ]
    data, *_ = steps(case.rule, [(case.options, [whole])], device)[-1]
    pieces = steps(case.rule, [(case.options, parts)], device)[-1]
    np.testing.assert_array_equal(np.concatenate(pieces[: len(parts)]), data)


@every_case
def test_shape_and_layout_do_not_matter(case, device, rng):
    tensors, plain = [], []
    for shape, layout in itertools.product(SHAPES, LAYOUTS):
        values, *grads = (np.asarray(one) for one in rng.normal(size=(4, *shape)).astype("float32"))
        tensors.append(Tensor(values, grads, (layout, "C")))
        plain.append(Tensor(values.reshape(-1), [grad.reshape(-1) for grad in grads]))
    expected = steps(case.rule, [(case.options, plain)], device)[-1]
    actual = steps(case.rule, [(case.options, tensors)], device)[-1]
    assert_same([one.reshape(-1) for one in actual], expected)


@every_optimizer
@pytest.mark.parametrize("count", [1, 2])
def test_the_layout_of_gradients_may_change_from_step_to_step(rule, count, device, rng):
    own = [rng.normal(size=(2 + len(LAYOUTS), 3, 4)).astype("float32") for _ in range(count)]
    results = []
    for layouts in (LAYOUTS, ["C"] * len(LAYOUTS)):
        params = [Parameter(place(values[0], device).view) for values in own]
        optimizer = rule(params)
        for number, layout in enumerate(["C", *layouts]):
            for param, values in zip(params, own, strict=True):
                param.grad = place(values[1 + number], device, layout).view
            optimizer.step()
        results.append(everything(optimizer))
    assert_same(*results)


@every_case
def test_resuming_equals_no_interruption_to_the_bit(case, device):
    params, grads = make(np.random.default_rng(1), device)
    optimizer = case.rule(params, **case.options)
    train(optimizer, params, grads)
    twins = [Parameter(place(host(param.data), device).view) for param in params]
    resumed = case.rule(twins)
    resumed.load_state_dict(optimizer.state_dict(device="cpu"))
    for one, own in ((optimizer, params), (resumed, twins)):
        train(one, own, grads)
    assert_same(everything(resumed), everything(optimizer))


@every_case
def test_parameters_without_gradient_are_skipped(case, device):
    params, grads = make(np.random.default_rng(1), device)
    before = bits(params[1].data)
    optimizer = case.rule(params, **case.options)
    train(optimizer, params, [grads[0], None, grads[2]])
    assert params[1] not in optimizer.state
    np.testing.assert_array_equal(bits(params[1].data), before)
    assert optimizer.state[params[0]]["step"] == 3
    train(optimizer, params, grads, count=1)
    assert [optimizer.state[param]["step"] for param in params] == [4, 1, 4]


@every_case
def test_a_parameter_that_joins_late_steps_as_if_alone(case, device):
    params, grads = make(np.random.default_rng(1), device)
    (_, lone, _), _ = make(np.random.default_rng(1), device)
    optimizer, alone = case.rule(params, **case.options), case.rule([lone], **case.options)
    train(optimizer, params, [grads[0], None, grads[2]])
    train(optimizer, params, grads)
    train(alone, [lone], grads[1:2])
    np.testing.assert_array_equal(bits(params[1].data), bits(lone.data))


@every_case
def test_gradients_are_not_modified(case, device):
    params, grads = make(np.random.default_rng(1), device)
    before = [bits(grad) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    case.rule(params, **case.options).step()
    assert_same([bits(grad) for grad in grads], before)
    assert all(param.grad is grad for param, grad in zip(params, grads, strict=True))


@every_case
def test_the_device_does_not_matter_while_state_moves_between_them(case, accelerator):
    results = []
    for home, away in (("cpu", "cpu"), ("cpu", accelerator), (accelerator, "cpu")):
        params, _ = make(np.random.default_rng(1), home)
        optimizer = case.rule(params, **case.options)
        for place_now in (home, away, home):
            optimizer.to(place_now)
            _, grads = make(np.random.default_rng(2), place_now)
            train(optimizer, params, grads)
        results.append(everything(optimizer))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@every_case
def test_a_gradient_may_be_the_parameter_itself(case, device, rng):
    results = []
    for shared in (True, False):
        values = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
        param = Parameter(place(values, device).view)
        optimizer = case.rule([param], **case.options)
        for _ in range(3):
            param.grad = param.data if shared else param.data.copy()
            optimizer.step()
        results.append(everything(optimizer))
    assert_same(*results)
