"""Where arrays live, what is said where no GPU is, and copies between host and device."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter
from lucid_gpu import device as _device
from lucid_gpu.device import DeviceUnavailableError
from tests.emulation.machine import CUDARuntimeError, Record

LENIENT = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def without_cupy(monkeypatch):
    """A process in which CuPy cannot be imported."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    _device._probe.cache_clear()
    yield
    _device._probe.cache_clear()


@pytest.fixture
def without_driver(emulated, monkeypatch):
    """CuPy without an NVIDIA driver."""

    def fail():
        raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "getDeviceCount", fail)


@pytest.fixture
def without_gpus(emulated):
    """A driver that shows no GPU."""
    emulated.devices = 0


@pytest.mark.parametrize("missing", ["without_cupy", "without_driver", "without_gpus"])
def test_without_a_gpu_everything_is_on_the_cpu(missing, request):
    request.getfixturevalue(missing)
    assert _device.default() == "cpu"
    assert _device.count() == 0
    assert not _device.is_capturing()
    assert Parameter([1.0]).device == "cpu"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("without_cupy", r"CuPy cannot be imported .*pip install 'lucid-gpu\[cuda13\]'"),
        ("without_driver", r"no usable NVIDIA driver .*cudaErrorInsufficientDriver.*pip install"),
        ("without_gpus", "the NVIDIA driver is installed but shows no GPU"),
    ],
)
def test_asking_for_a_gpu_says_what_is_missing_and_what_to_install(missing, message, request):
    request.getfixturevalue(missing)
    for ask in (
        _device.cupy,
        lambda: _device.resolve("cuda"),
        lambda: _device.module("cuda:0"),
        lambda: Parameter([1.0], device="cuda:0"),
        lambda: _device.pinned((3,), "f4"),
    ):
        with pytest.raises(DeviceUnavailableError, match=message):
            ask()


def test_hidden_gpus_are_named_as_such(without_gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES is ''" in _device.why_unavailable()


def test_with_a_gpu_the_current_one_is_the_default(emulated):
    assert _device.default() == "cuda:0"
    with _device.on("cuda:1"):
        assert _device.default() == "cuda:1"
        assert _device.resolve("cuda") == "cuda:1"
    assert _device.why_unavailable() == ""


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="use 'cpu', 'cuda' or 'cuda:N'"):
        _device.resolve(name)


def test_a_device_is_named_by_a_string():
    with pytest.raises(TypeError, match="must be a string such as 'cpu' or 'cuda:0', not 0"):
        _device.resolve(0)


def test_a_gpu_that_does_not_exist_is_refused_with_their_number(emulated):
    with pytest.raises(DeviceUnavailableError, match=r"'cuda:2' does not exist.* has 2 GPU"):
        _device.resolve("cuda:2")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "bool", "complex64"])
@pytest.mark.parametrize("shape", [(), (0,), (1, 0, 2), (1,), (7,), (3, 5), (2, 3, 4)])
def test_a_copy_to_the_device_and_back_keeps_bits_and_layout(
    accelerator, shape, dtype, order, monkeypatch, rng
):
    monkeypatch.setattr(_device, "STAGING_BYTES", 24)
    array = np.asarray(np.array(rng.normal(size=shape) * 9).astype(dtype), order=order)
    there = _device.copy(array, accelerator)
    back = _device.copy(there, "cpu")
    assert _device.of(there) == accelerator
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    assert _device.layout(there) == _device.layout(back) == _device.layout(array)
    np.testing.assert_array_equal(back, array)
    assert not np.shares_memory(back, array)


@LENIENT
@given(
    elements=st.integers(0, 40), staging=st.integers(1, 100), cut=st.sampled_from([1, 2, 3, -1, -2])
)
def test_pieces_of_any_size_make_a_whole(accelerator, monkeypatch, elements, staging, cut):
    monkeypatch.setattr(_device, "STAGING_BYTES", staging)
    array = np.arange(elements, dtype=np.int16)[::cut]
    there = _device.copy(array, accelerator)
    np.testing.assert_array_equal(_device.copy(there, "cpu"), array)
    np.testing.assert_array_equal(_device.copy(there[::-1], "cpu"), array[::-1])


def test_staging_takes_two_buffers_however_large_the_array(emulated, monkeypatch):
    monkeypatch.setattr(_device, "STAGING_BYTES", 64)
    array = np.arange(1000, dtype=np.float64)
    emulated.record = Record()
    there = _device.copy(array, "cuda:0")
    assert emulated.record.allocations == 3
    assert emulated.record.uploads == [64] * 125
    emulated.record = Record()
    _device.copy(there, "cpu")
    assert emulated.record.allocations == 2
    assert emulated.record.downloads == [64] * 125


@pytest.mark.parametrize("view", [np.s_[::2], np.s_[::-1], np.s_[:, 1], np.s_[1:, ::3]])
def test_a_view_is_copied_as_it_is_seen(accelerator, view):
    array = np.arange(24.0).reshape(4, 6)
    there = _device.copy(array, accelerator)
    np.testing.assert_array_equal(_device.copy(there[view], "cpu"), array[view])
    np.testing.assert_array_equal(
        _device.copy(_device.copy(array[view], accelerator), "cpu"), array[view]
    )


def test_a_late_device_gets_every_piece(emulated, monkeypatch):
    monkeypatch.setattr(_device, "STAGING_BYTES", 8)
    emulated.lazy = True
    array = np.arange(100, dtype=np.uint8)
    np.testing.assert_array_equal(_device.copy(_device.copy(array, "cuda:0"), "cpu"), array)


def test_an_interrupted_copy_waits_before_it_lets_go_of_its_buffers(emulated):
    emulated.lazy = True
    there = _device.copy(np.arange(8, dtype=np.uint8), "cuda:0")
    kept = []

    def copy_halfway():
        with _device._staging(8) as (stream, (buffer,), _):
            kept.extend([stream, buffer])
            there.data.copy_to_host_async(buffer.ctypes.data, 8, stream)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_halfway()
    stream, buffer = kept
    assert stream.done
    assert buffer.tolist() == list(range(8))


def test_a_copy_within_a_device_is_another_array(accelerator):
    there = _device.copy(np.arange(6.0).reshape(2, 3), accelerator)
    for source in (there, there.T, there[:, ::2]):
        copied = _device.copy(source, accelerator)
        assert _device.address(copied) != _device.address(source)
        assert _device.layout(copied) == _device.layout(source)
        np.testing.assert_array_equal(_device.to(copied, "cpu"), _device.to(source, "cpu"))


@pytest.mark.parametrize("view", [np.s_[:], np.s_[:, ::2]])
@pytest.mark.parametrize("first", ["cuda:0", "cuda:1"])
def test_a_copy_between_gpus_waits_for_the_work_of_both(emulated, view, first):
    import cupy

    streams = {}
    for name in ("cuda:0", "cuda:1"):
        with _device.on(name):
            streams[name] = cupy.cuda.get_current_stream()
    there = _device.copy(np.zeros((3, 4)), "cuda:0")
    emulated.lazy = True
    with _device.on("cuda:0"):
        streams["cuda:0"].submit(lambda: there.view(np.ndarray).fill(7))
    copied = _device.copy(there[view], "cuda:1")
    with _device.on("cuda:0"):
        streams["cuda:0"].submit(lambda: there.view(np.ndarray).fill(9))
    for name in sorted(streams, key=lambda name: name != first):
        streams[name].drain()
    assert (copied.view(np.ndarray) == 7).all()


def test_to_returns_an_array_that_is_there_already(device):
    array = _device.copy(np.ones(3), device)
    assert _device.to(array, device) is array


class Foreign:
    """An array of another framework, which speaks DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_an_array_of_another_framework_shares_its_memory():
    array = np.arange(3.0)
    assert np.shares_memory(_device.as_array(Foreign(array)), array)


def test_a_number_of_numpy_is_an_array_and_other_things_are_none():
    assert _device.as_array(np.float32(2)).shape == ()
    assert _device.as_array([1.0]) is None
    assert _device.as_array(None) is None


def test_arrays_are_alike_by_type_shape_dtype_and_device(emulated):
    array = np.zeros((2, 3), np.float32)
    first, second = (_device.copy(array, name) for name in ("cuda:0", "cuda:1"))
    assert _device.are_alike(array, array.copy())
    assert _device.are_alike(first, first.copy())
    for other in (array.T, array.astype("f8"), first, None):
        assert not _device.are_alike(other, array)
    assert not _device.are_alike(first, second)


def test_addresses_are_those_of_the_first_element(device):
    array = _device.copy(np.arange(8, dtype=np.float32), device)
    assert _device.address(array[3:]) - _device.address(array) == 12
    assert _device.address(array[::-1]) - _device.address(array) == 28
