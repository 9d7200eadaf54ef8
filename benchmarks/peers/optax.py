"""optax under jit, with parameters and state donated."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.peers.task import LR, Contender, Task
from benchmarks.protocol import Unavailable

MOST_TENSORS = 600
"""Above, XLA compiles for minutes."""


class Optax(Contender):
    """One optimizer of optax, on JAX arrays of its own, which are immutable."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._jax, optax = _import(task.device)
        if task.workload.groups > 1:
            raise Unavailable("optax has no groups; it partitions the tree of parameters")
        if len(task.params) > MOST_TENSORS:
            raise Unavailable(f"XLA compiles for minutes above {MOST_TENSORS} tensors")
        transform = _translate(optax, task)
        self._params = [self._own(array) for array in task.params]
        self._sets = [[self._own(array) for array in grads] for grads in task.grads]
        self.copied = 4 * task.workload.parameters * (1 + len(task.grads))
        self.use_gradients(0)
        # On its device, as all later ones: otherwise the second step is compiled anew.
        self._state = self._jax.device_put(transform.init(self._params), self._params[0].sharding)

        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = transform.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._update = self._jax.jit(update, donate_argnums=(0, 1))

    def step(self) -> None:
        """Take one step."""
        self._params, self._state = self._update(self._params, self._state, self._grads)

    def use_gradients(self, which: int) -> None:
        """Take the gradients of one of the task's sets."""
        self._grads = self._sets[which]

    def synchronize(self) -> None:
        """Wait for the device."""
        self._jax.block_until_ready((self._params, self._state))

    def _own(self, array: Any) -> Any:
        shared = self._jax.dlpack.from_dlpack(array)
        return self._jax.numpy.array(shared, copy=True)


def _import(device: str) -> tuple[Any, Any]:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU is shared with peers
    try:
        import jax
        import optax
    except ImportError as error:
        raise Unavailable(f"optax is not installed ({error}): pip install optax") from error
    backend = jax.default_backend()
    if (backend == "cpu") != (device == "cpu"):
        raise Unavailable(f"JAX {jax.__version__} runs on {backend!r}, not on {device!r}")
    return jax, optax


def _translate(optax: Any, task: Task) -> Any:
    """Return the transformation that does what the task's rule does."""
    options = dict(task.rule.options)
    decay = options.pop("weight_decay", 0.0)
    is_decoupled = options.pop("decoupled_weight_decay", False)
    if task.rule.optimizer == "SGD":
        if decay or set(options) - {"momentum", "nesterov"}:
            raise Unavailable("optax.sgd has no such switch")
        return optax.sgd(LR, momentum=options.get("momentum"), nesterov="nesterov" in options)
    if decay and not is_decoupled:
        raise Unavailable("optax.adam has no L2 decay")
    if options.pop("amsgrad", False) is True:
        return optax.amsgrad(LR)
    if options or "amsgrad" in task.rule.options:
        raise Unavailable("optax.adam has no such switch")
    return optax.adamw(LR, weight_decay=decay) if decay else optax.adam(LR)
