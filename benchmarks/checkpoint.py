"""How fast checkpoints are saved and loaded, what memory that takes, and what training notices."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import timing
from benchmarks.peers.files import CONTENDERS, Arrays, Load, Save, on_host, plain
from benchmarks.protocol import LIMIT, OURS, Measurement, Options, Report, why_missing
from lucid_gpu.device import gpu, transfer

NAME = "checkpoint"
QUESTION = "How long do checkpoints take, and what does training notice of them?"
SHARE = 2

ROUNDS = 5
"""The fewest rounds: disks are noisy, and a ratio is the median of its rounds."""

LARGEST, SMALLEST = 1 << 30, 16 << 20
"""Bytes of the arrays, as the speed of the disk allows."""

PROBE = 64 << 20
"""Bytes that are written to see how fast the disk is; of fewer, a sync is most of the time."""

QUICK = 8 << 20

PASSES = 250
"""About how many plain saves take as long as all that is measured: more minutes, larger arrays."""


def run(options: Options) -> Report:
    """Measure saving, loading, memory, and training while a save is running."""
    report = Report(NAME, options.device, [])
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        directory = Path(name)
        nbytes = QUICK if options.quick else _fitting(directory, options.seconds)
        arrays = _arrays(nbytes, options.device)
        targets = [array.copy() for array in arrays]
        report.notes += [
            f"{len(arrays)} float32 arrays, {nbytes / 2**20:.0f} MiB in all",
            f"the limit is {LIMITS['save']} and {LIMITS['load']}",
            "every save ends with fsync; cold: the file was dropped from the page cache before",
            "only ours checks digests when it loads",
        ]
        for part in (
            _saving(directory, arrays, options.seconds * 0.3),
            _loading(directory, arrays, targets, options.seconds * 0.3),
            _memory(directory, nbytes, options.device),
            _copying(directory, arrays, options.seconds * 0.15),
            _training(directory, options, nbytes),
        ):
            try:
                report.measurements += part
            except Exception as error:  # noqa: BLE001 - the other parts may still be measured
                report.measurements.append(Measurement(NAME, OURS, [], missing=why_missing(error)))
            options.keep(report)
    return report


def _fitting(directory: Path, seconds: float) -> int:
    """Return how many bytes the disk takes often enough in about the given time."""
    save, _ = plain()
    path = directory / "probe"
    arrays = [np.ones(PROBE // 4, np.float32)]
    took = statistics.median(timing.clock(lambda: save(path, arrays)) for _ in range(3))
    nbytes = LARGEST
    while nbytes > SMALLEST and took * nbytes / PROBE * PASSES > seconds:
        nbytes //= 2
    return nbytes


LIMITS = {
    "save": "one plain write and fsync of the same bytes",
    "load": "one plain read of them into the same buffers, on one thread",
}


def _arrays(nbytes: int, device: str, count: int = 64) -> Arrays:
    draw = np.random.default_rng(0)
    hosts = [draw.standard_normal(nbytes // count // 4, np.float32) for _ in range(count)]
    return [transfer.to(host, device) for host in hosts]


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays)


def _installed() -> Iterator[tuple[str, Save, Load]]:
    for name, make in CONTENDERS.items():
        with contextlib.suppress(Exception):
            yield (name, *make())


def _missing(workload: str) -> Iterator[Measurement]:
    for name, make in CONTENDERS.items():
        try:
            make()
        except Exception as error:  # noqa: BLE001 - a library may fail to load in many ways
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

    contenders = {
        name: lambda save=save, path=directory / name: sample(save, path)
        for name, save, _ in _installed()
    }
    yield from _sampled("save", contenders, seconds, _size(arrays))
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
        yield from _sampled(workload, contenders, seconds / 2, _size(arrays))


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
        try:
            with ProcessPoolExecutor(1, spawn) as pool:
                peaks = pool.submit(_peaks, name, path, nbytes, device).result()
        except Exception as error:  # noqa: BLE001 - a system may not let peaks be reset
            yield Measurement("save", name, [], "extra memory", "B", missing=why_missing(error))
            continue
        for workload, peak in zip(("save", "load"), peaks, strict=True):
            yield Measurement(workload, name, [peak], "extra memory", "B")
        _remove(path)


def _peaks(name: str, path: Path, nbytes: int, device: str) -> list[float]:
    """Return how much the process grows, at most, while it saves and while it loads."""
    arrays = [transfer.to(np.full(nbytes // 256, i, np.float32), device) for i in range(64)]
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

    buffers = {name: host.copy() for name, host in on_host(arrays).items()}

    def copy() -> None:
        for buffer, array in zip(buffers.values(), arrays, strict=True):
            transfer.copy_into(buffer, array)

    with Checkpointer(directory / "copying", keep=1) as checkpointer:

        def save() -> float:
            checkpointer.wait()
            step = max(checkpointer.steps(), default=0) + 1
            elapsed = timing.clock(lambda: checkpointer.save(step, arrays, block=False))
            checkpointer.wait()
            return elapsed

        contenders = {LIMIT: lambda: timing.clock(copy), OURS: save}
        metric = "until it returns"
        yield from _sampled("background save", contenders, seconds, _size(arrays), metric)
    _remove(directory / "copying")


def _training(directory: Path, options: Options, saved: int = QUICK) -> Iterator[Measurement]:
    """Measure a step of Adam while nothing else, and while a background save, is running."""
    from lucid_gpu import Parameter, optim
    from lucid_gpu.checkpoint import Checkpointer

    nbytes, rounds = min(128 << 20, saved // 4), 3 if options.quick else 8
    params = [Parameter(array) for array in _arrays(nbytes, options.device)]
    optimizer = optim.Adam(params)
    for param in params:
        param.grad = param.data * np.float32(0.01)

    def step() -> float:
        return timing.clock(lambda: (optimizer.step(), _wait(options.device)))

    step()
    samples: dict[str, list[float]] = {name: [] for name in ("returns", "beside", "alone")}
    deadline = time.monotonic() + options.seconds * 0.25
    with Checkpointer(directory / "training", keep=1) as checkpointer:
        for number in range(1, rounds + 1):
            if number > 3 and time.monotonic() > deadline:
                break
            tree = [params, optimizer]
            returns = timing.clock(lambda: checkpointer.save(number, tree, block=False))  # noqa: B023
            steps = []
            # A save that fails, or a slow disk, is not waited for with steps.
            enough = time.monotonic() + options.seconds / 16
            while checkpointer.steps()[-1:] != [number] and time.monotonic() < enough:
                steps.append(step())
            checkpointer.wait()
            if number > 1 and steps:
                samples["returns"].append(returns)
                samples["beside"].append(statistics.fmean(steps))
                samples["alone"].append(statistics.fmean(step() for _ in steps))
    _remove(directory / "training")
    workload = f"a step of Adam, {nbytes >> 22} Mi parameters"
    yield Measurement(workload, LIMIT, samples["alone"], note="nothing else running")
    yield Measurement(workload, OURS, samples["beside"], note="a background save running")
    workload = f"background save of Adam and {nbytes >> 22} Mi parameters"
    traffic = 3 * nbytes
    yield Measurement(
        workload, OURS, samples["returns"], "until it returns", "s", traffic // 4, traffic
    )


def _wait(device: str) -> None:
    """Wait for the stream of the steps, not for that of a save."""
    if device != "cpu":
        gpu.cupy().cuda.get_current_stream().synchronize()


def _sampled(
    workload: str,
    contenders: dict[str, timing.Sample],
    seconds: float,
    traffic: int,
    metric: str = "wall",
) -> Iterator[Measurement]:
    failures: dict[str, str] = {}
    samples = timing.interleaved(contenders, seconds, at_least=ROUNDS, failures=failures)
    for name, values in samples.items():
        row = Measurement(workload, name, values, metric, "s", traffic // 4, traffic)
        if name in failures:
            row.end(failures[name])
        yield row


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main([NAME, *sys.argv[1:]]))
