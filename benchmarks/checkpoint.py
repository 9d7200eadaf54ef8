"""How fast checkpoints are saved and loaded, what memory that takes, and what training notices."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.protocol import LIMIT, OURS, Measurement, Options, Report
from lucid_gpu import device as _device

NAME = "checkpoint"
QUESTION = "How long do checkpoints take, and what does training notice of them?"
SHARE = 2

ROUNDS = 5
"""The fewest rounds: disks are noisy, and a ratio is the median of its rounds."""

Arrays = list[Any]
Save = Callable[[Path, Arrays], None]
Load = Callable[[Path, Arrays], None]


def run(options: Options) -> Report:
    """Measure saving, loading, memory, and training while a save is running."""
    nbytes = 8 << 20 if options.quick else 1 << 30
    arrays = _arrays(nbytes, options.device)
    targets = [array.copy() for array in arrays]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        directory = Path(name)
        measurements = [
            *_saving(directory, arrays, options.seconds * 0.3),
            *_loading(directory, arrays, targets, options.seconds * 0.3),
            *_memory(directory, nbytes, options.device),
            *_copying(directory, arrays, options.seconds * 0.15),
            *_training(directory, options),
        ]
    notes = [
        f"{len(arrays)} float32 arrays, {nbytes / 2**20:.0f} MiB in all",
        f"the limit is {LIMITS['save']} and {LIMITS['load']}",
        "every save ends with fsync; cold: the file was dropped from the page cache before",
        "only ours checks digests when it loads",
    ]
    return Report(NAME, options.device, measurements, notes)


LIMITS = {
    "save": "one plain write and fsync of the same bytes",
    "load": "one plain read of them into the same buffers, on one thread",
}


def _arrays(nbytes: int, device: str, count: int = 64) -> Arrays:
    draw = np.random.default_rng(0)
    hosts = [draw.standard_normal(nbytes // count // 4, np.float32) for _ in range(count)]
    return [_device.to(host, device) for host in hosts]


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays)


def _host(arrays: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    return {f"a{i}": _device.to(array, "cpu") for i, array in enumerate(arrays)}


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _fill(targets: Arrays, loaded: Any) -> None:
    for i, target in enumerate(targets):
        _device.copy_into(target, loaded[f"a{i}"])


def _plain() -> tuple[Save, Load]:
    def save(path: Path, arrays: Arrays) -> None:
        with path.open("wb", buffering=0) as file:
            for host in _host(arrays).values():
                rest = memoryview(host).cast("B")
                while rest:
                    rest = rest[file.write(rest) :]
            os.fsync(file.fileno())

    def load(path: Path, targets: Arrays) -> None:
        with path.open("rb", buffering=0) as file:
            for target in targets:
                on_host = _device.of(target) == "cpu"
                host = target if on_host else np.empty(target.shape, target.dtype)
                file.readinto(memoryview(host).cast("B"))
                if not on_host:
                    _device.copy_into(target, host)

    return save, load


def _ours() -> tuple[Save, Load]:
    from lucid_gpu import checkpoint

    return checkpoint.save, lambda path, targets: checkpoint.load(path, into=targets)


def _torch() -> tuple[Save, Load]:
    import torch

    def save(path: Path, arrays: Arrays) -> None:
        torch.save({k: torch.from_numpy(v) for k, v in _host(arrays).items()}, path)
        _sync(path)

    def load(path: Path, targets: Arrays) -> None:
        _fill(targets, {k: v.numpy() for k, v in torch.load(path, weights_only=True).items()})

    return save, load


def _savez() -> tuple[Save, Load]:
    def save(path: Path, arrays: Arrays) -> None:
        with path.open("wb") as file:
            np.savez(file, **_host(arrays))
            file.flush()
            os.fsync(file.fileno())

    def load(path: Path, targets: Arrays) -> None:
        with np.load(path) as loaded:
            _fill(targets, loaded)

    return save, load


def _safetensors() -> tuple[Save, Load]:
    from safetensors import numpy as safetensors

    def save(path: Path, arrays: Arrays) -> None:
        safetensors.save_file(_host(arrays), path)
        _sync(path)

    return save, lambda path, targets: _fill(targets, safetensors.load_file(path))


CONTENDERS = {
    LIMIT: _plain,
    OURS: _ours,
    "torch.save": _torch,
    "np.savez": _savez,
    "safetensors": _safetensors,
}


def _installed() -> Iterator[tuple[str, Save, Load]]:
    for name, make in CONTENDERS.items():
        with contextlib.suppress(ImportError):
            yield (name, *make())


def _missing(workload: str) -> Iterator[Measurement]:
    for name, make in CONTENDERS.items():
        try:
            make()
        except ImportError as error:
            yield Measurement(workload, name, [], missing=str(error))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _saving(directory: Path, arrays: Arrays, seconds: float) -> Iterator[Measurement]:
    def sample(save: Save, path: Path) -> float:
        _remove(path)
        os.sync()
        return timing.clock(lambda: save(path, arrays))

    samples = timing.interleaved(
        {
            name: lambda save=save, path=directory / name: sample(save, path)
            for name, save, _ in _installed()
        },
        seconds,
        at_least=ROUNDS,
    )
    yield from _measured("save", samples, _size(arrays))
    yield from _missing("save")


def _loading(
    directory: Path, arrays: Arrays, targets: Arrays, seconds: float
) -> Iterator[Measurement]:
    def sample(load: Load, path: Path, cold: bool) -> float:
        if cold:
            _forget(path)
        elapsed = timing.clock(lambda: load(path, targets))
        for source, target in zip(arrays, targets, strict=True):
            assert bool((source == target).all())
            target.fill(0)
        return elapsed

    for workload, cold in (("load", False), ("load, cold", True)):
        contenders = {
            name: lambda load=load, path=directory / name: sample(load, path, cold)  # noqa: B023
            for name, _, load in _installed()
        }
        samples = timing.interleaved(contenders, seconds / 2, at_least=ROUNDS)
        yield from _measured(workload, samples, _size(arrays))


def _forget(path: Path) -> None:
    """Drop a file, or all files of a directory, from the page cache."""
    for file in path.iterdir() if path.is_dir() else [path]:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _memory(directory: Path, nbytes: int, device: str) -> Iterator[Measurement]:
    """Measure in processes of their own, whose memory no contender before has stretched."""
    spawn = multiprocessing.get_context("spawn")
    for name, _, _ in _installed():
        path = directory / f"{name}-memory"
        with ProcessPoolExecutor(1, spawn) as pool:
            peaks = pool.submit(_peaks, name, path, nbytes, device).result()
        for workload, peak in zip(("save", "load"), peaks, strict=True):
            yield Measurement(workload, name, [peak], "extra memory", "B")
        _remove(path)


def _peaks(name: str, path: Path, nbytes: int, device: str) -> list[float]:
    """Return how much the process grows, at most, while it saves and while it loads."""
    arrays = [_device.to(np.full(nbytes // 256, i, np.float32), device) for i in range(64)]
    peaks = []
    for call in CONTENDERS[name]():
        # Writing 5 makes the present size the peak.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status("VmRSS")
        call(path, arrays)
        peaks.append(float(max(_status("VmHWM") - before, 0)))
    return peaks


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _copying(directory: Path, arrays: Arrays, seconds: float) -> Iterator[Measurement]:
    """Measure what a background save costs before it returns, beside a copy to buffers."""
    from lucid_gpu.checkpoint import Checkpointer

    buffers = {name: host.copy() for name, host in _host(arrays).items()}

    def copy() -> None:
        for buffer, array in zip(buffers.values(), arrays, strict=True):
            _device.copy_into(buffer, array)

    with Checkpointer(directory / "copying", keep=1) as checkpointer:

        def save() -> float:
            checkpointer.wait()
            step = max(checkpointer.steps(), default=0) + 1
            elapsed = timing.clock(lambda: checkpointer.save(step, arrays, block=False))
            checkpointer.wait()
            return elapsed

        contenders = {LIMIT: lambda: timing.clock(copy), OURS: save}
        samples = timing.interleaved(contenders, seconds, at_least=ROUNDS)
    _remove(directory / "copying")
    yield from _measured("background save", samples, _size(arrays), "until it returns")


def _training(directory: Path, options: Options) -> Iterator[Measurement]:
    """Measure a step of Adam while nothing else, and while a background save, is running."""
    from lucid_gpu import Parameter, optim
    from lucid_gpu.checkpoint import Checkpointer

    nbytes, rounds = (1 << 20, 3) if options.quick else (128 << 20, 8)
    params = [Parameter(array) for array in _arrays(nbytes, options.device)]
    optimizer = optim.Adam(params)
    for param in params:
        param.grad = param.data * np.float32(0.01)
    optimizer.step()
    samples: dict[str, list[float]] = {name: [] for name in ("returns", "beside", "alone")}
    with Checkpointer(directory / "training", keep=1) as checkpointer:
        for step in range(1, rounds + 1):
            tree = [params, optimizer]
            returns = timing.clock(lambda: checkpointer.save(step, tree, block=False))  # noqa: B023
            steps = []
            while checkpointer.steps()[-1:] != [step]:
                steps.append(timing.clock(optimizer.step))
            checkpointer.wait()
            if step > 1 and steps:
                samples["returns"].append(returns)
                samples["beside"].append(statistics.fmean(steps))
                samples["alone"].append(
                    statistics.fmean(timing.clock(optimizer.step) for _ in steps)
                )
    _remove(directory / "training")
    workload = f"a step of Adam, {nbytes >> 22} Mi parameters"
    yield Measurement(workload, LIMIT, samples["alone"], note="nothing else running")
    yield Measurement(workload, OURS, samples["beside"], note="a background save running")
    workload = f"background save of Adam and {nbytes >> 22} Mi parameters"
    traffic = 3 * nbytes
    yield from _measured(workload, {OURS: samples["returns"]}, traffic, "until it returns")


def _measured(
    workload: str, samples: dict[str, list[float]], traffic: int, metric: str = "wall"
) -> Iterator[Measurement]:
    for name, values in samples.items():
        yield Measurement(workload, name, values, metric, "s", traffic // 4, traffic)


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main([NAME, *sys.argv[1:]]))
