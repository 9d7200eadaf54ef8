"""Where arrays live, and what is said where no GPU is."""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import address, are_alike, as_array, is_writable
from lucid_gpu.device.gpu import DeviceUnavailableError
from tests.emulation.machine import CUDARuntimeError


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
    assert gpu.default() == "cpu"
    assert gpu.count() == 0
    assert not gpu.is_capturing(["cpu"])
    assert Parameter([1.0]).device == "cpu"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("without_cupy", r"CuPy cannot be imported .*pip install '\.\[cuda13\]'"),
        ("without_driver", r"no usable NVIDIA driver .*cudaErrorInsufficientDriver.*pip install"),
        ("without_gpus", "the NVIDIA driver is installed but shows no GPU"),
    ],
)
def test_asking_for_a_gpu_says_what_is_missing_and_what_to_install(missing, message, request):
    request.getfixturevalue(missing)
    for ask in (
        gpu.cupy,
        lambda: gpu.resolve("cuda"),
        lambda: gpu.module("cuda:0"),
        lambda: Parameter([1.0], device="cuda:0"),
        lambda: transfer.pinned((3,), "f4"),
    ):
        with pytest.raises(DeviceUnavailableError, match=message):
            ask()


def test_hidden_gpus_are_named_as_such(without_gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES is ''" in gpu.why_unavailable()


def test_with_a_gpu_the_current_one_is_the_default(emulated):
    assert gpu.default() == "cuda:0"
    with gpu.on("cuda:1"):
        assert gpu.default() == "cuda:1"
        assert gpu.resolve("cuda") == "cuda:1"
    assert gpu.why_unavailable() == ""


def test_a_capture_is_seen_on_any_of_several_devices(emulated):
    import cupy

    for device in ("cuda:0", "cuda:1"):
        with gpu.on(device):
            stream = cupy.cuda.Stream(non_blocking=True)
        with contextlib.ExitStack() as stack:
            with gpu.on(device):
                stack.enter_context(stream)
                stream.begin_capture()
            assert gpu.is_capturing(["cpu", "cuda:0", "cuda:1"])
            stream.end_capture()
            assert not gpu.is_capturing(["cpu", "cuda:0", "cuda:1"])


def test_a_capture_concerns_nothing_on_the_cpu(emulated):
    import cupy

    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        assert not gpu.is_capturing(["cpu"])
        stream.end_capture()


def test_a_legacy_stream_is_not_asked_while_a_blocking_one_captures(emulated):
    """CUDA raises; the legacy stream itself cannot capture."""
    import cupy

    stream = cupy.cuda.Stream()
    stream.begin_capture()
    with pytest.raises(CUDARuntimeError, match="StreamCaptureImplicit"):
        cupy.cuda.get_current_stream().is_capturing()
    assert not gpu.is_capturing(["cuda:0", "cuda:1"])
    stream.end_capture()


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="use 'cpu', 'cuda' or 'cuda:N'"):
        gpu.resolve(name)


def test_a_device_is_named_by_a_string():
    with pytest.raises(TypeError, match="must be a string such as 'cpu' or 'cuda:0', not 0"):
        gpu.resolve(0)


def test_a_gpu_that_does_not_exist_is_refused_with_their_number(emulated):
    with pytest.raises(DeviceUnavailableError, match=r"'cuda:2' does not exist.* has 2 GPU"):
        gpu.resolve("cuda:2")


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
    assert np.shares_memory(as_array(Foreign(array)), array)


def test_pinned_memory_of_another_framework_is_an_array_of_the_host():
    class Pinned(Foreign):
        def __dlpack_device__(self):
            return 3, 0

    array = np.arange(3.0)
    assert np.shares_memory(as_array(Pinned(array)), array)


def test_a_number_of_numpy_is_an_array_and_other_things_are_none():
    assert as_array(np.float32(2)).shape == ()
    assert as_array([1.0]) is None
    assert as_array(None) is None


def test_arrays_are_alike_by_type_shape_dtype_and_device(emulated):
    array = np.zeros((2, 3), np.float32)
    first, second = (transfer.copy(array, name) for name in ("cuda:0", "cuda:1"))
    assert are_alike(array, array.copy())
    assert are_alike(first, first.copy())
    for other in (array.T, array.astype("f8"), first, None):
        assert not are_alike(other, array)
    assert not are_alike(first, second)


def test_an_array_is_writable_unless_it_is_read_only_or_immutable(device):
    array = transfer.copy(np.arange(3, dtype=np.float32), device)
    assert is_writable(array)
    assert array.tolist() == [0, 1, 2]
    for value in (np.frombuffer(b"\0" * 8), np.broadcast_to(1.0, (2,)), 1.0, np.float32(1), (1,)):
        assert not is_writable(value)


def test_addresses_are_those_of_the_first_element(device):
    array = transfer.copy(np.arange(8, dtype=np.float32), device)
    assert address(array[3:]) - address(array) == 12
    assert address(array[::-1]) - address(array) == 28
