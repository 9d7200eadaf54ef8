from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest

from lucid_gpu.command import display, info
from lucid_gpu.device import gpu
from tests.emulation import machine


def rows() -> dict[str, list[str]]:
    """Return the report as a mapping from the name of a thing to what is said of it."""
    found: dict[str, list[str]] = {}
    for line in info.report().splitlines():
        found.setdefault(line[:13].strip(), []).append(line[14:])
    return found


@pytest.fixture
def with_nvrtc(emulated, monkeypatch):
    """The emulated CuPy, whose NVRTC a test may change."""
    cupy = sys.modules["cupy"]
    monkeypatch.setattr(cupy.cuda, "nvrtc", SimpleNamespace(**vars(cupy.cuda.nvrtc)))
    return cupy


def test_without_cupy_the_cpu_runs_and_the_remedy_is_named(without_cupy) -> None:
    found = rows()
    assert found["default"] == ["cpu"]
    for name in ("CuPy", "CUDA runtime", "NVRTC", "driver"):
        assert found[name] == ["not found"]
    assert found["missing"][0].startswith("for a GPU: CuPy cannot be imported")
    assert "pip install '.[cuda13]'" in found["missing"][0]


def test_a_gpu_is_named_with_its_memory(with_nvrtc, emulated, monkeypatch) -> None:
    monkeypatch.setattr(machine.Device, "mem_info", (3 << 29, 1 << 31))
    found = rows()
    assert found["cuda:1"] == ["Emulated GPU, compute capability 9.0, 1.5 of 2.0 GiB free"]
    assert found["default"] == ["cuda:0"]
    assert found["NVRTC"] == ["13.2"]
    assert found["CUDA runtime"] == ["13.0"]
    assert found["missing"] == ["nothing"]


def test_the_release_of_the_driver_is_told_where_linux_knows_it(
    with_nvrtc, monkeypatch, tmp_path
) -> None:
    release = tmp_path / "version"
    monkeypatch.setattr(info, "DRIVER_RELEASE", release)
    assert rows()["driver"] == ["runs CUDA up to 13.0"]
    for text in (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Wed Jul 12 19:52:11 UTC 2025",
    ):
        release.write_text(f"{text}\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n")
        assert rows()["driver"] == ["580.65.06, runs CUDA up to 13.0"]


def test_cupy_without_a_driver_runs_on_the_cpu(with_nvrtc, monkeypatch) -> None:
    def no_driver() -> int:
        raise with_nvrtc.cuda.runtime.CUDARuntimeError(35)

    monkeypatch.setattr(with_nvrtc.cuda.runtime, "getDeviceCount", no_driver)
    monkeypatch.setattr(with_nvrtc.cuda.runtime, "driverGetVersion", lambda: 0)
    gpu._probe.cache_clear()
    found = rows()
    assert found["CuPy"] == ["14.2.0"]
    assert found["driver"] == ["not found"]
    assert found["default"] == ["cpu"]
    assert "no usable NVIDIA driver" in found["missing"][0]


def test_a_missing_compiler_is_told(with_nvrtc, monkeypatch) -> None:
    def not_found() -> tuple[int, int]:
        raise RuntimeError("libnvrtc.so.13: no such file\nsearched here and there")

    monkeypatch.setattr(with_nvrtc.cuda.nvrtc, "getVersion", not_found)
    found = rows()
    assert found["NVRTC"] == ["not found"]
    assert (
        "NVRTC, which compiles the kernels, was not found (libnvrtc.so.13: no such file)"
        in (found["missing"][0])
    )


def test_cupy_without_its_compiler_is_told(with_nvrtc, monkeypatch) -> None:
    monkeypatch.delattr(with_nvrtc.cuda, "nvrtc")
    found = rows()
    assert found["NVRTC"] == ["not found"]
    assert "NVRTC, which compiles the kernels, was not found" in found["missing"][0]
    assert "pip install '.[cuda13]'" in found["missing"][0]


def test_a_gpu_older_than_the_kernels_need_is_told_with_the_remedy(with_nvrtc, monkeypatch) -> None:
    properties = {"name": b"Old GPU", "major": 6, "minor": 1}
    monkeypatch.setattr(with_nvrtc.cuda.runtime, "getDeviceProperties", lambda number: properties)
    found = rows()
    assert found["cuda:1"][0].startswith("Old GPU, compute capability 6.1")
    assert found["missing"][1].startswith("for a GPU: cuda:1 cannot be used: its compute capab")
    assert found["missing"][1].endswith("(Volta) or newer: step on another GPU or on the CPU")


def test_a_gpu_that_the_compiler_has_dropped_is_told(with_nvrtc, monkeypatch) -> None:
    properties = {"name": b"Volta", "major": 7, "minor": 0}
    monkeypatch.setattr(with_nvrtc.cuda.runtime, "getDeviceProperties", lambda number: properties)
    assert "compiles for 7.5 or newer: install an older one" in rows()["missing"][0]


def test_a_gpu_that_refuses_is_told_and_the_others_are_listed(with_nvrtc, monkeypatch) -> None:
    properties = with_nvrtc.cuda.runtime.getDeviceProperties

    def refuse_the_first(number: int):
        if number == 0:
            raise with_nvrtc.cuda.runtime.CUDARuntimeError(46)
        return properties(number)

    monkeypatch.setattr(with_nvrtc.cuda.runtime, "getDeviceProperties", refuse_the_first)
    found = rows()
    assert "cuda:0" not in found
    assert found["cuda:1"][0].startswith("Emulated GPU")
    assert found["missing"][0].startswith("for a GPU: cuda:0 cannot be used: ")


@pytest.mark.gpu
def test_a_real_gpu_is_described() -> None:
    if not gpu.count():
        pytest.skip(gpu.why_unavailable())
    facts = info.cuda()
    assert len(facts.gpus) == gpu.count()
    assert facts.missing == []
    for each in facts.gpus:
        assert 0 < each.free <= each.total
        assert each.model


def test_the_kernel_cache_is_measured(without_cupy, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("LUCID_GPU_CACHE_DIR", str(tmp_path))
    assert rows()["kernel cache"] == [f"{tmp_path}: empty"]
    for name in "ab":
        (tmp_path / f"{name}.cubin").write_bytes(bytes(1 << 20))
    assert rows()["kernel cache"] == [f"{tmp_path}: 2 files, 2.0 MiB"]


def test_a_kernel_cache_that_cannot_be_written_is_told(without_cupy, monkeypatch, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUCID_GPU_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert "cannot be written, so each process compiles" in rows()["kernel cache"][0]


def test_without_a_home_there_is_no_kernel_cache(without_cupy, monkeypatch) -> None:
    monkeypatch.setattr(info.disk_cache, "directory", lambda: None)
    assert rows()["kernel cache"][0].endswith("set LUCID_GPU_CACHE_DIR")


def test_the_kernel_sources_are_found(without_cupy, monkeypatch) -> None:
    assert "adam.cuh" in rows()["kernels"][0]

    def damaged():
        raise FileNotFoundError("the CUDA sources are gone")

    monkeypatch.setattr(info, "kernel_directory", damaged)
    assert "for a GPU: the CUDA sources are gone" in rows()["missing"]


def test_the_threads_of_the_cpu_are_told(without_cupy, monkeypatch) -> None:
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", "3")
    assert rows()["cpu"][0].endswith("steps on 3 threads")
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", "many")
    assert "for the CPU: LUCID_GPU_NUM_THREADS must be" in " ".join(rows()["missing"])


@pytest.mark.usefixtures("without_cupy", "fresh")
@pytest.mark.parametrize("choice", ["auto", "compiled"])
def test_the_compiler_of_the_cpu_is_told(monkeypatch, choice) -> None:
    monkeypatch.setenv("LUCID_GPU_CPU", choice)
    monkeypatch.delenv("CXX", raising=False)
    found = rows()
    assert re.fullmatch(r"compiled code \(/.*\+\+\), steps on \d+ threads", found["cpu"][0])
    assert "for a fast CPU" not in " ".join(found["missing"])


@pytest.mark.usefixtures("without_cupy")
def test_numpy_that_was_chosen_is_told() -> None:
    assert rows()["cpu"][0].startswith("NumPy, as LUCID_GPU_CPU says, steps")


@pytest.mark.usefixtures("without_cupy", "fresh")
@pytest.mark.parametrize(("choice", "steps"), [("auto", "NumPy"), ("compiled", "nothing")])
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-compiler", "no C++ compiler was found: install g++, or name one with CXX"),
        ("false", "/false failed: it exits with 1"),
    ],
)
def test_why_no_compiled_code_steps_is_told(monkeypatch, choice, steps, command, reason) -> None:
    monkeypatch.setenv("LUCID_GPU_CPU", choice)
    monkeypatch.setenv("CXX", command)
    found = rows()
    assert found["cpu"][0].startswith(f"{steps}, steps")
    assert "for a fast CPU: " in " ".join(found["missing"])
    assert reason in " ".join(found["missing"])


@pytest.mark.usefixtures("without_cupy")
def test_an_unknown_code_of_the_cpu_is_told(monkeypatch) -> None:
    monkeypatch.setenv("LUCID_GPU_CPU", "quick")
    assert "for the CPU: LUCID_GPU_CPU must be one of" in " ".join(rows()["missing"])


def test_absent_packages_of_the_demo_are_told(without_cupy, monkeypatch) -> None:
    monkeypatch.setitem(display.PACKAGES, "no_such_module", "no-such-package")
    remedy = "for the demo: no-such-package: in a clone of lucid_gpu, pip install '.[demo]'"
    assert rows()["missing"][-1] == remedy
