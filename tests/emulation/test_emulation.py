"""The emulation is as strict as CuPy: what fails on a GPU fails here."""

from __future__ import annotations

import sys
import tempfile
import weakref

import numpy as np
import pytest

from lucid_gpu.device import gpu, kernels, transfer
from tests import emulation
from tests.emulation.machine import CUDARuntimeError

SCALE = """
template <typename T>
__global__ void scale(T* data, const T* factor) {
  const uint4 word = __ldcs(reinterpret_cast<const uint4*>(data) + threadIdx.x);
  T at[16 / sizeof(T)];
  memcpy(at, &word, sizeof(word));
  for (T& value : at) value *= *factor;
  uint4 scaled;
  memcpy(&scaled, at, sizeof(scaled));
  __stcs(reinterpret_cast<uint4*>(data) + threadIdx.x, scaled);
}
"""


@pytest.fixture
def cp(emulated):
    return gpu.cupy()


def kernel(text=SCALE, name="scale<float>"):
    """The kernel of a text, newly compiled by the emulated NVRTC."""
    image = kernels.compiled(text, [name], "sm_90")
    with tempfile.NamedTemporaryFile() as file:
        file.write(image.code)
        file.flush()
        return gpu.cupy().RawModule(path=file.name).get_function(image.lowered[name])


def test_cupy_is_there_only_while_it_is_installed():
    before = sys.modules.get("cupy")
    with emulation.installed():
        assert gpu.count() == 2
    assert sys.modules.get("cupy") is before


def test_a_kernel_runs_on_every_thread(cp):
    data, factor = cp.ones(16, np.float32), cp.array(np.float32(3))
    kernel()((1,), (4,), (data, factor))
    assert data.get().tolist() == [3] * 16


def test_a_misaligned_address_is_an_error(cp):
    data, factor = cp.ones(17, np.float32)[1:], cp.array(np.float32(3))
    with pytest.raises(RuntimeError, match="misaligned address"):
        kernel()((1,), (4,), (data, factor))


def test_an_array_of_the_host_is_no_argument_of_a_kernel(cp):
    with pytest.raises(TypeError, match="only those of one element"):
        kernel()((1,), (4,), (np.ones(16, np.float32), cp.ones(1, np.float32)))


def test_memory_of_another_device_is_no_argument_of_a_kernel(cp):
    with cp.cuda.Device(1):
        there = cp.ones(16, np.float32)
    with pytest.raises(ValueError, match="different from the current device"):
        kernel()((1,), (4,), (there, cp.ones(1, np.float32)))


def test_text_that_warns_does_not_compile(cp):
    text = "__global__ void idle(int* data) {}"
    with pytest.raises(kernels.KernelError, match="unused parameter"):
        kernel(text, "idle")


def test_text_is_no_module_without_our_compilation(cp):
    with pytest.raises(TypeError, match="code"):
        cp.RawModule(code=SCALE)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--std=c++17", "--fmad=false"),
        ("--std=c++17", "--fmad=false", "-ftz=true", "-arch=sm_90"),
    ],
)
def test_options_that_are_not_ours_are_refused(cp, options):
    nvrtc = cp.cuda.nvrtc
    program = nvrtc.createProgram(SCALE, "", (), ())
    with pytest.raises(nvrtc.NVRTCError, match="INVALID_OPTION"):
        nvrtc.compileProgram(program, options)


def test_code_for_an_unknown_architecture_is_refused(cp):
    with pytest.raises(kernels.KernelError, match="INVALID_OPTION"):
        kernels.compiled(SCALE, ["scale<float>"], "sm_99")


def test_a_cubin_without_its_last_byte_is_no_image(cp, tmp_path):
    image = kernels.compiled(SCALE, ["scale<float>"], "sm_90")
    path = tmp_path / "kernel.cubin"
    path.write_bytes(image.code[:-1])
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="INVALID_IMAGE"):
        cp.RawModule(path=str(path)).get_function(image.lowered["scale<float>"])


def test_a_kernel_whose_file_is_gone_is_for_the_device_it_was_loaded_on(cp):
    here = kernel()
    with cp.cuda.Device(1):
        data, factor = cp.ones(16, np.float32), cp.array(np.float32(3))
        with pytest.raises(cp.cuda.driver.CUDADriverError, match="FILE_NOT_FOUND"):
            here((1,), (4,), (data, factor))


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: here.__iadd__(there),
        lambda here, there: np.add(there, here),
    ],
)
def test_arrays_of_host_and_device_do_not_mix(cp, mix):
    with pytest.raises(TypeError, match="Unsupported type"):
        mix(cp.ones(3), np.ones(3))


def test_arrays_of_two_devices_do_not_mix(cp):
    with cp.cuda.Device(1):
        there = cp.ones(3)
    for use in (lambda: cp.ones(3) + there, lambda: there.__setitem__(0, 1), lambda: cp.exp(there)):
        with pytest.raises(ValueError, match="different from the current device"):
            use()


def test_filling_from_the_host_is_refused(cp):
    with pytest.raises(ValueError, match=r"numpy\.ndarray cannot be used for fill"):
        cp.zeros(3)[...] = np.ones(3)


def test_results_without_dimensions_are_arrays_of_the_device(cp):
    values = cp.arange(3.0)
    for result in (values.sum(), values[1], cp.max(values), values * 2):
        assert isinstance(result, cp.ndarray)


def test_new_memory_holds_nothing_of_use(cp):
    assert np.isnan(cp.empty((2, 3), np.float32).get()).all()


def test_copy_false_forbids_a_copy(cp):
    array = cp.ones((3, 4))
    assert cp.array(array, copy=False) is array
    for needs_a_copy in (array[:, ::2], np.ones(3)):
        with pytest.raises(ValueError, match="Unable to avoid copy"):
            cp.array(needs_a_copy, order="C", copy=False)


def test_only_pinned_memory_is_copied_asynchronously(cp):
    host = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="not pinned"):
        cp.zeros(8, np.uint8).data.copy_from_host_async(host.ctypes.data, 8)


def test_a_copy_past_the_end_is_an_error(cp):
    host = transfer.pinned((16,), np.uint8)
    with pytest.raises(ValueError, match="past the end"):
        (cp.zeros(16, np.uint8).data + 8).copy_from_host_async(host.ctypes.data, 16)


def test_pinned_memory_is_handed_out_again_as_soon_as_it_is_let_go(cp):
    first = transfer.pinned((12345,), np.uint8)
    place = first.ctypes.data
    view = first[5:]
    del first
    assert transfer.pinned((12345,), np.uint8).ctypes.data != place
    del view
    assert place in {transfer.pinned((12345,), np.uint8).ctypes.data for _ in range(2)}


def test_a_capture_allows_neither_allocation_nor_synchronization(cp):
    stream = cp.cuda.Stream(non_blocking=True)
    event = cp.cuda.Event()
    with stream:
        stream.begin_capture()
        for use in (
            lambda: cp.zeros(3),
            stream.synchronize,
            event.synchronize,
            cp.cuda.Device().synchronize,
        ):
            with pytest.raises(CUDARuntimeError, match="while capturing"):
                use()
        stream.end_capture()


def test_the_default_stream_cannot_capture(cp):
    with pytest.raises(RuntimeError, match="default"):
        cp.cuda.get_current_stream().begin_capture()


def test_a_stream_is_used_on_its_own_device_only(cp):
    stream = cp.cuda.Stream()
    with cp.cuda.Device(1), pytest.raises(RuntimeError, match="does not match"):
        stream.use()


RECORD = """
struct Record { float* data; float factor; };
__global__ void scale(Record record) { record.data[threadIdx.x] *= record.factor; }
"""


def scaled(cp, data, factor):
    """Launch a kernel on a record that holds an address and a value; return the record."""
    record = np.zeros((), [("data", "u8"), ("factor", "f4"), ("", "V4")])
    record["data"], record["factor"] = data.data.ptr, factor
    kernel(RECORD, "scale")((1,), (data.size,), (record,))
    return record


def test_a_record_of_the_host_is_an_argument_by_value(cp, emulated):
    data = cp.ones(4, np.float32)
    emulated.lazy = True
    record = scaled(cp, data, 3)
    record["factor"] = 5
    assert data.get().tolist() == [3] * 4


def test_what_a_record_points_at_stays_until_the_launch_has_run(cp, emulated):
    data = cp.ones(4, np.float32)
    place = weakref.ref(data.base)
    emulated.lazy = True
    scaled(cp, data, 3)
    del data
    assert place() is not None
    cp.cuda.get_current_stream().synchronize()
    assert place() is None


def test_a_lazy_stream_works_when_the_host_waits(cp, emulated):
    data, factor = cp.ones(16, np.float32), cp.array(np.float32(3))
    emulated.lazy = True
    kernel()((1,), (4,), (data, factor))
    assert (data.view(np.ndarray) == 1).all()
    event = cp.cuda.get_current_stream().record()
    kernel()((1,), (4,), (data, factor))
    assert not event.done
    event.synchronize()
    assert event.done
    assert (data.view(np.ndarray) == 3).all()
    assert data.get().tolist() == [9] * 16


def test_a_stream_waits_for_an_event_of_another(cp, emulated):
    done = []
    emulated.lazy = True
    one, other = cp.cuda.Stream(), cp.cuda.Stream()
    one.submit(lambda: done.append("one"))
    other.wait_event(one.record())
    other.submit(lambda: done.append("other"))
    other.synchronize()
    assert done == ["one", "other"]


WAITING = """
__global__ void reverse(int* data) {
  __shared__ int copy[64];
  copy[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  data[threadIdx.x] = copy[63 - threadIdx.x];
}
__global__ void leave(int* data) {
  if (threadIdx.x < 32) data[threadIdx.x] = __shfl_down_sync(~0u, data[threadIdx.x], 1);
  if (__syncthreads_or(threadIdx.x == 40)) data[threadIdx.x] += 100;
}
__global__ void hang(int* data) {
  if (threadIdx.x == 0) __syncthreads();
  else data[threadIdx.x] = __shfl_down_sync(~0u, 1, 1);
}
"""


@pytest.fixture
def numbers(cp):
    return cp.array(np.arange(64, dtype=np.int32))


def test_threads_of_a_block_wait_for_each_other(numbers):
    kernel(WAITING, "reverse")((1,), (64,), (numbers,))
    assert numbers.get().tolist() == list(range(63, -1, -1))


def test_threads_of_a_warp_wait_without_the_others_of_the_block(numbers):
    kernel(WAITING, "leave")((1,), (64,), (numbers,))
    shifted = [*range(1, 32), 31, *range(32, 64)]
    assert numbers.get().tolist() == [100 + number for number in shifted]


def test_threads_that_wait_for_others_in_vain_are_an_error(numbers):
    with pytest.raises(RuntimeError, match="wait for others that never come"):
        kernel(WAITING, "hang")((1,), (64,), (numbers,))
