"""The optimizers in array code: what each is tried with, and gradients of its kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lucid_gpu import Parameter, RowGradient, optim
from lucid_gpu.device import transfer
from lucid_gpu.optim import ArrayOptimizer, FusedOptimizer, Optimizer, OptimizerStub
from lucid_gpu.optim.core import tree
from tests.stepping import bits, place

BASES = {Optimizer, FusedOptimizer, ArrayOptimizer, OptimizerStub}


def optimizers() -> list[type[Optimizer]]:
    """Return the exported optimizers that are no fused rules."""
    exported = (getattr(optim, name) for name in optim.__all__)
    return [
        kind
        for kind in exported
        if inspect.isclass(kind)
        and issubclass(kind, Optimizer)
        and not issubclass(kind, FusedOptimizer)
        and kind not in BASES
    ]


def dense(rng: np.random.Generator, shape: tuple[int, ...], device: str, dtype: str) -> Any:
    """Draw a gradient."""
    return place(np.asarray(rng.normal(size=shape), dtype), device).view


def of_rows(rng: np.random.Generator, shape: tuple[int, ...], device: str, dtype: str) -> Any:
    """Draw a gradient of rows, of which some are there several times."""
    count = 2 * shape[0]
    rows = rng.integers(0, max(shape[0], 1), count)
    values = np.asarray(rng.normal(size=(count, *shape[1:])), dtype)
    return RowGradient(place(rows, device).view, place(values, device).view)


def scaled(draw: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """Return what draws gradients that are larger."""

    def drawn(*arguments: Any) -> Any:
        grad = draw(*arguments)
        own = grad.values if isinstance(grad, RowGradient) else grad
        with np.errstate(over="ignore"):
            own *= factor
        return grad

    return drawn


def parts(grad: Any) -> list[Any]:
    """Return the arrays of a gradient on the host."""
    own = [grad.rows, grad.values] if isinstance(grad, RowGradient) else [grad]
    return [transfer.copy(array, "cpu") for array in own]


def by_kind(params: list[Any]) -> list[dict[str, Any]]:
    """Return groups as Muon wants them."""
    matrices = [param for param in params if param.data.ndim > 1]
    others = [param for param in params if param.data.ndim < 2]
    groups = [{"params": matrices}, {"params": others, "kind": "adamw", "lr": 0.01}]
    return [group for group in groups if group["params"]]


def bowl(params: list[Any], targets: list[Any]) -> Any:
    """Set the gradients of a sum of fourth powers of distances, and return that sum."""
    loss = 0.0
    for param, target in zip(params, targets, strict=True):
        far = param.data - transfer.to(target, param.device)
        param.grad = 4 * far**3
        loss = loss + (far**4).sum()
    return loss


class Case(NamedTuple):
    """An optimizer in array code with options.

    Attributes:
        rule: its class.
        options: of its constructor.
        shapes: of parameters that it is tried on.
        group: makes of parameters what its constructor takes.
        draw: draws a gradient.
        takes_closure: whether gradients come from a closure.
        dtype: of parameters.
    """

    rule: type[ArrayOptimizer]
    options: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...] = ((3, 4), (5,), ())
    group: Callable[[list[Any]], list[Any]] = list
    draw: Callable[..., Any] = dense
    takes_closure: bool = False
    dtype: str = "float32"

    @property
    def label(self) -> str:
        """A name for test reports."""
        options = (f"{k}={v}" for k, v in self.options.items())
        return "-".join([self.rule.__name__, *options, *{self.dtype} - {"float32"}])

    def make(self, device: str, seed: int = 1, dtype: str | None = None) -> tuple[Any, list[Any]]:
        """Return an optimizer and its parameters."""
        dtype = dtype or self.dtype
        rng = np.random.default_rng(seed)
        params = [
            Parameter(place(np.asarray(rng.normal(size=shape), dtype), device).view)
            for shape in self.shapes
        ]
        return self.rule(self.group(params), **self.options), params

    def train(self, optimizer: Any, params: list[Any], steps: int = 3, seed: int = 2) -> None:
        """Take some steps with gradients that change."""
        rng = np.random.default_rng(seed)
        if self.takes_closure:
            targets = [np.asarray(rng.normal(size=param.shape), param.dtype) for param in params]
            for _ in range(steps):
                optimizer.step(lambda: bowl(params, targets))
            return
        for _ in range(steps):
            for param in params:
                param.grad = self.draw(rng, param.shape, param.device, param.dtype.name)
            optimizer.step()


ANY_SHAPES = ((3, 4), (2, 3, 5), (5,), ())
ROW_SHAPES = ((6, 3), (5,), (4, 2, 2))
MUON_SHAPES = ((3, 4), (6, 2), (2, 3, 2), (5,), ())

CASES = [
    Case(optim.Adafactor, {"lr": 0.1}, ANY_SHAPES),
    Case(optim.Adafactor, {"d": 1.5, "weight_decay": 0.1, "maximize": True}, ANY_SHAPES),
    Case(optim.SparseAdam, {"lr": 0.1}, ROW_SHAPES, draw=of_rows),
    Case(optim.SparseAdam, {"betas": (0.5, 0.9), "maximize": True}, ROW_SHAPES, draw=of_rows),
    Case(optim.Muon, {}, MUON_SHAPES, by_kind),
    Case(optim.Muon, {"nesterov": False, "weight_decay": 0.0}, MUON_SHAPES, by_kind),
    *(
        Case(rule, {"weight_decay": 0.1}, shapes, group, dtype=dtype)
        for rule, shapes, group in (
            (optim.Adafactor, ANY_SHAPES, list),
            (optim.Muon, MUON_SHAPES, by_kind),
        )
        for dtype in ("bfloat16", "float16")
    ),
    Case(
        optim.Muon,
        {"adjust_lr_fn": "match_rms_adamw", "ns_dtype": "bfloat16"},
        MUON_SHAPES,
        by_kind,
    ),
]

CLOSURE_CASES = [
    Case(optim.LBFGS, {"max_iter": 4, "lr": 0.5}, ANY_SHAPES, takes_closure=True),
    Case(
        optim.LBFGS,
        {"max_iter": 4, "line_search_fn": "strong_wolfe"},
        ANY_SHAPES,
        takes_closure=True,
    ),
]


def arrays(optimizer: Any, params: list[Any]) -> list[Any]:
    """Return parameters and slots as arrays on the host."""
    found = [param.data for param in params]
    for param in params:
        slots = optimizer.state.get(param, {})
        found += [array for name in sorted(slots) for array in tree.arrays_in(slots[name])]
    return [transfer.to(array, "cpu") for array in found]


def everything(optimizer: Any, params: list[Any]) -> list[Any]:
    """Return the bits of parameters and slots."""
    return [bits(array) for array in arrays(optimizer, params)]
