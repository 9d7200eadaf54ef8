"""Clipping: PyTorch's formula, the same bits on every device, and errors that name parameters."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter
from lucid_gpu.device import gpu
from lucid_gpu.execution import changed
from lucid_gpu.execution.measured import Measured
from lucid_gpu.gradients import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from lucid_gpu.optim import SGD
from tests.emulation.machine import Record
from tests.execution import sums_oracle as oracle
from tests.gradients.given import host, params, values
from tests.stepping import bits, place

SUPPRESSED = [HealthCheck.function_scoped_fixture]


def flat(params):
    return np.concatenate([own.ravel() for own in values(params)])


@pytest.mark.parametrize(
    ("most", "p", "norm", "expected"),
    [
        (1.3, 2.0, 13, [0.299999977, 0.399999969, 1.19999991]),
        (20, 2.0, 13, [3, 4, 12]),
        (1, math.inf, 12, [0.249999979, 0.333333306, 0.999999917]),
        (1, "inf", 12, [0.249999979, 0.333333306, 0.999999917]),
        (3, 1, 19, [0.473684186, 0.631578914, 1.894736742]),
        (1, 3, 12.207054953820636, [0.245759503, 0.327679337, 0.983038011]),
        (0, 2.0, 13, [0, 0, 0]),
    ],
)
def test_golden_numbers_in_float64(device, most, p, norm, expected):
    own = params([np.array([3.0, 4.0]), np.array([12.0])], device)
    found = clip_grad_norm_(own, most, p)
    assert float(host(found)) == pytest.approx(norm, rel=1e-15)
    np.testing.assert_allclose(flat(own), expected, rtol=3e-9)


def test_golden_numbers_in_float32(device):
    own = params([np.array([3, 4], "f4"), np.array([12], "f4")], device)
    found = clip_grad_norm_(own, 1.3)
    assert (found.dtype, found.shape, float(host(found))) == (np.float32, (), 13.0)
    np.testing.assert_allclose(flat(own), [0.299999982, 0.399999976, 1.19999993], rtol=3e-9)


def test_the_norm_is_on_the_device_of_the_gradients(accelerator):
    found = clip_grad_norm_(params([np.ones(3)], accelerator), 1.0)
    assert isinstance(found, gpu.cupy().ndarray)


@pytest.mark.parametrize("name", oracle.DTYPES)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=SUPPRESSED)
@given(data=st.data())
def test_gpus_and_cpus_clip_to_the_same_bits(name, accelerator, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shapes = st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=4)
    scale = data.draw(st.sampled_from([1.0, 1e-3, 1e-37]))
    grads = [
        np.asarray(rng.normal(scale=scale, size=shape)).astype(oracle.dtype(name))
        for shape in data.draw(shapes)
    ]
    layout = data.draw(st.sampled_from(["C", "F", "strided", "reversed", 1, 3]))
    most = data.draw(st.sampled_from([0.5, 1e-37, 100.0]))
    ours, twins = params(grads, accelerator, layout), params(grads)
    norms = [clip_grad_norm_(own, most) for own in (ours, twins)]
    assert bits(norms[0]).tolist() == bits(norms[1]).tolist()
    for one, twin in zip(ours, twins, strict=True):
        np.testing.assert_array_equal(bits(one.grad), bits(twin.grad))


def test_large_gradients_are_clipped_in_pieces(device, monkeypatch, rng):
    monkeypatch.setattr(changed, "PIECE_ELEMENTS", 1000)
    grads = [rng.normal(size=9001).astype("f4"), rng.normal(size=(50, 60))]
    own = params(grads, device)
    norm = math.sqrt(sum(float(np.sum(np.float64(grad) ** 2)) for grad in grads))
    clip_grad_norm_(own, 1.0)
    for param, grad in zip(values(own), grads, strict=True):
        np.testing.assert_allclose(param, grad / norm, rtol=1e-5)


def test_clipping_is_pytorchs(rng):
    torch = pytest.importorskip("torch")
    for p in (2.0, 1.0, 3.0, math.inf):
        for most in (0.0, 0.7, 1e9):
            grads = [rng.normal(size=shape) for shape in [(3, 4), (), (5,)]]
            theirs = [torch.nn.Parameter(torch.zeros(grad.shape).double()) for grad in grads]
            for param, grad in zip(theirs, grads, strict=True):
                param.grad = torch.from_numpy(np.asarray(grad).copy())
            ours = params(grads)
            found = clip_grad_norm_(ours, most, p)
            expected = torch.nn.utils.clip_grad_norm_(theirs, most, p)
            assert float(found) == pytest.approx(float(expected), rel=1e-14)
            for one, other in zip(values(ours), theirs, strict=True):
                np.testing.assert_allclose(one, other.grad.numpy(), rtol=1e-14)


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_comes_out_as_of_pytorch(device, poison):
    torch = pytest.importorskip("torch")
    (ours,) = params([np.array([3, poison], "f4")], device)
    theirs = torch.nn.Parameter(torch.zeros(2))
    theirs.grad = torch.tensor([3, poison])
    found = clip_grad_norm_(ours, 1.0)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    np.testing.assert_array_equal(host(found), expected.numpy())
    np.testing.assert_array_equal(host(ours.grad), theirs.grad.numpy())


def test_squares_that_no_float32_could_hold_are_added_up(device):
    own = params([np.array([1e20, 1e20], "f4")], device)
    assert float(host(clip_grad_norm_(own, 1.0))) == pytest.approx(1.41421356e20, rel=1e-6)
    np.testing.assert_allclose(flat(own), [0.70710678] * 2, rtol=1e-6)


def test_the_norm_of_many_is_exact_where_sums_in_float32_are_not(device):
    own = params([np.full(1 << 21, 0.1, "f4")], device)
    exact = np.float32(math.sqrt((1 << 21) * float(np.float32(0.1)) ** 2))
    assert host(clip_grad_norm_(own, 1e9)) == pytest.approx(exact, rel=1e-7)


def test_a_tensor_and_its_chunks_have_one_norm_to_the_bit(device):
    numbers = np.random.default_rng(0).normal(size=5 * 4096)
    whole, parts = (
        get_total_norm([place(part, device).view for part in split])
        for split in ([numbers], np.split(numbers, 5))
    )
    assert host(whole).tobytes() == host(parts).tobytes()


@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [
        (["f4", "f8"], "f8"),
        (["f2", "f4"], "f4"),
        (["f2"], "f2"),
        (["f2", ml_dtypes.bfloat16], "f4"),
        ([ml_dtypes.bfloat16], ml_dtypes.bfloat16),
    ],
)
def test_the_norm_has_the_widest_dtype(device, dtypes, widest):
    own = params([np.ones(2, dtype) for dtype in dtypes], device)
    assert clip_grad_norm_(own, 1.0).dtype == np.dtype(widest)


def test_a_parameter_an_optimizer_and_named_parameters_are_taken(device):
    grads = [np.array([3.0, 4.0]), None, np.array([12.0])]
    for wrapped in (
        lambda own: own,
        iter,
        SGD,
        lambda own: [("name", param) for param in own],
        lambda own: SGD([{"params": own[:1]}, {"params": own[1:]}]),
    ):
        own = params(grads, device)
        assert float(host(clip_grad_norm_(wrapped(own), 1.0))) == 13.0
        assert own[1].grad is None
    assert float(host(clip_grad_norm_(params(grads, device)[0], 1.0))) == 5.0


def test_without_gradients_the_norm_is_zero():
    for own in ([], params([None])):
        assert clip_grad_norm_(own, 1.0).tolist() == 0.0
        clip_grad_value_(own, 1.0)
        clip_grads_with_norm_(own, 1.0, 2.0)


def test_gradients_of_several_devices_have_one_norm(emulated, rng):
    arrays = [rng.normal(size=size).astype("f4") for size in (5, 9001, 7, 300)]
    homes = ["cuda:1", "cuda:0", "cpu", "cuda:1"]
    mixed = [params([one], home)[0] for one, home in zip(arrays, homes, strict=True)]
    twins = params(arrays)
    norms = [clip_grad_norm_(own, 1.0) for own in (mixed, twins)]
    assert norms[0].device.id == 1
    assert bits(norms[0]).tolist() == bits(norms[1]).tolist()
    for one, twin in zip(mixed, twins, strict=True):
        np.testing.assert_array_equal(bits(one.grad), bits(twin.grad))
    assert float(host(get_total_norm([param.grad for param in mixed], 1))) == pytest.approx(
        float(get_total_norm([param.grad for param in twins], 1)), rel=1e-6
    )
    first_on_cpu = clip_grad_norm_([mixed[2], *mixed[:2]], 1.0)
    assert isinstance(first_on_cpu, np.ndarray)


def test_the_host_waits_for_nothing_and_launches_do_not_grow_with_parameters(emulated):
    own = params([np.ones(5, "f4")] * 5 + [np.ones(4), np.ones(3, "f2")], "cuda:0")
    clip_grad_norm_(own, 1.0)
    emulated.record = Record()
    clip_grad_norm_(own, 1.0)
    assert emulated.record.synchronizations == 0
    assert len(emulated.record.launches) == 3 + 3
    assert emulated.record.uploads == []


def test_gradients_that_need_no_clipping_are_only_read(emulated):
    own = params([np.ones(4096, "f4")], "cuda:0")
    clip_grad_norm_(own, 1e9)
    emulated.record = Record()
    clip_grad_norm_(own, 1e9)
    assert emulated.record.vectors == 4096 // 4
    clip_grad_norm_(own, 1.0)
    assert emulated.record.vectors == 4 * 4096 // 4


def test_streams_do_not_share_results_and_calls_on_one_do(emulated):
    cp = gpu.cupy()
    grads = [param.grad for param in params([np.full(4, 2.0)], "cuda:0")]
    used = []
    for stream in [cp.cuda.Stream(non_blocking=True) for _ in range(2)]:
        with stream:
            used += [Measured(grads)._parts[0].sums for _ in range(2)]
    assert used[0] is used[1] is not used[2]
    assert used[2] is used[3]


def test_a_stream_that_records_is_refused(accelerator):
    cp = gpu.cupy()
    own = params([np.ones(3)], accelerator)
    with cp.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match=r"clip_grad_norm_\(\) cannot be recorded"):
            clip_grad_norm_(own, 1.0)
        stream.end_capture()


@pytest.mark.parametrize("p", [2.0, 1.0, math.inf])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_can_be_an_error_that_names_the_parameters(device, p, poison):
    own = params([np.ones(3), np.array([1, poison, poison]), np.array([poison])], device)
    with pytest.raises(RuntimeError, match=r"2 non-finite elements in 'b', 1 .* 'c'\. Nothing"):
        clip_grad_norm_(own, 1.0, p, error_if_nonfinite=True)
    assert host(own[0].grad).tolist() == [1, 1, 1]


def test_a_norm_that_overflows_is_an_error_too(device):
    own = params([np.array([1e200, 1e200])], device)
    with pytest.raises(RuntimeError, match="is inf: all of whose elements are finite"):
        clip_grad_norm_(own, 1.0, error_if_nonfinite=True)


def test_total_norm_and_clipping_are_the_halves_of_one(device, rng):
    grads = [rng.normal(size=9), rng.normal(size=(3, 4))]
    whole, halves = params(grads, device), params(grads, device)
    norm = get_total_norm(param.grad for param in halves)
    clip_grads_with_norm_(halves, 0.5, norm)
    assert bits(norm) == bits(clip_grad_norm_(whole, 0.5))
    for one, other in zip(whole, halves, strict=True):
        np.testing.assert_array_equal(bits(one.grad), bits(other.grad))


@pytest.mark.parametrize("norm", [8, 8.0, np.float32(8), np.array([8.0])])
def test_clipping_takes_a_norm_of_any_kind(norm):
    own = params([np.array([4.0])])
    clip_grads_with_norm_(own, 2.0, norm)
    np.testing.assert_allclose(own[0].grad, [1.0], rtol=1e-6)


def test_the_total_norm_of_an_array_and_of_none_is_taken(device):
    array = place(np.array([3, 4], "f2"), device).view
    assert float(host(get_total_norm(array))) == 5.0
    assert float(host(get_total_norm([None, array]))) == 5.0
    assert float(get_total_norm([])) == 0.0
    with pytest.raises(RuntimeError, match="1 non-finite elements in 'tensor 2'"):
        get_total_norm([array, None, np.array([np.nan])], error_if_nonfinite=True)


@pytest.mark.parametrize("name", oracle.DTYPES)
@pytest.mark.parametrize("layout", ["C", "F", "strided", 1])
def test_values_are_brought_to_the_nearest_in_bounds(device, name, layout):
    grads = np.array([[-3, -0.5, np.nan], [1e-40, np.inf, 0.25]]).astype(oracle.dtype(name))
    own = params([grads], device, layout)
    clip_grad_value_(own, 0.5)
    expected = np.array([[-0.5, -0.5, np.nan], [1e-40, 0.5, 0.25]]).astype(grads.dtype)
    np.testing.assert_array_equal(bits(own[0].grad), bits(expected))


def test_a_bound_that_no_float16_holds_is_no_bound(device):
    own = params([np.array([6e4, -1], "f2")], device)
    clip_grad_value_(own, 1e6)
    assert host(own[0].grad).tolist() == [6e4, -1]


@pytest.mark.parametrize("bad", [-1.0, math.nan, -math.inf])
def test_bounds_below_zero_are_refused(bad):
    own = params([np.ones(2)])
    with pytest.raises(ValueError, match=f"max_norm must be >= 0, not {bad}"):
        clip_grad_norm_(own, bad)
    with pytest.raises(ValueError, match="max_norm must be >= 0"):
        clip_grads_with_norm_(own, bad, 1.0)
    with pytest.raises(ValueError, match="clip_value must be >= 0"):
        clip_grad_value_(own, bad)
    with pytest.raises(ValueError, match="norm_type must be >= 0"):
        get_total_norm([np.ones(2)], bad)
    assert own[0].grad.tolist() == [1, 1]


@pytest.mark.parametrize("bad", ["1", None, 1j, [1.0], np.ones(2), True])
def test_what_is_no_number_is_refused(bad):
    own = params([np.ones(2)])
    with pytest.raises(TypeError, match="max_norm must be a number"):
        clip_grad_norm_(own, bad)
    with pytest.raises(TypeError, match="clip_value must be a number"):
        clip_grad_value_(own, bad)
    with pytest.raises(TypeError, match="total_norm must be"):
        clip_grads_with_norm_(own, 1.0, bad)


def test_a_norm_of_order_zero_is_refused():
    with pytest.raises(ValueError, match="norm_type must be > 0, not 0"):
        clip_grad_norm_(params([np.ones(2)]), 1.0, 0)


def test_an_unknown_way_to_report_is_refused():
    with pytest.raises(ValueError, match="on_nonfinite must be None or 'report_late', not 'raise'"):
        clip_grad_norm_(params([np.ones(2)]), 1.0, on_nonfinite="raise")


@pytest.mark.parametrize("bad", [3, "w", {"w": 1}, {1}, np.ones(2), [np.ones(2)], [("w", 1)]])
def test_what_are_no_parameters_is_refused(bad):
    with pytest.raises(TypeError, match="parameters"):
        clip_grad_norm_(bad, 1.0)


def test_a_gradient_that_cannot_be_clipped_is_named_and_none_is_changed():
    class Foreign:
        data = np.ones(2)

        def __init__(self, grad):
            self.grad = grad

    def broken(grad):
        return [*params([np.full(2, 9.0)]), ("odd", Foreign(grad))]

    locked = np.ones(2)
    locked.flags.writeable = False
    for grad, error, words in [
        (np.ones(2, "i4"), TypeError, "'odd' is an array of int32"),
        ([1.0], TypeError, "'odd' is a list"),
        (np.ones(2, ">f4"), TypeError, "array of >f4"),
        (locked, ValueError, "'odd' is read-only"),
    ]:
        own = broken(grad)
        with pytest.raises(error, match=words):
            clip_grad_norm_(own, 1.0)
        assert own[0].grad.tolist() == [9, 9]


def test_one_gradient_of_two_parameters_is_refused(device):
    one, other = params([np.ones(2), np.ones(2)], device)
    other.grad = one.grad
    with pytest.raises(ValueError, match="'a' and 'b' have the same gradient"):
        clip_grad_norm_([one, other], 1.0)
    with pytest.raises(ValueError, match="'a' and 'a' have the same gradient"):
        clip_grad_value_([one, one], 1.0)
    empty = Parameter(np.zeros(0))
    empty.grad = empty.data
    clip_grad_norm_([empty, empty], 1.0)
