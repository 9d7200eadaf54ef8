"""PyTorch's optimizers: fused, foreach and single-tensor, eager and in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.peers.task import LR, Contender, Task
from benchmarks.protocol import Unavailable
from lucid_gpu.execution.cpu import thread_count

FLAGS = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "single": {"foreach": False, "fused": False},
}

WARM_UPS = 3
"""Steps before a capture, so that state is allocated and kernels are loaded."""


def builder(kind: str, in_graph: bool = False) -> Callable[[Task], PyTorch]:
    """Return what makes a contender of one implementation: a key of ``FLAGS``."""
    return partial(PyTorch, kind=kind, in_graph=in_graph)


class PyTorch(Contender):
    """One optimizer of :mod:`torch.optim`, on the task's own memory."""

    def __init__(self, task: Task, kind: str, in_graph: bool) -> None:
        super().__init__(task)
        self._torch = torch = load(task.device)
        self._params = [torch.nn.Parameter(self._share(array)) for array in task.params]
        self._sets = [[self._share(array) for array in grads] for grads in task.grads]
        if kind == "foreach" and task.rule.options.get("nesterov"):
            # It adds the momentum to the gradients in place, which the other contenders share.
            self._sets = [[grad.clone() for grad in grads] for grads in self._sets]
            self.copied = 4 * task.workload.parameters * len(self._sets)
        self.use_gradients(0)
        cls, options = _translate(torch, task)
        if in_graph and task.rule.optimizer == "Adam":
            options["capturable"] = True
        self._optimizer = self._make(cls, task.groups(self._params), {**options, **FLAGS[kind]})
        self._launch: Callable[[], Any] = self._optimizer.step
        if in_graph:
            self._capture()

    def step(self) -> None:
        """Take one step."""
        self._launch()

    def use_gradients(self, which: int) -> None:
        """Take the gradients of one of the task's sets."""
        for param, grad in zip(self._params, self._sets[which], strict=True):
            param.grad = grad

    def drop_a_gradient(self, is_dropped: bool) -> None:
        """Take the gradient of the tensor in the middle away, or give it back."""
        middle = len(self._params) // 2
        self._params[middle].grad = None if is_dropped else self._sets[0][middle]

    def _make(self, cls: Any, groups: list[dict[str, Any]], options: dict[str, Any]) -> Any:
        """Return the optimizer: here PyTorch's own."""
        return cls(groups, **options)

    def _share(self, array: Any) -> Any:
        return self._torch.from_dlpack(array)

    def _capture(self) -> None:
        cuda = self._torch.cuda
        stream, side = cuda.current_stream(), cuda.Stream()
        side.wait_stream(stream)
        with cuda.stream(side):
            for _ in range(WARM_UPS):
                self._optimizer.step()
        stream.wait_stream(side)
        graph = cuda.CUDAGraph()
        try:
            # Another library's thread that allocates meanwhile must not spoil the capture.
            with cuda.graph(graph, capture_error_mode="thread_local"):
                self._optimizer.step()
        finally:
            # A capture that fails leaves its stream current, where no event would time the others.
            cuda.set_stream(stream)
        self._launch = graph.replay


def load(device: str) -> Any:
    """Return the module, set up for a device.

    Raises:
        Unavailable: it is not installed, or sees no GPU where one is asked for.
    """
    try:
        import torch
    except ImportError as error:
        raise Unavailable(f"PyTorch is not installed ({error}): pip install torch") from error
    if device == "cpu":
        torch.set_num_threads(thread_count())
    elif not torch.cuda.is_available():
        raise Unavailable(f"PyTorch {torch.__version__} sees no GPU")
    else:
        torch.cuda.set_device(device)
    return torch


def _translate(torch: Any, task: Task) -> tuple[Any, dict[str, Any]]:
    """Return the class and the options that do what the task's rule does."""
    options = {"lr": LR, **task.rule.options}
    is_decoupled = options.pop("decoupled_weight_decay", False)
    if task.rule.optimizer == "SGD":
        if is_decoupled:
            raise Unavailable("torch.optim.SGD has no decoupled weight decay")
        return torch.optim.SGD, options
    options.setdefault("weight_decay", 0.0)
    options["amsgrad"] = bool(options.get("amsgrad", False))
    return (torch.optim.AdamW if is_decoupled else torch.optim.Adam), options
