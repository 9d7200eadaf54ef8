"""Kernels are compiled once, kept on disk, and loaded on each device."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu.device import gpu, kernels
from lucid_gpu.device.kernels import KernelError, architecture
from tests import emulation
from tests.emulation.machine import Device, Record

TEXT = """
template <typename T>
__global__ void scale(T* data, const T* factor) { data[threadIdx.x] *= *factor; }
"""
NAMES = ["scale<float>", "scale<double>"]


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The folder of the cache, which is not there yet."""
    monkeypatch.setenv("LUCID_GPU_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def scaled(kernel, dtype="float32"):
    """Three times 1, 2, 3 by a kernel on the current device."""
    cp = gpu.cupy()
    data, factor = cp.array(np.array([1, 2, 3], dtype)), cp.array(np.array(3, dtype))
    kernel((1,), (3,), (data, factor))
    return data.get().tolist()


def test_kernels_are_loaded_from_the_cache_also_when_they_were_just_compiled(emulated, folder):
    kernels.load(TEXT, NAMES)
    assert [str(folder) in path for path in emulated.record.loads] == [True, True]


def test_a_process_loads_a_kernel_once_on_each_device(emulated, folder):
    folder.write_text("nothing can be kept here")
    for number in (0, 1, 0, 1):
        with gpu.cupy().cuda.Device(number):
            assert scaled(kernels.kernel(TEXT, NAMES[0])) == [3, 6, 9]
    assert len(emulated.record.loads) == 2


def test_a_kernel_for_each_name(emulated, folder):
    for kernel, dtype in zip(kernels.load(TEXT, NAMES), ("float32", "float64"), strict=True):
        assert scaled(kernel, dtype) == [3, 6, 9]


def test_names_share_one_compilation_and_one_file(emulated, folder):
    kernels.load(TEXT, NAMES)
    assert emulated.record.compiles == NAMES
    assert len([*folder.glob("*.cubin")]) == 1


def test_a_second_process_compiles_nothing(emulated, folder):
    kernels.load(TEXT, NAMES)
    emulation.forget()
    emulated.record = Record()
    (_, kernel) = kernels.load(TEXT, NAMES)
    assert emulated.record.compiles == []
    assert len(emulated.record.loads) == 2
    assert scaled(kernel, "float64") == [3, 6, 9]


def test_a_second_device_of_the_same_architecture_compiles_nothing(emulated, folder):
    kernels.load(TEXT, NAMES)
    emulated.record = Record()
    with gpu.cupy().cuda.Device(1):
        (kernel, _) = kernels.load(TEXT, NAMES)
        assert scaled(kernel) == [3, 6, 9]
    assert emulated.record.compiles == []


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(Device, "compute_capability", "80"),
        lambda patch: patch.setattr(gpu.cupy().cuda.nvrtc, "getVersion", lambda: (12, 9)),
        lambda patch: patch.setitem(globals(), "TEXT", TEXT + "\n"),
        lambda patch: patch.setitem(globals(), "NAMES", NAMES[:1]),
    ],
    ids=["architecture", "compiler", "text", "names"],
)
def test_what_was_compiled_for_something_else_is_compiled_anew(
    emulated, folder, monkeypatch, change
):
    kernels.load(TEXT, NAMES)
    emulated.record = Record()
    change(monkeypatch)
    kernels.load(TEXT, NAMES)
    assert emulated.record.compiles == NAMES


def test_options_count_for_the_cache(emulated, folder, monkeypatch):
    kernels.load(TEXT, NAMES)
    monkeypatch.setattr(kernels, "OPTIONS", ("--other",))
    with pytest.raises(KernelError, match="INVALID_OPTION"):
        kernels.load(TEXT, NAMES)


@pytest.mark.parametrize("damage", [b"", b"EMULATED CUBIN\nnowhere\n\0"])
def test_a_damaged_entry_is_built_anew(emulated, folder, damage):
    kernels.load(TEXT, NAMES)
    (cubin,) = folder.glob("*.cubin")
    cubin.write_bytes(damage)
    emulated.record = Record()
    assert scaled(kernels.load(TEXT, NAMES)[0]) == [3, 6, 9]
    assert emulated.record.compiles == NAMES
    assert cubin.read_bytes() != damage


def test_an_entry_that_the_driver_refuses_is_built_anew(emulated, folder):
    kernels.load(TEXT, NAMES)
    (cubin,) = folder.glob("*.cubin")
    kernels.disk_cache.keep(cubin.stem, ".cubin", b"whole, but no cubin", dict.fromkeys(NAMES, "x"))
    assert scaled(kernels.load(TEXT, NAMES)[0]) == [3, 6, 9]


def test_a_cache_that_cannot_be_written_is_no_error(emulated, folder):
    folder.write_text("a file")
    for _ in range(2):
        assert scaled(kernels.load(TEXT, NAMES)[0]) == [3, 6, 9]
    assert emulated.record.compiles == NAMES * 2


def test_without_a_cache_each_device_has_a_kernel_of_its_own(emulated, folder):
    folder.write_text("a file")
    for number in (0, 1):
        with gpu.cupy().cuda.Device(number):
            assert scaled(kernels.load(TEXT, NAMES)[0]) == [3, 6, 9]


def test_a_temporary_file_is_gone_once_it_is_loaded(emulated, folder, monkeypatch, tmp_path):
    folder.write_text("a file")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    kernels.compiled(TEXT, NAMES, "sm_90")  # the emulation's own files
    before = [*temporary.iterdir()]
    kernels.load(TEXT, NAMES)
    assert [*temporary.iterdir()] == before


def test_a_gpu_newer_than_the_compiler_gets_ptx(emulated, folder, monkeypatch):
    monkeypatch.setattr(Device, "compute_capability", "103")
    for _ in range(2):
        assert scaled(kernels.load(TEXT, NAMES)[0]) == [3, 6, 9]
    assert [path.suffix for path in folder.iterdir() if path.suffix != ".json"] == [".ptx"]
    assert emulated.record.compiles == NAMES


def test_text_that_does_not_compile_is_an_error_with_the_compiler_s_log(emulated, folder):
    with pytest.raises(KernelError, match=r"scale<Unknown> for sm_90(.|\n)*Unknown.* not declared"):
        kernels.load(TEXT, ["scale<Unknown>"])


def test_a_program_that_fails_is_destroyed_too(emulated, folder):
    from tests.emulation.nvrtc import _programs

    before = len(_programs)
    with pytest.raises(KernelError):
        kernels.load(TEXT, ["scale<Unknown>"])
    kernels.load(TEXT, NAMES)
    assert len(_programs) == before


def test_a_driver_that_refuses_new_code_is_an_error_with_the_remedy(emulated, folder, monkeypatch):
    cupy = gpu.cupy()

    class RawModule:
        def __init__(self, *, path):
            pass

        def get_function(self, name):
            raise cupy.cuda.driver.CUDADriverError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")

    monkeypatch.setattr(cupy, "RawModule", RawModule)
    with pytest.raises(KernelError, match=r"UNSUPPORTED_PTX_VERSION.*as new as CuPy's CUDA: in a"):
        kernels.load(TEXT, NAMES)


def test_a_gpu_that_is_too_old_is_named_with_the_remedy(emulated, folder, monkeypatch):
    monkeypatch.setattr(Device, "compute_capability", "61")
    with pytest.raises(KernelError, match=r"cuda:0 .* is 6\.1, .* need 7\.0 .* on the CPU"):
        kernels.load(TEXT, NAMES)


def test_a_gpu_that_the_compiler_has_dropped_is_told_which_to_install():
    with pytest.raises(KernelError, match=r"is 7\.0, .* for 7\.5 or newer: install an older one"):
        architecture(70, (75, 80))


@pytest.mark.parametrize(
    ("capability", "expected"), [(75, "sm_75"), (89, "compute_80"), (121, "compute_90")]
)
def test_the_newest_architecture_that_the_compiler_knows_is_taken(capability, expected):
    assert architecture(capability, (75, 80, 90)) == expected


def test_a_missing_compiler_is_an_error_with_the_remedy(emulated, folder, monkeypatch):
    def missing():
        raise RuntimeError("libnvrtc.so.13: no such file\nsearched here and there")

    monkeypatch.setattr(gpu.cupy().cuda.nvrtc, "getVersion", missing)
    with pytest.raises(KernelError, match=r"NVRTC.* not found \(libnvrtc.so.13: no .*\): in a"):
        kernels.load(TEXT, NAMES)
