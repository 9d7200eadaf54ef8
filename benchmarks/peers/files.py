"""How arrays are saved and loaded: by ours, by its peers, and by the limit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol import LIMIT, OURS
from lucid_gpu.device import transfer
from lucid_gpu.device.arrays import device_of

Arrays = list[Any]
Save = Callable[[Path, Arrays], None]
Load = Callable[[Path, Arrays], None]


def on_host(arrays: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Return arrays on the host, by the names that files give them."""
    return {f"a{i}": transfer.to(array, "cpu") for i, array in enumerate(arrays)}


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _fill(targets: Arrays, loaded: Any) -> None:
    for i, target in enumerate(targets):
        transfer.copy_into(target, loaded[f"a{i}"])


def plain() -> tuple[Save, Load]:
    """Return what writes and reads bytes and no more."""

    def save(path: Path, arrays: Arrays) -> None:
        with path.open("wb", buffering=0) as file:
            for host in on_host(arrays).values():
                rest = memoryview(host).cast("B")
                while rest:
                    rest = rest[file.write(rest) :]
            os.fsync(file.fileno())

    def load(path: Path, targets: Arrays) -> None:
        with path.open("rb", buffering=0) as file:
            for target in targets:
                is_here = device_of(target) == "cpu"
                host = target if is_here else np.empty(target.shape, target.dtype)
                file.readinto(memoryview(host).cast("B"))
                if not is_here:
                    transfer.copy_into(target, host)

    return save, load


def _ours() -> tuple[Save, Load]:
    from lucid_gpu import checkpoint

    return checkpoint.save, lambda path, targets: checkpoint.load(path, into=targets)


def _torch() -> tuple[Save, Load]:
    import torch

    def save(path: Path, arrays: Arrays) -> None:
        torch.save({k: torch.from_numpy(v) for k, v in on_host(arrays).items()}, path)
        _sync(path)

    def load(path: Path, targets: Arrays) -> None:
        _fill(targets, {k: v.numpy() for k, v in torch.load(path, weights_only=True).items()})

    return save, load


def _savez() -> tuple[Save, Load]:
    def save(path: Path, arrays: Arrays) -> None:
        with path.open("wb") as file:
            np.savez(file, **on_host(arrays))
            file.flush()
            os.fsync(file.fileno())

    def load(path: Path, targets: Arrays) -> None:
        with np.load(path) as loaded:
            _fill(targets, loaded)

    return save, load


def _safetensors() -> tuple[Save, Load]:
    from safetensors import numpy as safetensors

    def save(path: Path, arrays: Arrays) -> None:
        safetensors.save_file(on_host(arrays), path)
        _sync(path)

    return save, lambda path, targets: _fill(targets, safetensors.load_file(path))


CONTENDERS = {
    LIMIT: plain,
    OURS: _ours,
    "torch.save": _torch,
    "np.savez": _savez,
    "safetensors": _safetensors,
}
"""How to make what saves and what loads. Called without arguments; raises where it cannot."""
