"""The CUDA path, from the optimizer to the kernel's text, agrees with the NumPy twin to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter
from lucid_gpu.execution import cuda, plan
from lucid_gpu.optim import SGD, Adam
from tests import rules
from tests.emulation.machine import Record
from tests.stepping import Tensor, bits, place, steps

SHAPES = [(), (0,), (1,), (1, 0, 2), (7,), (3, 5), (4, 4), (13, 101), (2, 3, 4), (4099,), (9001,)]
LAYOUTS = [
    ("C",),
    ("F",),
    ("C", "F"),
    ("strided",),
    ("reversed",),
    ("C", "strided"),
    (1,),
    (2,),
    (3,),
    (0, 1),
    (1, 2, 3, 0, 1),
    ("C", "C", 1, 3, "C"),
]
LENIENT = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)

every_case = pytest.mark.parametrize(
    "case", rules.cases(rules.rules()), ids=lambda case: case.label
)
every_rule = pytest.mark.parametrize("rule", rules.rules(), ids=lambda rule: rule.__name__)
every_dtype = pytest.mark.parametrize("dtype", rules.DTYPES)


def tensor(rng, shape, dtype, layouts=("C",), count=3):
    values, *grads = rng.normal(size=(count + 1, *shape)).astype(dtype)
    return Tensor(np.asarray(values), [np.asarray(grad) for grad in grads], layouts)


def assert_equal_on_both(rule, groups, device):
    for number, (ours, twins) in enumerate(
        zip(steps(rule, groups, device), steps(rule, groups, "cpu"), strict=True), 1
    ):
        for one, twin in zip(ours, twins, strict=True):
            np.testing.assert_array_equal(one, twin, f"after step {number}")


@every_case
@every_dtype
def test_shapes_and_layouts(case, dtype, accelerator, rng):
    tensors = [tensor(rng, shape, dtype) for shape in SHAPES]
    tensors += [tensor(rng, (11, 6), dtype, layouts) for layouts in LAYOUTS]
    tensors += [tensor(rng, (4099,), dtype, layouts) for layouts in LAYOUTS[6:]]
    assert_equal_on_both(case.rule, [(case.options, tensors)], accelerator)


@every_case
@every_dtype
def test_gradients_that_are_not_finite(case, dtype, accelerator, rng):
    poisoned = tensor(rng, (9,), dtype)
    for grad, value in zip(poisoned.grads, (np.nan, np.inf, -np.inf), strict=True):
        grad[4] = value
    assert_equal_on_both(case.rule, [(case.options, [poisoned])], accelerator)


@every_case
@every_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_slots_that_are_not_finite(case, dtype, value, accelerator, rng):
    used = case.rule.used_slots(case.variant)
    values, grads = rng.normal(size=(2, len(used), 9)).astype(dtype)
    results = []
    for device in (accelerator, "cpu"):
        params = [Parameter(place(row, device).view) for row in values]
        optimizer = case.rule([{**case.options, "params": params}]) if params else None
        for param, grad, poisoned in zip(params, grads, used, strict=True):
            param.grad = place(grad, device).view
            optimizer.state[param]["step"] = 3
            for slot in used:
                content = np.full(9, value if slot == poisoned else 0.5, dtype)
                optimizer.state[param][slot] = place(content, device).view
        if params:
            optimizer.step()
        results.append([bits(param.data) for param in params])
    np.testing.assert_array_equal(*results)


@every_rule
@every_dtype
def test_all_variants_in_one_launch(rule, dtype, accelerator, rng):
    groups = [
        (sets[-1], [tensor(rng, (5,), dtype), tensor(rng, (4100,), dtype, (1,))])
        for sets in rules.option_sets(rule).values()
    ]
    assert_equal_on_both(rule, groups, accelerator)


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        (rule, 4_000 if turn else 70_000)
        for turn, rule in enumerate(rule for rule in rules.rules() if not rule.sums)
    ],
)
def test_thousands_of_tiny_tensors(rule, count, accelerator, rng):
    """Of one rule more than 2¹⁶, which is for the tables to bear, not for the rule."""
    values, grads = rng.normal(size=(2, count)).astype("float32")
    whole, pieces = Parameter(values.copy()), place(values, accelerator).base
    whole.grad, piece_grads = grads, place(grads, accelerator).base
    params = [Parameter(pieces[i : i + 1]) for i in range(len(values))]
    for i, param in enumerate(params):
        param.grad = piece_grads[i : i + 1]
    for optimizer in (rule([whole]), rule(params)):
        optimizer.step()
        optimizer.step()
    np.testing.assert_array_equal(bits(pieces), bits(whole.data))


def test_a_chunk_that_starts_beyond_32_bits(emulated, monkeypatch):
    """The tables of a tensor of 2³³ elements, of which this machine holds the last few."""
    far = 1 << 33
    param, twin = (Parameter(np.linspace(0, 1, 50, dtype="float32")) for _ in range(2))
    optimizer, other = Adam([param]), Adam([twin])
    optimizer.to("cuda:0")
    for one in (param, twin):
        one.grad = one.data * 3
    shift = far * param.dtype.itemsize

    def cut_far(sizes, chunk_elements):
        chunks = cut(sizes, chunk_elements)
        chunks["start"] += far
        return chunks

    def build_near(tensors, spans, addresses):
        return build(tensors, spans, [[address - shift for address in own] for own in addresses])

    cut, build = plan.cut, plan.build
    monkeypatch.setattr(plan, "cut", cut_far)
    monkeypatch.setattr(plan, "build", build_near)
    move = cuda.FusedLaunch.move_gradients
    monkeypatch.setattr(
        cuda.FusedLaunch,
        "move_gradients",
        lambda self, grads: move(self, grads - np.uint64(shift)),
    )
    optimizer.step()
    other.step()
    np.testing.assert_array_equal(bits(param.data), bits(twin.data))


@every_dtype
@LENIENT
@given(data=st.data())
def test_any_tensors(dtype, accelerator, data):
    case = data.draw(st.sampled_from(rules.cases(rules.rules())))
    layout = st.sampled_from(["C", "F", "strided", "reversed", 0, 1, 2, 3])
    shape = st.lists(st.integers(0, 9), max_size=3) | st.tuples(st.integers(4000, 4200))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    tensors = [
        tensor(rng, tuple(data.draw(shape)), dtype, data.draw(st.tuples(*[layout] * 5)), count=2)
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    assert_equal_on_both(case.rule, [(case.options, tensors)], accelerator)


@every_dtype
@LENIENT
@given(data=st.data())
def test_an_array_at_another_alignment_costs_no_other_array_its_vectors(dtype, emulated, data):
    size, momentum = data.draw(st.integers(1, 300)), data.draw(st.booleans())
    grads = [np.ones(size, dtype)] * 2
    layouts = data.draw(st.tuples(*[st.integers(0, 3)] * 3))
    param, grad, slot = (place(grads[0], "cuda:0", layout).view for layout in layouts)
    optimizer = SGD([Parameter(param)], lr=1.0, momentum=0.5 if momentum else 0.0)
    (own,) = optimizer.param_groups[0]["params"]
    own.grad = grad
    if momentum:
        optimizer.state[own].update(step=1, momentum_buffer=slot)
    emulated.record = Record()
    optimizer.step()

    arrays = [param, grad, slot][: 3 if momentum else 2]
    itemsize = param.dtype.itemsize
    places = [array.data.ptr for array in arrays]
    aligned = {*range(len(arrays))} - {*plan.misaligned(places, [itemsize] * len(arrays))}
    head = -places[min(aligned)] % 16 // itemsize
    vectors = max(0, size - head) * itemsize // 16
    assert len(aligned) * 2 > len(arrays) or len({place % 16 for place in places}) == len(arrays)
    assert emulated.record.vectors == vectors * sum(1 if k == 1 else 2 for k in aligned)
