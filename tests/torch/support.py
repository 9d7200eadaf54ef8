"""What the tests of :mod:`lucid_gpu.torch` share."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")


def parameters(*shapes, seed=0, dtype=torch.float32):
    """Parameters of random values, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    params = [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes
    ]
    set_gradients(params, seed + 1)
    return params


def set_gradients(params, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)


def values(params):
    """The values of parameters, to be compared to the bit."""
    return [param.detach().clone().numpy().tobytes() for param in params]


def everything(optimizer):
    """All that a step may change."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state = [
        {
            name: value.clone().numpy().tobytes() if isinstance(value, torch.Tensor) else value
            for name, value in optimizer.state.get(param, {}).items()
        }
        for param in params
    ]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    dense = [param for param in params if param.layout is torch.strided and not param.is_meta]
    shown = [
        param.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        for param in dense
    ]
    return shown, state, groups


def assert_close(ours, theirs, ulps=8):
    """Hold parameters to those of another optimizer, in ulps of the larger of value and 1."""
    for own, their in zip(ours, theirs, strict=True):
        scale = torch.finfo(own.dtype).eps * their.abs().clamp(min=1)
        assert ((own - their).abs() <= ulps * scale).all()
