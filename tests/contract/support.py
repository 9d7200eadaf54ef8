"""What the tests of the contract share: parameters on any device, and pictures to compare."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lucid_gpu import Parameter
from lucid_gpu.device import transfer
from lucid_gpu.device.arrays import device_of, is_array
from lucid_gpu.optim import Optimizer


class Foreign:
    """A parameter of another library: data and grad, nothing else."""

    def __init__(self, data: Any, grad: Any = None) -> None:
        self.data = data
        self.grad = grad


class MyOptimizer(Optimizer):
    """Lucid's example of an optimizer of one's own."""

    def __init__(self, params, lr=0.01):
        defaults = {"lr": lr}
        super().__init__(params, defaults)

    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.data -= group["lr"] * param.grad


def array(values: Any, device: str, dtype: Any = np.float32) -> Any:
    """Return an array on a device."""
    return transfer.to(np.array(values, dtype), device)


def trained(values: Any, grad: Any, device: str, name: str | None = None, dtype=np.float32):
    """Return a Parameter with a gradient."""
    param = Parameter(np.array(values, dtype), name=name, device=device)
    param.grad = array(grad, device, dtype)
    return param


def host(value: Any) -> np.ndarray:
    """Return an array, or the data of a parameter, on the host."""
    return transfer.to(getattr(value, "data", value) if _is_parameter(value) else value, "cpu")


def values(param: Any) -> list[Any]:
    """Return the data of a parameter as a list of Python numbers."""
    return host(param.data).tolist()


def picture(value: Any) -> Any:
    """Return a copy of a tree that compares by value: arrays with dtype, device and bytes."""
    if _is_parameter(value):
        kind = type(value).__name__
        return kind, getattr(value, "name", None), picture(value.data), picture(value.grad)
    if is_array(value):
        on_host = host(value)
        return "array", device_of(value), on_host.dtype, on_host.shape, on_host.tobytes()
    if isinstance(value, dict):
        return type(value), [(picture(key), picture(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [picture(item) for item in value]
    if isinstance(value, float | np.generic):
        return type(value), np.asarray(value).tobytes()
    return type(value), value


def everything(optimizer: Optimizer) -> Any:
    """Return a picture of all that an optimizer holds."""
    state = {
        number: dict(optimizer.state[param])
        for number, param in enumerate(_params(optimizer))
        if param in optimizer.state
    }
    return picture([optimizer.param_groups, state, optimizer.defaults])


@contextlib.contextmanager
def unchanged(*optimizers: Optimizer) -> Iterator[None]:
    """Assert that the block leaves optimizers, parameters and gradients as they were."""
    before = [everything(optimizer) for optimizer in optimizers]
    lists = [optimizer.param_groups for optimizer in optimizers]
    yield
    assert [everything(optimizer) for optimizer in optimizers] == before
    assert all(o.param_groups is own for o, own in zip(optimizers, lists, strict=True))


def _params(optimizer: Optimizer) -> list[Any]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _is_parameter(value: Any) -> bool:
    return not is_array(value) and hasattr(value, "data") and hasattr(value, "grad")
